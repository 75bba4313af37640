"""Batch norm re-estimation: the identity on the original, and the original's moments on anything else."""

import copy
from dataclasses import replace

import pytest
import torch
from hypothesis import given
from hypothesis import strategies as st
from torch import Tensor, nn

from autocompress.compression.repair.batch_norm import moments, reestimate
from autocompress.compression.repair.sequential import refit
from autocompress.compression.repair.statistics import Statistics
from autocompress.graph.cut import cut
from autocompress.task.batches import as_one
from tests.compression.repair.nets import chain, known, zoo


def norm(channels: int, generator: torch.Generator) -> nn.BatchNorm2d:
    found = nn.BatchNorm2d(channels).eval()
    with torch.no_grad():
        found.running_mean.normal_(generator=generator)  # type: ignore[union-attr]
        found.running_var.uniform_(0.5, 2, generator=generator)  # type: ignore[union-attr]
        found.weight.normal_(generator=generator)
    return found


@given(st.integers(0, 10**6), st.floats(0.1, 10), st.floats(-5, 5))
def test_outputs_get_their_moments_back(seed: int, scale: float, shift: float) -> None:
    generator = torch.Generator().manual_seed(seed)
    module, x = norm(3, generator), torch.randn(8, 3, 4, 4, generator=generator)
    wanted = moments(module(x))
    moved = x * scale + shift
    reestimate(module, moments(moved), moments(x))
    found = moments(module(moved))
    torch.testing.assert_close(found.mean, wanted.mean, atol=1e-3, rtol=1e-3)
    torch.testing.assert_close(found.variance, wanted.variance, atol=1e-3, rtol=1e-3)


def test_unmoved_inputs_change_nothing() -> None:
    """Though the statistics are not those of the data."""
    generator = torch.Generator().manual_seed(0)
    module, x = norm(3, generator), torch.randn(8, 3, 4, 4, generator=generator)
    before = copy.deepcopy(module.state_dict())
    reestimate(module, moments(x), moments(x))
    for name, value in module.state_dict().items():
        torch.testing.assert_close(value, before[name], atol=1e-5, rtol=1e-5)


def test_constant_channels_stay_finite() -> None:
    module = norm(2, torch.Generator().manual_seed(0))
    x = torch.randn(4, 2, 3, 3)
    constant, dead = x.clone(), x.clone()
    constant[:, 0], dead[:, 1] = 1.0, 0.0
    reestimate(module, moments(dead), moments(constant))
    assert torch.isfinite(module(dead)).all()


def normed(model: nn.Module, statistics: Statistics, name: str) -> Tensor:
    """What a norm puts out for the calibration batches."""
    found: list[Tensor] = []
    handle = model.get_submodule(name).register_forward_hook(lambda m, i, o: found.append(o))
    with torch.no_grad():
        model(*as_one(statistics.batches))
    handle.remove()
    return found[0]


@pytest.mark.parametrize("keep", [{}, {"first": [1, 4, 5]}], ids=["whole", "cut"])
def test_norms_behind_layers_that_are_not_refitted_are_reestimated(keep: dict[str, list[int]]) -> None:
    statistics = known(chain())
    original = statistics.graph.model
    model = copy.deepcopy(original)
    cut(model, statistics.graph, keep)
    model.get_submodule("first").weight.data.mul_(1.7).add_(0.1)  # type: ignore[union-attr, operator]
    x = torch.cat([inputs[0] for inputs, _ in statistics.batches])
    with torch.no_grad():
        seen = {"norm": moments(original.get_submodule("first")(x))}
    refit(model, statistics.graph, keep, replace(statistics.targets(), outputs={}, norms=seen))
    found, wanted = moments(normed(model, statistics, "norm")), moments(normed(original, statistics, "norm"))
    wanted = wanted.of(keep.get("first", list(range(6))))
    torch.testing.assert_close(found.mean, wanted.mean, atol=1e-3, rtol=1e-3)
    torch.testing.assert_close(found.variance, wanted.variance, atol=1e-3, rtol=1e-3)


def test_only_norms_behind_depthwise_layers_are_recorded() -> None:
    assert set(zoo("mobilenet").targets().norms) == {"norm"}
    assert not zoo("resnet").targets().norms
