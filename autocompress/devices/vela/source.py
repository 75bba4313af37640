"""An ONNX file as the NPU's compiler has to see it: shapes and constants known, and which node computes in int8."""

from collections import defaultdict
from collections.abc import Mapping
from dataclasses import dataclass
from functools import cached_property
from pathlib import Path
from typing import Any

import numpy as np
from numpy.typing import NDArray

from autocompress.devices.vela.loading import loaded
from autocompress.devices.vela.tflite import Grid
from autocompress.vocabulary.errors import DeviceError

Numbers = NDArray[Any]

_WEIGHTED = frozenset({"Conv", "ConvTranspose", "Gemm", "MatMul"})

_POINTWISE = frozenset({
    "Relu", "LeakyRelu", "Clip", "Elu", "HardSwish", "HardSigmoid", "Sigmoid", "Tanh", "Erf", "Gelu", "Softplus",
    "Add", "Sub", "Mul", "Div", "Identity", "Reshape", "Flatten", "Squeeze", "Unsqueeze", "Transpose",
})  # fmt: skip
"""What may stand between an int8 operator and the rounding of its result: activations, in one node or several."""

_CONVERSIONS = frozenset({"QuantizeLinear", "DequantizeLinear"})


@dataclass(frozen=True, slots=True)
class Node:
    """One node of the file; `name` is never empty."""

    name: str
    op: str
    inputs: tuple[str, ...]
    outputs: tuple[str, ...]
    settings: Mapping[str, Any]

    @property
    def place(self) -> str:
        return f"operator {self.op} (node {self.name})"


@dataclass(frozen=True, slots=True)
class Constant:
    """A constant's numbers as they are stored; `grid` where they are integers that stand for reals."""

    values: Numbers
    grid: Grid | None = None

    @property
    def reals(self) -> Numbers:
        if self.grid is None:
            return self.values
        scales = np.array(self.grid.scales, np.float32)
        if len(scales) > 1:
            scales = scales.reshape([-1 if axis == self.grid.axis else 1 for axis in range(self.values.ndim)])
        reals: Numbers = (self.values.astype(np.float32) - self.grid.zero_point) * scales
        return reals


class Source:
    """A loaded file. Names of tensors are the file's own."""

    def __init__(self, path: Path) -> None:
        model = loaded(path)
        self._constants: dict[str, Constant] = {}
        self.inputs: list[str] = []
        self.outputs = [value.name for value in model.graph.output]
        self._shapes: dict[str, tuple[int, ...]] = {}
        self._integers: set[str] = set()
        self._read_values(model.graph)
        self.nodes = self._without_constants(model.graph)
        self._maker = {tensor: node for node in self.nodes for tensor in node.outputs}
        self._readers: dict[str, list[Node]] = defaultdict(list)
        for node in self.nodes:
            for tensor in node.inputs:
                self._readers[tensor].append(node)
        self._rounded: dict[str, bool] = {}
        self._int8: dict[str, bool] = {}

    def shape(self, tensor: str) -> tuple[int, ...]:
        """Raises DeviceError for a tensor whose size is not fixed by the file once the batch is 1."""
        if tensor in self._constants:
            return self._constants[tensor].values.shape
        found = self._shapes.get(tensor)
        if found is None or any(size < 1 for size in found):
            raise DeviceError(f"the shape of tensor {tensor!r} is not fixed, even at batch 1; an NPU needs fixed sizes")
        return found

    def constant(self, tensor: str) -> Constant | None:
        return self._constants.get(tensor)

    def holds_integers(self, tensor: str) -> bool:
        """Whether an input of the graph is of whole numbers, such as token indices."""
        return tensor in self._integers

    def readers(self, tensor: str) -> list[Node]:
        return self._readers[tensor]

    def maker(self, tensor: str) -> Node | None:
        return self._maker.get(tensor)

    @cached_property
    def is_float(self) -> bool:
        """Whether nothing is quantised: the file then stands for its conversion to int8, as a whole."""
        return not any(node.op in _CONVERSIONS for node in self.nodes)

    def is_int8(self, node: Node) -> bool:
        """Whether a node computes in int8.

        In a file with conversions, all that it reads must be int8, weights too, and unless it has weights its result
        must be rounded to int8 again (the pattern of quantise and dequantise nodes that runtimes look for).
        """
        if self.is_float or self._moves_codes(node):
            return True
        if node.name not in self._int8:
            self._int8[node.name] = self._reads_int8(node) and (
                node.op in _WEIGHTED or all(self.is_rounded(tensor) for tensor in node.outputs)
            )
        return self._int8[node.name]

    def is_rounded(self, tensor: str) -> bool:
        """Whether a tensor is quantised by all that read it, now or after nothing but activations."""
        if tensor not in self._rounded:
            self._rounded[tensor] = False  # a graph has no cycles, but a damaged file may
            readers = self._readers[tensor]
            self._rounded[tensor] = (
                bool(readers)
                and tensor not in self.outputs
                and all(
                    reader.op == "QuantizeLinear"
                    or (reader.op in _POINTWISE and all(map(self.is_rounded, reader.outputs)))
                    for reader in readers
                )
            )
        return self._rounded[tensor]

    def grid(self, tensor: str) -> Grid | None:
        """The grid that a tensor's quantise or dequantise nodes give it, for int8 codes; None where they give none."""
        maker = self._maker.get(tensor)
        if maker is not None and maker.op in _CONVERSIONS:
            return self._parameters(maker)
        reader = next((reader for reader in self._readers[tensor] if reader.op == "QuantizeLinear"), None)
        return None if reader is None else self._parameters(reader)

    def _parameters(self, conversion: Node) -> Grid:
        scale, zero = (self._constants.get(tensor) for tensor in (*conversion.inputs[1:], "")[:2])
        if scale is None or scale.values.size != 1:
            raise DeviceError(f"{conversion.place} has no constant scale for the whole tensor, which an NPU needs")
        point = zero.values if zero is not None else np.zeros(1, np.uint8)
        return Grid((float(scale.values),), int(point.reshape(-1)[0]) - _shift(point))

    def _reads_int8(self, node: Node) -> bool:
        operands = [(place, tensor) for place, tensor in enumerate(node.inputs) if tensor]
        computed = [tensor for _, tensor in operands if tensor not in self._constants]
        for place, tensor in operands:
            constant = self._constants.get(tensor)
            if constant is not None and place == 1 and node.op in _WEIGHTED and constant.grid is None:
                return False
        return bool(computed) and all(map(self._is_int8_tensor, computed))

    def _is_int8_tensor(self, tensor: str) -> bool:
        maker = self._maker.get(tensor)
        if maker is None:
            return False
        if maker.op == "DequantizeLinear":
            return True
        return maker.op != "QuantizeLinear" and self.is_int8(maker) and self.is_rounded(tensor)

    def _moves_codes(self, node: Node) -> bool:
        """Whether a node stands between a quantise and a dequantise node: it reads integers, not reals."""
        maker = self._maker.get(node.inputs[0]) if node.inputs else None
        if maker is None or node.op in _CONVERSIONS or maker.op == "DequantizeLinear":
            return False
        return maker.op == "QuantizeLinear" or self._moves_codes(maker)

    def _read_values(self, graph: Any) -> None:
        from onnx import numpy_helper

        for tensor in graph.initializer:
            self._constants[tensor.name] = Constant(numpy_helper.to_array(tensor))
        for value in (*graph.value_info, *graph.input, *graph.output):
            kind = value.type.tensor_type
            if kind.HasField("shape"):
                self._shapes[value.name] = tuple(size.dim_value for size in kind.shape.dim)
        self.inputs = [value.name for value in graph.input if value.name not in self._constants]
        self._integers = {value.name for value in graph.input if not _is_float_type(value.type.tensor_type.elem_type)}

    def _without_constants(self, graph: Any) -> list[Node]:
        """All nodes but those that dequantise a constant: that is how weights are held."""
        kept = []
        for node in map(_node, graph.node):
            if node.op == "DequantizeLinear" and node.inputs[0] in self._constants:
                self._constants[node.outputs[0]] = self._dequantized(node)
            else:
                kept.append(node)
        return kept

    def _dequantized(self, node: Node) -> Constant:
        codes, scale = (self._constants[tensor].values for tensor in node.inputs[:2])
        zero = self._constants[node.inputs[2]].values if len(node.inputs) > 2 and node.inputs[2] else np.zeros(1)
        grid = Grid(tuple(map(float, scale.reshape(-1))), int(zero.reshape(-1)[0]), node.settings.get("axis", 1))
        return Constant(codes, grid)


def _shift(zero_point: Numbers) -> int:
    """What takes the codes to int8: halfway through the range of unsigned ones."""
    return 128 if zero_point.dtype == np.uint8 else 0


def _is_float_type(element: int) -> bool:
    import onnx

    return element in (onnx.TensorProto.FLOAT, onnx.TensorProto.FLOAT16, onnx.TensorProto.DOUBLE)


def _node(proto: Any) -> Node:
    from onnx import helper

    settings = {attribute.name: helper.get_attribute_value(attribute) for attribute in proto.attribute}
    name = proto.name or (proto.output[0] if proto.output else proto.op_type)
    return Node(name, proto.op_type, tuple(proto.input), tuple(proto.output), settings)
