"""How each ATen operator that only moves, copies or fills elements is written in ONNX."""

from collections.abc import Sequence
from typing import Any

import numpy as np
import torch
from torch.fx import Node

from autocompress.export.emitter import Emit, Emitter, as_type
from autocompress.export.layout import leaves_as_vector
from autocompress.graph.calls import arguments, getitem

aten = torch.ops.aten
_LAST = np.iinfo(np.int64).max


def _pad(e: Emitter, node: Node) -> str | None:
    """torch lists (before, after) from the last axis on, ONNX all befores and then all afters."""
    a = arguments(node)
    mode = {"constant": "constant", "reflect": "reflect", "replicate": "edge"}.get(a.get("mode", "constant"))
    if mode is None:
        return None
    rank, pads = e.rank(a["self"]), [int(n) for n in a["pad"]]
    absent = [0] * (rank - len(pads) // 2)
    before, after = absent + pads[-2::-2], absent + pads[::-2]
    inputs = [e.value(a["self"]), e.integers(*before, *after)]
    if mode == "constant":
        inputs.append(e.value(a["value"] or 0, e.type(node).dtype))
    return e.add("Pad", *inputs, mode=mode)


def _reshape(e: Emitter, node: Node) -> str:
    source: Any = node.args[0]
    x = e.value(source)
    if leaves_as_vector(e.model, source, e.type(source).one, e.type(node).one):
        x = e.add("Transpose", x, perm=[0, 2, 3, 1])
    return e.add("Reshape", x, e.shape_of(node))


def _expand(e: Emitter, node: Node) -> str:
    return e.add("Expand", e.value(node.args[0]), e.exact_shape_of(node))


def _filled(number: float | None) -> Emit:
    """A tensor of one value; where it depends on the batch it is spread at run time."""

    def emit(e: Emitter, node: Node) -> str:
        value = arguments(node)["fill_value"] if number is None else number
        return e.add("Expand", e.value(value, e.type(node).dtype), e.exact_shape_of(node))

    return emit


def _transpose(e: Emitter, node: Node) -> str:
    a = arguments(node)
    rank = e.rank(a["self"])
    order = list(range(rank))
    first, second = (a["dim0"] % rank, a["dim1"] % rank) if "dim0" in a else (0, rank - 1)
    order[first], order[second] = order[second], order[first]
    return e.add("Transpose", e.value(a["self"]), perm=order)


def _permute(e: Emitter, node: Node) -> str:
    a = arguments(node)
    rank = e.rank(a["self"])
    return e.add("Transpose", e.value(a["self"]), perm=[d % rank for d in a["dims"]])


def _slice(e: Emitter, node: Node) -> str:
    a = arguments(node)
    end = _LAST if a["end"] is None else min(a["end"], _LAST)
    bounds = (a["start"] or 0, end, a["dim"], a["step"])
    return e.add("Slice", e.value(a["self"]), *(e.integers(int(b)) for b in bounds))


def _select(e: Emitter, node: Node) -> str:
    a = arguments(node)
    return e.add("Gather", e.value(a["self"]), e.constant(a["index"], np.int64), axis=int(a["dim"]))


def _split(e: Emitter, node: Node) -> Any:
    """Any of torch's ways to split: the sizes are read off the results."""
    a = arguments(node)
    axis, parts = int(a["dim"]), e.types[node]
    sizes = [part.one[axis] for part in parts]
    if len(sizes) == 1:
        return (e.add("Identity", e.value(a["self"])),)
    return e.add_many("Split", len(sizes), e.value(a["self"]), e.integers(*sizes), axis=axis)


def _unbind(e: Emitter, node: Node) -> tuple[str, ...]:
    a = arguments(node)
    x, axis = e.value(a["self"]), int(a["dim"])
    return tuple(e.add("Gather", x, e.constant(i, np.int64), axis=axis) for i in range(len(e.types[node])))


def _concatenate(e: Emitter, node: Node) -> str:
    a = arguments(node)
    dtype = e.type(node).dtype
    return e.add("Concat", *(as_type(e, t, dtype) for t in a["tensors"]), axis=int(a["dim"]))


def _stack(e: Emitter, node: Node) -> str:
    a = arguments(node)
    axis = a["dim"] % e.rank(node)
    return e.add("Concat", *(e.add("Unsqueeze", e.value(t), e.integers(axis)) for t in a["tensors"]), axis=axis)


def _repeat(e: Emitter, node: Node) -> str | None:
    a = arguments(node)
    repeats: Sequence[Any] = a["repeats"]
    if len(repeats) != e.rank(a["self"]) or not all(isinstance(r, int) for r in repeats):
        return None
    return e.add("Tile", e.value(a["self"]), e.integers(*repeats))


def _pixel_shuffle(e: Emitter, node: Node) -> str:
    a = arguments(node)
    return e.add("DepthToSpace", e.value(a["self"]), blocksize=int(a["upscale_factor"]), mode="CRD")


def _item(e: Emitter, node: Node) -> Any:
    source, index = node.args
    return e.names[source][index]  # type: ignore[index]


MOVES: dict[Any, Emit] = {
    aten.constant_pad_nd.default: _pad,
    aten.pad.default: _pad,
    aten.reshape.default: _reshape,
    aten.view.default: _reshape,
    aten.flatten.using_ints: _reshape,
    aten.unsqueeze.default: _reshape,
    aten.squeeze.dim: _reshape,
    aten.squeeze.dims: _reshape,
    aten.expand.default: _expand,
    aten.zeros.default: _filled(0),
    aten.ones.default: _filled(1),
    aten.full.default: _filled(None),
    aten.transpose.int: _transpose,
    aten.t.default: _transpose,
    aten.permute.default: _permute,
    aten.slice.Tensor: _slice,
    aten.select.int: _select,
    aten.split.Tensor: _split,
    aten.split_with_sizes.default: _split,
    aten.chunk.default: _split,
    aten.unbind.int: _unbind,
    aten.cat.default: _concatenate,
    aten.stack.default: _stack,
    aten.repeat.default: _repeat,
    aten.pixel_shuffle.default: _pixel_shuffle,
    getitem: _item,
}
