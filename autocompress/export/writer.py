"""ONNX nodes and constants as they are collected: unique names, equal constants stored once."""

import hashlib
from typing import Any

import numpy as np
import onnx
from onnx import helper, numpy_helper
from torch import Tensor

from autocompress.export.types import BATCH

OPSET = 17
"""The newest that every ONNX Runtime fusion wanted here recognises (GELU, layer norm and QDQ patterns)."""
IR_VERSION = 8
OUTPUT = "output"


class Writer:
    """Nodes are named after the kernel they belong to: its own operation bears its name, what surrounds it
    `KERNEL/OPERATOR`; nodes that compute sizes are `batch/OPERATOR`."""

    def __init__(self) -> None:
        self.nodes: list[onnx.NodeProto] = []
        self.initializers: list[onnx.TensorProto] = []
        self.opsets: dict[str, int] = {"": OPSET}
        self.kernel = ""
        self.result = ""
        self.shared: dict[Any, str] = {}
        """Tensors that are made once for whatever needs them: constants by content, sizes by what they measure."""
        self._used: set[str] = set()
        self._node_names: set[str] = {BATCH}
        self._outputs: set[str] = set()

    def reserve(self, *outputs: str) -> None:
        """Keeps the names of the graph's outputs free of other tensors and nodes."""
        self._outputs.update(outputs)
        self._used.update(outputs)
        self._node_names.update(outputs)

    def name_output(self, tensor: str, output: str) -> None:
        """Renames a tensor that the model returns to `output`; an input, a constant or another output is copied."""
        made = any(tensor in node.output for node in self.nodes)
        if not made or tensor in self._outputs:
            self.nodes.append(helper.make_node("Identity", (tensor,), (output,), output))
            return
        for node in self.nodes:
            for names in (node.input, node.output):
                if tensor in names:
                    names[:] = [output if name == tensor else name for name in names]

    def add(self, op: str, *inputs: str, **attributes: Any) -> str:
        """Adds a node and returns its output's name."""
        return self.add_many(op, 1, *inputs, **attributes)[0]

    def add_many(self, op: str, outputs: int, *inputs: str, **attributes: Any) -> tuple[str, ...]:
        """Adds a node with several outputs."""
        names = tuple(self.unique(self.result) for _ in range(outputs))
        self.nodes.append(helper.make_node(op, inputs, names, self.node_name(op), **attributes))
        return names

    def add_named(self, name: str, op: str, *inputs: str, **attributes: Any) -> str:
        """Adds a node with a name of its own."""
        output = self.unique(self.result)
        self.nodes.append(helper.make_node(op, inputs, (output,), _unique(name, self._node_names), **attributes))
        return output

    def add_size(self, op: str, *inputs: str, **attributes: Any) -> str:
        """Adds a node that computes with sizes, once."""
        key = (op, inputs, tuple(attributes.items()))
        if key not in self.shared:
            self.shared[key] = self.unique("size")
            name = _unique(f"{BATCH}/{op}", self._node_names)
            self.nodes.append(helper.make_node(op, inputs, (self.shared[key],), name, **attributes))
        return self.shared[key]

    def node_name(self, op: str) -> str:
        """The kernel's own name for the first node that is added to it, `KERNEL/OPERATOR` for the others."""
        if self.kernel not in self._node_names:
            self._node_names.add(self.kernel)
            return self.kernel
        return _unique(f"{self.kernel}/{op}", self._node_names)

    def unique(self, name: str) -> str:
        """A tensor name that nothing else has."""
        return _unique(name, self._used)

    def constant(self, value: Any, dtype: Any = None) -> str:
        """An initializer; equal ones are stored once."""
        return self._stored(np.asarray(value, dtype=dtype), f"{self.kernel}.constant")

    def parameter(self, tensor: Tensor, name: str) -> str:
        """An initializer for a module's tensor, by the name it has in the model; equal ones are stored once."""
        return self._stored(tensor.detach().cpu().contiguous().numpy(), name)

    def own_parameter(self, tensor: Tensor, name: str) -> str:
        """The same, but stored anew where an equal one is there already."""
        unique = self.unique(name)
        self.initializers.append(numpy_helper.from_array(tensor.detach().cpu().contiguous().numpy(), unique))
        return unique

    def _stored(self, value: Any, name: str) -> str:
        array = np.ascontiguousarray(value).reshape(value.shape)
        key = (array.dtype.str, array.shape, hashlib.blake2b(array.tobytes(), digest_size=16).digest())
        if key not in self.shared:
            self.shared[key] = self.unique(name)
            self.initializers.append(numpy_helper.from_array(array, self.shared[key]))
        return self.shared[key]

    def integers(self, *values: int) -> str:
        return self.constant(values, np.int64)


def _unique(name: str, used: set[str]) -> str:
    found, count = name, 1
    while found in used:
        found, count = f"{name}_{count}", count + 1
    used.add(found)
    return found
