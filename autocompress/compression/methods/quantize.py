"""Quantisation per layer: what it computes in, a row of the table of number formats."""

import copy
import math
import operator
from collections.abc import Container, Iterable, Mapping, Sequence
from dataclasses import dataclass
from typing import Any

import torch
from torch import Tensor, nn
from torch.fx import GraphModule, Node

from autocompress.compression.fake_quant import FakeQuantize, is_quantizable, quantize_weight
from autocompress.compression.methods.method import Approach, Finishing, Label, Method, Scope
from autocompress.compression.ranges import Observation, choose, observe
from autocompress.compression.repair.bias_correction import correct_biases
from autocompress.compression.weight_only import store_weights
from autocompress.compression.workspace import Workspace
from autocompress.graph.calls import calls
from autocompress.graph.kernels import Fused, fuse
from autocompress.graph.types import Graph
from autocompress.task.batches import subset
from autocompress.vocabulary.errors import BuildError
from autocompress.vocabulary.formats import INT8, TRAINED_IN, Format, Mode, format_of, formats, formats_of, mildest
from autocompress.vocabulary.precision import (
    SCALE_KEEPING,
    absorbs_activation,
    is_fixed,
    is_quantised,
    quantised_tensors,
    resolve,
)
from autocompress.vocabulary.workload import WEIGHTED_OPS, Capabilities, Kernel, Kernels

CORRECTION_SAMPLES = 64
"""Calibration samples that biases are corrected on: means need few."""

_STATIC = (Mode.STATIC, 8, 8)
"""What fake_quant.py computes."""

_SOFTMAX = frozenset({torch.ops.aten.softmax.int, torch.ops.aten._softmax.default})


@dataclass(frozen=True, slots=True, order=True)
class Quantize:
    """A layer computes in `dtype`, which names a row of the table."""

    dtype: str


class QuantizeMethod(Method):
    """A layer stays as it is (None) or computes in another format, on devices that have it."""

    name = "quantize"
    config = Quantize
    stage = 300
    scope = Scope.LAYER
    approach = Approach.FORMAT

    def targets(self, graph: Graph) -> tuple[str, ...]:
        """Layers that may change and are of a kind that some format has kernels for."""
        kinds = frozenset[str]().union(*(row.layers for row in formats() if row.name != TRAINED_IN))
        return tuple(n for n, layer in graph.layers.items() if layer.frozen is None and layer.kind in kinds)

    def options(self, target: str, graph: Graph, capabilities: Capabilities) -> Sequence[Quantize | None]:
        layer = graph.layers[target]
        weights = math.prod(layer.weight_shape)
        offered = [row.name for row in formats_of(capabilities.dtypes) if row.suits(layer.kind, weights)]
        return (None, *(Quantize(name) for name in offered if name != TRAINED_IN))

    def value(self, target: str, config: Quantize | None, graph: Graph) -> str:
        return TRAINED_IN if config is None else config.dtype

    def label(self, config: Quantize) -> Label:
        kind = "" if self.is_idle(config) else f"{format_of(config.dtype).weight_bits} bit"
        return Label(config.dtype, kind, "#a8dadc")

    def rewrite(self, kernels: dict[str, Kernel], target: str, config: Quantize, graph: Graph) -> None:
        self.rewrite_all(kernels, {target: config}, graph)

    def rewrite_all(self, kernels: dict[str, Kernel], configs: Mapping[str, Quantize], graph: Graph) -> None:
        for name, kernel in kernels.items():
            config = configs.get(kernel.layer)
            if config is not None and kernel.workload.dtype != config.dtype:
                kernels[name] = kernel.with_workload(dtype=config.dtype)

    def apply(self, work: Workspace, target: str, config: Quantize) -> None:
        """Nothing yet: the formats are simulated once the model is final, for all layers together."""

    def finish(self, model: GraphModule, configs: Mapping[str, Quantize], finishing: Finishing) -> None:
        """Rounds as the runtime will. Given statistics, biases then take back what rounding shifted on average."""
        rows = {layer: format_of(config.dtype) for layer, config in configs.items() if not self.is_idle(config)}
        if not rows:
            return
        unrounded, inputs, statistics = copy.deepcopy(model), finishing.graph.example_inputs, finishing.statistics
        batches = [batch for batch, _ in statistics.batches] if statistics else [inputs]
        _require_simulated(rows.values())
        stored = {layer: row for layer, row in rows.items() if row.mode is Mode.WEIGHT_ONLY}
        static = {layer: row.name for layer, row in rows.items() if row.is_static}
        if stored:
            insert_weight_only(model, stored, inputs)
        if static:
            insert_fake_quant(model, static, batches, inputs, finishing.ranges, _only(set(static.values())))
        if statistics is not None:
            correct_biases(model, unrounded, subset(statistics.batches, CORRECTION_SAMPLES), rows)

    def is_idle(self, config: Quantize) -> bool:
        return config.dtype == TRAINED_IN

    def forced(self, target: str, graph: Graph, capabilities: Capabilities) -> Quantize | None:
        row = mildest(capabilities.dtypes, graph.layers[target].kind)
        return None if row is None or TRAINED_IN in capabilities.dtypes else Quantize(row.name)

    def decode(self, values: Mapping[str, Any]) -> Quantize:
        found = super().decode(values)
        assert isinstance(found, Quantize)
        return Quantize(format_of(found.dtype).name)


def _require_simulated(rows: Iterable[Format]) -> None:
    for row in rows:
        if row.mode is not Mode.WEIGHT_ONLY and (row.mode, row.weight_bits, row.activation_bits) != _STATIC:
            raise BuildError(
                f"nothing simulates number format {row.name} ({row.mode}, {row.weight_bits}-bit weights and "
                f"{row.activation_bits}-bit activations); static 8-bit ones are, and weight-only ones"
            )


def _only(static: set[str]) -> str:
    if len(static) > 1:
        raise BuildError(
            f"layers are asked to be {' and '.join(sorted(static))}, while tensors between them can be in one such "
            "format: choose one for the model"
        )
    return next(iter(static))


@dataclass(frozen=True, slots=True)
class _Point:
    """Where a tensor is rounded: after `node`, for those of its readers in `readers` (None: all). `keeps` is the node
    whose grid it keeps, if its values are only moved."""

    node: Node
    readers: frozenset[Node] | None = None
    keeps: Node | None = None


def insert_weight_only(model: GraphModule, rows: Mapping[str, Format], example_inputs: tuple[Tensor, ...]) -> None:
    """Makes an exactly rewritten model, in place, compute what a runtime would with the weights of these layers in a
    weight-only format each."""
    fused = fuse(model, example_inputs)
    for node in model.graph.nodes:
        kernel = fused.kernels.get(fused.holder.get(node.name, ""))
        row = rows.get(kernel.layer) if kernel is not None else None
        if row is None or node.op != "call_module":
            continue
        layer = model.get_submodule(node.target)
        if type(layer) is nn.Linear:
            store_weights(layer, row)


def insert_fake_quant(
    model: GraphModule,
    layers: Container[str],
    batches: Sequence[Any],
    example_inputs: tuple[Tensor, ...],
    ranges: str = "mse",
    dtype: str = INT8,
) -> None:
    """Makes an exactly rewritten model, in place, compute what a runtime would with these layers in a static format.

    `batches` (a tensor or a tuple of inputs each) show which ranges activations have; `ranges` as in ranges.choose.
    """
    fused = fuse(model, example_inputs)
    resolved = resolve(_decided(fused.kernels, layers, dtype))
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


def _decided(kernels: Kernels, layers: Container[str], dtype: str) -> dict[str, Kernel]:
    return {
        name: kernel.with_workload(dtype=dtype)
        if kernel.layer in layers and kernel.workload.op in WEIGHTED_OPS
        else kernel
        for name, kernel in kernels.items()
    }


def _points(model: GraphModule, fused: Fused, resolved: Kernels) -> list[_Point]:
    """Every tensor to round, in execution order. What float kernels read of a float tensor is not rounded."""
    nodes = {node.name: node for node in model.graph.nodes}
    quantised = quantised_tensors(resolved)
    int8 = {name for name, kernel in resolved.items() if is_quantised(kernel)}
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
    """A quantised convolution, unlike a matrix product, can't hand floats to an activation that has to be computed."""
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
        if node.op != "call_module" or kernel is None or not is_quantised(kernel):
            continue
        layer = model.get_submodule(node.target)
        if not is_quantizable(layer):
            continue  # a batch norm that could not be folded, of the same kernel: it stays in float
        source: Any = node.args[0]
        rounding = model.get_submodule(source.target) if source.op == "call_module" else None
        if not isinstance(rounding, FakeQuantize):
            raise BuildError(
                f"{node.target} shall be {kernel.workload.dtype}, but its input {source.name} is not: leave the layer "
                f"in {TRAINED_IN}"
            )
        quantize_weight(layer, rounding.scale)
