"""Quantisation per layer: fp32 or int8 (uint8 activations, int8 weights per channel)."""

import copy
import math
import operator
from collections.abc import Mapping, Sequence
from dataclasses import dataclass
from typing import Any

import torch
from torch import Tensor
from torch.fx import GraphModule, Node

from autocompress.compression.fake_quant import FakeQuantize, is_quantizable, quantize_weight
from autocompress.compression.methods.method import Approach, Finishing, Label, Method, Scope
from autocompress.compression.ranges import Observation, choose, observe
from autocompress.compression.repair.bias_correction import correct_biases
from autocompress.compression.workspace import Workspace
from autocompress.graph.calls import calls
from autocompress.graph.kernels import Fused, fuse
from autocompress.graph.types import Graph
from autocompress.task.batches import subset
from autocompress.vocabulary.errors import BuildError
from autocompress.vocabulary.formats import FORMATS, Mode, formats_of
from autocompress.vocabulary.precision import SCALE_KEEPING, absorbs_activation, is_fixed, quantised_tensors, resolve
from autocompress.vocabulary.workload import WEIGHTED_OPS, Capabilities, DType, Kernel, Kernels

CORRECTION_SAMPLES = 64
"""Calibration samples that biases are corrected on: means need few."""

TRAINED_IN = DType.FP32
"""What a layer computes in that is left alone."""

INT8_KINDS = frozenset({"conv", "linear"})

_SOFTMAX = frozenset({torch.ops.aten.softmax.int, torch.ops.aten._softmax.default})


@dataclass(frozen=True, slots=True, order=True)
class Quantize:
    """A layer computes in `dtype`: INT8 is static QDQ, uint8 activations and int8 per-channel weights."""

    dtype: DType


class QuantizeMethod(Method):
    """A layer stays as it is (None) or computes in int8, on devices that have it."""

    name = "quantize"
    config = Quantize
    stage = 300
    scope = Scope.LAYER
    approach = Approach.FORMAT

    def targets(self, graph: Graph) -> tuple[str, ...]:
        """Layers that may change; transposed convolutions are left out, as ONNX Runtime has no int8 kernel for them."""
        return tuple(n for n, layer in graph.layers.items() if layer.frozen is None and layer.kind in INT8_KINDS)

    def options(self, target: str, graph: Graph, capabilities: Capabilities) -> Sequence[Quantize | None]:
        offered = [row for row in formats_of(capabilities.dtypes) if row.dtype is not TRAINED_IN]
        return (None, *(Quantize(row.dtype) for row in offered))

    def value(self, target: str, config: Quantize | None, graph: Graph) -> str:
        return TRAINED_IN.value if config is None else config.dtype.value

    def label(self, config: Quantize) -> Label:
        return Label(
            config.dtype.value, "" if self.is_idle(config) else f"{FORMATS[config.dtype].weight_bits} bit", "#a8dadc"
        )

    def rewrite(self, kernels: dict[str, Kernel], target: str, config: Quantize, graph: Graph) -> None:
        self.rewrite_all(kernels, {target: config}, graph)

    def rewrite_all(self, kernels: dict[str, Kernel], configs: Mapping[str, Quantize], graph: Graph) -> None:
        for name, kernel in kernels.items():
            config = configs.get(kernel.layer)
            if config is not None and kernel.workload.dtype is not config.dtype:
                kernels[name] = kernel.with_workload(dtype=config.dtype)

    def apply(self, work: Workspace, target: str, config: Quantize) -> None:
        """Nothing yet: int8 is simulated once the model is final, for all layers together."""

    def finish(self, model: GraphModule, configs: Mapping[str, Quantize], finishing: Finishing) -> None:
        """Rounds as the runtime will. Given statistics, biases then take back what rounding shifted on average."""
        int8 = {layer for layer, config in configs.items() if FORMATS[config.dtype].mode is Mode.STATIC}
        if not int8:
            return
        unrounded, inputs, statistics = copy.deepcopy(model), finishing.graph.example_inputs, finishing.statistics
        batches = [batch for batch, _ in statistics.batches] if statistics else [inputs]
        insert_fake_quant(model, int8, batches, inputs, finishing.ranges)
        if statistics is not None:
            correct_biases(model, unrounded, subset(statistics.batches, CORRECTION_SAMPLES), int8)

    def is_idle(self, config: Quantize) -> bool:
        return config.dtype is TRAINED_IN

    def forced(self, target: str, graph: Graph, capabilities: Capabilities) -> Quantize | None:
        return None if TRAINED_IN in capabilities.dtypes else Quantize(formats_of(capabilities.dtypes)[0].dtype)

    def decode(self, values: Mapping[str, Any]) -> Quantize:
        found = super().decode(values)
        assert isinstance(found, Quantize)
        return Quantize(DType(found.dtype))


@dataclass(frozen=True, slots=True)
class _Point:
    """Where a tensor is rounded: after `node`, for those of its readers in `readers` (None: all). `keeps` is the node
    whose grid it keeps, if its values are only moved."""

    node: Node
    readers: frozenset[Node] | None = None
    keeps: Node | None = None


def insert_fake_quant(
    model: GraphModule,
    int8_layers: set[str],
    batches: Sequence[Any],
    example_inputs: tuple[Tensor, ...],
    ranges: str = "mse",
) -> None:
    """Makes an exactly rewritten model, in place, compute what an int8 runtime would for these layers.

    `batches` (a tensor or a tuple of inputs each) show which ranges activations have; `ranges` as in ranges.choose.
    """
    fused = fuse(model, example_inputs)
    resolved = resolve(_decided(fused.kernels, int8_layers))
    points = _points(model, fused, resolved)
    observed = observe(model, [point.node for point in points if point.keeps is None], batches)
    rounding: dict[Node, FakeQuantize] = {}
    for point in points:
        if point.keeps is None:
            rounding[point.node] = _grid(point.node, *_range(point.node, observed[point.node], ranges))
        else:
            rounding[point.node] = copy.deepcopy(rounding[point.keeps])
        _insert(model, point, rounding[point.node])
    _quantize_weights(model, fused, resolved)
    model.recompile()


def _decided(kernels: Kernels, int8_layers: set[str]) -> dict[str, Kernel]:
    return {
        name: kernel.with_workload(dtype=DType.INT8)
        if kernel.layer in int8_layers and kernel.workload.op in WEIGHTED_OPS
        else kernel
        for name, kernel in kernels.items()
    }


def _points(model: GraphModule, fused: Fused, resolved: Kernels) -> list[_Point]:
    """Every tensor to round, in execution order. What fp32 kernels read of an fp32 tensor is not rounded."""
    nodes = {node.name: node for node in model.graph.nodes}
    quantised = quantised_tensors(resolved)
    int8 = {name for name, kernel in resolved.items() if kernel.workload.dtype is DType.INT8}
    points: list[_Point] = []
    for node in nodes.values():
        maker = fused.holder.get(node.name)
        if maker is None or not _is_tensor(node):
            continue
        leaves = any(fused.holder.get(user.name) != maker for user in node.users)
        if maker not in int8:
            readers = frozenset(user for user in node.users if fused.holder.get(user.name) in int8)
            if leaves and readers:
                points.append(_Point(node, readers))
        elif leaves and maker in quantised:
            kept = nodes[fused.places[maker].reads.node] if _keeps_grid(resolved[maker]) else None
            points.append(_Point(node, keeps=kept))
        elif not leaves and node.op == "call_module" and _rounds_before_activation(resolved[maker]):
            points.append(_Point(node))
    return points


def _rounds_before_activation(kernel: Kernel) -> bool:
    """An int8 convolution, unlike a matrix product, can't hand floats to an activation that has to be computed."""
    return kernel.workload.op != "linear" and not absorbs_activation(kernel)


def _keeps_grid(kernel: Kernel) -> bool:
    return kernel.workload.op in SCALE_KEEPING or is_fixed(kernel)


def _is_tensor(node: Node) -> bool:
    """Not a size, and not a tuple of tensors."""
    if any(user.target is operator.getitem for user in node.users):
        return False
    sized = node.op == "call_function" and not isinstance(node.target, torch._ops.OpOverload)
    return node.target is operator.getitem or not (sized or calls(node, torch.ops.aten.sym_size.int))


def _range(node: Node, observation: Observation, method: str) -> tuple[float, float]:
    low, high = observation.low, observation.high
    if not (math.isfinite(low) and math.isfinite(high)):
        raise BuildError(
            f"{node.name} takes values from {low} to {high} on calibration data: no 8-bit range holds them"
        )
    return choose(observation, method)


def _grid(node: Node, low: float, high: float) -> FakeQuantize:
    """The grid over [low, high]; of a softmax with a step of 1 / n, as ONNX Runtime's QLinearSoftmax takes it."""
    grid = FakeQuantize.over(low, high)
    if calls(node, *_SOFTMAX):
        grid.scale.copy_((1 / grid.scale).floor().clamp_min(1).reciprocal())
    return grid


def _insert(model: GraphModule, point: _Point, module: FakeQuantize) -> None:
    name = point.node.name + "_rounded"
    readers = point.readers or frozenset(point.node.users)
    model.add_submodule(name, module)
    with model.graph.inserting_after(point.node):
        rounded = model.graph.call_module(name, (point.node,))
    for reader in readers:
        reader.replace_input_with(point.node, rounded)


def _quantize_weights(model: GraphModule, fused: Fused, resolved: Kernels) -> None:
    for node in model.graph.nodes:
        kernel = resolved.get(fused.holder.get(node.name, ""))
        if node.op != "call_module" or kernel is None or kernel.workload.dtype is not DType.INT8:
            continue
        layer = model.get_submodule(node.target)
        if not is_quantizable(layer):
            continue  # a batch norm that could not be folded, of the same kernel: it stays in float
        source: Any = node.args[0]
        rounding = model.get_submodule(source.target) if source.op == "call_module" else None
        if not isinstance(rounding, FakeQuantize):
            raise BuildError(
                f"{node.target} shall be int8, but its input {source.name} is not: leave the layer in fp32"
            )
        quantize_weight(layer, rounding.scale)
