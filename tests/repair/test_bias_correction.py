"""Bias correction: mean outputs are the original's again, all along the chain."""

import copy

import pytest
import torch
from torch import Tensor, nn

from autocompress.batches import as_one
from autocompress.graph.cut import cut
from autocompress.matrices import kept_positions
from autocompress.repair.bias_correction import correct_biases
from autocompress.repair.statistics import Statistics
from tests.repair.nets import chain, known, zoo


def means(model: nn.Module, statistics: Statistics, names: list[str]) -> dict[str, Tensor]:
    found: dict[str, Tensor] = {}

    def note(name: str) -> object:
        return lambda m, i, o: found.update({name: o.movedim(-1 if o.dim() == 2 else 1, 0).flatten(1).mean(1)})

    handles = [model.get_submodule(name).register_forward_hook(note(name)) for name in names]  # type: ignore[arg-type]
    with torch.no_grad():
        model(*as_one(statistics.batches))
    for handle in handles:
        handle.remove()
    return found


def rows(statistics: Statistics, keep: dict[str, list[int]]) -> dict[str, list[int]]:
    graph = statistics.graph
    return {name: kept_positions(graph, keep, name, produces=True) for name in graph.layers}


@pytest.mark.parametrize("norm", [True, False])
def test_means_are_the_originals_at_every_layers_end(norm: bool) -> None:
    statistics = known(chain(norm=norm))
    model = copy.deepcopy(statistics.graph.model)
    for name in ("first", "second", "last"):
        model.get_submodule(name).weight.data.mul_(8).round_().div_(8)  # type: ignore[union-attr, operator]
    ends = ["norm" if norm else "first", "second", "last"]
    correct_biases(model, statistics.graph.model, statistics.batches, rows(statistics, {}))
    found, wanted = means(model, statistics, ends), means(statistics.graph.model, statistics, ends)
    for end in ends:
        torch.testing.assert_close(found[end], wanted[end], atol=1e-4, rtol=1e-4)


def test_a_cut_model_is_compared_with_the_rows_it_kept() -> None:
    statistics = known(chain())
    keep = {"first": [0, 2, 5]}
    model = copy.deepcopy(statistics.graph.model)
    cut(model, statistics.graph, keep)
    correct_biases(model, statistics.graph.model, statistics.batches, rows(statistics, keep))
    found, wanted = means(model, statistics, ["second"]), means(statistics.graph.model, statistics, ["second"])
    torch.testing.assert_close(found["second"], wanted["second"], atol=1e-4, rtol=1e-4)


@pytest.mark.parametrize("name", ["resnet", "mobilenet", "dense", "transformer"])
def test_an_unchanged_model_stays_as_it_is(name: str) -> None:
    statistics = zoo(name)
    model = copy.deepcopy(statistics.graph.model)
    correct_biases(model, statistics.graph.model, statistics.batches, rows(statistics, {}))
    inputs = as_one(statistics.batches)
    with torch.no_grad():
        torch.testing.assert_close(model(*inputs), statistics.graph.model(*inputs), atol=1e-5, rtol=1e-5)


def test_a_layer_without_bias_or_norm_gets_a_bias() -> None:
    statistics = known(chain(norm=False))
    model = copy.deepcopy(statistics.graph.model)
    model.get_submodule("last").bias = None
    correct_biases(model, statistics.graph.model, statistics.batches, rows(statistics, {}))
    torch.testing.assert_close(
        model.get_submodule("last").bias, statistics.graph.model.get_submodule("last").bias, atol=1e-5, rtol=1e-4
    )
