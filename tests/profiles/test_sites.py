"""Sites: layouts and their conversions as the runtime settles them."""

from pathlib import Path

import numpy as np
import pytest
import torch

from autocompress.compression.build import build, plan_kernels
from autocompress.compression.methods.quantize import Quantize
from autocompress.compression.plan import Plan, Step
from autocompress.devices import open_device
from autocompress.export.onnx import to_onnx
from autocompress.graph import trace
from autocompress.graph.types import Graph
from autocompress.profiles.sites import BLOCKED, ISOLATED, LAST, PLAIN, PLANAR, SHARED, Site, sites
from autocompress.vocabulary.formats import FP32, INT8
from autocompress.vocabulary.precision import lower
from autocompress.vocabulary.workload import Kernel, Workload
from tests.zoo import OptionAResNet


def conv(name: str, source: str, dtype: str = FP32, channels: int = 32) -> Kernel:
    return Kernel(name, name, (source,), Workload("conv", channels, channels, (8, 8), (8, 8), (3, 3), (1, 1), 1, dtype))


def add(name: str, *sources: str) -> Kernel:
    return Kernel(name, name, sources, Workload("add", 32, 32, (8, 8), (8, 8)))


def found(*kernels: Kernel) -> dict[str, Site]:
    return sites({kernel.name: kernel for kernel in kernels})


def test_blocked_tensors_stay_blocked_through_an_add() -> None:
    chain = found(conv("a", "x"), conv("b", "a"), add("c", "a", "b"), conv("d", "c"))
    assert {name: site.layout for name, site in chain.items()} == dict.fromkeys("abcd", BLOCKED)
    assert not any(site.moved for site in chain.values())


def test_a_change_of_precision_moves_tensors() -> None:
    chain = found(conv("a", "x"), conv("b", "a", INT8), conv("c", "b"))
    assert chain["a"].moved == PLANAR, "the blocked tensor is quantised from its planar form"
    assert (chain["a>q"].layout, chain["a>q"].moved) == (PLANAR, LAST)
    assert (chain["b"].layout, chain["b"].moved) == (LAST, PLANAR)
    assert (chain["b>dq"].layout, chain["b>dq"].moved) == (PLANAR, BLOCKED)


def test_narrow_and_odd_convolutions() -> None:
    assert found(conv("a", "x", channels=8), conv("b", "a", channels=8))["a"].moved == PLANAR
    assert found(conv("a", "x", channels=18))["a"].layout == PLANAR


def test_an_add_of_two_layouts_is_planar() -> None:
    chain = found(conv("a", "x", INT8), conv("b", "x"), add("c", "a", "b"))
    assert chain["c"].layout == PLANAR


def test_an_fp32_kernel_among_int8_ones_is_marked() -> None:
    chain = found(conv("a", "x", INT8), conv("b", "a"), conv("c", "b", INT8))
    assert (chain["b"].peculiarity, chain["a"].peculiarity) == (ISOLATED, PLAIN)
    ending = found(conv("a", "x", INT8), conv("b", "a"), conv("c", "b"))
    assert ending["b"].peculiarity == PLAIN


def test_a_conversion_for_several_readers_is_marked() -> None:
    chain = found(conv("a", "x", INT8), conv("b", "a"), conv("c", "a"))
    assert chain["a>dq"].peculiarity == SHARED


def test_a_plan_has_the_same_sites_lowered_or_not() -> None:
    kernels = {k.name: k for k in (conv("a", "x", INT8), conv("b", "a"))}
    assert sites(kernels) == sites(lower(kernels))


@pytest.fixture(scope="module")
def resnet() -> Graph:
    return trace(OptionAResNet(2, 16).eval(), torch.zeros(1, 3, 16, 16))


@pytest.mark.parametrize("int8", ["layer1", "layer2", "layer1.0.conv2", "layer"])
def test_conversions_are_those_of_the_runtimes_graph(resnet: Graph, int8: str, tmp_path: Path) -> None:
    steps = tuple(Step(layer, Quantize(INT8)) for layer in resnet.layers if layer.startswith(int8))
    plan = Plan(resnet.fingerprint, steps)
    to_onnx(build(plan, resnet, None), tmp_path / "model.onnx", plan.key)
    nodes = open_device("ort:cpu").profile(tmp_path / "model.onnx", [np.zeros((1, 3, 16, 16), np.float32)], 1)
    where = sites(plan_kernels(plan, resnet)).values()
    transposes = sum(bool(s.moved & LAST) + (s.layout == LAST and s.moved > 0) for s in where)
    reorders = sum((s.layout == BLOCKED and s.moved > 0) + bool(s.moved & BLOCKED) for s in where)
    assert abs(sum(node.op == "Transpose" for node in nodes) - transposes) <= 1
    assert abs(sum(node.op.startswith("Reorder") for node in nodes) - reorders) <= 1


def test_the_runtime_rounds_no_map_by_itself(resnet: Graph, tmp_path: Path) -> None:
    """A float sum of a map that left int8, read by an int8 convolution: to move the convolution's transpose up to
    where the map left, ONNX Runtime would round and restore it there once more."""
    steps = tuple(Step(layer, Quantize(INT8)) for layer in ("layer1.0.conv2", "layer1.1.conv1"))
    plan = Plan(resnet.fingerprint, steps)
    to_onnx(build(plan, resnet, None), tmp_path / "model.onnx", plan.key)
    nodes = open_device("ort:cpu").profile(tmp_path / "model.onnx", [np.zeros((1, 3, 16, 16), np.float32)], 1)
    kernels = {kernel.name: kernel for kernel in lower(plan_kernels(plan, resnet))}
    planned = sum(kernel.workload.op == "quantize" for kernel in kernels.values())
    assert sum(node.op == "QuantizeLinear" for node in nodes) == planned == 2
    source = next(k.inputs[0] for k in kernels.values() if k.workload.op == "quantize" and "add" in k.inputs[0])
    assert sites(plan_kernels(plan, resnet))[f"{source}>q"].layout == LAST
