"""What every importance promises: run over all that are registered, on every group of the zoo."""

import copy

import pytest
import torch

from autocompress.compression.importance import score_channels
from autocompress.compression.repair.statistics import Statistics, collect
from autocompress.vocabulary import plugins
from autocompress.vocabulary.errors import ConfigError
from tests.compression.repair.nets import chain, images, known, traced, zoo

NAMES = plugins.names(plugins.IMPORTANCES)
ZOO = ["resnet", "mobilenet", "shufflenet", "dense", "transformer"]


@pytest.fixture(params=NAMES)
def name(request: pytest.FixtureRequest) -> str:
    return str(request.param)


def test_those_of_the_core_are_registered() -> None:
    assert {"l1", "l2", "taylor", "fisher", "reconstruction"} <= set(NAMES)


@pytest.mark.parametrize("model", ZOO)
def test_scores_are_finite_with_mean_one(name: str, model: str) -> None:
    statistics = zoo(model)
    for group in statistics.graph.free_groups.values():
        scores = statistics.importance(group.id, name)
        assert scores.shape == (group.channels,) and scores.dtype == torch.float64
        assert torch.isfinite(scores).all() and scores.min() >= 0
        assert scores.mean() == pytest.approx(1)


def test_a_dead_channel_is_the_least_important(name: str) -> None:
    model = chain()
    for tensor in (model.norm.weight, model.norm.bias):
        tensor.data[2] = 0
    assert int(known(model).importance("first", name).argmin()) == 2


def test_a_loud_channel_is_the_most_important(name: str) -> None:
    model = chain(inner=3)
    model.norm.weight.data[1] *= 100
    model.second.weight.data[:, 1] *= 100
    assert int(known(model).importance("first", name).argmax()) == 1


def test_the_order_of_channels_does_not_matter(name: str) -> None:
    model = chain()
    order = torch.tensor([3, 0, 5, 1, 4, 2])
    moved = copy.deepcopy(model)
    moved.first.weight.data = moved.first.weight.data[order]
    moved.second.weight.data = moved.second.weight.data[:, order]
    for tensor in (moved.norm.weight, moved.norm.bias, moved.norm.running_mean, moved.norm.running_var):
        tensor.data = tensor.data[order]
    here, there = known(model).importance("first", name), known(moved).importance("first", name)
    torch.testing.assert_close(here[order], there, rtol=1e-4, atol=1e-6)


def test_labels_are_not_needed(name: str) -> None:
    graph = traced(chain())
    statistics = collect(graph, [(x, None) for x, _ in images(16)], 16)
    assert torch.isfinite(statistics.importance("first", name)).all()


def test_the_model_is_left_as_it_was(name: str) -> None:
    statistics = known(chain())
    before = copy.deepcopy(statistics.graph.model.state_dict())
    statistics.importance("first", name)
    after = statistics.graph.model.state_dict()
    assert all(torch.equal(before[key], after[key]) for key in before)
    assert all(p.grad is None for p in statistics.graph.model.parameters())


def test_an_unknown_name_gets_the_nearest() -> None:
    statistics: Statistics = known(chain())
    with pytest.raises(ConfigError, match="did you mean 'taylor'"):
        score_channels("tailor", statistics.graph.model, statistics.graph.groups["first"], statistics)
