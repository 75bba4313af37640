"""Batch norm re-estimation: the identity on the original, and the original's moments on anything else."""

import copy

import torch
from torch import Tensor, nn

from autocompress.batches import as_one
from autocompress.graph.cut import cut
from autocompress.repair.batch_norm import reestimate
from autocompress.repair.statistics import Statistics
from tests.repair.nets import chain, known, zoo


def normed(model: nn.Module, statistics: Statistics, name: str = "norm") -> Tensor:
    """What a norm puts out for the calibration batches."""
    found: list[Tensor] = []
    handle = model.get_submodule(name).register_forward_hook(lambda m, i, o: found.append(o))
    with torch.no_grad():
        model(*as_one(statistics.batches))
    handle.remove()
    return found[0].transpose(0, 1).flatten(1)


def test_an_unchanged_model_stays_as_it_is() -> None:
    """Though its running statistics are not those of the calibration data."""
    statistics = zoo("resnet")
    model = copy.deepcopy(statistics.graph.model)
    reestimate(model, statistics.graph, {}, statistics.batches)
    for name, value in statistics.graph.model.state_dict().items():
        torch.testing.assert_close(model.state_dict()[name], value, atol=1e-4, rtol=1e-4)


def test_a_disturbed_layer_gets_its_outputs_moments_back() -> None:
    statistics = known(chain())
    model = copy.deepcopy(statistics.graph.model)
    model.get_submodule("first").weight.data.mul_(1.7).add_(0.1)  # type: ignore[union-attr, operator]
    reestimate(model, statistics.graph, {}, statistics.batches)
    found, wanted = normed(model, statistics), normed(statistics.graph.model, statistics)
    torch.testing.assert_close(found.mean(1), wanted.mean(1), atol=1e-4, rtol=1e-4)
    torch.testing.assert_close(found.std(1), wanted.std(1), atol=1e-3, rtol=1e-3)


def test_cut_norms_are_compared_with_the_channels_they_kept() -> None:
    statistics = known(chain())
    model = copy.deepcopy(statistics.graph.model)
    keep = {"first": [1, 4, 5]}
    cut(model, statistics.graph, keep)
    model.get_submodule("first").weight.data.mul_(0.3)  # type: ignore[union-attr, operator]
    reestimate(model, statistics.graph, keep, statistics.batches)
    found, wanted = normed(model, statistics), normed(statistics.graph.model, statistics)[[1, 4, 5]]
    torch.testing.assert_close(found.mean(1), wanted.mean(1), atol=1e-4, rtol=1e-4)


def test_constant_channels_stay_finite() -> None:
    model = chain()
    model.first.weight.data[2] = 0
    statistics = known(model)
    changed = copy.deepcopy(statistics.graph.model)
    changed.get_submodule("first").weight.data[3] = 0  # type: ignore[union-attr, operator]
    reestimate(changed, statistics.graph, {}, statistics.batches)
    assert torch.isfinite(normed(changed, statistics)).all()
