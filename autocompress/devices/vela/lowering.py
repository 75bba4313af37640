"""Turning an ONNX file into an int8 TensorFlow Lite model: one walk, the layout of tensors, and their precision.

A value remembers in which order its axes are stored, so that a transpose costs nothing until an operator needs another
order: images are kept channels-last, which is the order of TensorFlow Lite and of the NPU.
"""

from collections.abc import Callable, Mapping, Sequence
from dataclasses import dataclass
from pathlib import Path
from typing import Any

import numpy as np

from autocompress.devices.vela.source import Node, Numbers, Source
from autocompress.devices.vela.tflite import Grid, Model, Operator, Precision, Tensor, enumerated
from autocompress.vocabulary.errors import DeviceError

ASSUMED = Grid((1 / 16,))
"""The grid of activations where the file gives none: the NPU takes equally long for every one."""

Order = tuple[int, ...]
"""Which axis (of the ONNX tensor) lies at each place of the stored one."""

_SPATIAL = frozenset({"Conv", "ConvTranspose", "MaxPool", "AveragePool", "GlobalAveragePool", "BatchNormalization"})
_TRANSPARENT = frozenset({"QuantizeLinear", "DequantizeLinear", "Identity", "Pad"})


def plain(rank: int) -> Order:
    return tuple(range(rank))


def channels_last(rank: int) -> Order:
    return (0, *range(2, rank), 1) if rank > 2 else plain(rank)


@dataclass(frozen=True, slots=True)
class Value:
    """A tensor of the model under construction; `shape` is the ONNX one, `order` how its axes are stored."""

    index: int
    shape: tuple[int, ...]
    order: Order

    @property
    def stored(self) -> tuple[int, ...]:
        return tuple(self.shape[axis] for axis in self.order)


Handler = Callable[["Lowering", Node], None]


class Lowering:
    """The model under construction; handlers of operators (`operators.HANDLERS`) read values, add operators and bind
    the results to the names of the file. `node` is the one at hand, `int8` whether it computes in int8."""

    def __init__(self, source: Source) -> None:
        self.source = source
        self.model = Model()
        self.node = Node("", "", (), (), {})
        self.int8 = False
        self._values: dict[str, Value] = {}
        self._arranged: dict[tuple[int, Order], int] = {}
        self._converted: dict[int, int] = {}
        self._done: set[str] = set()

    def run(self, handlers: Mapping[str, Handler]) -> Model:
        for name in self.source.inputs:
            self._claim(name)
        for node in self.source.nodes:
            if node.outputs[0] not in self._done:
                self._lower(node, handlers)
        self.model.outputs = [self._output(name) for name in self.source.outputs]
        return self.model

    def skip(self, node: Node) -> None:
        """What this node does is part of an operator that was added already."""
        self._done.add(node.outputs[0])

    def refuse(self, why: str = "") -> DeviceError:
        """The error to raise for the node at hand."""
        reason = f": {why}" if why else ""
        return DeviceError(
            f"{self.node.place} can't be converted to TensorFlow Lite{reason}; replace it in the model, or choose "
            "another device (see `autocompress devices`)"
        )

    def value(self, tensor: str) -> Value:
        """A tensor as it is, in whatever precision and order; constants are added to the model."""
        if tensor not in self._values:
            constant = self.source.constant(tensor)
            if constant is None:
                raise self.refuse(f"it reads {tensor!r}, which nothing makes")
            return self.constant(constant.reals, plain(constant.values.ndim))
        return self._values[tensor]

    def read(self, tensor: str, order: Order | None = None) -> Value:
        """A tensor in the precision of the node at hand, and in `order` if that is given."""
        value = self._in_precision(tensor, self.value(tensor))
        return value if order is None else self.arrange(value, order)

    def arrange(self, value: Value, order: Order) -> Value:
        """The same tensor stored in another order: a reshape where only axes of one element move."""
        if value.order == order:
            return value
        places = tuple(value.order.index(axis) for axis in order)
        key = (value.index, places)
        if key not in self._arranged:
            self._arranged[key] = self._turned(value, places)
        return Value(self._arranged[key], value.shape, order)

    def view(self, index: int, shape: tuple[int, ...], name: str = "") -> int:
        """A stored tensor in another shape."""
        if self.model.tensors[index].shape == shape:
            return index
        old = self.model.tensors[index]
        inputs = (index, self.integers(shape))
        return self.add("RESHAPE", inputs, shape, old.grid, name=name, table="Reshape", precision=old.precision)

    def add(
        self,
        code: str,
        inputs: Sequence[int],
        shape: tuple[int, ...],
        grid: Grid | None = None,
        *,
        name: str = "",
        table: str = "",
        precision: Precision | None = None,
        **options: Any,
    ) -> int:
        """Adds an operator for the node at hand and returns its output (of stored `shape`).

        `grid` counts in int8 only; `name` is the ONNX tensor that the output is; `table` is the options' without the
        suffix "Options".
        """
        kind = precision or (Precision.INT8 if self.int8 else Precision.FLOAT32)
        label = name or f"{self.node.name}/{code.lower()}_{len(self.model.operators)}"
        output = self.model.add_tensor(
            Tensor(label, shape, kind, (grid or ASSUMED) if kind is Precision.INT8 else None)
        )  # fmt: skip
        self.model.operators.append(
            Operator(code, tuple(inputs), (output,), self.node.name, table and f"{table}Options", options)
        )
        return output

    def bind(self, tensor: str, index: int, order: Order) -> None:
        """The model's tensor `index`, stored in `order`, is this one of the file."""
        self._values[tensor] = Value(index, self.source.shape(tensor), order)

    def alias(self, tensor: str, value: Value) -> None:
        self._values[tensor] = value

    def grid(self, tensor: str) -> Grid:
        """The int8 grid of a tensor of the file."""
        return self.source.grid(tensor) or ASSUMED

    def grid_of(self, value: Value) -> Grid | None:
        """A tensor's own grid: also that of a result that holds only numbers of it, as the schema demands."""
        return self.model.tensors[value.index].grid

    def integers(self, values: Sequence[int] | Sequence[tuple[int, int]]) -> int:
        """A constant of whole numbers: a shape, axes, paddings."""
        data = np.array(values, np.int32)
        tensor = Tensor(f"{self.node.name}/constant", data.shape, Precision.INT32, None, data)
        return self.model.add_tensor(tensor)

    def value_of(self, tensor: str) -> Numbers:
        """The numbers of a constant."""
        constant = self.source.constant(tensor)
        if constant is None:
            raise self.refuse(f"{tensor!r} is not constant")
        return constant.reals

    def whole_numbers(self, tensor: str) -> list[int]:
        """A constant's numbers, such as axes or bounds."""
        return [int(number) for number in self.value_of(tensor).reshape(-1)]

    def constant(self, reals: Numbers, order: Order, grid: Grid | None = None) -> Value:
        """A constant operand in the precision of the node at hand, stored in `order`; `grid` is one of its own
        where none is given."""
        data = np.ascontiguousarray(np.transpose(reals, order)).astype(np.float32)
        name = f"{self.node.name}/constant"
        if not self.int8:
            return Value(
                self.model.add_tensor(Tensor(name, data.shape, Precision.FLOAT32, None, data)), reals.shape, order
            )
        finite = np.nan_to_num(data, posinf=_INFINITE, neginf=-_INFINITE)
        held = grid or Grid((float(np.abs(finite).max(initial=0)) / 127 or 1.0,))
        codes = np.clip(np.round(finite / held.scales[0]) + held.zero_point, -128, 127).astype(np.int8)
        tensor = Tensor(name, data.shape, Precision.INT8, held, codes)
        return Value(self.model.add_tensor(tensor), reals.shape, order)

    def fused_activation(self) -> tuple[str, int]:
        """The tensor that the node at hand ends up making, and the schema's activation that is folded in for it.

        An activation is folded in where nothing else reads what is before it.
        """
        tensor = self.node.outputs[0]
        function = "NONE"
        while len(readers := self.source.readers(tensor)) == 1 and tensor not in self.source.outputs:
            name = self.activation(readers[0])
            if name is None or (name != "NONE" and function != "NONE"):
                break
            function = name if name != "NONE" else function
            self.skip(readers[0])
            tensor = readers[0].outputs[0]
        return tensor, enumerated("ActivationFunctionType", function)

    def activation(self, node: Node) -> str | None:
        """The schema's activation that a node computes; "NONE" if it changes nothing, None if it is another one."""
        if node.op == "Relu":
            return "RELU"
        if node.op == "LeakyRelu":
            return {0.0: "RELU", 1.0: "NONE"}.get(node.settings.get("alpha", 0.01))
        if node.op == "Clip":
            return _CLIPS.get(self.bounds(node))
        return "NONE" if node.op == "Identity" else None

    def bounds(self, node: Node) -> tuple[float, float]:
        """What a Clip keeps its input between."""
        limits = []
        for place, default in ((1, -np.inf), (2, np.inf)):
            tensor = node.inputs[place] if place < len(node.inputs) else ""
            constant = self.source.constant(tensor)
            limits.append(default if constant is None else float(constant.reals))
        return limits[0], limits[1]

    def _lower(self, node: Node, handlers: Mapping[str, Handler]) -> None:
        self.node, self.int8 = node, self.source.is_int8(node)
        handler = handlers.get(node.op)
        if handler is None:
            raise self.refuse()
        handler(self, node)

    def _claim(self, name: str) -> None:
        """An input: int8 where all that read it quantise it (the caller hands over codes), images channels-last."""
        shape = self.source.shape(name)
        order = channels_last(len(shape)) if self._is_image(name) else plain(len(shape))
        if self.source.holds_integers(name):
            kind = Precision.INT32
        else:
            kind = Precision.INT8 if self.source.is_float or self.source.is_rounded(name) else Precision.FLOAT32
        grid = self.grid(name) if kind is Precision.INT8 else None
        stored = tuple(shape[axis] for axis in order)
        self._values[name] = Value(self.model.add_tensor(Tensor(name, stored, kind, grid)), shape, order)
        self.model.inputs.append(self._values[name].index)

    def _output(self, name: str) -> int:
        """A result is handed over in its own order of axes, or as an image."""
        value = self.value(name)
        rank = len(value.shape)
        order = value.order if value.order == channels_last(rank) else plain(rank)
        return self.arrange(value, order).index

    def _is_image(self, tensor: str) -> bool:
        readers = self.source.readers(tensor)
        return any(
            reader.op in _SPATIAL or (reader.op in _TRANSPARENT and self._is_image(reader.outputs[0]))
            for reader in readers
        )

    def _turned(self, value: Value, places: Order) -> int:
        """A tensor with its stored axes in another order."""
        stored = tuple(value.stored[place] for place in places)
        large = [place for place in places if value.stored[place] > 1]
        if large == sorted(large):
            return self.view(value.index, stored)
        old = self.model.tensors[value.index]
        inputs = (value.index, self.integers(places))
        return self.add("TRANSPOSE", inputs, stored, old.grid, table="Transpose", precision=old.precision)

    def _in_precision(self, tensor: str, value: Value) -> Value:
        """Adds the conversion, once, that a reader of the other precision needs; it runs on the host CPU."""
        wanted = Precision.INT8 if self.int8 else Precision.FLOAT32
        found = self.model.tensors[value.index].precision
        if found in (wanted, Precision.INT32):
            return value
        if value.index not in self._converted:
            self._converted[value.index] = self._conversion(tensor, value, wanted)
        return Value(self._converted[value.index], value.shape, value.order)

    def _conversion(self, tensor: str, value: Value, wanted: Precision) -> int:
        """Named after the node of the file that converts, if there is one."""
        maker, reader = self.source.maker(tensor), self.node
        self.node = maker if maker is not None and maker.op == "DequantizeLinear" else reader
        code = "QUANTIZE" if wanted is Precision.INT8 else "DEQUANTIZE"
        index = self.add(code, (value.index,), value.stored, self.grid(tensor), precision=wanted)
        self.node = reader
        return index


_INFINITE = 128.0
"""Stands for infinity in an int8 constant: a masked score is far below every other one."""

_CLIPS = {
    (0.0, np.inf): "RELU",
    (0.0, 6.0): "RELU6",
    (-1.0, 1.0): "RELU_N1_TO_1",
    (-np.inf, np.inf): "NONE",
}


def lowered(path: Path, handlers: Mapping[str, Handler]) -> Model:
    """The file as a TensorFlow Lite model. Raises DeviceError naming the operator and node that can't be converted."""
    return Lowering(Source(path)).run(handlers)
