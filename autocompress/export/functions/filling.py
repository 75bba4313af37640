"""How tensors that are made of numbers alone are written in ONNX."""

from typing import Any

import torch
from torch.fx import Node

from autocompress.export.emitter import Emit, Emitter, cast
from autocompress.graph.calls import arguments

aten = torch.ops.aten


def _filled(number: float | None) -> Emit:
    """A tensor of one value, of a size that is given or another tensor's; spread at run time where it changes."""

    def emit(e: Emitter, node: Node) -> str:
        a = arguments(node)
        value = a.get("fill_value", a.get("value")) if number is None else number
        shape = e.exact_shape_of(node, a["size"]) if "size" in a else _shape_like(e, node, a["self"])
        return e.add("Expand", e.cast_to(value, e.dtype(node)), shape)

    return emit


def _shape_like(e: Emitter, node: Node, other: Any) -> str:
    kind = e.type(node)
    if all(kind.of_batch(axis) for axis in kind.free):
        return e.exact_shape_of(node)
    return e.add_size("Shape", e.value(other))


def _range(e: Emitter, node: Node) -> str:
    """From `start` (0) to `end` by `step` (1); made in a wide type, in which the count of elements is torch's."""
    a = arguments(node)
    numbers = [a.get("start", 0), a["end"], a.get("step", 1)]
    result = e.dtype(node)
    dtype = torch.int64 if all(_is_whole(e, n) for n in numbers) else torch.float64
    made = e.add("Range", *(e.scalar(n, dtype) for n in numbers))
    return made if result is dtype else cast(e, made, result)


def _is_whole(e: Emitter, number: Any) -> bool:
    if isinstance(number, Node):
        return all(isinstance(value, int) for value in e.types[number].values)
    return isinstance(number, int)


def _number(e: Emitter, node: Node) -> str:
    source: Any = node.args[0]
    return e.scalar(source, e.dtype(node)) if isinstance(source, Node) else e.value(source, e.dtype(node))


def _identity_matrix(e: Emitter, node: Node) -> str:
    a = arguments(node)
    shape = e.exact_shape_of(node, [a["n"], a.get("m", a["n"])])
    return e.add("EyeLike", e.add("Expand", e.value(0, e.dtype(node)), shape))


FILLING: dict[Any, Emit] = {
    aten.zeros.default: _filled(0),
    aten.ones.default: _filled(1),
    aten.full.default: _filled(None),
    aten.empty.memory_format: _filled(0),
    aten.empty_like.default: _filled(0),
    aten.new_empty.default: _filled(0),
    aten.new_zeros.default: _filled(0),
    aten.new_ones.default: _filled(1),
    aten.new_full.default: _filled(None),
    aten.zeros_like.default: _filled(0),
    aten.ones_like.default: _filled(1),
    aten.full_like.default: _filled(None),
    aten.fill.Scalar: _filled(None),
    aten.fill.Tensor: _filled(None),
    aten.zero.default: _filled(0),
    aten.arange.default: _range,
    aten.arange.start: _range,
    aten.arange.start_step: _range,
    aten.scalar_tensor.default: _number,
    aten.eye.default: _identity_matrix,
    aten.eye.m: _identity_matrix,
}
