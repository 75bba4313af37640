"""Operator by operator, ONNX Runtime's int8 codes are the simulation's, but for values in the middle of two steps."""

import copy
from collections.abc import Callable
from pathlib import Path
from typing import Any

import numpy as np
import onnx
import pytest
import torch
import torch.nn.functional as F
from onnx import numpy_helper
from torch import Tensor, nn
from torch.fx import GraphModule, Interpreter, Node

from autocompress.compression.fake_quant import FakeQuantize
from autocompress.compression.methods.quantize import insert_fake_quant
from autocompress.devices import open_device
from autocompress.devices import ort as ort_file
from autocompress.export.onnx import to_onnx
from autocompress.graph.rewrites import apply_exact
from autocompress.graph.trace import capture
from tests.runner import Runner

TIE = 2e-3
"""How near to the middle between two steps, in steps, float sums of another order may decide otherwise: 255 steps, each
uncertain by some 2^-18 where partial sums are larger than the result."""

SHARE = 1e-2
"""Of a tensor's values, at most so many lie in the middle: also exact ties, as of an average of few values."""


class Between(nn.Module):
    """`operation` on what int8 layers make of one input, read by another."""

    def __init__(self, operation: Callable[..., Tensor], branches: int, width: int = 8, reader: Any = None) -> None:
        super().__init__()
        self.branches = nn.ModuleList(nn.Conv2d(3, width, 3, padding=1) for _ in range(branches))
        self.operation = operation
        self.reader = reader or nn.LazyConv2d(5, 1)

    def forward(self, x: Tensor) -> Any:
        return self.reader(self.operation(*(branch(x) for branch in self.branches)))


def _gated(x: Tensor, gate: Tensor) -> Tensor:
    return x * torch.sigmoid(F.adaptive_avg_pool2d(gate, 1))


def _tokens(x: Tensor) -> Tensor:
    return x.flatten(2).transpose(1, 2)


def _attention(x: Tensor) -> Tensor:
    tokens = _tokens(x)
    return F.scaled_dot_product_attention(tokens, tokens, tokens)


class LearntQueries(nn.Module):
    """A layer over parameters, the same for every sample, asks tokens by attention."""

    def __init__(self) -> None:
        super().__init__()
        self.queries, self.asks = nn.Parameter(torch.randn(1, 4, 8)), nn.Linear(8, 8)

    def forward(self, x: Tensor) -> Tensor:
        tokens = _tokens(x)
        return F.scaled_dot_product_attention(self.asks(self.queries.expand(x.shape[0], -1, -1)), tokens, tokens)


def _channels(x: Tensor) -> Tensor:
    """A channel shuffle."""
    return x.reshape(-1, 2, 4, *x.shape[2:]).transpose(1, 2).reshape(-1, 8, *x.shape[2:])


OPERATORS: dict[str, Callable[[], nn.Module]] = {
    "relu": lambda: Between(F.relu, 1),
    "relu6": lambda: Between(F.relu6, 1),
    "leaky_relu": lambda: Between(F.leaky_relu, 1),
    "elu": lambda: Between(F.elu, 1),
    "gelu": lambda: Between(F.gelu, 1),
    "silu": lambda: Between(F.silu, 1),
    "hardswish": lambda: Between(F.hardswish, 1),
    "sigmoid": lambda: Between(torch.sigmoid, 1),
    "tanh": lambda: Between(torch.tanh, 1),
    "softmax": lambda: Between(lambda x: x.softmax(1), 1),
    "softmax_of_many": lambda: Between(lambda x: (30 * x).softmax(2), 1),
    "pixel_shuffle": lambda: Between(lambda x: F.pixel_shuffle(x, 2), 1),
    "mean_of_tokens": lambda: Between(lambda x: _tokens(x).mean(1), 1, reader=nn.Linear(8, 5)),
    "add": lambda: Between(torch.add, 2),
    "add_relu": lambda: Between(lambda x, y: F.relu(x + y), 2),
    "add_to_itself": lambda: Between(lambda x: x + F.relu(x), 1),
    "subtract": lambda: Between(torch.sub, 2),
    "multiply": lambda: Between(torch.mul, 2),
    "gate": lambda: Between(_gated, 2),
    "concat": lambda: Between(lambda x, y, z: torch.cat([x, y, F.relu(z)], 1), 3),
    "max_pool": lambda: Between(lambda x: F.max_pool2d(x, 3, 2, 1), 1),
    "avg_pool": lambda: Between(lambda x: F.avg_pool2d(x, 2), 1),
    "avg_pool_padded": lambda: Between(lambda x: F.avg_pool2d(x, 3, 2, 1), 1),
    "avg_pool_not_counting_padding": lambda: Between(lambda x: F.avg_pool2d(x, 3, 2, 1, False, False), 1),
    "global_pool": lambda: Between(lambda x: F.adaptive_avg_pool2d(x, 1), 1),
    "mean": lambda: Between(lambda x: x.mean((2, 3)), 1, reader=nn.Linear(8, 5)),
    "nearest": lambda: Between(lambda x: F.interpolate(x, scale_factor=2), 1),
    "bilinear": lambda: Between(lambda x: F.interpolate(x, scale_factor=2, mode="bilinear"), 1),
    "upsample_and_add": lambda: Between(lambda x, y: F.interpolate(F.max_pool2d(x, 2), scale_factor=2) + y, 2),
    "pad": lambda: Between(lambda x: F.pad(x, (1, 2, 0, 1)), 1),
    "slice": lambda: Between(lambda x: x[:, :, ::2, 1:], 1),
    "chunk": lambda: Between(lambda x: torch.add(*x.chunk(2, 1)), 1),
    "shuffle": lambda: Between(_channels, 1),
    "flatten": lambda: Between(lambda x: x.flatten(1), 1, reader=nn.Linear(8 * 144, 5)),
    "linear_over_tokens": lambda: Between(_tokens, 1, reader=nn.Linear(8, 5)),
    "attention": lambda: Between(_attention, 1, reader=nn.Linear(8, 5)),
    "learnt_queries": lambda: Between(LearntQueries(), 1, reader=nn.Linear(8, 5)),
    "layer_norm": lambda: Between(lambda x: F.layer_norm(_tokens(x), (8,)), 1, reader=nn.Linear(8, 5)),
    "batch_norm_before": lambda: Between(nn.Sequential(nn.BatchNorm2d(8), nn.ReLU()), 1),
    "group_norm": lambda: Between(nn.GroupNorm(2, 8), 1),
    "transposed": lambda: Between(nn.ConvTranspose2d(8, 4, 2, 2), 1),
    "strided": lambda: Between(nn.Conv2d(8, 6, 3, 2, 1), 1),
    "dilated": lambda: Between(nn.Conv2d(8, 6, 3, 1, 2, 2), 1),
    "grouped": lambda: Between(nn.Conv2d(8, 6, 3, groups=2), 1),
    "depthwise": lambda: Between(nn.Conv2d(8, 8, 5, padding=2, groups=8), 1),
    "one_wide": lambda: Between(nn.Conv2d(8, 6, (1, 7), padding=(0, 3)), 1),
    "long_sum": lambda: Between(nn.Conv2d(160, 6, 3, padding=1), 1, width=160),
    "without_bias": lambda: Between(nn.Conv2d(8, 6, 1, bias=False), 1),
}

COMPUTED_IN_INT8 = {
    "add": "QLinearAdd", "add_relu": "QLinearAdd", "multiply": "QLinearMul", "concat": "QLinearConcat",
    "avg_pool": "QLinearAveragePool", "avg_pool_padded": "QLinearAveragePool", "mean": "QLinearGlobalAveragePool",
    "global_pool": "QLinearGlobalAveragePool", "flatten": "QGemm", "depthwise": "QLinearConv",
    "sigmoid": "QLinearSigmoid", "leaky_relu": "QLinearLeakyRelu", "softmax": "QLinearSoftmax",
}  # fmt: skip


def _exported(name: str, folder: Path) -> tuple[GraphModule, Tensor, Path]:
    torch.manual_seed(0)
    model, inputs = OPERATORS[name]().eval(), torch.randn(4, 3, 12, 12)
    with torch.no_grad():
        model(inputs)  # makes the lazy reader
    path, lifted = _quantized(model, inputs, folder)
    return lifted, inputs, path


def _quantized(model: nn.Module, inputs: Tensor, folder: Path) -> tuple[Path, GraphModule]:
    """The file of a model all of whose layers are int8, and its simulation."""
    lifted = capture(model, (inputs,))
    apply_exact(lifted, (inputs,))
    called = {str(n.target) for n in lifted.graph.nodes if n.op == "call_module"}
    layers = {t for t in called if isinstance(lifted.get_submodule(t), (nn.Conv2d, nn.Linear))}
    insert_fake_quant(lifted, layers, [torch.randn(16, *inputs.shape[1:])], (inputs,))
    return to_onnx(lifted, folder / "model.onnx", "plan").path, lifted


def _first(outputs: Any) -> Tensor:
    first: Tensor = outputs[0] if isinstance(outputs, tuple) else outputs
    return first


class _Compared(Interpreter):
    """Runs a simulation in which every rounded tensor is, for what reads it, the runtime's.

    `different` is, per rounding, the share of codes that differ; where they do, `steps` is how much further than half a
    step they are from the simulation's value at most, and `from_middle` how far that is from the middle of two steps.
    """

    def __init__(self, model: GraphModule, tensors: dict[str, np.ndarray]) -> None:
        super().__init__(copy.deepcopy(model))
        self.codes = [array for array in tensors.values() if array.dtype == np.uint8]
        self.different: dict[str, float] = {}
        self.steps: dict[str, float] = {}
        self.from_middle: dict[str, float] = {}

    def run_node(self, n: Node) -> Any:
        value = super().run_node(n)
        module = self.module.get_submodule(str(n.target)) if n.op == "call_module" else None
        if not isinstance(module, FakeQuantize):
            return value
        exact = (self.env[n.args[0]] / module.scale + module.zero_point).double()  # type: ignore[index]
        codes = self._nearest((value / module.scale).round() + module.zero_point)
        wrong = codes != exact.round().clamp(0, 255)
        self.different[n.name] = float(wrong.double().mean())
        self.steps[n.name] = float((codes - exact).abs().sub(0.5).clamp_min(0)[wrong].max()) if wrong.any() else 0.0
        self.from_middle[n.name] = float(((exact % 1) - 0.5).abs()[wrong].max()) if wrong.any() else 0.0
        return (codes - module.zero_point).float() * module.scale

    def _nearest(self, codes: Tensor) -> Tensor:
        """The runtime's tensor of this one's values, in this one's order of axes; that of the fewest differences."""
        found = [
            torch.from_numpy(turned.astype(np.float64)).reshape(codes.shape)
            for array in self.codes
            if array.size == codes.numel()
            for turned in (array, np.moveaxis(array, -1, 1) if array.ndim > 2 else array)
        ]
        assert found, f"the runtime has no uint8 tensor of shape {tuple(codes.shape)}"
        return min(found, key=lambda other: float((other != codes).double().mean()))


def _compare(model: GraphModule, inputs: Tensor, tensors: dict[str, np.ndarray]) -> _Compared:
    compared = _Compared(model, tensors)
    with torch.no_grad():
        compared.run(inputs)
    return compared


@pytest.mark.parametrize("name", OPERATORS)
def test_codes_are_those_of_the_simulation(name: str, tmp_path: Path, runtime: Runner) -> None:
    model, inputs, path = _exported(name, tmp_path)
    found = _compare(model, inputs, runtime.tensors(path, inputs))
    assert len(found.different) >= 2
    assert max(found.from_middle.values()) <= TIE, found.from_middle
    assert max(found.steps.values()) <= TIE, found.steps
    assert max(found.different.values()) <= SHARE, found.different
    if name in COMPUTED_IN_INT8:
        assert runtime.executed(path)[COMPUTED_IN_INT8[name]] >= 1


@pytest.mark.parametrize("name", ["add", "depthwise", "concat"])
def test_a_scale_that_is_off_by_a_hundredth_is_seen_at_its_own_tensor(
    name: str, tmp_path: Path, runtime: Runner
) -> None:
    model, inputs, path = _exported(name, tmp_path)
    proto = onnx.load(path)
    scale = next(t for t in proto.graph.initializer if t.name == "branches.0.weight_scale")
    scale.CopyFrom(numpy_helper.from_array(numpy_helper.to_array(scale) * np.float32(1.01), scale.name))
    onnx.save(proto, path)
    found = _compare(model, inputs, runtime.tensors(path, inputs))
    worst = max(found.different, key=found.different.__getitem__)
    assert found.different[worst] > SHARE and worst.startswith("conv2d")
    assert [name for name, far in found.from_middle.items() if far > TIE] == [worst]


@pytest.mark.parametrize("name", ["concat", "depthwise", "linear_over_tokens"])
def test_with_uint8_weights_the_runtime_computes_the_same(
    name: str, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    """What is asked of it on processors where int8 weights saturate; also where layers have equal zero points."""
    _, inputs, path = _exported(name, tmp_path)
    found = []
    for needed in (False, True):
        monkeypatch.setattr(ort_file, "saturates", lambda needed=needed: needed)
        found.append(open_device("ort:cpu").open(path).run(inputs.numpy()))
    monkeypatch.undo()
    assert np.array_equal(*found) or ort_file.saturates()


def test_layers_that_share_a_weight_are_loaded_with_uint8_weights_too(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    """Called twice, or stored once for being equal."""

    class Twice(nn.Module):
        def __init__(self) -> None:
            super().__init__()
            self.stem, self.again = nn.Conv2d(3, 6, 1), nn.Conv2d(6, 6, 3, padding=1)
            self.equal = copy.deepcopy(self.again)

        def forward(self, x: Tensor) -> Tensor:
            x = F.relu(self.stem(x))
            return self.equal(F.relu(self.again(F.relu(self.again(x)))))

    torch.manual_seed(0)
    model, inputs = Twice().eval(), torch.randn(4, 3, 12, 12)
    path, simulated = _quantized(model, inputs, tmp_path)
    monkeypatch.setattr(ort_file, "saturates", lambda: True)
    found = np.asarray(open_device("ort:cpu").open(path).run(inputs.numpy()))
    with torch.no_grad():
        expected = _first(simulated(inputs))
    assert (found.reshape(expected.shape) == expected.numpy()).mean() > 0.99


def test_saturation_is_found_by_trying() -> None:
    """Beside the processor's own word for it, where the operating system passes it on."""
    flags = Path("/proc/cpuinfo").read_text().split() if Path("/proc/cpuinfo").exists() else []
    if "avx512_vnni" in flags or "avx_vnni" in flags:
        assert not ort_file.saturates()
    elif "avx2" in flags:
        assert ort_file.saturates()
