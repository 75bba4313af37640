"""What an emitter of an operator works with: the values of a lifted model as ONNX tensors, their types and sizes."""

from collections.abc import Callable, Sequence
from typing import Any

import torch
from torch import Tensor
from torch.fx import GraphModule, Node

from autocompress.export import sizes
from autocompress.export.types import BATCH_PROBES, ELEMENT_TYPES, SizeType, TensorType
from autocompress.export.writer import Writer
from autocompress.graph.calls import arguments, calls
from autocompress.vocabulary.errors import ExportError

aten = torch.ops.aten


class Emitter(Writer):
    """Writes a lifted model node by node; `names[node]` is the ONNX tensor (or tuple of tensors) with its value."""

    def __init__(self, model: GraphModule, types: dict[Node, Any], constants: dict[Node, Tensor]) -> None:
        super().__init__()
        self.model = model
        self.types = types
        self.constants = constants
        self.names: dict[Node, Any] = {}

    def claim(self, placeholder: Node, name: str) -> None:
        """Makes an input of the model an input of the graph."""
        self.names[placeholder] = self.unique(name)

    def begin(self, node: Node, kernel: str) -> None:
        """What is added next computes `node`, as part of `kernel`."""
        self.kernel, self.result = kernel, node.name

    def value(self, source: Any, dtype: torch.dtype = torch.float32) -> str:
        """The ONNX tensor for an argument: a node, or a number that becomes a constant of `dtype`."""
        if not isinstance(source, Node):
            return self.constant(torch.tensor(source, dtype=dtype).numpy())
        kind = self.types[source]
        if isinstance(kind, SizeType):
            return self.value(kind.values[0], dtype) if kind.fixed else self.scalar(source, dtype)
        if source not in self.names:
            self.names[source] = self.parameter(self.constants[source], source.name)
        name: str = self.names[source]
        if not name:
            raise ExportError(f"node {source.name} is a second result that ONNX has no form for: don't use it")
        return name

    def cast_to(self, source: Any, dtype: torch.dtype) -> str:
        """The ONNX tensor for an argument, in another type where it isn't of that."""
        name = self.value(source, dtype)
        kind = self.types[source] if isinstance(source, Node) else None
        return cast(self, name, dtype) if isinstance(kind, TensorType) and kind.dtype is not dtype else name

    def like(self, node: Any, number: float) -> str:
        """A constant of a node's element type."""
        return self.value(number, self.dtype(node))

    def type(self, node: Any) -> TensorType:
        found = self.types.get(node)
        if not isinstance(found, TensorType):
            raise ExportError(f"node {node} makes {type(found).__name__}, not one tensor")
        return found

    def dtype(self, node: Any) -> torch.dtype:
        return self.type(node).dtype

    def rank(self, node: Any) -> int:
        return len(self.type(node).one)

    def constant_value(self, source: Any) -> Tensor | None:
        """An argument's tensor where no input changes it."""
        return self.constants.get(source) if isinstance(source, Node) else torch.tensor(source)

    def size(self, source: Any) -> Any:
        """A number among an operator's arguments: itself where it never changes, else a tensor of one int64."""
        kind = self.types[source] if isinstance(source, Node) else None
        if kind is None:
            return source
        if isinstance(kind, TensorType):
            return self.add_size("Reshape", self.value(source), self.integers(1))
        if kind.fixed:
            return kind.values[0]
        return sizes.converted(self, self._computed(source), int)

    def dims(self, node: Any) -> list[int | str]:
        """The size of every axis of a tensor: a number, or a tensor of one int64."""
        kind, free = self.type(node), self.type(node).free
        return [self._dim(node, axis) if axis in free else size for axis, size in enumerate(kind.one)]

    def vector(self, shape: Sequence[int | str]) -> str:
        """Sizes as one int64 tensor."""
        if all(isinstance(size, int) for size in shape):
            return self.integers(*(int(size) for size in shape))
        return self.add_size("Concat", *(s if isinstance(s, str) else self.integers(s) for s in shape), axis=0)

    def scalar(self, source: Any, dtype: torch.dtype = torch.int64) -> str:
        """A number among an operator's arguments as a tensor without axes."""
        kind = self.types[source] if isinstance(source, Node) else None
        if isinstance(kind, SizeType) and not kind.fixed:
            made = self.add_size("Cast", self._computed(source)[0], to=ELEMENT_TYPES[dtype])
            return self.add_size("Reshape", made, self.constant([], "int64"))
        number = kind.values[0] if isinstance(kind, SizeType) else source
        return self.constant(torch.tensor(number, dtype=dtype).numpy())

    def shape_of(self, node: Node, requested: Sequence[Any] | None = None) -> str:
        """An int64 tensor that reshapes anything of the right size to a node's shape, for all sizes of free axes.

        Where one axis alone is free it is a constant with one -1, which runtimes like best; `requested` is what the
        operator was asked for, which is read where several are.
        """
        made = self.type(node)
        if len(made.free) <= 1:
            return self.integers(*(-1 if axis in made.free else size for axis, size in enumerate(made.one)))
        return self.exact_shape_of(node, requested)

    def exact_shape_of(self, node: Node, requested: Sequence[Any] | None = None) -> str:
        """An int64 tensor with a node's shape."""
        made = self.type(node)
        shape: list[int | str] = list(made.one)
        for axis in made.free:
            if made.of_batch(axis):
                shape[axis] = self.times_batch(made.one[axis])
            elif requested is not None:
                shape[axis] = self.size(requested[axis])
            else:
                shape[axis] = self._dim(node, axis)
        return self.vector(shape)

    def times_batch(self, factor: int) -> str:
        """A multiple of the batch, read off the first input that has it in its shape."""
        for node in self.model.graph.nodes:
            kind = self.types[node] if node.op == "placeholder" else None
            axis = next((axis for axis in kind.free if kind.of_batch(axis)), None) if kind else None
            if axis is not None and kind is not None:
                break
        else:
            raise ExportError("a size depends on the batch, but no input has an axis that is a multiple of it")
        batch = self.add_size("Shape", self.names[node], start=axis, end=axis + 1)
        unit = kind.one[axis]
        if factor % unit:
            return self.add_size("Div", self.add_size("Mul", batch, self.integers(factor)), self.integers(unit))
        return batch if factor == unit else self.add_size("Mul", batch, self.integers(factor // unit))

    def _dim(self, node: Any, axis: int) -> str:
        kind = self.type(node)
        if kind.of_batch(axis):
            return self.times_batch(kind.one[axis])
        if not isinstance(self.names.get(node), str):
            raise ExportError(f"the size of axis {axis} of {node} ({kind.one}, {kind.two}, ...) can't be followed")
        return self.add_size("Shape", self.names[node], start=axis, end=axis + 1)

    def _computed(self, node: Node) -> sizes.Written:
        """A number that changes, as a tensor."""
        kind = self.types[node]
        assert isinstance(kind, SizeType)
        if kind.fixed:
            return sizes.number(self, kind.values[0])
        first = kind.values[0]
        grows = [(i + 1) * first if i < BATCH_PROBES else first for i in range(len(kind.values))]
        if type(first) is int and list(kind.values) == grows:
            return self.times_batch(first), int
        if calls(node, aten.sym_size.int):
            a = arguments(node)
            return self._dim(a["self"], a["dim"] % self.rank(a["self"])), int
        if calls(node, aten.sym_numel.default):
            return self.add_size("Size", self.value(node.args[0])), int
        if calls(node, aten.sym_stride.int):
            return self._stride(node), int
        made = sizes.compute(self, node.target, [self._number(x) for x in _flat(node.args)])
        if made is None:
            raise ExportError(f"node {node.name} ({node.target}) computes a size in a way that ONNX can't")
        return made

    def _stride(self, node: Node) -> str:
        """Of a contiguous tensor: what all axes behind it multiply to."""
        a = arguments(node)
        total = self.integers(1)
        for size in self.dims(a["self"])[a["dim"] % self.rank(a["self"]) + 1 :]:
            total = self.add_size("Mul", total, self.vector([size]))
        return total

    def _number(self, source: Any) -> sizes.Written:
        return self._computed(source) if isinstance(source, Node) else sizes.number(self, source)


def _flat(values: Any) -> list[Any]:
    return [x for v in values for x in _flat(v)] if isinstance(values, (tuple, list)) else [values]


Emit = Callable[[Emitter, Node], Any]
"""Adds what computes a node and returns the name(s) of its value; None if it can't be written this way."""


def cast(e: Emitter, tensor: str, dtype: torch.dtype) -> str:
    return e.add("Cast", tensor, to=ELEMENT_TYPES[dtype])
