"""Bias correction: mean outputs are the original's again, all along the chain."""

import copy

import pytest
import torch
from torch import Tensor, nn

from autocompress.compression.repair.bias_correction import correct_biases
from autocompress.compression.repair.statistics import Statistics
from autocompress.task.batches import as_one
from tests.compression.repair.nets import chain, known, zoo

LAYERS = ("first", "second", "last")


def means(model: nn.Module, statistics: Statistics) -> dict[str, Tensor]:
    found: dict[str, Tensor] = {}

    def note(name: str) -> object:
        return lambda m, i, o: found.update({name: o.movedim(-1 if o.dim() == 2 else 1, 0).flatten(1).mean(1)})

    handles = [model.get_submodule(name).register_forward_hook(note(name)) for name in LAYERS]  # type: ignore[arg-type]
    with torch.no_grad():
        model(*as_one(statistics.batches))
    for handle in handles:
        handle.remove()
    return found


def test_means_are_the_originals_at_every_layer() -> None:
    statistics = known(chain(norm=False))
    model = copy.deepcopy(statistics.graph.model)
    for name in LAYERS:
        model.get_submodule(name).weight.data.mul_(8).round_().div_(8)  # type: ignore[union-attr, operator]
    wanted = means(statistics.graph.model, statistics)
    assert not torch.allclose(means(model, statistics)["last"], wanted["last"], atol=1e-4, rtol=1e-4)
    correct_biases(model, statistics.graph.model, statistics.batches, LAYERS)
    for name, found in means(model, statistics).items():
        torch.testing.assert_close(found, wanted[name], atol=1e-4, rtol=1e-4)


@pytest.mark.parametrize("name", ["resnet", "mobilenet", "dense", "transformer"])
def test_an_unchanged_model_stays_as_it_is(name: str) -> None:
    statistics = zoo(name)
    model = copy.deepcopy(statistics.graph.model)
    correct_biases(model, statistics.graph.model, statistics.batches, statistics.graph.layers)
    inputs = as_one(statistics.batches)
    with torch.no_grad():
        torch.testing.assert_close(model(*inputs), statistics.graph.model(*inputs), atol=1e-5, rtol=1e-5)


def test_a_layer_without_bias_gets_one() -> None:
    statistics = known(chain(norm=False))
    model = copy.deepcopy(statistics.graph.model)
    model.get_submodule("last").bias = None
    correct_biases(model, statistics.graph.model, statistics.batches, LAYERS)
    torch.testing.assert_close(
        model.get_submodule("last").bias, statistics.graph.model.get_submodule("last").bias, atol=1e-5, rtol=1e-4
    )


def test_a_layer_that_is_gone_is_passed_over() -> None:
    statistics = known(chain(norm=False))
    model = copy.deepcopy(statistics.graph.model)
    correct_biases(model, statistics.graph.model, statistics.batches, [*LAYERS, "gone"])
    assert all(torch.isfinite(p).all() for p in model.parameters())
