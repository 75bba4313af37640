"""How each ATen operator that only moves or copies elements is written in ONNX."""

import math
from typing import Any

import torch
from torch.fx import Node

from autocompress.export.emitter import Emit, Emitter
from autocompress.export.layout import leaves_as_vector
from autocompress.graph.calls import arguments, getitem

aten = torch.ops.aten
LAST = 2**63 - 1


def _reshape(e: Emitter, node: Node) -> str:
    a = arguments(node)
    source: Any = node.args[0]
    x = e.value(source)
    if leaves_as_vector(e.model, source, e.type(source).one, e.type(node).one):
        x = e.add("Transpose", x, perm=[0, 2, 3, 1])
    return e.add("Reshape", x, _requested(e, node, a.get("shape", a.get("size"))))


def _requested(e: Emitter, node: Node, shape: Any) -> str:
    """A target shape; its -1, if its size changes, stays so."""
    made = e.type(node)
    if shape is None or len(made.free) <= 1:
        return e.shape_of(node)
    return e.vector([e.size(shape[axis]) if axis in made.free else size for axis, size in enumerate(made.one)])


def _flatten(e: Emitter, node: Node) -> str:
    a = arguments(node)
    source: Any = a["self"]
    rank = e.rank(source)
    if not rank or len(e.type(node).free) <= 1:
        return _reshape(e, node)
    start, end = a["start_dim"] % rank, a["end_dim"] % rank
    dims = e.dims(source)
    return e.add("Reshape", e.value(source), e.vector([*dims[:start], -1, *dims[end + 1 :]]))


def _unflatten(e: Emitter, node: Node) -> str:
    a = arguments(node)
    source: Any = a["self"]
    if len(e.type(node).free) <= 1:
        return e.add("Reshape", e.value(source), e.shape_of(node))
    axis, dims = a["dim"] % e.rank(source), e.dims(source)
    sizes = [e.size(size) for size in a["sizes"]]
    return e.add("Reshape", e.value(source), e.vector([*dims[:axis], *sizes, *dims[axis + 1 :]]))


def _unsqueeze(e: Emitter, node: Node) -> str:
    if len(e.type(node).free) <= 1:
        return _reshape(e, node)
    return e.add("Unsqueeze", e.value(node.args[0]), e.integers(arguments(node)["dim"] % e.rank(node)))


def _squeeze(e: Emitter, node: Node) -> str:
    if len(e.type(node).free) <= 1:
        return _reshape(e, node)
    a = arguments(node)
    kind, rank = e.type(a["self"]), e.rank(a["self"])
    dims = a.get("dim", range(rank))
    asked = {d % rank for d in (dims if isinstance(dims, (list, tuple, range)) else [dims])}
    gone = sorted(axis for axis in asked if kind.one[axis] == 1 and axis not in kind.free)
    return e.add("Squeeze", e.value(a["self"]), e.integers(*gone)) if gone else e.value(a["self"])


def _reshape_like(e: Emitter, node: Node) -> str:
    return e.add("Reshape", e.value(node.args[0]), e.add_size("Shape", e.value(node.args[1])))


def _expand(e: Emitter, node: Node) -> str:
    """Only the axes that grow are named: ONNX broadcasts, so 1 keeps an axis."""
    a = arguments(node)
    source, made = e.type(a["self"]), e.type(node)
    before = [1] * (len(made.one) - len(source.one))
    asked = a.get("size", made.one)
    kept = [*(s != 1 for s in before), *(True for _ in source.one)]
    shape: list[Any] = []
    for axis, size in enumerate(made.one):
        old = axis - len(before)
        same = kept[axis] and all(was[old] == now[axis] for was, now in zip(source.shapes, made.shapes, strict=True))
        if same:
            shape.append(1)
        elif axis not in made.free:
            shape.append(size)
        else:
            shape.append(e.times_batch(size) if made.of_batch(axis) else e.size(asked[axis]))
    return e.add("Expand", e.value(a["self"]), e.vector(shape))


def _expand_like(e: Emitter, node: Node) -> str:
    return e.add("Expand", e.value(node.args[0]), e.add_size("Shape", e.value(node.args[1])))


def _transpose(e: Emitter, node: Node) -> str:
    a = arguments(node)
    rank = e.rank(a["self"])
    if rank < 2:
        return e.value(a["self"])
    order = list(range(rank))
    first, second = (a["dim0"] % rank, a["dim1"] % rank) if "dim0" in a else (0, rank - 1)
    order[first], order[second] = order[second], order[first]
    return e.add("Transpose", e.value(a["self"]), perm=order)


def _permute(e: Emitter, node: Node) -> str:
    a = arguments(node)
    rank = e.rank(a["self"])
    return e.add("Transpose", e.value(a["self"]), perm=[d % rank for d in a["dims"]])


def _move_axes(e: Emitter, node: Node) -> str:
    a = arguments(node)
    rank = e.rank(a["self"])
    source, target = (
        [d % rank for d in (v if isinstance(v, (list, tuple)) else [v])] for v in (a["source"], a["destination"])
    )
    order = [axis for axis in range(rank) if axis not in source]
    for place, axis in sorted(zip(target, source, strict=True)):
        order.insert(place, axis)
    return e.add("Transpose", e.value(a["self"]), perm=order)


def _split(e: Emitter, node: Node) -> Any:
    """Any of torch's ways to split: the sizes are read off the results."""
    a = arguments(node)
    axis, parts = int(a["dim"]), e.types[node]
    if len(parts) == 1:
        return (e.add("Identity", e.value(a["self"])),)
    if not any(axis % len(part.one) in part.free for part in parts):
        sizes = e.integers(*(part.one[axis] for part in parts))
    elif all(part == parts[0] for part in parts):
        return e.add_many("Split", len(parts), e.value(a["self"]), axis=axis)
    elif "split_sizes" in a:
        sizes = e.vector([e.size(size) for size in a["split_sizes"]])
    else:
        return None
    return e.add_many("Split", len(parts), e.value(a["self"]), sizes, axis=axis)


def _unbind(e: Emitter, node: Node) -> tuple[str, ...]:
    a = arguments(node)
    x, axis = e.value(a["self"]), int(a["dim"])
    return tuple(e.add("Gather", x, e.constant(i, "int64"), axis=axis) for i in range(len(e.types[node])))


def _concatenate(e: Emitter, node: Node) -> str:
    """An empty vector among the parts counts for nothing, as in torch."""
    a = arguments(node)
    dtype = e.dtype(node)
    parts = [t for t in a["tensors"] if e.type(t).one != (0,)]
    return e.add("Concat", *(e.cast_to(t, dtype) for t in parts), axis=int(a["dim"]))


def _stack(e: Emitter, node: Node) -> str:
    a = arguments(node)
    axis, dtype = a["dim"] % e.rank(node), e.dtype(node)
    return e.add("Concat", *(e.add("Unsqueeze", e.cast_to(t, dtype), e.integers(axis)) for t in a["tensors"]),
                 axis=axis)  # fmt: skip


def _repeat(e: Emitter, node: Node) -> str:
    """Repeats beyond the rank make new axes in front; fewer (torch.tile) leave the first axes alone."""
    a = arguments(node)
    rank = e.rank(a["self"])
    repeats = [e.size(r) for r in a["repeats" if "repeats" in a else "dims"]]
    x = e.value(a["self"])
    if len(repeats) > rank:
        x = e.add("Unsqueeze", x, e.integers(*range(len(repeats) - rank)))
    return e.add("Tile", x, e.vector([1] * (rank - len(repeats)) + repeats))


def _interleave(e: Emitter, node: Node) -> str | None:
    """Every element of an axis several times, side by side."""
    a = arguments(node)
    if not isinstance(a["repeats"], int):
        return None
    source: Any = a["self"]
    dims: list[Any]
    if a["dim"] is None:
        x, rank, axis, dims = e.add("Reshape", e.value(source), e.integers(-1)), 1, 0, [-1]
    else:
        x, rank, axis, dims = e.value(source), e.rank(source), a["dim"] % e.rank(source), list(e.dims(source))
    spread = e.add("Unsqueeze", x, e.integers(axis + 1))
    spread = e.add("Expand", spread, e.integers(*[1] * (axis + 1), a["repeats"], *[1] * (rank - axis - 1)))
    dims[axis] = -1
    return e.add("Reshape", spread, e.vector(dims))


def _flip(e: Emitter, node: Node) -> str:
    a = arguments(node)
    axes = [d % e.rank(node) for d in a["dims"]]
    minus = [-1] * len(axes)
    return e.add(
        "Slice", e.value(a["self"]), e.integers(*minus), e.integers(*[-LAST] * len(axes)), e.integers(*axes),
        e.integers(*minus),
    )  # fmt: skip


def _roll(e: Emitter, node: Node) -> str:
    """Each axis cut in two, the halves swapped; without axes the whole as one vector."""
    a = arguments(node)
    x = e.value(a["self"])
    if not a["dims"]:
        rolled = _rolled(e, e.add("Reshape", x, e.integers(-1)), 0, a["shifts"][0], math.prod(e.type(node).one))
        return e.add("Reshape", rolled, e.add_size("Shape", x))
    for shift, axis in zip(a["shifts"], a["dims"], strict=True):
        axis %= e.rank(node)
        fixed = axis not in e.type(node).free
        x = _rolled(e, x, axis, shift, e.type(node).one[axis] if fixed else 0)
    return x


def _rolled(e: Emitter, x: str, axis: int, shift: int, size: int) -> str:
    """By `shift`, of which `size` (0: not known, then it is taken to be more) is a whole turn."""
    shift = shift % size if size else shift
    if not shift:
        return x
    parts = [
        e.add("Slice", x, e.integers(-shift), e.integers(LAST), e.integers(axis)),
        e.add("Slice", x, e.integers(0), e.integers(-shift), e.integers(axis)),
    ]
    return e.add("Concat", *parts, axis=axis)


def _pixel_shuffle(e: Emitter, node: Node) -> str | None:
    a = arguments(node)
    if e.rank(node) != 4:
        return None
    return e.add("DepthToSpace", e.value(a["self"]), blocksize=int(a["upscale_factor"]), mode="CRD")


def _pixel_unshuffle(e: Emitter, node: Node) -> str | None:
    a = arguments(node)
    source, factor = e.type(a["self"]).one, int(a["downscale_factor"])
    if len(source) != 4 or any(axis > 0 for axis in e.type(a["self"]).free):
        return None
    _, channels, height, width = source
    shape = e.integers(-1, channels, height // factor, factor, width // factor, factor)
    parts = e.add("Transpose", e.add("Reshape", e.value(a["self"]), shape), perm=[0, 1, 3, 5, 2, 4])
    return e.add("Reshape", parts, e.shape_of(node))


def _channel_shuffle(e: Emitter, node: Node) -> str:
    a = arguments(node)
    groups, x = int(a["groups"]), a["self"]
    apart = e.add("Reshape", e.value(x), e.integers(0, groups, e.type(x).one[1] // groups, -1))
    return e.add("Reshape", e.add("Transpose", apart, perm=[0, 2, 1, 3]), e.shape_of(node))


def _grid(e: Emitter, node: Node) -> tuple[str, ...]:
    """Every vector along an axis of its own, over all of the others'."""
    a = arguments(node)
    tensors = list(a["tensors"])
    swapped = a.get("indexing") == "xy" and len(tensors) > 1
    places = list(range(len(tensors)))
    if swapped:
        places[:2] = [1, 0]
    sizes: list[Any] = [1] * len(tensors)
    for tensor, place in zip(tensors, places, strict=True):
        sizes[place] = e.dims(tensor)[0] if e.rank(tensor) else 1
    made = []
    for tensor, place in zip(tensors, places, strict=True):
        view = e.integers(*(-1 if axis == place else 1 for axis in range(len(tensors))))
        made.append(e.add("Expand", e.add("Reshape", e.value(tensor), view), e.vector(sizes)))
    return tuple(made)


def _item(e: Emitter, node: Node) -> Any:
    source, index = node.args
    return e.names[source][index]  # type: ignore[index]


def _nothing(e: Emitter, node: Node) -> str:
    return e.value(node.args[0])


_RESHAPES = (aten.reshape.default, aten.view.default, aten._unsafe_view.default, aten._reshape_alias.default)
_SPLITS = (aten.split.Tensor, aten.split.sizes, aten.split_with_sizes.default, aten.split_with_sizes_copy.default,
           aten.split_copy.Tensor, aten.unsafe_split.Tensor, aten.unsafe_split_with_sizes.default, aten.chunk.default,
           aten.unsafe_chunk.default, aten.tensor_split.sections, aten.tensor_split.indices)  # fmt: skip
_IDENTITIES = (aten.clone.default, aten.contiguous.default, aten.alias.default, aten.detach.default,
               aten.lift_fresh_copy.default, aten.lift_fresh.default, aten.dropout.default,
               aten.feature_dropout.default, aten.alpha_dropout.default)  # fmt: skip

MOVES: dict[Any, Emit] = {
    **dict.fromkeys(_RESHAPES, _reshape),
    aten.flatten.using_ints: _flatten,
    aten.unflatten.int: _unflatten,
    aten.unsqueeze.default: _unsqueeze,
    aten.squeeze.default: _squeeze,
    aten.squeeze.dim: _squeeze,
    aten.squeeze.dims: _squeeze,
    aten.view_as.default: _reshape_like,
    aten.reshape_as.default: _reshape_like,
    aten.expand.default: _expand,
    aten.broadcast_to.default: _expand,
    aten.expand_as.default: _expand_like,
    aten.transpose.int: _transpose,
    aten.t.default: _transpose,
    aten.permute.default: _permute,
    aten.movedim.int: _move_axes,
    aten.movedim.intlist: _move_axes,
    **dict.fromkeys(_SPLITS, _split),
    aten.unbind.int: _unbind,
    aten.cat.default: _concatenate,
    aten.concat.default: _concatenate,
    aten.concatenate.default: _concatenate,
    aten.stack.default: _stack,
    aten.repeat.default: _repeat,
    aten.tile.default: _repeat,
    aten.repeat_interleave.self_int: _interleave,
    aten.flip.default: _flip,
    aten.roll.default: _roll,
    aten.pixel_shuffle.default: _pixel_shuffle,
    aten.pixel_unshuffle.default: _pixel_unshuffle,
    aten.channel_shuffle.default: _channel_shuffle,
    aten.meshgrid.default: _grid,
    aten.meshgrid.indexing: _grid,
    **dict.fromkeys(_IDENTITIES, _nothing),
    getitem: _item,
}
