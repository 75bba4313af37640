"""Zeros, dead channels, activations that never fire and numbers without measure: exact, or that plan's own failure."""

import copy
import math
from collections.abc import Callable
from dataclasses import replace
from functools import cache
from pathlib import Path
from typing import Any

import numpy as np
import pytest
import torch
import torch.nn.functional as F
from torch import Tensor, nn

from autocompress.compression.build import build
from autocompress.compression.factorise import factorise
from autocompress.compression.importance import score_channels
from autocompress.compression.matrices import solve
from autocompress.compression.methods.lowrank import LowRank
from autocompress.compression.methods.prune import Prune
from autocompress.compression.methods.quantize import Quantize, insert_fake_quant
from autocompress.compression.plan import Plan, Step
from autocompress.compression.repair.statistics import Statistics, collect
from autocompress.export.onnx import to_onnx
from autocompress.graph import trace
from autocompress.graph.rewrites import apply_exact
from autocompress.graph.trace import capture
from autocompress.graph.types import Graph
from autocompress.vocabulary.errors import BuildError
from autocompress.vocabulary.formats import INT8
from tests.runner import Runner, runtime

__all__ = ["runtime"]


class Residual(nn.Module):
    def __init__(self, channels: int) -> None:
        super().__init__()
        self.first = nn.Conv2d(channels, channels, 3, padding=1, bias=False)
        self.first_norm = nn.BatchNorm2d(channels)
        self.second = nn.Conv2d(channels, channels, 3, padding=1, bias=False)
        self.second_norm = nn.BatchNorm2d(channels)

    def forward(self, x: Tensor) -> Tensor:
        return F.relu(x + self.second_norm(self.second(F.relu(self.first_norm(self.first(x))))))


class Net(nn.Module):
    """A stem, two residual blocks, a depthwise and a strided convolution, and two linear layers."""

    def __init__(self, channels: int = 8) -> None:
        super().__init__()
        self.stem = nn.Conv2d(2, channels, 3, padding=1, bias=False)
        self.stem_norm = nn.BatchNorm2d(channels)
        self.one, self.two = Residual(channels), Residual(channels)
        self.depthwise = nn.Conv2d(channels, channels, 3, padding=1, groups=channels, bias=False)
        self.depthwise_norm = nn.BatchNorm2d(channels)
        self.down = nn.Conv2d(channels, 12, 3, 2, 1)
        self.hidden = nn.Linear(12, 16)
        self.head = nn.Linear(16, 5)

    def forward(self, x: Tensor) -> Tensor:
        x = self.two(self.one(F.relu(self.stem_norm(self.stem(x)))))
        x = F.relu(self.down(F.relu(self.depthwise_norm(self.depthwise(x)))))
        return self.head(F.relu(self.hidden(x.mean((2, 3)))))


def _zero(*tensors: Tensor) -> None:
    for tensor in tensors:
        tensor.zero_()


DEGENERATE: dict[str, Callable[[Any], Any]] = {
    "last norm of a branch starts at zero": lambda m: _zero(m.two.second_norm.weight, m.two.second_norm.bias),
    "no branch adds anything": lambda m: [_zero(b.second_norm.weight, b.second_norm.bias) for b in (m.one, m.two)],
    "a norm within a branch is zero": lambda m: _zero(m.two.first_norm.weight, m.two.first_norm.bias),
    "every norm is zero": lambda m: [_zero(n.weight, n.bias) for n in m.modules() if isinstance(n, nn.BatchNorm2d)],
    "a norm saw nothing but zeros": lambda m: _zero(
        m.one.first.weight, m.one.first_norm.running_mean, m.one.first_norm.running_var
    ),
    "a norm's variance is zero, its input not": lambda m: _zero(m.one.first_norm.running_var),
    "dead filters": lambda m: _zero(
        m.stem.weight[:3], m.stem_norm.running_mean[:3], m.stem_norm.running_var[:3], m.stem_norm.bias[:3]
    ),
    "dead stem": lambda m: _zero(m.stem.weight, m.stem_norm.bias, m.stem_norm.running_mean, m.stem_norm.running_var),
    "filters that are next to nothing": lambda m: m.one.first.weight.mul_(1e-30),
    "filters that are subnormal": lambda m: m.down.weight.mul_(1e-40),
    "a ReLU that never fires": lambda m: m.two.first_norm.bias.fill_(-50),
    "a ReLU of vectors that never fires": lambda m: m.hidden.bias.fill_(-1e3),
    "what is pooled is zero": lambda m: m.down.bias.fill_(-1e3),
    "a layer of zeros": lambda m: _zero(m.down.weight, m.down.bias),
    "a depthwise layer of zeros": lambda m: _zero(m.depthwise.weight),
    "a linear layer of zeros": lambda m: _zero(m.hidden.weight, m.hidden.bias),
    "a head of zeros": lambda m: _zero(m.head.weight, m.head.bias),
    "nothing but zeros": lambda m: [_zero(parameter) for parameter in m.parameters()],
}


@cache
def _sound() -> Graph:
    torch.manual_seed(0)
    model = Net()
    for module in model.modules():
        if isinstance(module, nn.BatchNorm2d):
            module.running_mean.normal_(0, 0.1)
            module.running_var.uniform_(0.3, 1)
            nn.init.uniform_(module.weight, 0.5, 1.5)
            nn.init.normal_(module.bias, 0, 0.1)
    return trace(model.eval(), torch.randn(1, 2, 8, 8))


def _degenerate(name: str, size: float = 1.0) -> tuple[Graph, Statistics]:
    """The sound net's graph with other weights, and what calibration data of that size say of it."""
    model = copy.deepcopy(_sound().model)
    with torch.no_grad():
        DEGENERATE[name](model)
    graph = replace(_sound(), model=model)
    generator = torch.Generator().manual_seed(1)
    inputs = [size * torch.randn(8, 2, 8, 8, generator=generator) for _ in range(2)]
    return graph, collect(graph, [(x, torch.arange(8) % 5) for x in inputs])


def _plans(graph: Graph) -> dict[str, Plan]:
    """int8, each factorisation in int8, half of all channels by each kind of importance, every branch dropped."""
    int8 = tuple(Step(name, Quantize(INT8)) for name in graph.layers)
    whole = [n for n, layer in graph.layers.items() if getattr(graph.model.get_submodule(n), "groups", 1) == 1]
    convolutions = [name for name in whole if graph.layers[name].kind == "conv"]
    low = {kind: _low_rank(kind, whole if kind == "svd" else convolutions) for kind in ("svd", "spatial", "tucker2")}
    free = [group for group in graph.groups.values() if group.frozen is None]
    pruned = {
        name: tuple(Step(g.id, Prune(max(1, g.channels // 2), name)) for g in free)
        for name in ("reconstruction", "fisher", "l1")
    }
    dropped = tuple(Step(g.id, Prune(0, "l2")) for g in free if g.branch is not None)
    steps = {"int8": int8, "dropped": dropped, **pruned, **{kind: found + int8 for kind, found in low.items()}}
    return {name: Plan(graph.fingerprint, found) for name, found in steps.items()}


def _low_rank(kind: Any, layers: list[str]) -> tuple[Step, ...]:
    return tuple(Step(name, LowRank(kind, 2)) for name in layers)


@pytest.mark.parametrize(
    ("name", "size"),
    [
        *((name, 1.0) for name in DEGENERATE),
        ("dead filters", 0.0),
        ("every norm is zero", 0.0),
        ("dead filters", 1e-20),
    ],
)
def test_every_kind_of_plan_makes_finite_outputs(name: str, size: float) -> None:
    graph, statistics = _degenerate(name, size)
    sample = statistics.batches[0][0]
    for kind, plan in _plans(graph).items():
        with torch.no_grad():
            (outputs,) = _flat(build(plan, graph, statistics)(*sample))
        assert outputs.isfinite().all(), kind


def _flat(outputs: Any) -> tuple[Tensor, ...]:
    return outputs if isinstance(outputs, tuple) else (outputs,)


@pytest.mark.parametrize("name", ["last norm of a branch starts at zero", "no branch adds anything"])
def test_a_branch_that_adds_nothing_is_free_to_drop(name: str) -> None:
    graph, statistics = _degenerate(name)
    branch = next(g.id for g in graph.groups.values() if g.branch is not None and "two" in f"{g.members}")
    plan = Plan(graph.fingerprint, (Step(branch, Prune(0, "l2")),))
    sample = statistics.batches[0][0]
    with torch.no_grad():
        (before,), (after,) = _flat(graph.model(*sample)), _flat(build(plan, graph, statistics)(*sample))
    torch.testing.assert_close(after, before, rtol=1e-4, atol=1e-5)


def test_numbers_without_measure_are_that_plans_failure() -> None:
    """Products of inputs beyond float32: each plan is built, or says which layer and what to do, in one line."""
    graph = replace(_sound(), model=copy.deepcopy(_sound().model))
    with torch.no_grad():
        graph.model.get_submodule("down").weight.mul_(1e25)
    statistics = collect(graph, [(torch.randn(8, 2, 8, 8), torch.arange(8) % 5)])
    failures = []
    for plan in _plans(graph).values():
        try:
            build(plan, graph, statistics)
        except BuildError as error:
            failures.append(str(error))
    assert any("can't be solved for" in text and "leave the layer as it is" in text for text in failures)
    assert all("\n" not in text for text in failures)


def test_an_importance_that_is_not_finite_is_told() -> None:
    graph, statistics = _degenerate("a head of zeros")
    module: Any = graph.model.get_submodule("hidden")
    with torch.no_grad():
        module.weight[0] = math.inf
    group = next(g for g in graph.groups.values() if any(m.target == "hidden" and m.produces for m in g.members))
    with pytest.raises(BuildError, match=r"the l1 importance of .* is not finite"):
        score_channels("l1", graph.model, group, statistics)


def test_activations_without_bounds_have_no_8_bit_range() -> None:
    model = capture(nn.Sequential(nn.Linear(3, 4), nn.ReLU(), nn.Linear(4, 2)).eval(), (torch.zeros(1, 3),))
    inputs = torch.zeros(2, 3)
    inputs[1, 1] = math.nan
    with pytest.raises(BuildError, match="no 8-bit range holds them"):
        insert_fake_quant(model, {"0", "2"}, [inputs], (torch.zeros(1, 3),))


def test_least_squares_on_nothing_keeps_the_weights() -> None:
    start = torch.randn(3, 4, dtype=torch.float64)
    gram = torch.zeros(5, 5, dtype=torch.float64)
    gram[-1, -1] = 1
    weight, shift = solve(gram, torch.zeros(3, 5, dtype=torch.float64), start)
    torch.testing.assert_close(weight, start)
    assert not shift.any()


@pytest.mark.parametrize("kind", ["svd", "spatial", "tucker2"])
def test_factors_of_a_layer_that_sees_nothing_are_those_of_its_weight_alone(kind: str) -> None:
    products = []
    nothing = torch.zeros(2 * 9 + 1, 2 * 9 + 1, dtype=torch.float64)
    nothing[-1, -1] = 1
    for gram in (None, nothing):
        torch.manual_seed(0)
        model = capture(nn.Sequential(nn.Conv2d(2, 6, 3, bias=False)).eval(), (torch.zeros(1, 2, 8, 8),))
        factorise(model, "0", kind, 3, gram)
        with torch.no_grad():
            products.append(_flat(model(torch.randn(2, 2, 8, 8)))[0])
    torch.testing.assert_close(*products)


@pytest.mark.parametrize("bias", [True, False])
def test_a_layer_that_reads_nothing_but_zeros_is_exact_in_int8(bias: bool, tmp_path: Path, runtime: Runner) -> None:
    """In the simulation and in the file: its bias, as the grid of its outputs has it."""
    torch.manual_seed(0)
    net = nn.Sequential(nn.Conv2d(3, 4, 3), nn.ReLU(), nn.Conv2d(4, 5, 1, bias=bias), nn.ReLU(), nn.Conv2d(5, 6, 1))
    with torch.no_grad():
        net[0].bias.fill_(-100)  # type: ignore[operator, union-attr]
    inputs = torch.randn(4, 3, 6, 6)
    model = capture(net.eval(), (inputs,))
    apply_exact(model, (inputs,))
    with torch.no_grad():
        floats = net(inputs)
    insert_fake_quant(model, {"0", "2", "4"}, [inputs], (inputs,))
    with torch.no_grad():
        (simulated,) = _flat(model(inputs))
    assert (simulated - floats).abs().max() <= 0.02 * floats.abs().max()
    found = runtime.run(to_onnx(model, tmp_path / "model.onnx", "plan").path, inputs)
    np.testing.assert_allclose(found, simulated.numpy(), atol=1e-5)
