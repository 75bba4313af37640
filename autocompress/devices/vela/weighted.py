"""How operators with weights are written: convolutions, pooling beside them, and matrix products."""

from collections.abc import Sequence
from dataclasses import dataclass
from typing import Any

import numpy as np

from autocompress.devices.vela.lowering import ASSUMED, Handler, Lowering, Order, Value, channels_last, plain
from autocompress.devices.vela.source import Constant, Node, Numbers
from autocompress.devices.vela.tflite import NUMPY_TYPES, Grid, Precision, Tensor

MapShape = tuple[int, int, int, int]
"""(1, height, width, channels)."""

SAME, VALID = 0, 1
"""The schema's paddings: as much as keeps ceil(size / stride) positions, its larger half behind; or none."""

_LARGEST_WINDOW = 256 * 256
_TALLEST_WINDOW = 256
_LOWEST = {True: -128, False: -1e30}
"""Pads what a maximum is taken of, in int8 and in float."""


@dataclass(frozen=True, slots=True)
class Window:
    """A sliding window over two axes (an axis of one is put before a single one)."""

    size: tuple[int, ...]
    stride: tuple[int, ...]
    dilation: tuple[int, ...]
    before: tuple[int, ...]
    after: tuple[int, ...]

    def padding(self, size: Sequence[int]) -> int | None:
        """The schema's padding for a map of this size, None where it has to be padded explicitly."""
        if not any((*self.before, *self.after)):
            return VALID
        for n, window, stride, dilation, before, after in zip(
            size, self.size, self.stride, self.dilation, self.before, self.after, strict=True
        ):
            total = max((-(-n // stride) - 1) * stride + (window - 1) * dilation + 1 - n, 0)
            if (before, after) != (total // 2, total - total // 2):
                return None
        return SAME

    @property
    def options(self) -> dict[str, Any]:
        return {"StrideH": self.stride[0], "StrideW": self.stride[1]}

    @property
    def dilations(self) -> dict[str, Any]:
        return {"DilationHFactor": self.dilation[0], "DilationWFactor": self.dilation[1]}


def _window(e: Lowering, node: Node, size: Sequence[int]) -> Window:
    """The node's window over two axes."""
    rank = len(size)
    settings = node.settings
    if rank > 2:
        raise e.refuse(f"its window slides over {rank} axes, not one or two")
    if settings.get("auto_pad", b"NOTSET") not in (b"NOTSET", b"VALID"):
        raise e.refuse(f"auto_pad is {settings['auto_pad'].decode()}, not explicit pads")
    kernel = tuple(settings.get("kernel_shape", size))
    stride, dilation = (tuple(settings.get(key, (1,) * rank)) for key in ("strides", "dilations"))
    pads = tuple(settings.get("pads", (0,) * (2 * rank)))
    before, after = pads[:rank], pads[rank:]
    lead = (1,) * (2 - rank)
    none = (0,) * (2 - rank)
    return Window(lead + kernel, lead + stride, lead + dilation, none + before, none + after)


def _map(e: Lowering, tensor: str) -> Value:
    """A tensor as (1, height, width, channels)."""
    value = e.read(tensor, channels_last(len(e.source.shape(tensor))))
    if len(value.shape) != 3:
        return value
    batch, channels, length = value.shape
    index = e.view(value.index, (batch, 1, length, channels))
    return Value(index, (batch, channels, 1, length), channels_last(4))


def _finish(e: Lowering, tensor: str, index: int) -> None:
    """Binds a map to a tensor of the file, which may have one axis less."""
    shape = e.source.shape(tensor)
    order = channels_last(len(shape))
    e.bind(tensor, e.view(index, tuple(shape[axis] for axis in order)), order)


def _map_shape(e: Lowering, tensor: str) -> MapShape:
    """(1, height, width, channels) of a tensor of the file."""
    shape = e.source.shape(tensor)
    height, width = ((1,) * (4 - len(shape)) + shape[2:])[-2:]
    return shape[0], height, width, shape[1]


def _padded(e: Lowering, value: Value, window: Window) -> tuple[int, int]:
    """(tensor, the schema's padding): zeros by an operator of its own where the schema's SAME would pad otherwise."""
    padding = window.padding(value.shape[2:])
    return (value.index, padding) if padding is not None else (_with_border(e, value, window), VALID)


def _with_border(e: Lowering, value: Value, window: Window, filler: float | None = None) -> int:
    """The map with the window's padding around it: zeros, or `filler` as it is stored."""
    borders = [(0, 0), *zip(window.before, window.after, strict=True), (0, 0)]
    shape = tuple(n + before + after for n, (before, after) in zip(value.stored, borders, strict=True))
    grid = e.grid_of(value)
    inputs = [value.index, e.integers(borders)]
    if filler is None:
        return e.add("PAD", inputs, shape, grid, table="Pad")
    kind = e.model.tensors[value.index].precision
    constant = Tensor(f"{e.node.name}/filler", (1,), kind, grid, np.array([filler], NUMPY_TYPES[kind]))
    return e.add("PADV2", [*inputs, e.model.add_tensor(constant)], shape, grid, table="PadV2")


def _weights(e: Lowering, tensor: str, axes: Order, channel: int) -> tuple[int, Grid | None]:
    """The weights with their axes in this order, int8 per channel along axis `channel` of the result, and their grid.

    Integers of the file are taken as they are; floats are rounded symmetrically, the largest of a channel to 127.
    """
    constant = e.source.constant(tensor)
    if constant is None:
        raise e.refuse("its weights are not constant")
    name = tensor
    if not e.int8:
        data = np.ascontiguousarray(np.transpose(constant.reals, axes), np.float32)
        return e.model.add_tensor(Tensor(name, data.shape, Precision.FLOAT32, None, data)), None
    codes, scales = _codes(constant, axes, channel)
    grid = Grid(scales, 0, channel)
    return e.model.add_tensor(Tensor(name, codes.shape, Precision.INT8, grid, codes)), grid


def _codes(constant: Constant, axes: Order, channel: int) -> tuple[Numbers, tuple[float, ...]]:
    """int8 weights with axes in this order, and one scale per channel (or one for all, if the file has only one)."""
    if constant.grid is not None and constant.values.dtype == np.int8 and constant.grid.zero_point == 0:
        return np.ascontiguousarray(np.transpose(constant.values, axes)), constant.grid.scales
    reals = np.transpose(constant.reals, axes)
    others = tuple(axis for axis in range(reals.ndim) if axis != channel)
    scales = np.maximum(np.abs(reals).max(axis=others, keepdims=True), 1e-12) / 127
    return np.round(reals / scales).astype(np.int8), tuple(map(float, scales.reshape(-1)))


def _bias(e: Lowering, tensor: str, count: int, grid: Grid | None, source: Grid | None) -> int:
    """The bias in the products' scale (zeros where there is none): int32, or float beside float weights."""
    constant = e.source.constant(tensor)
    name = tensor or f"{e.node.name}/bias"
    reals = np.zeros(count, np.float32) if constant is None else constant.reals.reshape(-1)
    if grid is None:
        return e.model.add_tensor(Tensor(name, (count,), Precision.FLOAT32, None, reals.astype(np.float32)))
    scales = np.array(grid.scales) * (source or ASSUMED).scales[0]
    held = constant is not None and constant.grid is not None and constant.values.dtype == np.int32
    codes = constant.values.reshape(-1) if held and constant is not None else np.round(reals / scales)
    limits = np.iinfo(np.int32)
    codes = np.clip(codes, limits.min, limits.max).astype(np.int32)
    return e.model.add_tensor(Tensor(name, (count,), Precision.INT32, Grid(tuple(map(float, scales))), codes))


def _operands(e: Lowering, node: Node, value: Value, count: int, axes: Order, channel: int) -> tuple[int, int]:
    weights, grid = _weights(e, node.inputs[1], axes, channel)
    bias = node.inputs[2] if len(node.inputs) > 2 else ""
    return weights, _bias(e, bias, count, grid, e.grid_of(value))


def convolution(e: Lowering, node: Node) -> None:
    shape = e.source.shape(node.inputs[1])
    channels = e.source.shape(node.inputs[0])[1]
    groups = node.settings.get("group", 1)
    value = _map(e, node.inputs[0])
    window = _window(e, node, shape[2:])
    depthwise = groups == channels > 1
    axes, channel = _kernel_axes(len(shape), depthwise)
    weights, bias = _operands(e, node, value, shape[0], axes, channel)
    weights = _kernel_of_two_axes(e, weights, len(shape))
    index, padding = _padded(e, value, window)
    tensor, activation = e.fused_activation()
    options = {**window.options, **window.dilations, "Padding": padding, "FusedActivationFunction": activation}
    if depthwise:
        options["DepthMultiplier"] = shape[0] // channels
    kind = "Depthwise" if depthwise else ""
    made = e.add(
        f"{kind.upper()}_CONV_2D".lstrip("_"), (index, weights, bias), _map_shape(e, tensor), e.grid(tensor),
        name=tensor, table=f"{kind}Conv2D", **options,
    )  # fmt: skip
    _finish(e, tensor, made)


def _kernel_axes(rank: int, depthwise: bool) -> tuple[Order, int]:
    """From (out, in, window) to (out, window, in), or for depthwise ones (in = 1) to (1, window, out)."""
    window = tuple(range(2, rank))
    return ((1, *window, 0), rank - 1) if depthwise else ((0, *window, 1), 0)


def _kernel_of_two_axes(e: Lowering, weights: int, rank: int) -> int:
    """Weights of a window over one axis, with an axis of one put before it."""
    if rank == 4:
        return weights
    old = e.model.tensors[weights]
    first, window, last = old.shape
    assert old.data is not None
    grid = None if old.grid is None else Grid(old.grid.scales, 0, 3 if old.grid.axis == 2 else old.grid.axis)
    shape = (first, 1, window, last)
    e.model.tensors[weights] = Tensor(old.name, shape, old.precision, grid, old.data.reshape(shape))
    return weights


def transposed_convolution(e: Lowering, node: Node) -> None:
    """The schema's SAME makes input times stride and cuts the rest evenly; any other padding is cut off afterwards."""
    shape = e.source.shape(node.inputs[1])
    if node.settings.get("group", 1) != 1 or len(shape) != 4:
        raise e.refuse("only transposed convolutions over two axes in one group can be")
    value = _map(e, node.inputs[0])
    window = _window(e, node, shape[2:])
    if set(window.dilation) != {1}:
        raise e.refuse("it is dilated")
    weights, bias = _operands(e, node, value, shape[1], (1, 2, 3, 0), 0)
    tensor, activation = e.fused_activation()
    wanted = _map_shape(e, tensor)
    padding = SAME if _cuts_evenly(value, window, wanted) else VALID
    made_shape = wanted if padding == SAME else _uncut(value, window, wanted)
    made = e.add(
        "TRANSPOSE_CONV", (e.integers(made_shape), weights, value.index, bias), made_shape, e.grid(tensor),
        name=tensor, table="TransposeConv", **window.options, Padding=padding, FusedActivationFunction=activation,
    )  # fmt: skip
    _finish(e, tensor, _cut_out(e, made, window, wanted))


def _cuts_evenly(value: Value, window: Window, wanted: MapShape) -> bool:
    """Whether the schema's SAME makes this map."""
    return all(
        out == n * stride and size >= stride and before == (size - stride) // 2
        for out, n, stride, size, before in zip(
            wanted[1:3], value.shape[2:], window.stride, window.size, window.before, strict=True
        )
    )


def _uncut(value: Value, window: Window, wanted: MapShape) -> MapShape:
    """The map before its padding is cut off."""
    height, width = (
        (n - 1) * stride + size for n, stride, size in zip(value.shape[2:], window.stride, window.size, strict=True)
    )
    return wanted[0], height, width, wanted[3]


def _cut_out(e: Lowering, made: int, window: Window, wanted: MapShape) -> int:
    tensor = e.model.tensors[made]
    if tensor.shape == wanted:
        return made
    starts = (0, *window.before, 0)
    ends = [start + size for start, size in zip(starts, wanted, strict=True)]
    if any(end > size for end, size in zip(ends, tensor.shape, strict=True)):
        raise e.refuse("its output is padded beyond what it computes")
    bounds = [e.integers(numbers) for numbers in (starts, ends, (1, 1, 1, 1))]
    return e.add("STRIDED_SLICE", (made, *bounds), wanted, tensor.grid, table="StridedSlice")


def pooling(code: str) -> Handler:
    """MAX_POOL_2D or AVERAGE_POOL_2D."""

    def handle(e: Lowering, node: Node) -> None:
        value = _map(e, node.inputs[0])
        window = _reaching(_window(e, node, value.shape[2:]), node, value, _map_shape(e, node.outputs[0]))
        if set(window.dilation) != {1}:
            raise e.refuse("its window is dilated")
        padding = window.padding(value.shape[2:])
        if code == "MAX_POOL_2D":
            filler, bordered = _LOWEST[e.int8], padding is None
        else:
            filler, bordered = None, padding != VALID and bool(node.settings.get("count_include_pad", 0))
            if padding is None and not bordered:
                raise e.refuse("it leaves an uneven padding out of its average (count_include_pad=0)")
        index = _with_border(e, value, window, filler) if bordered else value.index
        _pool(e, code, value, index, window, VALID if bordered or padding is None else padding)

    return handle


def _reaching(window: Window, node: Node, value: Value, made: tuple[int, ...]) -> Window:
    """With ceil_mode, the padding behind is as much as the last window reaches beyond the map."""
    if not node.settings.get("ceil_mode"):
        return window
    after = tuple(
        max((out - 1) * s + k - n - b, 0)
        for out, s, k, n, b in zip(made[1:3], window.stride, window.size, value.shape[2:], window.before, strict=True)
    )
    return Window(window.size, window.stride, window.dilation, window.before, after)


def _pool(e: Lowering, code: str, value: Value, index: int, window: Window, padding: int) -> None:
    tensor = e.node.outputs[0]
    made = e.add(
        code, (index,), _map_shape(e, tensor), e.grid_of(value), name=tensor, table="Pool2D", **window.options,
        Padding=padding, FilterHeight=window.size[0], FilterWidth=window.size[1],
    )  # fmt: skip
    _finish(e, tensor, made)


def global_pooling(e: Lowering, node: Node) -> None:
    """One window over the whole map, which is shorter than a mean; a mean where that is larger than a window may be."""
    value = _map(e, node.inputs[0])
    height, width = value.shape[2:]
    if height <= _TALLEST_WINDOW and height * width <= _LARGEST_WINDOW:
        nothing = (0, 0)
        window = Window((height, width), (height, width), (1, 1), nothing, nothing)
        _pool(e, "AVERAGE_POOL_2D", value, value.index, window, VALID)
        return
    tensor = node.outputs[0]
    inputs = (value.index, e.integers([1, 2]))
    made = e.add("MEAN", inputs, _map_shape(e, tensor), e.grid(tensor), name=tensor, table="Reducer", KeepDims=True)
    _finish(e, tensor, made)


def gemm(e: Lowering, node: Node) -> None:
    settings = node.settings
    if settings.get("transA") or settings.get("alpha", 1.0) != 1.0 or settings.get("beta", 1.0) != 1.0:
        raise e.refuse("it is more than x W + b (transA, alpha or beta)")
    value = e.read(node.inputs[0], plain(2))
    axes = (0, 1) if settings.get("transB") else (1, 0)
    bias = node.inputs[2] if len(node.inputs) > 2 else ""
    _fully_connected(e, node, value, axes, bias)


def matrix_product(e: Lowering, node: Node) -> None:
    """With constant weights a fully connected layer, and what is added to it its bias; else a product of two values."""
    right = e.source.constant(node.inputs[1])
    if right is None or right.values.ndim != 2 or e.source.constant(node.inputs[0]) is not None:
        _product_of_values(e, node)
        return
    value = e.read(node.inputs[0])
    rank = len(value.shape)
    if value.order[-1] != rank - 1:
        value = e.arrange(value, plain(rank))
    adding = _added_bias(e, node, right.values.shape[1])
    bias = "" if adding is None else next(t for t in adding.inputs if e.source.constant(t) is not None)
    if adding is not None:
        e.skip(adding)
        e.node = Node(node.name, node.op, node.inputs, adding.outputs, node.settings)
    _fully_connected(e, node, value, (1, 0), bias)


def _added_bias(e: Lowering, node: Node, count: int) -> Node | None:
    """The node that adds one constant per column, if it is all that reads the product."""
    readers = e.source.readers(node.outputs[0])
    if len(readers) != 1 or readers[0].op != "Add" or node.outputs[0] in e.source.outputs:
        return None
    constants = [e.source.constant(tensor) for tensor in readers[0].inputs]
    return readers[0] if any(c is not None and c.values.shape == (count,) for c in constants) else None


def _fully_connected(e: Lowering, node: Node, value: Value, axes: Order, bias: str) -> None:
    weights, grid = _weights(e, node.inputs[1], axes, 0)
    count = e.model.tensors[weights].shape[0]
    added = _bias(e, bias, count, grid, e.grid_of(value))
    tensor, activation = e.fused_activation()
    shape = e.source.shape(tensor)
    made = e.add(
        "FULLY_CONNECTED", (value.index, weights, added), tuple(shape[axis] for axis in value.order), e.grid(tensor),
        name=tensor, table="FullyConnected", FusedActivationFunction=activation, KeepNumDims=len(shape) > 2,
    )  # fmt: skip
    e.bind(tensor, made, value.order)


def _product_of_values(e: Lowering, node: Node) -> None:
    tensor = node.outputs[0]
    shape = e.source.shape(tensor)
    left, right = (_matrices(e, name, len(shape)) for name in node.inputs)
    made = e.add(
        "BATCH_MATMUL", (left, right), shape, e.grid(tensor), name=tensor, table="BatchMatMul",
        AdjX=False, AdjY=False,
    )  # fmt: skip
    e.bind(tensor, made, plain(len(shape)))


def _matrices(e: Lowering, tensor: str, rank: int) -> int:
    """A tensor in its own order of axes, with axes of one before the others up to `rank`."""
    shape = e.source.shape(tensor)
    value = e.read(tensor, plain(len(shape)))
    return e.view(value.index, (1,) * (rank - len(shape)) + shape)
