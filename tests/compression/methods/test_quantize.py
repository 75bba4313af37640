"""Simulated int8: where it rounds, what it computes, and that the exported file computes the same."""

import copy
import random
from collections import Counter
from functools import cache
from pathlib import Path

import numpy as np
import onnx
import pytest
import torch
from hypothesis import given
from hypothesis import strategies as st
from onnx import numpy_helper
from torch import Tensor, nn
from torch.fx import GraphModule

from autocompress.compression.fake_quant import FakeQuantize, QuantizedLayer, quantize_weight
from autocompress.compression.methods.quantize import Quantize, QuantizeMethod, insert_fake_quant
from autocompress.compression.ranges import Observation, choose
from autocompress.export.onnx import to_onnx
from autocompress.graph.kernels import kernels_of
from autocompress.graph.rewrites import apply_exact
from autocompress.graph.trace import capture
from autocompress.graph.types import Graph, Layer
from autocompress.vocabulary.errors import ConfigError
from autocompress.vocabulary.formats import FP32, INT8
from autocompress.vocabulary.precision import resolve
from autocompress.vocabulary.workload import Capabilities, Kernel, Workload
from tests.runner import Runner
from tests.zoo import make


def _batches(inputs: Tensor, count: int = 4) -> list[Tensor]:
    generator = torch.Generator().manual_seed(1)
    shape = (16, *inputs.shape[1:])
    if inputs.is_floating_point():
        return [torch.randn(shape, generator=generator) for _ in range(count)]
    return [torch.randint(0, 50, shape, generator=generator) for _ in range(count)]


def _layers(model: GraphModule) -> set[str]:
    kinds = (nn.Conv2d, nn.Linear, nn.ConvTranspose2d)
    targets = {str(n.target) for n in model.graph.nodes if n.op == "call_module"}
    return {t for t in targets if isinstance(model.get_submodule(t), kinds) and not t.endswith("_as_conv")}


def _quantized(name: str, without: frozenset[str] = frozenset()) -> tuple[GraphModule, GraphModule, list[Tensor]]:
    """(float model, the same with every layer but `without` in int8, calibration batches)."""
    lifted, inputs = _rewritten(name)
    batches = _batches(inputs)
    quantized = copy.deepcopy(lifted)
    insert_fake_quant(quantized, _layers(lifted) - without, batches, (inputs,))
    return lifted, quantized, batches


@cache
def _rewritten(name: str) -> tuple[GraphModule, Tensor]:
    model, inputs = make(name)
    lifted = capture(model, (inputs,))
    apply_exact(lifted, (inputs,))
    return lifted, inputs


class TestGrid:
    @given(st.floats(-1e4, 1e4), st.floats(0, 1e4))
    def test_holds_zero_exactly_and_covers_the_range(self, low: float, width: float) -> None:
        grid = FakeQuantize.over(low, low + width)
        assert grid(torch.zeros(1)).item() == 0
        ends = torch.tensor([min(low, 0), max(low + width, 0)])
        assert (grid(ends) - ends).abs().max() <= 0.51 * float(grid.scale) + 1e-6
        assert 0 <= int(grid.zero_point) <= 255

    def test_is_the_numpy_definition(self) -> None:
        grid = FakeQuantize.over(-1.0, 3.0)
        x = np.linspace(-2, 4, 1001, dtype=np.float32)
        scale, zero = np.float32(grid.scale), int(grid.zero_point)
        codes = np.clip(np.rint(x / scale) + zero, 0, 255)
        assert np.allclose(grid(torch.from_numpy(x)).numpy(), (codes - zero) * scale, atol=1e-6)

    def test_ties_go_to_even(self) -> None:
        grid = FakeQuantize(1.0, 10)
        assert grid(torch.tensor([0.5, 1.5, 2.5, -0.5])).tolist() == [0, 2, 2, 0]

    def test_gradient_passes_inside_the_range_only(self) -> None:
        x = torch.tensor([-5.0, 0.3, 300.0], requires_grad=True)
        FakeQuantize(1.0, 0)(x).sum().backward()
        assert x.grad is not None
        assert x.grad.tolist() == [0, 1, 0]

    def test_rounding_twice_is_rounding_once(self) -> None:
        grid = FakeQuantize.over(-0.7, 2.1)
        once = grid(torch.randn(1000))
        assert torch.equal(grid(once), once)


class TestWeights:
    @pytest.mark.parametrize(
        "layer",
        [nn.Linear(6, 5), nn.Conv1d(6, 5, 3), nn.Conv2d(6, 4, 3, groups=2, bias=False), nn.Conv3d(6, 5, 1),
         nn.ConvTranspose1d(6, 5, 2), nn.ConvTranspose2d(6, 4, 2, 2, groups=2), nn.ConvTranspose3d(6, 5, 1)],
        ids=lambda layer: type(layer).__name__,
    )  # fmt: skip
    def test_integers_times_scale_are_the_simulated_weight(self, layer: nn.Module) -> None:
        x = torch.randn(2, 6, *[4] * (layer.weight.dim() - 2))
        before, parameters = layer(x), dict(layer.named_parameters())
        quantize_weight(layer, torch.tensor(0.01))
        assert isinstance(layer, QuantizedLayer)
        assert dict(layer.named_parameters()).keys() == parameters.keys()
        weight, bias = layer.integers()
        shape = [-1 if d == layer.channel_axis else 1 for d in range(weight.dim())]
        assert torch.allclose(weight * layer.weight_scale.reshape(shape), layer.quantized_weight, rtol=1e-6)
        assert weight.abs().amax() == 127
        if bias is not None:
            assert torch.allclose(bias * layer.bias_scale, layer.quantized_bias, rtol=1e-6)
        after = layer(x)
        assert 0 < (after - before).abs().max() < 0.05 * before.abs().max()
        after.sum().backward()
        assert layer.weight.grad is not None and layer.weight.grad.abs().sum() > 0

    def test_bias_too_large_for_int32_widens_the_weight_scale(self) -> None:
        layer = nn.Linear(2, 2)
        with torch.no_grad():
            layer.weight.copy_(torch.tensor([[1e-9, 0.0], [1.0, 1.0]]))
            layer.bias.copy_(torch.tensor([50.0, 50.0]))
        quantize_weight(layer, torch.tensor(1e-3))
        _, bias = layer.integers()  # type: ignore[operator]
        assert (bias.double() * layer.bias_scale.double()).tolist() == pytest.approx([50, 50], rel=1e-5)

    def test_dead_channel_stays_zero(self) -> None:
        layer = nn.Conv2d(3, 2, 1)
        with torch.no_grad():
            layer.weight[0] = 0
            layer.bias[0] = 0
        quantize_weight(layer, torch.tensor(0.1))
        assert layer(torch.randn(1, 3, 2, 2))[:, 0].abs().max() == 0


class TestRanges:
    def _seen(self, *batches: Tensor) -> Observation:
        observation = Observation()
        for batch in batches:
            observation.add(batch)
        return observation

    def test_minmax_is_the_extremes_with_zero(self) -> None:
        assert choose(self._seen(torch.tensor([1.0, 2.0]), torch.tensor([5.0])), "minmax") == (0.0, 5.0)

    def test_percentile_gives_up_an_outlier(self) -> None:
        values = torch.randn(16_000, generator=torch.Generator().manual_seed(0))
        values[7] = 100
        low, high = choose(self._seen(values), "percentile")
        assert -6 < low < -2
        assert 2 < high < 6

    @pytest.mark.parametrize("power", [1, 3])
    def test_mse_finds_the_best_range_of_an_exhaustive_search(self, power: int) -> None:
        values = torch.randn(8_000, generator=torch.Generator().manual_seed(0)) ** power

        def error(low: float, high: float) -> float:
            return float((FakeQuantize.over(low, high)(values) - values).square().mean())

        shrinks = np.linspace(0.3, 1, 15)
        best = min(error(a * float(values.min()), b * float(values.max())) for a in shrinks for b in shrinks)
        assert error(*choose(self._seen(values), "mse")) <= 1.05 * best

    @pytest.mark.parametrize("method", ["mse", "percentile", "minmax"])
    def test_constant_zero_has_an_empty_range(self, method: str) -> None:
        assert choose(self._seen(torch.zeros(10)), method) == (0, 0)

    def test_unknown_method_names_the_nearest(self) -> None:
        with pytest.raises(ConfigError, match="percentile"):
            choose(Observation(), "percentil")


MAPPED = {
    "resnet": {"QLinearConv": 9, "QLinearAdd": 3, "QLinearGlobalAveragePool": 1, "QGemm": 1},
    "mobilenet": {"QLinearConv": 6, "QLinearAdd": 1, "QLinearMul": 1, "QGemm": 1},
    "shufflenet": {"QLinearConv": 4, "QLinearAdd": 1, "QGemm": 1},
    "dense": {"QLinearConv": 4, "QLinearConcat": 2, "QLinearAveragePool": 1},
    "transformer": {"QGemm": 9},
}


@pytest.mark.parametrize("name", MAPPED)
def test_exported_file_computes_what_was_simulated(name: str, tmp_path: Path, runtime: Runner) -> None:
    """Within the few steps by which roundings of nearly equal numbers differ, and in int8 kernels of the runtime."""
    original, quantized, batches = _quantized(name)
    path = to_onnx(quantized, tmp_path / "model.onnx", "plan").path
    onnx.checker.check_model(onnx.load(path), full_check=True)
    with torch.no_grad():
        simulated, floats = quantized(batches[0]).numpy(), original(batches[0]).numpy()
    found = runtime.run(path, batches[0])
    quantisation_error = np.abs(simulated - floats)
    assert 0 < quantisation_error.max() < 0.1 * np.abs(floats).max()
    assert np.abs(found - simulated).mean() <= 0.5 * quantisation_error.mean()
    assert (found.argmax(1) == simulated.argmax(1)).mean() >= 0.9
    executed = runtime.executed(path)
    assert {op: executed[op] for op in MAPPED[name]} == MAPPED[name]
    assert not executed["Conv"] and not executed["Gemm"]


def test_layers_left_in_float_stay_float(tmp_path: Path, runtime: Runner) -> None:
    _, quantized, _ = _quantized("resnet", frozenset({"conv1", "linear"}))
    executed = runtime.executed(to_onnx(quantized, tmp_path / "model.onnx", "plan").path)
    assert (executed["Conv"] + executed["FusedConv"], executed["Gemm"] + executed["FusedGemm"]) == (1, 1)
    assert executed["QLinearConv"] == 8
    assert (executed["QuantizeLinear"], executed["DequantizeLinear"]) == (1, 1)


@pytest.mark.parametrize("name", ["resnet", "mobilenet", "shufflenet"])
def test_every_layer_runs_in_the_precision_that_was_decided(name: str, tmp_path: Path, runtime: Runner) -> None:
    """Also a float layer between int8 ones, which ONNX Runtime would quantise by itself."""
    original, inputs = _rewritten(name)
    layers, choice = sorted(_layers(original)), random.Random(0)
    for _ in range(8):
        int8 = {layer for layer in layers if choice.random() < 0.5}
        quantized = copy.deepcopy(original)
        insert_fake_quant(quantized, int8, _batches(inputs, 1), (inputs,))
        path = to_onnx(quantized, tmp_path / "model.onnx", "plan").path
        executed = runtime.executed(path)
        decided = {
            kernel: k.with_workload(dtype=INT8) if k.layer in int8 else k
            for kernel, k in kernels_of(original, (inputs,)).items()
        }
        ops = Counter(k.workload.op for k in resolve(decided).values() if k.workload.dtype == INT8)
        assert (executed["QLinearConv"], executed["QGemm"]) == (ops["conv"], ops["linear"]), int8
        with torch.no_grad():
            simulated = quantized(inputs).numpy()
            error = np.abs(simulated - original(inputs).numpy()).mean()
        assert np.abs(runtime.run(path, inputs) - simulated).mean() <= 0.05 * error


def test_kernels_see_through_the_simulation() -> None:
    original, quantized, batches = _quantized("mobilenet")
    example = (batches[0][:1],)
    assert kernels_of(quantized, example) == kernels_of(original, example)


def test_int8_part_is_channels_last_throughout(tmp_path: Path, runtime: Runner) -> None:
    """A residual add right after a float stem costs one transpose (at the entrance), not one around every add."""
    _, quantized, _ = _quantized("resnet", frozenset({"conv1"}))
    executed = runtime.executed(to_onnx(quantized, tmp_path / "model.onnx", "plan").path)
    assert executed["QLinearAdd"] == 3
    assert executed["Transpose"] == 1


def test_weights_are_stored_in_int8(tmp_path: Path) -> None:
    original, quantized, _ = _quantized("resnet")
    floats = to_onnx(original, tmp_path / "float.onnx", "plan").size_bytes
    ints = to_onnx(quantized, tmp_path / "int8.onnx", "plan")
    weights = {t.name: t.data_type for t in onnx.load(ints.path).graph.initializer}
    assert weights["layer1.0.conv1.weight"] == onnx.TensorProto.INT8
    assert weights["layer1.0.conv1.bias"] == onnx.TensorProto.INT32
    assert ints.size_bytes < 0.5 * floats


def test_moves_keep_the_grid_of_what_they_move() -> None:
    _, quantized, _ = _quantized("shufflenet")
    grids = {n.name: quantized.get_submodule(n.target) for n in quantized.graph.nodes if n.name.endswith("_rounded")}
    source, moved = grids["relu_rounded"], [m for name, m in grids.items() if "view" in name or "transpose" in name]
    assert moved
    assert all(m.scale == source.scale and m.zero_point == source.zero_point for m in moved)


def test_simulation_trains() -> None:
    """Straight-through gradients lower a loss."""
    original, quantized, batches = _quantized("resnet")
    with torch.no_grad():
        target = original(batches[0]) + 0.1
    optimizer = torch.optim.SGD(quantized.parameters(), 0.02)
    losses = []
    for _ in range(5):
        loss = (quantized(batches[0]) - target).square().mean()
        optimizer.zero_grad()
        loss.backward()
        optimizer.step()
        losses.append(loss.item())
    assert losses[-1] < 0.8 * losses[0]


def test_no_int8_layer_changes_nothing() -> None:
    original, inputs = _rewritten("resnet")
    lifted = copy.deepcopy(original)
    before = [n.name for n in lifted.graph.nodes]
    insert_fake_quant(lifted, set(), _batches(inputs), (inputs,))
    assert [n.name for n in lifted.graph.nodes] == before


def test_a_wrong_scale_is_caught_by_the_comparison(tmp_path: Path, runtime: Runner) -> None:
    """The parity test above refuses a file in which one scale is off by a twentieth."""
    original, quantized, batches = _quantized("resnet")
    path = to_onnx(quantized, tmp_path / "model.onnx", "plan").path
    proto = onnx.load(path)
    (scale,) = (t for t in proto.graph.initializer if t.name == "layer1.0.conv1.weight_scale")
    scale.CopyFrom(numpy_helper.from_array(numpy_helper.to_array(scale) * np.float32(1.05), scale.name))
    onnx.save(proto, path)
    with torch.no_grad():
        simulated, floats = quantized(batches[0]).numpy(), original(batches[0]).numpy()
    error = np.abs(runtime.run(path, batches[0]) - simulated).mean()
    assert error > 0.5 * np.abs(simulated - floats).mean()


class TestMethod:
    def test_offers_int8_only_where_the_device_has_it(self) -> None:
        method, layer = QuantizeMethod(), "fc"
        graph = _graph()
        both = Capabilities(frozenset({FP32, INT8}), {})
        assert method.options(layer, graph, both) == (None, Quantize(INT8))
        assert method.options(layer, graph, Capabilities(frozenset({FP32}), {})) == (None,)

    def test_rewrites_every_kernel_of_the_layer(self) -> None:
        kernels = {
            name: Kernel(name, name.partition("#")[0], ("x",), Workload("linear", 4, 4, (), ()))
            for name in ("fc#1", "fc#2", "head")
        }
        QuantizeMethod().rewrite(kernels, "fc", Quantize(INT8), _graph())
        assert [k.workload.dtype for k in kernels.values()] == [INT8, INT8, FP32]

    def test_targets_are_the_layers_that_may_change(self) -> None:
        assert QuantizeMethod().targets(_graph()) == ("fc",)


def _graph() -> Graph:
    layers = {
        "fc": Layer("fc", "linear", "linear", (4, 4)),
        "head": Layer("head", "linear", "linear_1", (4, 4), "left alone by the task (head)"),
        "up": Layer("up", "conv_transpose", "conv_transpose2d", (4, 4, 2, 2)),
    }
    return Graph("0" * 16, GraphModule(nn.Module(), torch.fx.Graph()), (), {}, layers, {})
