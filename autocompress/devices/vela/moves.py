"""How operators that only move, copy or convert elements are written: shapes, slices, padding, precision."""

import math
from collections.abc import Iterator

from autocompress.devices.vela.lowering import Handler, Lowering, Order, Value, channels_last, plain
from autocompress.devices.vela.source import Node, Numbers
from autocompress.devices.vela.tflite import Grid


def quantize(e: Lowering, node: Node) -> None:
    """Nothing where the tensor is made in int8 on the same grid; else a conversion."""
    tensor = node.outputs[0]
    value, grid = e.value(node.inputs[0]), e.source.grid(tensor)
    e.int8 = True
    e.alias(tensor, requantized(e, value, grid, tensor))


def requantized(e: Lowering, value: Value, grid: Grid | None, name: str = "") -> Value:
    """The same numbers in int8 on this grid."""
    if e.grid_of(value) == grid:
        return value
    return Value(e.add("QUANTIZE", (value.index,), value.stored, grid, name=name), value.shape, value.order)


def renamed(e: Lowering, node: Node) -> None:
    """The same tensor under another name; a reader in float converts a dequantised one."""
    e.alias(node.outputs[0], e.value(node.inputs[0]))


def transpose(e: Lowering, node: Node) -> None:
    """Only remembered: an operator that needs another order asks for it."""
    value = e.value(node.inputs[0])
    rank = len(value.shape)
    turned = tuple(node.settings.get("perm", range(rank - 1, -1, -1)))
    order = tuple(turned.index(axis) for axis in value.order)
    e.alias(node.outputs[0], Value(value.index, tuple(value.shape[axis] for axis in turned), order))


def reshape(e: Lowering, node: Node) -> None:
    """Axes that merge must lie next to each other; images stay channels-last where they can."""
    tensor = node.outputs[0]
    value, shape = e.read(node.inputs[0]), e.source.shape(tensor)
    blocks = list(_blocks(value.shape, shape))
    if not _is_in_blocks(value, blocks):
        value = e.arrange(value, _blocked_order(blocks, len(shape)))
    order = _order_after(value, blocks)
    e.bind(tensor, e.view(value.index, tuple(shape[axis] for axis in order), tensor), order)


Block = tuple[Order, Order]
"""Old axes and the new axes that hold the same elements."""


def _blocks(old: tuple[int, ...], new: tuple[int, ...]) -> Iterator[Block]:
    """The finest grouping of axes in which a reshape works group by group."""
    i = j = 0
    while i < len(old) or j < len(new):
        first, second = i, j
        i, j = min(i + 1, len(old)), min(j + 1, len(new))
        while (sizes := (math.prod(old[first:i]), math.prod(new[second:j])))[0] != sizes[1]:
            if sizes[0] < sizes[1]:
                i += 1
            else:
                j += 1
        yield tuple(range(first, i)), tuple(range(second, j))


def _is_in_blocks(value: Value, blocks: list[Block]) -> bool:
    """Whether the axes of every block are stored one after the other (axes of one may lie anywhere)."""
    stored = [axis for axis in value.order if value.shape[axis] > 1]
    for old, _ in blocks:
        axes = [axis for axis in old if value.shape[axis] > 1]
        if axes and stored[(at := stored.index(axes[0])) : at + len(axes)] != axes:
            return False
    return True


def _blocked_order(blocks: list[Block], rank: int) -> Order:
    """An order of the old axes after which the result is channels-last (an image) or in its own order."""
    wanted = channels_last(rank) if rank == 4 else plain(rank)
    ordered = sorted(blocks, key=lambda block: wanted.index(block[1][0]) if block[1] else -1)
    return tuple(axis for old, _ in ordered for axis in old)


def _order_after(value: Value, blocks: list[Block]) -> Order:
    """How the new axes are stored: block by block, as the old ones were; blocks of ones go where they belong."""
    places = {}
    for old, new in blocks:
        large = [axis for axis in old if value.shape[axis] > 1] or list(old)
        places[new] = value.order.index(large[0]) if large else -1
    return tuple(axis for new in sorted(places, key=lambda new: (places[new], new)) for axis in new)


def concatenation(e: Lowering, node: Node) -> None:
    """All in one order of axes and, in int8, on one grid: the schema's operator only copies."""
    tensor = node.outputs[0]
    computed = [name for name in node.inputs if e.source.constant(name) is None]
    order = e.read(computed[0]).order
    grid = e.source.grid(tensor) or e.grid_of(e.read(computed[0]))
    operands = [_operand(e, name, order, grid if e.int8 else None) for name in node.inputs]
    axis = node.settings["axis"] % len(order)
    stored = tuple(e.source.shape(tensor)[a] for a in order)
    made = e.add(
        "CONCATENATION", operands, stored, grid, name=tensor, table="Concatenation", Axis=order.index(axis)
    )  # fmt: skip
    e.bind(tensor, made, order)


def _operand(e: Lowering, tensor: str, order: Order, grid: Grid | None) -> int:
    constant = e.source.constant(tensor)
    if constant is not None:
        return e.constant(constant.reals, order, grid).index
    value = e.read(tensor, order)
    return value.index if grid is None else requantized(e, value, grid).index


def sliced(e: Lowering, node: Node) -> None:
    value = e.read(node.inputs[0])
    rank = len(value.shape)
    given = [e.whole_numbers(tensor) if tensor else None for tensor in (*node.inputs[1:], "", "")[:4]]
    starts, ends = given[0] or [], given[1] or []
    axes = given[2] or list(range(len(starts)))
    steps = given[3] or [1] * len(starts)
    if any(step < 1 for step in steps):
        raise e.refuse("it steps backwards")
    cut = [slice(0, size, 1) for size in value.shape]
    for axis, start, end, step in zip(axes, starts, ends, steps, strict=True):
        first, last, _ = slice(start, end, step).indices(value.shape[axis % rank])
        cut[axis % rank] = slice(first, last, step)
    _cut(e, value, cut, node.outputs[0])


def split(e: Lowering, node: Node) -> None:
    """A slice for each part."""
    value = e.read(node.inputs[0])
    axis = node.settings.get("axis", 0) % len(value.shape)
    start = 0
    for tensor in node.outputs:
        cut = [slice(0, size, 1) for size in value.shape]
        cut[axis] = slice(start, start + e.source.shape(tensor)[axis], 1)
        start = cut[axis].stop
        _cut(e, value, cut, tensor)


def _cut(e: Lowering, value: Value, cut: list[slice], tensor: str) -> None:
    part = _part(e, value, cut, tensor)
    e.bind(tensor, part.index, part.order)


def _part(e: Lowering, value: Value, cut: list[slice], tensor: str) -> Value:
    shape = tuple(len(range(piece.start, piece.stop, piece.step)) for piece in cut)
    stored = [cut[axis] for axis in value.order]
    bounds = [e.integers([getattr(piece, key) for piece in stored]) for key in ("start", "stop", "step")]
    made = e.add(
        "STRIDED_SLICE", (value.index, *bounds), tuple(shape[axis] for axis in value.order),
        e.grid_of(value), name=tensor, table="StridedSlice",
    )  # fmt: skip
    return Value(made, shape, value.order)


def gather(e: Lowering, node: Node) -> None:
    """One element of an axis is a slice; rows of a constant table, chosen by an input, are a lookup."""
    table, indices = (e.source.constant(tensor) for tensor in node.inputs)
    if indices is not None and indices.values.size == 1 and table is None:
        _select(e, node, int(indices.values.reshape(-1)[0]), indices.values.ndim)
    elif table is not None and indices is None and node.settings.get("axis", 0) == 0:
        _look_up(e, node, table.reals)
    else:
        raise e.refuse("only one constant element of an axis, or rows of a constant table, can be gathered")


def _select(e: Lowering, node: Node, place: int, kept_axes: int) -> None:
    value = e.read(node.inputs[0])
    axis = node.settings.get("axis", 0) % len(value.shape)
    place %= value.shape[axis]
    cut = [slice(0, size, 1) for size in value.shape]
    cut[axis] = slice(place, place + 1, 1)
    tensor = node.outputs[0]
    part = _part(e, value, cut, tensor)
    if kept_axes:
        e.alias(tensor, part)
        return
    kept = [a for a in part.order if a != axis]
    order = tuple(sorted(kept).index(a) for a in kept)
    e.bind(tensor, e.view(part.index, tuple(part.shape[a] for a in kept)), order)


def _look_up(e: Lowering, node: Node, table: Numbers) -> None:
    tensor = node.outputs[0]
    rows, chosen = e.constant(table, plain(table.ndim)), e.value(node.inputs[1])
    chosen = e.arrange(chosen, plain(len(chosen.shape)))
    shape = e.source.shape(tensor)
    grid = e.source.grid(tensor) or e.grid_of(rows)
    made = e.add("GATHER", (rows.index, chosen.index), shape, grid, name=tensor, table="Gather")
    e.bind(tensor, made, plain(len(shape)))


def padded(e: Lowering, node: Node) -> None:
    mode = node.settings.get("mode", b"constant").decode()
    value, tensor = e.read(node.inputs[0]), node.outputs[0]
    rank = len(value.shape)
    listed = e.whole_numbers(node.inputs[1]) or []
    if min(listed) < 0 or len(listed) != 2 * rank or mode not in ("constant", "reflect"):
        raise e.refuse(f"it pads in mode {mode!r} by {listed}")
    amounts = e.integers([(listed[axis], listed[axis + rank]) for axis in value.order])
    stored = tuple(e.source.shape(tensor)[axis] for axis in value.order)
    grid = e.grid_of(value)
    code, table = ("PAD", "Pad") if mode == "constant" else ("MIRROR_PAD", "MirrorPad")
    e.bind(tensor, e.add(code, (value.index, amounts), stored, grid, name=tensor, table=table), value.order)


def repeated(code: str, table: str) -> Handler:
    """TILE or BROADCAST_TO; what does not grow is left alone."""

    def handle(e: Lowering, node: Node) -> None:
        tensor = node.outputs[0]
        value, shape = e.read(node.inputs[0]), e.source.shape(tensor)
        rank = len(shape)
        index = e.view(e.arrange(value, plain(len(value.shape))).index, (1,) * (rank - len(value.shape)) + value.shape)
        old = e.model.tensors[index].shape
        if old != shape:
            operand = shape if code == "BROADCAST_TO" else [new // n for new, n in zip(shape, old, strict=True)]
            inputs = (index, e.integers(operand))
            index = e.add(code, inputs, shape, e.grid_of(value), name=tensor, table=table)
        e.bind(tensor, index, plain(rank))

    return handle


def depth_to_space(e: Lowering, node: Node) -> None:
    """The schema's has the block outermost among the channels; ONNX's CRD innermost: an order of the producer's
    filters, and so no matter of time."""
    value, tensor = e.read(node.inputs[0], channels_last(4)), node.outputs[0]
    shape = e.source.shape(tensor)
    order = channels_last(4)
    made = e.add(
        "DEPTH_TO_SPACE", (value.index,), tuple(shape[axis] for axis in order), e.grid_of(value),
        name=tensor, table="DepthToSpace", BlockSize=node.settings["blocksize"],
    )  # fmt: skip
    e.bind(tensor, made, order)


def resize(e: Lowering, node: Node) -> None:
    mode = node.settings.get("mode", b"nearest").decode()
    code = {"nearest": "ResizeNearestNeighbor", "linear": "ResizeBilinear"}.get(mode)
    tensor = node.outputs[0]
    shape = e.source.shape(tensor)
    if code is None or len(shape) != 4 or shape[:2] != e.source.shape(node.inputs[0])[:2]:
        raise e.refuse(f"it resizes something else than an image's height and width, or in mode {mode!r}")
    value, order = e.read(node.inputs[0], channels_last(4)), channels_last(4)
    way = node.settings.get("coordinate_transformation_mode", b"half_pixel")
    options = {"AlignCorners": way == b"align_corners", "HalfPixelCenters": way.endswith(b"half_pixel")}
    name = "RESIZE_BILINEAR" if mode == "linear" else "RESIZE_NEAREST_NEIGHBOR"
    made = e.add(
        name, (value.index, e.integers(shape[2:])), tuple(shape[axis] for axis in order), e.grid_of(value),
        name=tensor, table=code, **options,
    )  # fmt: skip
    e.bind(tensor, made, order)


def cast(e: Lowering, node: Node) -> None:
    """A change of number format of what is a number of the network already changes nothing here."""
    value = e.value(node.inputs[0])
    if e.source.holds_integers(node.inputs[0]):
        made = e.add("CAST", (value.index,), value.stored, name=node.outputs[0], table="Cast")
        e.bind(node.outputs[0], made, value.order)
        return
    e.alias(node.outputs[0], value)
