"""An ONNX graph under construction from a lifted model: names, constants, shapes with a free batch axis."""

from collections.abc import Callable, Sequence
from dataclasses import dataclass
from typing import Any

import numpy as np
import onnx
import torch
from onnx import helper, numpy_helper
from torch import Tensor
from torch.fx import GraphModule, Node

from autocompress.vocabulary.errors import ExportError

OPSET = 17
"""The newest that every ONNX Runtime fusion wanted here recognises (GELU, layer norm and QDQ patterns)."""
IR_VERSION = 8
BATCH = "batch"
OUTPUT = "output"
_SHARED_SIZE = 64

ELEMENT_TYPES = {
    torch.float32: onnx.TensorProto.FLOAT,
    torch.float64: onnx.TensorProto.DOUBLE,
    torch.float16: onnx.TensorProto.FLOAT16,
    torch.int64: onnx.TensorProto.INT64,
    torch.int32: onnx.TensorProto.INT32,
    torch.int16: onnx.TensorProto.INT16,
    torch.int8: onnx.TensorProto.INT8,
    torch.uint8: onnx.TensorProto.UINT8,
    torch.bool: onnx.TensorProto.BOOL,
}


@dataclass(frozen=True, slots=True)
class TensorType:
    """A tensor's shape with one sample and with two, and its element type."""

    one: tuple[int, ...]
    two: tuple[int, ...]
    dtype: torch.dtype

    @property
    def batched(self) -> list[int]:
        """The axes whose size depends on the batch."""
        return [axis for axis, (a, b) in enumerate(zip(self.one, self.two, strict=True)) if a != b]


class Emitter:
    """Collects ONNX nodes while a lifted model is walked.

    `names[node]` is the ONNX tensor (or tuple of tensors) that holds a node's value. Nodes are named after the kernel
    they belong to: its own operation bears its name, what surrounds it `KERNEL/OPERATOR`.
    """

    def __init__(self, model: GraphModule, types: dict[Node, Any], constants: dict[Node, Tensor]) -> None:
        self.model = model
        self.types = types
        self.constants = constants
        self.names: dict[Node, Any] = {}
        self.nodes: list[onnx.NodeProto] = []
        self.initializers: list[onnx.TensorProto] = []
        self.kernel = ""
        self.result = ""
        self._known: dict[Any, str] = {}
        self._used: set[str] = {OUTPUT}
        self._node_names: set[str] = {OUTPUT, BATCH}

    def claim(self, placeholder: Node) -> None:
        """Makes an input of the model an input of the graph."""
        self.names[placeholder] = self._unique(placeholder.name, self._used)

    def name_output(self, tensor: str) -> None:
        """Renames the tensor that is the model's result to OUTPUT; an input or a constant is copied."""
        if not any(tensor in node.output for node in self.nodes):
            self.nodes.append(helper.make_node("Identity", (tensor,), (OUTPUT,), OUTPUT))
            return
        for node in self.nodes:
            for names in (node.input, node.output):
                if tensor in names:
                    names[:] = [OUTPUT if name == tensor else name for name in names]

    def begin(self, node: Node, kernel: str) -> None:
        """What is added next computes `node`, as part of `kernel`."""
        self.kernel, self.result = kernel, node.name

    def add(self, op: str, *inputs: str, **attributes: Any) -> str:
        """Adds a node and returns its output's name."""
        return self.add_many(op, 1, *inputs, **attributes)[0]

    def add_many(self, op: str, outputs: int, *inputs: str, **attributes: Any) -> tuple[str, ...]:
        """Adds a node with several outputs."""
        names = tuple(self._unique(self.result, self._used) for _ in range(outputs))
        self.nodes.append(helper.make_node(op, inputs, names, self.node_name(op), **attributes))
        return names

    def node_name(self, op: str) -> str:
        """The kernel's own name for the first node that is added to it, `KERNEL/OPERATOR` for the others."""
        if self.kernel not in self._node_names:
            self._node_names.add(self.kernel)
            return self.kernel
        return self._unique(f"{self.kernel}/{op}", self._node_names)

    def add_named(self, name: str, op: str, *inputs: str, **attributes: Any) -> str:
        """Adds a node with a name of its own."""
        output = self._unique(self.result, self._used)
        self.nodes.append(helper.make_node(op, inputs, (output,), self._unique(name, self._node_names), **attributes))
        return output

    def inline(self, graph: onnx.GraphProto, inputs: Sequence[str]) -> tuple[str, ...]:
        """Adds another graph's nodes with names of their own, fed by `inputs`; returns its outputs' names."""
        names = dict(zip((i.name for i in graph.input), inputs, strict=True)) | {"": ""}
        for tensor in graph.initializer:
            names[tensor.name] = self.constant(numpy_helper.to_array(tensor))
        for node in graph.node:
            for output in node.output:
                names[output] = self._unique(f"{self.result}/{output}", self._used)
            copied = onnx.NodeProto()
            copied.CopyFrom(node)
            copied.name = self.node_name(node.op_type)
            copied.input[:] = [names[i] for i in node.input]
            copied.output[:] = [names[o] for o in node.output]
            self.nodes.append(copied)
        return tuple(names[o.name] for o in graph.output)

    def constant(self, value: Any, dtype: Any = None) -> str:
        """An initializer; equal small ones are shared."""
        array = np.asarray(value, dtype=dtype)
        key = (array.dtype.str, array.shape, array.tobytes()) if array.size <= _SHARED_SIZE else None
        if key is None or key not in self._known:
            name = self._unique(f"{self.kernel}.constant", self._used)
            self.initializers.append(numpy_helper.from_array(np.ascontiguousarray(array).reshape(array.shape), name))
            self._known[key] = name
        return self._known[key]

    def parameter(self, tensor: Tensor, name: str) -> str:
        """An initializer for a module's tensor, by the name it has in the model."""
        unique = self._unique(name, self._used)
        array = tensor.detach().cpu().contiguous().numpy()
        self.initializers.append(numpy_helper.from_array(array, unique))
        return unique

    def integers(self, *values: int) -> str:
        return self.constant(values, np.int64)

    def value(self, source: Any, dtype: torch.dtype = torch.float32) -> str:
        """The ONNX tensor for an argument: a node, or a number that becomes a constant of `dtype`."""
        if not isinstance(source, Node):
            return self.constant(torch.tensor(source, dtype=dtype).numpy())
        if source not in self.names:
            self.names[source] = self.parameter(self.constants[source], source.name)
        name: str = self.names[source]
        return name

    def type(self, node: Node) -> TensorType:
        found = self.types.get(node)
        if not isinstance(found, TensorType):
            raise ExportError(f"node {node.name} ({node.target}) makes {type(found).__name__}, not one tensor")
        return found

    def rank(self, node: Node) -> int:
        return len(self.type(node).one)

    def shape_of(self, node: Node) -> str:
        """An int64 tensor that reshapes anything of the right size to a node's shape, for every batch size."""
        made = self.type(node)
        batched = made.batched
        if len(batched) <= 1:
            return self.integers(*(-1 if axis in batched else size for axis, size in enumerate(made.one)))
        return self.exact_shape_of(node)

    def exact_shape_of(self, node: Node) -> str:
        """An int64 tensor with a node's shape, the batch read off the model's first input."""
        made = self.type(node)
        if not made.batched:
            return self.integers(*made.one)
        pieces = []
        for one, two in zip(made.one, made.two, strict=True):
            if one == two:
                pieces.append(self.integers(one))
            elif two == 2 * one:
                pieces.append(self.batch() if one == 1 else self.add("Mul", self.batch(), self.integers(one)))
            else:
                raise ExportError(
                    f"the size of {node.name} is {one} for one sample and {two} for two: only sizes proportional to "
                    "the batch can be exported"
                )
        return self.add("Concat", *pieces, axis=0)

    def batch(self) -> str:
        """The batch size, an int64 tensor of one element."""
        if BATCH not in self._known:
            first = next(node for node in self.model.graph.nodes if node.op == "placeholder")
            self._known[BATCH] = self._unique(BATCH, self._used)
            self.nodes.append(
                helper.make_node("Shape", (self.names[first],), (self._known[BATCH],), BATCH, start=0, end=1)
            )
        return self._known[BATCH]

    @staticmethod
    def _unique(name: str, used: set[str]) -> str:
        found, count = name, 1
        while found in used:
            found, count = f"{name}_{count}", count + 1
        used.add(found)
        return found


Emit = Callable[[Emitter, Node], Any]
"""Adds what computes a node and returns the name(s) of its value; None if it can't be written this way."""


def as_type(e: Emitter, source: Any, dtype: torch.dtype) -> str:
    name = e.value(source, dtype)
    if isinstance(source, Node) and e.type(source).dtype is not dtype:
        return e.add("Cast", name, to=ELEMENT_TYPES[dtype])
    return name
