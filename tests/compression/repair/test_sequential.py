"""The sequential refit: the identity where nothing changed, and better than anything local where much did."""

import copy

import pytest
import torch
from torch import nn
from torch.fx import GraphModule

from autocompress.compression.factorise import factorise
from autocompress.compression.repair.least_squares import repair
from autocompress.compression.repair.matching import divergence, outputs_of
from autocompress.compression.repair.sequential import refit
from autocompress.compression.repair.statistics import Statistics
from autocompress.graph.cut import cut, drop_branch
from tests.compression.repair.nets import chain, known, zoo

ZOO = ["resnet", "mobilenet", "shufflenet", "dense", "transformer"]


def distance(model: GraphModule, statistics: Statistics) -> float:
    return divergence(model, statistics.batches, outputs_of(statistics.graph.model, statistics.batches))


@pytest.mark.parametrize("name", ZOO)
def test_an_unchanged_model_stays_as_it_is(name: str) -> None:
    statistics = zoo(name)
    model = copy.deepcopy(statistics.graph.model)
    assert refit(model, statistics.graph, {}, statistics.targets()) == ()
    torch.testing.assert_close(dict(model.state_dict()), dict(statistics.graph.model.state_dict()))


@pytest.mark.parametrize("name", ZOO)
def test_it_improves_on_repairing_readers_alone(name: str) -> None:
    statistics = zoo(name)
    graph = statistics.graph
    keep = {group.id: list(range(-(-group.channels // 2))) for group in graph.free_groups.values()}
    local = copy.deepcopy(graph.model)
    cut(local, graph, keep)
    repair(local, graph, keep, statistics)
    deep = copy.deepcopy(local)
    assert refit(deep, graph, keep, statistics.targets())
    assert distance(deep, statistics) < distance(local, statistics)


def test_later_branches_make_up_for_a_dropped_one() -> None:
    """The shortcut lacks what the dropped branch brought; the next branch is fitted to bring that too."""
    statistics = zoo("resnet")
    graph = statistics.graph
    model = copy.deepcopy(graph.model)
    drop_branch(model, next(iter(graph.branches.values())))
    before = distance(model, statistics)
    refitted = refit(model, graph, {}, statistics.targets())
    assert "conv1" not in refitted and "layer2.0.conv2" in refitted
    assert distance(model, statistics) < 0.5 * before


def test_layers_before_the_change_are_left_alone() -> None:
    statistics = zoo("resnet")
    graph = statistics.graph
    model = copy.deepcopy(graph.model)
    keep = {"layer3.0.conv1": [0, 3, 4]}
    cut(model, graph, keep)
    assert refit(model, graph, keep, statistics.targets()) == ("layer3.0.conv2", "linear")


def test_the_last_part_of_a_factorised_layer_is_refitted() -> None:
    statistics = known(chain())
    model = copy.deepcopy(statistics.graph.model)
    factorise(model, "second", "spatial", 2, None)
    before = distance(model, statistics)
    first = model.get_submodule("second.0").weight.clone()  # type: ignore[union-attr, operator]
    assert refit(model, statistics.graph, {}, statistics.targets())[0] == "second"
    assert torch.equal(model.get_submodule("second.0").weight, first)  # type: ignore[arg-type]
    assert distance(model, statistics) < before


def test_a_lossless_change_of_basis_is_undone() -> None:
    """A reader whose weights were spoilt gets them back, for its inputs are what they were."""
    statistics = known(chain())
    model = copy.deepcopy(statistics.graph.model)
    nn.init.normal_(model.get_submodule("second").weight)  # type: ignore[arg-type]
    refit(model, statistics.graph, {}, statistics.targets(), ridge=1e-9)
    assert distance(model, statistics) < 1e-6


def test_a_silenced_norm_channel_is_no_obstacle() -> None:
    model = chain()
    model.norm.weight.data[1] = 0
    statistics = known(model)
    changed = copy.deepcopy(statistics.graph.model)
    keep = {"first": [0, 1, 2]}
    cut(changed, statistics.graph, keep)
    refit(changed, statistics.graph, keep, statistics.targets())
    assert all(torch.isfinite(p).all() for p in changed.parameters())
