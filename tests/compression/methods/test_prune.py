"""Shapes rewritten for a plan are the shapes of the model that is built for it."""

import copy
import random

import pytest
import torch
from hypothesis import given, settings
from hypothesis import strategies as st

from autocompress.compression.methods.prune import Prune, PruneMethod, snapped_widths
from autocompress.compression.narrowing import narrow_kernels
from autocompress.graph import trace
from autocompress.graph.cut import cut, drop_branch
from autocompress.graph.kernels import kernels_of
from autocompress.graph.rewrites import apply_exact
from autocompress.graph.types import Graph
from autocompress.vocabulary.formats import FP32, INT8
from autocompress.vocabulary.workload import Capabilities
from tests.zoo import OptionAResNet, make

ANY_WIDTH = Capabilities(frozenset({FP32, INT8}), {FP32: 1, INT8: 1})


@pytest.fixture(scope="module")
def resnet() -> Graph:
    torch.manual_seed(0)
    return trace(OptionAResNet(n=2, width=8).eval(), torch.randn(1, 3, 16, 16))


def pruned(graph: Graph, widths: dict[str, int]) -> torch.fx.GraphModule:
    model = copy.deepcopy(graph.model)
    for group, width in widths.items():
        if width == 0:
            drop_branch(model, graph.branches[str(graph.groups[group].branch)])
    cut(model, graph, {group: range(width) for group, width in widths.items() if width})
    return model


@pytest.mark.parametrize("seed", range(6))
def test_predicted_kernels_are_the_built_models_kernels(resnet: Graph, seed: int) -> None:
    assert_predicted_as_built(resnet, random.Random(seed))


@pytest.mark.parametrize("name", ["mobilenet", "shufflenet", "dense", "transformer"])
def test_predicted_kernels_follow_every_operator(name: str) -> None:
    model, inputs = make(name)
    graph = trace(model, inputs)
    for seed in range(3):
        assert_predicted_as_built(graph, random.Random(seed))


def assert_predicted_as_built(graph: Graph, draw: random.Random) -> None:
    method = PruneMethod()
    chosen = {g: draw.choice(method.options(g, graph, ANY_WIDTH)) for g in method.targets(graph)}
    widths = {group: option.keep for group, option in chosen.items() if isinstance(option, Prune)}
    predicted = dict(graph.kernels)
    narrow_kernels(predicted, graph, widths)
    model = pruned(graph, widths)
    apply_exact(model, graph.example_inputs)
    assert kernels_of(model, graph.example_inputs) == predicted
    for kernel in predicted.values():
        if kernel.layer in graph.layers:
            assert model.get_submodule(kernel.layer).weight.numel() == kernel.workload.weights


def test_options_run_from_nothing_to_the_whole_branch(resnet: Graph) -> None:
    options = PruneMethod().options("layer3.0.conv1", resnet, ANY_WIDTH)
    keeps = [32 if option is None else option.keep for option in options]
    assert options[0] is None and keeps == sorted(keeps, reverse=True) and keeps[-1] == 0
    stream = PruneMethod().options("conv1", resnet, ANY_WIDTH)
    assert all(option is None or option.keep > 0 for option in stream)


@given(st.integers(2, 300), st.sampled_from([1, 2, 4, 8, 16, 32]))
@settings(max_examples=60, deadline=None)
def test_snapped_widths_fall_and_fit(channels: int, multiple: int) -> None:
    widths = snapped_widths(channels, multiple)
    assert widths == sorted(set(widths), reverse=True)
    assert all(0 < width < channels for width in widths) and len(widths) <= 8
    if channels > multiple:
        assert all(width % multiple == 0 for width in widths)
    assert widths
