"""A deterministic roofline: a device whose times are arithmetic on the model file, for tests and for planning."""

from collections.abc import Mapping, Sequence
from dataclasses import dataclass, field
from functools import cached_property
from pathlib import Path
from typing import Any

from autocompress.devices.base import Array, Availability, Device, NodeTime, Results, Session
from autocompress.devices.ort import OrtDevice
from autocompress.devices.roofline import Rates, read_rates, roofline
from autocompress.vocabulary.errors import DeviceError, ProfileError
from autocompress.vocabulary.formats import FP32, INT8, Mode, formats
from autocompress.vocabulary.workload import GATES, Capabilities, Workload

Shape = tuple[int, ...]

_WEIGHTED = {"Conv": "conv", "ConvTranspose": "conv_transpose", "Gemm": "linear", "MatMul": "linear"}
_PACKED = "MatMulNBits"
_CONVERSIONS = {"QuantizeLinear": "quantize", "DequantizeLinear": "dequantize"}
_MOVES = frozenset({"Transpose", "Reshape"})
_FUSED = frozenset({"Relu", "Clip", "Identity"})


def available() -> list[Availability]:
    """Always here."""
    return [Availability("fake", True, "deterministic roofline, an estimate; fake:FILE.toml reads rates of your own")]


def open_device(variant: str) -> Device:
    """`fake`, or `fake:FILE.toml` for hardware whose peak rates a file gives. Raises DeviceError."""
    if not variant:
        return FakeDevice()
    if not variant.endswith(".toml"):
        raise DeviceError(f"unknown device 'fake:{variant}': open 'fake', or 'fake:FILE.toml' with a table [rates]")
    try:
        return FakeDevice(read_rates(Path(variant)), f"fake:{variant}", Path(variant).stem)
    except ProfileError as error:
        raise DeviceError(str(error)) from error


@dataclass(frozen=True)
class FakeDevice:
    """Runs models in ONNX Runtime and times them by `rates`: the same file always takes the same time."""

    rates: Rates = field(default_factory=Rates)
    name: str = "fake"
    processor: str = "none"
    runtime: str = "roofline 1"
    estimate: bool = True

    def capabilities(self) -> Capabilities:
        return Capabilities(frozenset(self.rates.macs_per_s), self.rates.channel_multiple)

    def environment(self) -> dict[str, str]:
        return {"device": self.name, "runtime": self.runtime, "processor": self.processor}

    def open(self, path: Path, threads: int = 1) -> "FakeSession":
        return FakeSession(self, path, OrtDevice().open(path, threads))

    def profile(self, path: Path, inputs: Sequence[Array], runs: int) -> list[NodeTime]:
        self.open(path).run(*inputs)
        return [
            NodeTime(n.name, n.name, n.workload.op, "Roofline", roofline(n.workload, self.rates), n.inputs, n.outputs)
            for n in workloads(path, [x.shape for x in inputs])
        ]


@dataclass(frozen=True)
class FakeSession:
    """One model; its time is known before it runs."""

    device: FakeDevice
    path: Path
    executor: Session

    def run(self, *inputs: Array) -> Results:
        return self.executor.run(*inputs)

    def time(self, inputs: Sequence[Array], runs: int) -> list[float]:
        nodes = workloads(self.path, [x.shape for x in inputs]) if self._lengths else self._nodes
        return [sum(roofline(node.workload, self.device.rates) for node in nodes)] * runs

    def providers(self) -> dict[str, str]:
        return {node.name: "Roofline" for node in self._nodes}

    @cached_property
    def _nodes(self) -> "list[FileNode]":
        return workloads(self.path)

    @cached_property
    def _lengths(self) -> bool:
        """Whether the file leaves more open than the batch."""
        import onnx

        inputs = onnx.load(str(self.path), load_external_data=False).graph.input
        return any(not size.dim_value for value in inputs for size in value.type.tensor_type.shape.dim[1:])


@dataclass(frozen=True, slots=True)
class FileNode:
    """A node of an ONNX file that a runtime would execute, with what it computes."""

    name: str
    inputs: tuple[str, ...]
    outputs: tuple[str, ...]
    workload: Workload


def workloads(path: Path, shapes: Sequence[Sequence[int]] = ()) -> list[FileNode]:
    """What is left of an ONNX file at batch size 1 once activations and int8 conversions are fused.

    Other axes that the file leaves open are as in the inputs' `shapes`, else one.
    """
    import onnx

    model = onnx.load(str(path))
    for i, value in enumerate(model.graph.input):
        for axis, size in enumerate(value.type.tensor_type.shape.dim):
            if not size.dim_value:
                size.dim_value = shapes[i][axis] if axis and i < len(shapes) else 1
    packed = _unpack(model.graph)
    return _Reader(onnx.shape_inference.infer_shapes(model, data_prop=True).graph, packed).nodes()


def _unpack(graph: Any) -> dict[str, str]:
    """Makes products by packed weights, in place, plain ones whose shapes ONNX can infer; returns the number format of
    each such node by its name."""
    from onnx import TensorProto

    found: dict[str, str] = {}
    for node in graph.node:
        if node.op_type != _PACKED:
            continue
        of = {attribute.name: attribute.i for attribute in node.attribute}
        rows = (r for r in formats() if (r.mode, r.weight_bits) == (Mode.WEIGHT_ONLY, of["bits"]))
        found[node.name] = next(row.name for row in rows if row.group_size == of["block_size"])
        weight = f"{node.name}>unpacked"
        graph.initializer.append(TensorProto(name=weight, data_type=TensorProto.FLOAT, dims=(of["K"], of["N"])))
        node.op_type, node.domain = "MatMul", ""
        del node.attribute[:], node.input[1:]
        node.input.append(weight)
    return found


class _Reader:
    """Reads workloads off a graph whose shapes are inferred."""

    def __init__(self, graph: Any, packed: Mapping[str, str]) -> None:
        """`packed` as from `_unpack`."""
        self._packed = packed
        self._nodes = list(graph.node)
        self._constants = {tensor.name: tuple(tensor.dims) for tensor in graph.initializer}
        values = [*graph.value_info, *graph.input, *graph.output]
        self._shapes = {v.name: tuple(d.dim_value or 1 for d in v.type.tensor_type.shape.dim) for v in values}
        self._shapes |= self._constants
        self._maker = {tensor: node for node in self._nodes for tensor in node.output}

    def nodes(self) -> list[FileNode]:
        return [
            FileNode(node.name, tuple(node.input), tuple(node.output), self._workload(node))
            for node in self._nodes
            if not self._is_free(node)
        ]

    def _is_free(self, node: Any) -> bool:
        """Fused into a neighbour, or computed when the model is loaded."""
        if all(self._is_constant(tensor) for tensor in node.input):
            return True
        if node.op_type in _FUSED:
            return True
        if node.op_type == "QuantizeLinear":
            return self._made_as_int8(node.input[0])
        if node.op_type == "DequantizeLinear":
            readers = [n for n in self._nodes if node.output[0] in n.input]
            return bool(readers) and all(self._is_int8(reader) for reader in readers)
        return False

    def _made_as_int8(self, tensor: str) -> bool:
        maker = self._maker.get(tensor)
        while maker is not None and maker.op_type in _FUSED:
            maker = self._maker.get(maker.input[0])
        return maker is not None and self._is_int8(maker)

    def _is_int8(self, node: Any) -> bool:
        """Whether every tensor that it computes with was dequantised just before."""
        operands = node.input[:2] if node.op_type in _WEIGHTED else [t for t in node.input if t not in self._constants]
        return bool(operands) and all(map(self._is_dequantised, operands))

    def _is_dequantised(self, tensor: str) -> bool:
        """Straight from int8, or with its axes put in another order or shape on the way."""
        maker = self._maker.get(tensor)
        while maker is not None and maker.op_type in _MOVES:
            maker = self._maker.get(maker.input[0])
        return maker is not None and maker.op_type == "DequantizeLinear"

    def _is_constant(self, tensor: str) -> bool:
        if not tensor or tensor in self._constants:
            return True
        maker = self._maker.get(tensor)
        return maker is not None and all(map(self._is_constant, maker.input))

    def _workload(self, node: Any) -> Workload:
        source, result = (self._shapes.get(tensor, (1, 1)) for tensor in (node.input[0], node.output[0]))
        op = {**_WEIGHTED, **_CONVERSIONS}.get(node.op_type, node.op_type.lower())
        int8 = self._is_int8(node) or node.op_type in _CONVERSIONS
        dtype = INT8 if int8 else self._packed.get(node.name, FP32)
        if op in ("linear", *GATES):
            return self._product(node, op, source, result, dtype)
        channels = source[1] if len(source) > 1 else 1, result[1] if len(result) > 1 else 1
        if op not in ("conv", "conv_transpose"):
            return Workload(op, channels[0], channels[1], source[2:], result[2:], dtype=dtype)
        weight = self._shapes[self._weight(node.input[1])]
        settings = {attribute.name: attribute for attribute in node.attribute}
        groups = settings["group"].i if "group" in settings else 1
        stride = tuple(settings["strides"].ints) if "strides" in settings else (1,) * len(source[2:])
        return Workload(op, *channels, source[2:], result[2:], weight[2:], stride, groups, dtype)

    def _product(self, node: Any, op: str, source: Shape, result: Shape, dtype: str) -> Workload:
        """A product by a constant (channels last), of two activations (heads first), or a recurrent layer of one."""
        if op in GATES:
            directions = self._shapes[node.input[1]][0]
            steps = (source[0],)
            return Workload(op, source[-1], directions * result[-1], steps, steps, (1, directions), dtype=dtype)
        if self._is_constant(node.input[1]):
            return Workload(op, source[-1], result[-1], _positions(source), _positions(result), dtype=dtype)
        (read, size), (made, out_size) = map(_heads_first, (source, result))
        return Workload("matmul", read, made, size, out_size, dtype=dtype)

    def _weight(self, tensor: str) -> str:
        maker = self._maker.get(tensor)
        return tensor if maker is None else maker.input[0]


def _positions(shape: Shape) -> Shape:
    """Those that a product by a constant is repeated over, at batch size 1; of a sequence they may be all axis 0."""
    return shape[1:-1] if shape[:1] == (1,) else shape[:-1]


def _heads_first(shape: Shape) -> tuple[int, Shape]:
    """(channels, positions) of an operand at batch size 1, as Workload has them of a matmul."""
    rest = shape[1:] if shape[:1] == (1,) and len(shape) > 1 else shape
    return (rest[0], rest[1:]) if len(rest) > 2 else (rest[-1], rest[:-1])
