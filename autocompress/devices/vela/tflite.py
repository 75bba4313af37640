"""TensorFlow Lite models in memory and as bytes, by the schema that ships with Vela."""

from collections.abc import Callable, Mapping, Sequence
from dataclasses import dataclass, field
from enum import StrEnum
from functools import cache
from importlib import import_module
from types import ModuleType
from typing import Any

import numpy as np
from numpy.typing import NDArray

_FILE_IDENTIFIER = b"TFL3"
_SCHEMA_VERSION = 3
_FIRST_VERSION = frozenset({"RESHAPE", "HARD_SWISH", "DIV", "ELU", "NEG", "SQRT", "POW", "RELU_N1_TO_1"})
_THIRD_VERSION = frozenset({"CONV_2D", "DEPTHWISE_CONV_2D", "TRANSPOSE_CONV"})
"""Operators came to int8 in their second version, with these exceptions (TensorFlow Lite, op_version.cc): those that
never changed, and those whose weights have a scale per channel, or a bias, since the third."""
_LARGEST_OLD_CODE = 127
"""Operator codes lived in a byte once; the old field still has to be filled, at most with this."""


class Precision(StrEnum):
    """Element type of a tensor, as the schema spells it."""

    INT8 = "INT8"
    INT32 = "INT32"
    FLOAT32 = "FLOAT32"


NUMPY_TYPES = {Precision.INT8: np.int8, Precision.INT32: np.int32, Precision.FLOAT32: np.float32}


@dataclass(frozen=True, slots=True)
class Grid:
    """Real value = scale * (integer - zero_point); several scales lie along `axis`."""

    scales: tuple[float, ...]
    zero_point: int = 0
    axis: int = 0


@dataclass(frozen=True, slots=True)
class Tensor:
    """Name, shape as stored, element type; `grid` for integers that stand for reals, `data` for constants."""

    name: str
    shape: tuple[int, ...]
    precision: Precision
    grid: Grid | None = None
    data: NDArray[Any] | None = None

    @property
    def elements(self) -> int:
        return int(np.prod(self.shape, dtype=np.int64))


@dataclass(frozen=True, slots=True)
class Operator:
    """A builtin operator of the schema on tensors by index (-1: left out); `source` is the node that it stands for.

    `options` belong to the schema's table `table`, "" where the operator has none.
    """

    code: str
    inputs: tuple[int, ...]
    outputs: tuple[int, ...]
    source: str
    table: str = ""
    options: Mapping[str, Any] = field(default_factory=dict)


@dataclass(slots=True)
class Model:
    """One graph; operators stand in execution order."""

    tensors: list[Tensor] = field(default_factory=list)
    operators: list[Operator] = field(default_factory=list)
    inputs: list[int] = field(default_factory=list)
    outputs: list[int] = field(default_factory=list)

    def add_tensor(self, tensor: Tensor) -> int:
        self.tensors.append(tensor)
        return len(self.tensors) - 1


def to_bytes(model: Model) -> bytes:
    """The model as a .tflite file. The same model always gives the same bytes."""
    return _Writer(model).written()


@cache
def schema(name: str) -> ModuleType:
    """A module of the TensorFlow Lite schema: a table's accessors and builders, or an enumeration."""
    return import_module(f"ethosu.vela.tflite.{name}")


@cache
def enumerated(enumeration: str, member: str) -> int:
    value: int = getattr(getattr(schema(enumeration), enumeration), member)
    return value


def _version(code: str) -> int:
    return 1 if code in _FIRST_VERSION else 3 if code in _THIRD_VERSION else 2


class _Writer:
    """Writes one model; every method returns the offset of what it wrote."""

    def __init__(self, model: Model) -> None:
        self._model = model
        self._builder = import_module("flatbuffers").Builder(1 << 16)
        self._codes = sorted({operator.code for operator in model.operators})

    def written(self) -> bytes:
        buffers = self._offsets("Model", "Buffers", self._buffers())
        codes = self._offsets("Model", "OperatorCodes", [self._operator_code(code) for code in self._codes])
        graphs = self._offsets("Model", "Subgraphs", [self._graph()])
        description = self._builder.CreateString("autocompress")
        root = self._table(
            "Model", Version=_SCHEMA_VERSION, OperatorCodes=codes, Subgraphs=graphs, Description=description,
            Buffers=buffers,
        )  # fmt: skip
        self._builder.Finish(root, _FILE_IDENTIFIER)
        return bytes(self._builder.Output())

    def _graph(self) -> int:
        tensors = self._offsets("SubGraph", "Tensors", self._tensors())
        operators = self._offsets("SubGraph", "Operators", [self._operator(o) for o in self._model.operators])
        inputs, outputs = self._integers(self._model.inputs), self._integers(self._model.outputs)
        name = self._builder.CreateString("main")
        return self._table(
            "SubGraph", Tensors=tensors, Inputs=inputs, Outputs=outputs, Operators=operators, Name=name
        )  # fmt: skip

    def _buffers(self) -> list[int]:
        """The empty buffer that all computed tensors share, then one per constant."""
        constants = [tensor.data for tensor in self._model.tensors if tensor.data is not None]
        contents = [np.ascontiguousarray(data).tobytes() for data in constants]
        filled = [self._table("Buffer", Data=self._builder.CreateByteVector(content)) for content in contents]
        return [self._table("Buffer"), *filled]

    def _tensors(self) -> list[int]:
        written, buffers = [], 0
        for tensor in self._model.tensors:
            buffers += tensor.data is not None
            written.append(self._tensor(tensor, buffers if tensor.data is not None else 0))
        return written

    def _tensor(self, tensor: Tensor, buffer: int) -> int:
        fields = {
            "Shape": self._integers(tensor.shape),
            "Type": enumerated("TensorType", tensor.precision),
            "Buffer": buffer,
            "Name": self._builder.CreateString(tensor.name),
        }
        if tensor.grid is not None:
            fields["Quantization"] = self._quantization(tensor.grid)
        return self._table("Tensor", **fields)

    def _quantization(self, grid: Grid) -> int:
        scales = self._builder.CreateNumpyVector(np.array(grid.scales, np.float32))
        zeros = self._builder.CreateNumpyVector(np.full(len(grid.scales), grid.zero_point, np.int64))
        return self._table("QuantizationParameters", Scale=scales, ZeroPoint=zeros, QuantizedDimension=grid.axis)

    def _operator_code(self, code: str) -> int:
        number = enumerated("BuiltinOperator", code)
        return self._table(
            "OperatorCode", DeprecatedBuiltinCode=min(number, _LARGEST_OLD_CODE), BuiltinCode=number,
            Version=_version(code),
        )  # fmt: skip

    def _operator(self, operator: Operator) -> int:
        fields = {
            "OpcodeIndex": self._codes.index(operator.code),
            "Inputs": self._integers(operator.inputs),
            "Outputs": self._integers(operator.outputs),
        }
        if operator.table:
            fields["BuiltinOptionsType"] = enumerated("BuiltinOptions", operator.table)
            fields["BuiltinOptions"] = self._table(operator.table, **operator.options)
        return self._table("Operator", **fields)

    def _table(self, name: str, **fields: Any) -> int:
        module = schema(name)
        getattr(module, f"{name}Start")(self._builder)
        for key, value in fields.items():
            getattr(module, f"{name}Add{key}")(self._builder, value)
        end: Callable[[Any], int] = getattr(module, f"{name}End")
        return end(self._builder)

    def _offsets(self, table: str, key: str, offsets: Sequence[int]) -> int:
        """A table's vector of other tables."""
        getattr(schema(table), f"{table}Start{key}Vector")(self._builder, len(offsets))
        for offset in reversed(offsets):
            self._builder.PrependUOffsetTRelative(offset)
        vector: int = self._builder.EndVector()
        return vector

    def _integers(self, values: Sequence[int]) -> int:
        vector: int = self._builder.CreateNumpyVector(np.array(values, np.int32))
        return vector
