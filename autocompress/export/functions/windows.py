"""How sliding windows over a tensor, and views by strides, are written in ONNX."""

import math
from typing import Any

import numpy as np
import torch
from torch.fx import Node

from autocompress.export.emitter import Emit, Emitter
from autocompress.export.functions.products import spread
from autocompress.graph.calls import arguments

aten = torch.ops.aten


def _unfold(e: Emitter, node: Node) -> str | None:
    """Windows along one axis, the places in a window as a new last axis."""
    a = arguments(node)
    source, rank = a["self"], e.rank(a["self"])
    if not rank:
        return None
    axis, size, step = a["dimension"] % rank, int(a["size"]), int(a["step"])
    count = e.type(node).one[axis]
    if axis in e.type(node).free:
        places = _places(e, e.dims(source)[axis], size, step)
    else:
        places = e.constant(np.arange(count)[:, None] * step + np.arange(size), "int64")
    windows = e.add("Gather", e.value(source), places, axis=axis)
    order = [*range(axis + 1), *range(axis + 2, rank + 1), axis + 1]
    return windows if axis == rank - 1 else e.add("Transpose", windows, perm=order)


def _places(e: Emitter, length: Any, size: int, step: int) -> str:
    """(windows, size) places of windows along an axis whose length changes."""
    last = e.add_size("Add", e.add_size("Sub", length, e.integers(size)), e.integers(1))
    end, none = e.add_size("Reshape", last, e.constant([], "int64")), e.constant(0, "int64")
    starts = e.add("Range", none, end, e.constant(step, "int64"))
    return e.add("Add", e.add("Unsqueeze", starts, e.integers(1)), e.constant(np.arange(size), "int64"))


def _patches(e: Emitter, node: Node) -> str | None:
    """im2col: rows of patches, then columns, each gathered, as (N, C * kh * kw, patches)."""
    a = arguments(node)
    source = e.type(a["self"])
    if len(source.one) != 4 or any(axis > 0 for axis in source.free):
        return None
    _, channels, height, width = source.one
    kernel, dilation, padding, stride = (spread(a[n], 2) for n in ("kernel_size", "dilation", "padding", "stride"))
    x = e.value(a["self"])
    if any(padding):
        x = e.add("Pad", x, e.integers(0, 0, *padding, 0, 0, *padding))
    counts = []
    for axis, n in ((0, height), (1, width)):
        count = (n + 2 * padding[axis] - dilation[axis] * (kernel[axis] - 1) - 1) // stride[axis] + 1
        places = np.arange(kernel[axis])[:, None] * dilation[axis] + np.arange(count) * stride[axis]
        x = e.add("Gather", x, e.constant(places, "int64"), axis=2 if axis == 0 else 4)
        counts.append(count)
    x = e.add("Transpose", x, perm=[0, 1, 2, 4, 3, 5])
    return e.add("Reshape", x, e.integers(-1, channels * math.prod(kernel), math.prod(counts)))


def _overlaid(e: Emitter, node: Node) -> str | None:
    """col2im: patches added up where they overlap, which is a transposed convolution with one-hot weights."""
    a = arguments(node)
    source = e.type(a["self"])
    if len(source.one) != 3 or any(axis > 0 for axis in source.free):
        return None
    target = spread(a["output_size"], 2)
    kernel, dilation, padding, stride = (spread(a[n], 2) for n in ("kernel_size", "dilation", "padding", "stride"))
    area = math.prod(kernel)
    channels = source.one[1] // area
    counts = [(target[i] + 2 * padding[i] - dilation[i] * (kernel[i] - 1) - 1) // stride[i] + 1 for i in (0, 1)]
    reached = [(counts[i] - 1) * stride[i] + dilation[i] * (kernel[i] - 1) + 1 - 2 * padding[i] for i in (0, 1)]
    one_hot = torch.eye(area).reshape(area, 1, *kernel).repeat(channels, 1, 1, 1)
    patches = e.add("Reshape", e.value(a["self"]), e.integers(-1, channels * area, *counts))
    return e.add(
        "ConvTranspose", patches, e.constant(one_hot.numpy()), kernel_shape=kernel, strides=stride, dilations=dilation,
        pads=padding * 2, group=channels, output_padding=[t - r for t, r in zip(target, reached, strict=True)],
    )  # fmt: skip


def _strided(e: Emitter, node: Node) -> str | None:
    """A view by strides of a contiguous tensor: a reshape, or every element of a sample looked up."""
    a = arguments(node)
    source, made = e.type(a["self"]), e.type(node)
    value = a["self"].meta.get("val")
    size, stride, offset = list(made.one), a["stride"], a["storage_offset"] or 0
    if value is None or not value.is_contiguous() or not all(isinstance(s, int) for s in (*stride, offset)):
        return None
    contiguous = [math.prod(size[i + 1 :]) for i in range(len(size))]
    if list(stride) == contiguous and not offset and math.prod(size) == math.prod(source.one):
        return e.add("Reshape", e.value(a["self"]), e.shape_of(node))
    sample = math.prod(source.one[1:])
    by_sample = made.free == source.free == [0] and stride[0] == sample
    if (made.free or source.free) and not by_sample:
        return None
    start, view = (1, e.integers(-1, sample)) if by_sample else (0, e.integers(-1))
    places = np.full(size[start:], offset, np.int64)
    for axis, step in enumerate(stride[start:]):
        along = np.arange(size[start + axis]) * step
        places += along.reshape([-1 if i == axis else 1 for i in range(places.ndim)])
    return e.add("Gather", e.add("Reshape", e.value(a["self"]), view), e.constant(places), axis=start)


WINDOWS: dict[Any, Emit] = {
    aten.unfold.default: _unfold,
    aten.im2col.default: _patches,
    aten.col2im.default: _overlaid,
    aten.as_strided.default: _strided,
}
