"""Low rank: what is offered is cheaper, what is predicted is what is built."""

import copy

import pytest
import torch

from autocompress.compression.build import Workspace, plan_kernels, restructure
from autocompress.compression.methods.lowrank import LowRank, LowRankMethod, parts
from autocompress.compression.methods.prune import Prune
from autocompress.compression.methods.quantize import Quantize
from autocompress.compression.plan import Plan, Step
from autocompress.graph.kernels import kernels_of
from autocompress.graph.rewrites import apply_exact
from autocompress.vocabulary.formats import FP32, INT8
from autocompress.vocabulary.workload import Capabilities, total_macs
from tests.compression.repair.nets import zoo

METHOD = LowRankMethod()
FOURS = Capabilities(frozenset({FP32, INT8}), {FP32: 4, INT8: 8})
ANY = Capabilities(frozenset({FP32, INT8}), {FP32: 1})


@pytest.mark.parametrize("name", ["resnet", "mobilenet", "dense", "transformer"])
def test_every_option_is_cheaper_than_the_one_before(name: str) -> None:
    graph = zoo(name).graph
    offered = 0
    for target in METHOD.targets(graph):
        first, *options = METHOD.options(target, graph, FOURS)
        workload = graph.kernels[target].workload
        costs = [sum(part.macs for part in parts(workload, option)) for option in options]
        assert first is None
        assert costs == sorted(costs, reverse=True) and all(cost < workload.macs for cost in costs)
        assert all(option.rank % 4 == 0 for option in options)
        offered += len(options)
    assert offered


def test_depthwise_transposed_and_shared_layers_are_not_offered() -> None:
    assert "depthwise" not in METHOD.targets(zoo("mobilenet").graph)
    assert "up" not in METHOD.targets(zoo("dense").graph)


@pytest.mark.parametrize("name", ["resnet", "mobilenet", "dense", "transformer"])
def test_predicted_kernels_are_the_built_models_kernels(name: str) -> None:
    """Every layer factorised its own way, on top of a cut."""
    statistics = zoo(name)
    graph = statistics.graph
    group = next(iter(graph.free_groups.values()))
    steps = [Step(group.id, Prune(max(1, group.channels // 2)))]
    for number, target in enumerate(METHOD.targets(graph)):
        options = [o for o in METHOD.options(target, graph, ANY) if o is not None]
        if options:
            steps.append(Step(target, options[number % len(options)]))
    plan = Plan(graph.fingerprint, tuple(steps))
    model = restructure(plan, graph, None)
    apply_exact(model, graph.example_inputs)
    built, predicted = kernels_of(model, graph.example_inputs), plan_kernels(plan, graph)
    assert list(built) == list(predicted)
    assert any("#" in kernel for kernel in built)
    for kernel in built:
        assert built[kernel].workload == predicted[kernel].workload, kernel
        assert set(built[kernel].inputs) == set(predicted[kernel].inputs), kernel


def test_parts_keep_their_layer_precision_and_activation() -> None:
    graph = zoo("resnet").graph
    target = "layer3.0.conv1"
    kernels = {name: kernel.with_workload(dtype=INT8) for name, kernel in graph.kernels.items()}
    METHOD.rewrite(kernels, target, LowRank("tucker2", 8), graph)
    found = [kernels[f"{target}#{i}"] for i in (1, 2, 3)]
    assert target not in kernels and total_macs(found) < graph.kernels[target].workload.macs
    assert {kernel.layer for kernel in found} == {target}
    assert {kernel.workload.dtype for kernel in found} == {INT8}
    assert [kernel.workload.fused for kernel in found] == [(), (), graph.kernels[target].workload.fused]
    readers = [k for k, kernel in graph.kernels.items() if target in kernel.inputs]
    assert readers and all(f"{target}#3" in kernels[reader].inputs for reader in readers)


def test_decisions_about_the_layer_reach_its_parts() -> None:
    graph = zoo("resnet").graph
    target = "layer3.0.conv1"
    steps = (Step(target, LowRank("spatial", 8)), Step(target, Quantize(INT8)))
    kernels = plan_kernels(Plan(graph.fingerprint, steps), graph)
    assert {kernels[f"{target}#{i}"].workload.dtype for i in (1, 2)} == {INT8}


def test_a_rank_above_the_full_one_counts_as_the_full_one() -> None:
    workload = zoo("resnet").graph.kernels["layer1.0.conv1"].workload
    assert parts(workload, LowRank("spatial", 10**6)) == parts(workload, LowRank("spatial", 24))


def test_it_works_without_statistics_and_uses_them() -> None:
    statistics = zoo("resnet")
    graph = statistics.graph
    blind, aware = (Workspace(copy.deepcopy(graph.model), graph, known) for known in (None, statistics))
    for work in (blind, aware):
        METHOD.apply(work, "layer2.0.conv1", LowRank("spatial", 4))
    x = torch.cat([inputs[0] for inputs, _ in statistics.batches])
    with torch.no_grad():
        wanted = graph.model(x)
        assert (aware.model(x) - wanted).norm() < (blind.model(x) - wanted).norm()
