"""Operators that move, choose or repeat elements, each as one call of torch."""

import operator
from collections.abc import Mapping, Sequence
from typing import Any

import torch
import torch.nn.functional as F
from torch import Tensor

from autocompress.translation.values import (
    Attributes,
    Call,
    Number,
    Operand,
    Size,
    Translate,
    Unsupported,
    Value,
    computed,
    integers,
    product,
    scalar,
)

WHOLE = 10**9
"""Ends of slices from here on mean 'to the end'."""


def sliced(x: Tensor, index: tuple[slice, ...], flipped: list[int]) -> Tensor:
    return x.flip(flipped)[index] if flipped else x[index]


def looked_up(x: Tensor, indices: Tensor, axis: int) -> Tensor:
    """One slice of x along the axis for each index, the indices' shape in the axis's place."""
    chosen = x.index_select(axis, indices.reshape(-1))
    return chosen.reshape(x.shape[:axis] + indices.shape + x.shape[axis + 1 :])


def from_either_end(indices: Tensor, size: int) -> Tensor:
    """Negative indices count from the end."""
    return torch.where(indices < 0, indices + size, indices)


def elements_at(x: Tensor, indices: Tensor, axis: int) -> Tensor:
    return x.gather(axis, from_either_end(indices, x.shape[axis]))


def entries_at(x: Tensor, indices: Tensor, batch_axes: int) -> Tensor:
    """ONNX's GatherND: the last axis of the indices addresses the axes after the batch's."""
    where = indices.unbind(-1)
    leading = []
    for axis in range(batch_axes):
        shape = [1] * (indices.dim() - 1)
        shape[axis] = -1
        leading.append(torch.arange(x.shape[axis], device=x.device).reshape(shape))
    found: Tensor = x[(*leading, *where)]
    return found


def scattered(x: Tensor, indices: Tensor, updates: Tensor, axis: int, how: str) -> Tensor:
    where = from_either_end(indices, x.shape[axis])
    return x.scatter(axis, where, updates) if how == "none" else x.scatter_reduce(axis, where, updates, how)


def scattered_entries(x: Tensor, indices: Tensor, updates: Tensor, accumulate: bool) -> Tensor:
    return x.index_put(tuple(indices.unbind(-1)), updates, accumulate)


def depth_first_to_space(x: Tensor, block: int) -> Tensor:
    n, c, h, w = x.shape
    blocks = x.reshape(n, block, block, c // block**2, h, w).permute(0, 3, 4, 1, 5, 2)
    return blocks.reshape(n, c // block**2, h * block, w * block)


def space_to_depth(x: Tensor, block: int) -> Tensor:
    n, c, h, w = x.shape
    blocks = x.reshape(n, c, h // block, block, w // block, block).permute(0, 3, 5, 1, 2, 4)
    return blocks.reshape(n, c * block**2, h // block, w // block)


def along(x: Tensor, axis: int, positions: list[int]) -> Tensor:
    """The slices of x at these positions."""
    return x.index_select(axis, torch.tensor(positions, device=x.device))


def triangle(x: Tensor, diagonal: int, upper: bool) -> Tensor:
    return x.triu(diagonal) if upper else x.tril(diagonal)


def ones_on_diagonal(rows: int, columns: int, shift: int, dtype: torch.dtype) -> Tensor:
    across = torch.arange(columns)[None, :] - torch.arange(rows)[:, None]
    return (across == shift).to(dtype)


def reversed_sequences(x: Tensor, lengths: Tensor, time: int, batch: int) -> Tensor:
    """Each sample's first steps in the opposite order, as many as its length."""
    steps = torch.arange(x.shape[time], device=x.device)[None, :]
    ends = lengths.reshape(-1, 1)
    order = torch.where(steps < ends, ends - 1 - steps, steps)
    order = order if batch < time else order.transpose(0, 1)
    shape = [n if axis in (time, batch) else 1 for axis, n in enumerate(x.shape)]
    return x.gather(time, order.reshape(shape).expand(x.shape))


def _reshape(a: Attributes, x: Value, shape: Value | None = None) -> Call:
    wanted = shape.entries() if shape is not None else list(a["shape"])
    sizes = [x.size(i) if _is(n, 0) and not a.get("allowzero", 0) else n for i, n in enumerate(wanted)]
    return Call(torch.reshape, (x, sizes))


def _same(a: Number, b: Number) -> bool:
    """Whether they are equal for every example."""
    if isinstance(a, Size) and isinstance(b, Size):
        return a.values == b.values
    return not isinstance(a, Size) and not isinstance(b, Size) and bool(a == b)


def _is(number: Number, value: int) -> bool:
    return not isinstance(number, Size) and bool(number == value)


def _flatten(a: Attributes, x: Value) -> Call:
    axis = a.get("axis", 1) % (x.rank + 1) if a.get("axis", 1) != x.rank else x.rank
    before, after = x.shape[:axis], x.shape[axis:]
    free = sum(isinstance(n, Size) for n in before), sum(isinstance(n, Size) for n in after)
    if axis == 1 and x.rank > 1:
        return Call(torch.flatten, (x, 1))
    return Call(torch.reshape, (x, [-1 if free[0] else product(before), product(after)]))


def _transpose(a: Attributes, x: Value) -> Call:
    return Call(torch.permute, (x, list(a.get("perm", reversed(range(x.rank))))))


def _squeeze(a: Attributes, x: Value, axes: Value | None = None) -> Call:
    ones = [i for i, n in enumerate(x.shape) if _is(n, 1)]
    given = integers(axes) if axes is not None else list(a.get("axes", ones))
    return Call(torch.squeeze, (x, given))


def _unsqueeze(a: Attributes, x: Value, axes: Value | None = None) -> Call:
    given = integers(axes) if axes is not None else list(a["axes"])
    where = sorted(axis % (x.rank + len(given)) for axis in given)
    if len(where) == 1:
        return Call(torch.unsqueeze, (x, where[0]))
    sizes = x.shape
    for axis in where:
        sizes.insert(axis, 1)
    return Call(torch.reshape, (x, sizes))


def _concat(a: Attributes, *parts: Value) -> Call:
    return Call(torch.cat, (list(parts), a["axis"]))


def _split(a: Attributes, x: Value, sizes: Value | None = None) -> Call:
    axis = a.get("axis", 0)
    if sizes is not None or "split" in a:
        return Call(torch.split, (x, sizes.entries() if sizes is not None else list(a["split"]), axis))
    return Call(torch.chunk, (x, a.get("num_outputs", a.outputs), axis))


def _slice(a: Attributes, x: Value, *bounds: Value | None) -> Call:
    starts, ends, axes, steps = (*bounds, None, None, None, None)[:4]
    firsts = starts.entries() if starts is not None else list(a["starts"])
    lasts = ends.entries() if ends is not None else list(a["ends"])
    where = integers(axes) if axes is not None else list(a.get("axes", range(len(firsts))))
    strides = integers(steps) if steps is not None else [1] * len(firsts)
    index, flipped = [slice(None)] * x.rank, []
    for axis, first, last, stride in zip(where, firsts, lasts, strides, strict=True):
        index[axis] = _along(x.size(axis), first, last, stride)
        if stride < 0:
            flipped.append(axis % x.rank)
    nothing = not flipped and all(entry == slice(None) for entry in index)
    return Call(torch.clone, (x,)) if nothing else Call(sliced, (x, tuple(index), flipped))


def _along(size: Number, first: Number, last: Number, stride: int) -> slice:
    """A slice with torch's bounds; of the flipped axis, if the stride is negative."""
    if all(isinstance(n, int) for n in (size, first, last)):
        positions = range(size)[first:last:stride]
        if stride < 0:
            positions = range(size)[size - 1 - positions.start : size - positions.stop - 1 : -stride]
        whole = positions == range(size)
        return slice(None) if whole else slice(positions.start, positions.stop, positions.step)
    if stride < 0:
        if not isinstance(last, int) or last > -WHOLE or not (first == -1 or _beyond(first)):
            raise Unsupported("backwards within an axis of free size")
        return slice(None, None, -stride)
    start = None if _is(first, 0) else first
    return slice(start, None if _beyond(last) else last, None if stride == 1 else stride)


def _beyond(end: Number) -> bool:
    return isinstance(end, int) and end >= WHOLE


def _gather(a: Attributes, x: Value, indices: Value) -> Call:
    axis = a.get("axis", 0) % x.rank
    single = scalar(indices)
    if single is not None and indices.rank == 0:
        return Call(torch.select, (x, axis, int(single)))
    if isinstance(indices, Operand) and indices.node is None:
        size = x.size(axis)
        if isinstance(size, Size) and (indices.example < 0).any():
            raise Unsupported("from the end of an axis of free size")
        positions = [int(n) % size if isinstance(size, int) else int(n) for n in indices.entries()]
        if indices.rank == 1:
            return Call(along, (x, axis, positions))
        indices = Operand((torch.tensor(positions).reshape(indices.example.shape),))
    if isinstance(x, Operand) and x.node is None and x.rank == 2 and axis == 0 and x.dtype.is_floating_point:
        return Call(F.embedding, (indices, x))
    return Call(looked_up, (x, indices, axis))


def _gather_elements(a: Attributes, x: Value, indices: Value) -> Call:
    return Call(elements_at, (x, indices, a.get("axis", 0)))


def _gather_nd(a: Attributes, x: Value, indices: Value) -> Call:
    return Call(entries_at, (x, indices, a.get("batch_dims", 0)))


_HOW = {"none": "none", "add": "sum", "mul": "prod", "max": "amax", "min": "amin"}


def _scatter(a: Attributes, x: Value, indices: Value, updates: Value) -> Call:
    return Call(scattered, (x, indices, updates, a.get("axis", 0), _HOW[a.get("reduction", "none")]))


def _scatter_nd(a: Attributes, x: Value, indices: Value, updates: Value) -> Call:
    how = a.get("reduction", "none")
    if how not in ("none", "add"):
        raise Unsupported(f"with reduction {how}")
    return Call(scattered_entries, (x, indices, updates, how == "add"))


def broadcast(sizes: Sequence[Number], wanted: Sequence[Number]) -> list[Number]:
    """Both shapes as one, the last axes aligned."""
    rank = max(len(sizes), len(wanted))
    ours, theirs = ([1] * (rank - len(given)) + list(given) for given in (sizes, wanted))
    return [b if _is(a, 1) else a for a, b in zip(ours, theirs, strict=True)]


def _expand(a: Attributes, x: Value, shape: Value) -> Call:
    wanted = broadcast(x.shape, shape.entries())
    if len(wanted) == x.rank and all(_same(a, b) for a, b in zip(wanted, x.shape, strict=True)):
        return Call(torch.clone, (x,))
    return Call(torch.broadcast_to, (x, wanted))


def _pad(
    a: Attributes, x: Value, pads: Value | None = None, value: Value | None = None, axes: Value | None = None
) -> Call:
    mode = a.get("mode", "constant")
    given = pads.entries() if pads is not None else list(a.get("pads", a.get("paddings", ())))
    where = [axis % x.rank for axis in integers(axes)] if axes is not None else list(range(x.rank))
    half = len(given) // 2
    amounts = {axis: (given[i], given[i + half]) for i, axis in enumerate(where)}
    if mode == "constant":
        fill = a.get("value", 0) if value is None else value.known().item()
        return Call(F.pad, (x, _torch_order([amounts.get(i, (0, 0)) for i in range(x.rank)]), mode, fill))
    return _pad_by_copies(x, mode, amounts)


def _torch_order(amounts: Sequence[tuple[Number, Number]]) -> list[Number]:
    """(before, after) from the last axis on, without the untouched first axes."""
    flat = [n for pair in reversed(amounts) for n in pair]
    while len(flat) > 2 and flat[-2:] == [0, 0]:
        flat = flat[:-2]
    return flat


def _pad_by_copies(x: Value, mode: str, amounts: Mapping[int, tuple[Number, Number]]) -> Call:
    modes = {"reflect": "reflect", "edge": "replicate", "wrap": "circular"}
    padded = [axis for axis, pair in amounts.items() if pair != (0, 0)]
    if mode not in modes:
        raise Unsupported(f"in mode {mode}")
    if x.rank in (3, 4, 5) and all(axis >= 2 for axis in padded) and mode != "wrap":
        order = [n for axis in reversed(range(2, x.rank)) for n in amounts.get(axis, (0, 0))]
        return Call(F.pad, (x, order, modes[mode]))
    call: Any = x
    for axis in padded:
        before, after = amounts[axis]
        size = x.size(axis)
        if isinstance(size, Size) or isinstance(before, Size) or isinstance(after, Size):
            raise Unsupported(f"in mode {mode} along an axis of free size")
        call = Call(along, (call, axis, [_source(i, size, mode) for i in range(-before, size + after)]))
    return call if isinstance(call, Call) else Call(torch.clone, (x,))


def _source(position: int, size: int, mode: str) -> int:
    if mode == "wrap":
        return position % size
    if mode == "edge" or size == 1:
        return min(max(position, 0), size - 1)
    position %= 2 * size - 2
    return min(position, 2 * size - 2 - position)


def _depth_to_space(a: Attributes, x: Value) -> Call:
    columns_first = a.get("mode", "DCR") == "CRD"
    return Call(F.pixel_shuffle if columns_first else depth_first_to_space, (x, a["blocksize"]))


def _filled(a: Attributes, shape: Value) -> Call:
    value = a.get("value", torch.zeros(1))
    return Call(torch.full, (shape.entries(), value.item()), {"dtype": value.dtype})


def _range(a: Attributes, start: Value, limit: Value, step: Value) -> Call:
    bounds = [bound.entries()[0] for bound in (start, limit, step)]
    return Call(torch.arange, tuple(bounds), {"dtype": start.dtype})


def _triangle(a: Attributes, x: Value, diagonal: Value | None = None) -> Call:
    (shift,) = integers(diagonal) if diagonal is not None else (0,)
    return Call(triangle, (x, shift, bool(a.get("upper", 1))))


def _eye(a: Attributes, x: Value) -> Call:
    from autocompress.translation.operators.pointwise import DTYPES

    return Call(ones_on_diagonal, (*x.shape, a.get("k", 0), DTYPES[a["dtype"]] if "dtype" in a else x.dtype))


def _reverse(a: Attributes, x: Value, lengths: Value) -> Call:
    return Call(reversed_sequences, (x, lengths, a.get("time_axis", 0), a.get("batch_axis", 1)))


def _fold(a: Attributes, x: Value, image: Value, block: Value) -> Call:
    rank, window, size = len(block.entries()), integers(block), image.entries()
    ones, zeros = [1] * rank, [0] * 2 * rank
    pads = list(a.get("pads", zeros))
    if rank != 2 or pads[:2] != pads[2:]:
        raise Unsupported("of other than two axes, or with padding that differs from side to side")
    settings = (list(a.get("dilations", ones)), pads[:2], list(a.get("strides", ones)))
    return Call(F.fold, (x, size, window, *settings))


def _tile(a: Attributes, x: Value, repeats: Value) -> Call:
    return Call(torch.tile, (x, repeats.entries()))


def _crop_or_pad(a: Attributes, x: Value, shape: Value) -> Call:
    """The middle of each axis, or zeros around it, the odd element behind."""
    axes = [axis % x.rank for axis in a.get("axes", range(x.rank))]
    wanted = dict(zip(axes, integers(shape), strict=True))
    amounts = []
    for axis in range(x.rank):
        more = computed(operator.sub, wanted[axis], x.size(axis)) if axis in wanted else 0
        if isinstance(more, Size):
            raise Unsupported("of an axis of free size")
        amounts.append((more // 2, more - more // 2) if more >= 0 else (-(-more // 2), more + -more // 2))
    return Call(F.pad, (x, _torch_order(amounts)))


SHAPES: Mapping[str, Translate] = {
    "Reshape": _reshape, "Flatten": _flatten, "Transpose": _transpose, "Squeeze": _squeeze, "Unsqueeze": _unsqueeze,
    "Concat": _concat, "Split": _split, "Slice": _slice, "Gather": _gather, "GatherElements": _gather_elements,
    "GatherND": _gather_nd, "ScatterElements": _scatter, "Scatter": _scatter, "ScatterND": _scatter_nd,
    "Expand": _expand, "Tile": _tile, "Pad": _pad, "DepthToSpace": _depth_to_space, "Col2Im": _fold,
    "SpaceToDepth": lambda a, x: Call(space_to_depth, (x, a["blocksize"])), "ConstantOfShape": _filled,
    "Range": _range, "Trilu": _triangle, "EyeLike": _eye, "ReverseSequence": _reverse, "CenterCropPad": _crop_or_pad,
}  # fmt: skip

MOVES = frozenset({"Reshape", "Flatten", "Transpose", "Squeeze", "Unsqueeze", "Slice", "Split", "MaxPool"})
"""Operators whose results are elements of their input: what they do to a tensor's codes they do to its values."""
