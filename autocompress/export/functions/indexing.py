"""How reading and writing parts of a tensor is written in ONNX."""

from typing import Any

import torch
from torch import Tensor
from torch.fx import Node

from autocompress.export.emitter import Emit, Emitter, cast
from autocompress.export.functions.moves import LAST
from autocompress.graph.calls import arguments

aten = torch.ops.aten


def _bound(e: Emitter, number: Any, default: int) -> Any:
    size = e.size(default if number is None else number)
    return min(size, LAST) if isinstance(size, int) else size


def _slice(e: Emitter, node: Node) -> str:
    a = arguments(node)
    start, end = _bound(e, a["start"], 0), _bound(e, a["end"], LAST)
    bounds = [e.vector([start]), e.vector([end]), e.integers(int(a["dim"])), e.vector([e.size(a["step"])])]
    return e.add("Slice", e.value(a["self"]), *bounds)


def _narrow(e: Emitter, node: Node) -> str:
    a = arguments(node)
    start, length = e.size(a["start"]), e.size(a["length"])
    axis = e.integers(int(a["dim"]))
    if isinstance(start, int) and start >= 0 and isinstance(length, int):
        return e.add("Slice", e.value(a["self"]), e.integers(start), e.integers(start + length), axis)
    first = e.vector([start])
    last = e.add_size("Add", first, e.vector([length]))
    return e.add("Slice", e.value(a["self"]), first, last, axis)


def _select(e: Emitter, node: Node) -> str:
    a = arguments(node)
    index = e.scalar(a["index"]) if isinstance(a["index"], Node) else e.constant(a["index"], "int64")
    return e.add("Gather", e.value(a["self"]), index, axis=int(a["dim"]))


def _index_select(e: Emitter, node: Node) -> str:
    a = arguments(node)
    index = e.value(a["index"])
    if not e.rank(a["index"]):
        index = e.add("Reshape", index, e.integers(1))
    return e.add("Gather", e.value(a["self"]), index, axis=int(a["dim"]))


def _take(e: Emitter, node: Node) -> str:
    a = arguments(node)
    flat = e.add("Reshape", e.value(a["self"]), e.integers(-1))
    return e.add("Gather", flat, e.value(a["index"]), axis=0)


def _gather(e: Emitter, node: Node) -> str | None:
    a = arguments(node)
    if not e.rank(a["self"]):
        return None
    return e.add("GatherElements", e.value(a["self"]), e.value(a["index"]), axis=int(a["dim"]))


def _whole_numbers(e: Emitter, indices: Any) -> list[tuple[int, Any]] | None:
    """(axis, index) of every axis that is indexed, a constant mask as the places where it is true."""
    found: list[tuple[int, Any]] = []
    axis = 0
    for index in indices:
        if index is None:
            axis += 1
            continue
        if e.dtype(index) is not torch.bool:
            found.append((axis, index))
            axis += 1
            continue
        mask = e.constant_value(index)
        if mask is None:
            return None
        places = mask.nonzero(as_tuple=True)
        found += [(axis + i, place) for i, place in enumerate(places)]
        axis += mask.dim()
    return found


class _Indexed:
    """Several indexed axes as one: `flat` is the tensor with them merged at `axis`, `places` where to look there (a
    tensor of `rank` axes)."""

    def __init__(self, e: Emitter, x: Any, found: list[tuple[int, Any]]) -> None:
        axes = [axis for axis, _ in found]
        adjacent = axes == list(range(axes[0], axes[0] + len(axes)))
        self.axis = axes[0] if adjacent else 0
        rest = [axis for axis in range(e.rank(x)) if axis not in axes]
        self.order = rest[: self.axis] + axes + rest[self.axis :]
        dims = e.dims(x)
        self.sizes = [dims[axis] for axis in axes]
        self.rest = [dims[axis] for axis in rest]
        value = e.value(x)
        if self.order != list(range(e.rank(x))):
            value = e.add("Transpose", value, perm=self.order)
        self.shape = e.vector([dims[axis] for axis in self.order])
        if len(axes) > 1:
            merged: list[Any] = [*self.rest[: self.axis], -1, *self.rest[self.axis :]]
            value = e.add("Reshape", value, e.vector(merged))
        self.flat = value
        self.rank = max(index.dim() if isinstance(index, Tensor) else e.rank(index) for _, index in found)
        self.places = _merged_places(e, [index for _, index in found], self.sizes)


def _merged_places(e: Emitter, indices: list[Any], sizes: list[Any]) -> str:
    """Row-major places of several indices, which are broadcast together."""
    known = [index if isinstance(index, Tensor) else e.constant_value(index) for index in indices]
    if all(k is not None for k in known) and all(isinstance(size, int) for size in sizes):
        total: Any = torch.zeros((), dtype=torch.int64)
        for place, size in zip(known, sizes, strict=True):
            assert place is not None
            total = total * size + torch.where(place < 0, place + size, place)
        return e.constant(total.numpy())
    result = ""
    for index, size in zip(indices, sizes, strict=True):
        here = _not_negative(e, index, size)
        result = e.add("Add", e.add("Mul", result, e.vector([size])), here) if result else here
    return result


def _not_negative(e: Emitter, index: Any, size: Any) -> str:
    if isinstance(index, Tensor):
        return e.constant(index.numpy(), "int64")
    known = e.constant_value(index)
    place = e.cast_to(index, torch.int64)
    if known is not None and bool((known >= 0).all()):
        return place
    return e.add("Where", e.add("Less", place, e.constant(0, "int64")), e.add("Add", place, e.vector([size])), place)


def _index(e: Emitter, node: Node) -> str | None:
    a = arguments(node)
    found = _whole_numbers(e, a["indices"])
    if not found:
        return None
    if len(found) == 1:
        axis, index = found[0]
        places = e.constant(index.numpy()) if isinstance(index, Tensor) else e.cast_to(index, torch.int64)
        return e.add("Gather", e.value(a["self"]), places, axis=axis)
    indexed = _Indexed(e, a["self"], found)
    return e.add("Gather", indexed.flat, indexed.places, axis=indexed.axis)


def _index_put(e: Emitter, node: Node) -> str | None:
    """Values written where indices say; a mask that changes only with one value."""
    a = arguments(node)
    found = _whole_numbers(e, a["indices"])
    if found is None:
        return _put_where(e, node, a)
    if not found:
        return None
    indexed = _Indexed(e, a["self"], found)
    data = indexed.flat
    if indexed.axis:
        order = [indexed.axis, *(axis for axis in range(len(indexed.rest) + 1) if axis != indexed.axis)]
        data = e.add("Transpose", data, perm=order)
    places = indexed.places
    wanted = e.add_size("Concat", e.add_size("Shape", places), e.vector(indexed.rest), axis=0) if indexed.rest else (
        e.add_size("Shape", places)
    )  # fmt: skip
    values = e.cast_to(a["values"], e.dtype(node))
    if indexed.axis:
        values = _indices_first(e, a["values"], values, indexed)
    values = e.add("Expand", values, wanted)
    spread = e.add("Unsqueeze", places, e.constant([-1], "int64"))
    reduction = {"reduction": "add"} if a.get("accumulate") else {}
    made = e.add("ScatterND", data, spread, values, **reduction)
    if indexed.axis:
        made = e.add("Transpose", made, perm=[*range(1, indexed.axis + 1), 0, *range(indexed.axis + 1, len(order))])
    if len(found) > 1:
        made = e.add("Reshape", made, indexed.shape)
    if indexed.order != list(range(e.rank(node))):
        made = e.add("Transpose", made, perm=[indexed.order.index(axis) for axis in range(e.rank(node))])
    return made


def _indices_first(e: Emitter, source: Any, values: str, indexed: _Indexed) -> str:
    """Values of x[:, i] = v lie as the result does; here the axes of i come first."""
    full = len(indexed.rest) + indexed.rank
    missing = full - e.rank(source)
    if missing == full:
        return values
    if missing:
        values = e.add("Unsqueeze", values, e.integers(*range(missing)))
    numbered = range(indexed.axis, indexed.axis + indexed.rank)
    return e.add("Transpose", values, perm=[*numbered, *(axis for axis in range(full) if axis not in numbered)])


def _put_where(e: Emitter, node: Node, a: dict[str, Any]) -> str | None:
    if len(a["indices"]) != 1 or e.type(a["values"]).one not in ((), (1,)) or a.get("accumulate"):
        return None
    mask, missing = a["indices"][0], e.rank(node) - e.rank(a["indices"][0])
    chosen = e.value(mask)
    if missing:
        chosen = e.add("Unsqueeze", chosen, e.integers(*range(-missing, 0)))
    return e.add("Where", chosen, e.cast_to(a["values"], e.dtype(node)), e.value(a["self"]))


def _scatter(reduction: str | None = None) -> Emit:
    """ScatterElements, whose updates have the shape of the indices."""
    names = {"add": "add", "sum": "add", "multiply": "mul", "prod": "mul"}

    def emit(e: Emitter, node: Node) -> str | None:
        a = arguments(node)
        asked = a.get("reduce") or reduction
        if asked is not None and (asked not in names or not a.get("include_self", True)):
            return None
        index, dtype = a["index"], e.dtype(node)
        source = a.get("src", a.get("value"))
        if isinstance(source, Node) and e.rank(source):
            if e.type(source).shapes != e.type(index).shapes:
                return None
            updates = e.cast_to(source, dtype)
        else:
            updates = e.add("Expand", e.cast_to(source, dtype), e.add_size("Shape", e.value(index)))
        extra = {} if asked is None else {"reduction": names[asked]}
        return e.add("ScatterElements", e.value(a["self"]), e.value(index), updates, axis=int(a["dim"]), **extra)

    return emit


def _select_scatter(e: Emitter, node: Node) -> str | None:
    a = arguments(node)
    axis = a["dim"] % e.rank(node)
    if axis in e.type(node).free or isinstance(a["index"], Node):
        return None
    size = e.type(node).one[axis]
    part = e.add("Unsqueeze", e.cast_to(a["src"], e.dtype(node)), e.integers(axis))
    index = a["index"] % size
    return _between(e, a["self"], part, axis, index, index + 1, size)


def _slice_scatter(e: Emitter, node: Node) -> str | None:
    """A part of an axis replaced: what is before, the part, what is behind; with steps every element is looked up."""
    a = arguments(node)
    axis = a["dim"] % e.rank(node)
    size = e.type(node).one[axis]
    bounds: list[Any] = [
        0 if a["start"] is None else e.size(a["start"]),
        size if a["end"] is None else e.size(a["end"]),
    ]
    whole = bounds[0] == 0 and isinstance(bounds[1], int) and bounds[1] >= size and a["step"] == 1
    if whole and (a["end"] is None or a["end"] >= LAST // 2 or axis not in e.type(node).free):
        return e.cast_to(a["src"], e.dtype(node))
    if axis in e.type(node).free or not all(isinstance(bound, int) for bound in bounds):
        return None
    start, end, step = slice(bounds[0], bounds[1], a["step"]).indices(size)
    source = e.cast_to(a["src"], e.dtype(node))
    if step == 1:
        return _between(e, a["self"], source, axis, start, max(start, end), size)
    taken = range(start, end, step)
    places, chosen = torch.zeros(size, dtype=torch.int64), torch.zeros(size, dtype=torch.bool)
    for i, place in enumerate(taken):
        places[place], chosen[place] = i, True
    view = [-1, *[1] * (e.rank(node) - axis - 1)]
    spread = e.add("Gather", source, e.constant(places.numpy()), axis=axis)
    return e.add("Where", e.constant(chosen.reshape(view).numpy()), spread, e.value(a["self"]))


def _between(e: Emitter, x: Any, part: str, axis: int, start: int, end: int, size: int) -> str:
    value = e.value(x)
    parts = [e.add("Slice", value, e.integers(0), e.integers(start), e.integers(axis))] if start else []
    parts.append(part)
    if end < size:
        parts.append(e.add("Slice", value, e.integers(end), e.integers(size), e.integers(axis)))
    return e.add("Concat", *parts, axis=axis) if len(parts) > 1 else part


def _masked_scatter(e: Emitter, node: Node) -> str:
    """The elements where the mask is true, taken one after the other from the source."""
    a, dtype = arguments(node), e.dtype(node)
    shape = e.add_size("Shape", e.value(a["self"]))
    mask = e.add("Expand", e.cast_to(a["mask"], torch.bool), shape)
    flat = e.add("Reshape", cast(e, mask, torch.int64), e.integers(-1))
    count = e.add("CumSum", flat, e.constant(0, "int64"), exclusive=1)
    source = e.add("Reshape", e.cast_to(a["source"], dtype), e.integers(-1))
    last = e.add_size("Sub", e.add_size("Shape", source), e.integers(1))
    taken = e.add("Gather", source, e.add("Min", count, last), axis=0)
    return e.add("Where", mask, e.add("Reshape", taken, shape), e.value(a["self"]))


def _copied(e: Emitter, node: Node) -> str:
    a = arguments(node)
    return e.add("Expand", e.cast_to(a["src"], e.dtype(node)), e.add_size("Shape", e.value(a["self"])))


def _triangle(upper: int) -> Emit:
    """A matrix's part on one side of a diagonal, the rest zero."""

    def emit(e: Emitter, node: Node) -> str:
        a = arguments(node)
        result = e.dtype(node)
        dtype = torch.int64 if not result.is_floating_point else result
        kept = e.add("Trilu", e.cast_to(a["self"], dtype), e.scalar(a["diagonal"]), upper=upper)
        return kept if dtype is result else cast(e, kept, result)

    return emit


def _diagonal(e: Emitter, node: Node) -> str | None:
    """The two axes last and merged, then every element on the diagonal."""
    a = arguments(node)
    source, rank = a["self"], e.rank(a["self"])
    first, second = a["dim1"] % rank, a["dim2"] % rank
    shape, free = e.type(source).one, e.type(source).free
    if first in free or second in free:
        return None
    order = [axis for axis in range(rank) if axis not in (first, second)]
    turned = e.add("Transpose", e.value(source), perm=[*order, first, second])
    dims = e.dims(source)
    flat = e.add("Reshape", turned, e.vector([*(dims[axis] for axis in order), shape[first] * shape[second]]))
    places = torch.arange(shape[first] * shape[second]).reshape(shape[first], shape[second]).diagonal(a["offset"])
    return e.add("Gather", flat, e.constant(places.numpy()), axis=rank - 2)


INDEXING: dict[Any, Emit] = {
    aten.slice.Tensor: _slice,
    aten.narrow.default: _narrow,
    aten.select.int: _select,
    aten.index_select.default: _index_select,
    aten.take.default: _take,
    aten.gather.default: _gather,
    aten.index.Tensor: _index,
    aten.index_put.default: _index_put,
    aten._unsafe_index.Tensor: _index,
    aten.scatter.src: _scatter(),
    aten.scatter.value: _scatter(),
    aten.scatter.reduce: _scatter(),
    aten.scatter.value_reduce: _scatter(),
    aten.scatter_add.default: _scatter("add"),
    aten.scatter_reduce.two: _scatter(),
    aten.select_scatter.default: _select_scatter,
    aten.slice_scatter.default: _slice_scatter,
    aten.masked_scatter.default: _masked_scatter,
    aten.copy.default: _copied,
    aten.triu.default: _triangle(1),
    aten.tril.default: _triangle(0),
    aten.diagonal.default: _diagonal,
}
