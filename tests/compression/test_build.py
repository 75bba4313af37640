"""Plans become models whose kernels were priced, and nothing else changes."""

import random
from dataclasses import replace

import pytest
import torch

from autocompress.compression.build import build, plan_kernels, restructure, widths
from autocompress.compression.methods import methods
from autocompress.compression.methods.lowrank import LowRank
from autocompress.compression.methods.prune import Prune
from autocompress.compression.methods.quantize import Quantize
from autocompress.compression.methods.student import Student
from autocompress.compression.plan import WHOLE_MODEL, Plan, Step
from autocompress.compression.repair.statistics import Statistics, collect
from autocompress.graph import trace
from autocompress.graph.kernels import kernels_of
from autocompress.graph.types import Graph
from autocompress.vocabulary.errors import BuildError
from autocompress.vocabulary.formats import FP32, INT8
from autocompress.vocabulary.workload import Capabilities, Kernel
from tests.zoo import MODELS, OptionAResNet, make

ANY_WIDTH = Capabilities(frozenset({FP32, INT8}), {FP32: 1, INT8: 1})


@pytest.fixture(scope="module")
def resnet() -> Graph:
    torch.manual_seed(0)
    return trace(OptionAResNet(n=2, width=16).eval(), torch.randn(1, 3, 16, 16))


@pytest.fixture(scope="module")
def statistics(resnet: Graph) -> Statistics:
    generator = torch.Generator().manual_seed(1)
    batches = [(torch.randn(16, 3, 16, 16, generator=generator), torch.zeros(16, dtype=torch.long)) for _ in range(2)]
    return collect(resnet, batches, samples=32)


def random_plan(graph: Graph, draw: random.Random, share: float = 0.5) -> Plan:
    steps = []
    for method in methods():
        for target in method.targets(graph):
            option = draw.choice(method.options(target, graph, ANY_WIDTH))
            if option is not None and draw.random() < share:
                steps.append(Step(target, option))
    return Plan(graph.fingerprint, tuple(steps))


def shapes(kernels: dict[str, Kernel]) -> dict[str, Kernel]:
    """Kernels without their number formats, which a simulated model does not show."""
    return {name: k.with_workload(dtype=FP32) for name, k in kernels.items()}


@pytest.mark.parametrize("name", MODELS)
def test_the_empty_plan_is_the_identity(name: str) -> None:
    model, inputs = make(name)
    graph = trace(model, inputs)
    built = build(Plan(graph.fingerprint), graph)
    torch.testing.assert_close(built(inputs), model(inputs), rtol=1e-4, atol=1e-5)


@pytest.mark.parametrize("seed", range(8))
def test_the_built_model_has_the_kernels_that_were_priced(resnet: Graph, statistics: Statistics, seed: int) -> None:
    plan = random_plan(resnet, random.Random(seed))
    built = build(plan, resnet, statistics)
    assert shapes(kernels_of(built, resnet.example_inputs)) == shapes(plan_kernels(plan, resnet))
    assert torch.isfinite(built(torch.randn(3, 3, 16, 16))).all()


@pytest.mark.parametrize("name", ["mobilenet", "shufflenet", "dense", "transformer"])
def test_every_kind_of_model_builds_under_random_plans(name: str) -> None:
    model, inputs = make(name)
    graph = trace(model, inputs)
    data = collect(graph, [(inputs, torch.zeros(len(inputs), dtype=torch.long))], samples=2)
    for seed in range(2):
        plan = random_plan(graph, random.Random(seed))
        built = build(plan, graph, data)
        assert shapes(kernels_of(built, graph.example_inputs)) == shapes(plan_kernels(plan, graph)), plan.to_json()
        assert built(inputs).shape == model(inputs).shape


def test_predicted_weights_are_the_built_models_parameters(resnet: Graph) -> None:
    plan = Plan(resnet.fingerprint, (Step("layer2.0.conv1", Prune(8)), Step("layer3.0.conv2", Prune(4))))
    built = restructure(plan, resnet, None)
    for kernel in plan_kernels(plan, resnet).values():
        if kernel.layer in resnet.layers:
            assert built.get_submodule(kernel.layer).weight.numel() == kernel.workload.weights


def test_student_and_pruning_of_one_group_combine_by_the_smaller(resnet: Graph) -> None:
    plan = Plan(resnet.fingerprint, (Step(WHOLE_MODEL, Student(0.5)), Step("layer3.0.conv1", Prune(56))))
    assert widths(plan, resnet)["layer3.0.conv1"] == 32
    harder = Plan(resnet.fingerprint, (Step(WHOLE_MODEL, Student(0.5)), Step("layer3.0.conv1", Prune(8))))
    assert widths(harder, resnet)["layer3.0.conv1"] == 8


def test_decisions_about_a_dropped_branch_are_void(resnet: Graph, statistics: Statistics) -> None:
    dropped = Step("layer1.1.conv1", Prune(0))
    with_more = (dropped, Step("layer1.1.conv2", Quantize(INT8)), Step("layer1.1.conv1", LowRank("spatial", 2)))
    kernels = plan_kernels(Plan(resnet.fingerprint, (dropped,)), resnet)
    assert plan_kernels(Plan(resnet.fingerprint, with_more), resnet) == kernels
    assert not any(kernel.layer.startswith("layer1.1") for kernel in kernels.values())
    built = build(Plan(resnet.fingerprint, with_more), resnet, statistics)
    assert not any(name.startswith("layer1.1") for name, _ in built.named_modules())


def test_a_group_without_a_branch_cant_go_to_zero(resnet: Graph) -> None:
    with pytest.raises(BuildError, match="no residual branch"):
        build(Plan(resnet.fingerprint, (Step("conv1", Prune(0)),)), resnet)


def test_a_plan_for_another_model_is_refused(resnet: Graph) -> None:
    with pytest.raises(BuildError, match="the plan is for model"):
        build(replace(Plan(resnet.fingerprint), fingerprint="0" * 16), resnet)
