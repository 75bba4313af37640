"""How pooling is written in ONNX."""

import math
from collections.abc import Callable
from typing import Any

import torch
from torch import Tensor
from torch.fx import Node

from autocompress.export.emitter import Emit, Emitter
from autocompress.export.functions.products import spread
from autocompress.graph.calls import arguments

aten = torch.ops.aten
Pool = Callable[[str], str]


def _batched(e: Emitter, node: Node, rank: int, pool: Pool) -> str:
    """What `pool` makes of the input, which gets a batch axis meanwhile where it has none."""
    source: Any = node.args[0]
    if e.rank(source) == rank + 2:
        return pool(e.value(source))
    pooled = pool(e.add("Unsqueeze", e.value(source), e.integers(0)))
    return e.add("Squeeze", pooled, e.integers(0))


def _windows(a: dict[str, Any], rank: int) -> dict[str, Any]:
    kernel = spread(a["kernel_size"], rank)
    return {
        "kernel_shape": kernel,
        "strides": spread(a["stride"], rank) if a["stride"] else kernel,
        "pads": spread(a["padding"], rank) * 2,
        "ceil_mode": int(a["ceil_mode"]),
    }


def _max_pool(rank: int, with_indices: bool = False) -> Emit:
    """The places of the maxima, which ONNX counts over the whole tensor, only where nobody reads them."""

    def emit(e: Emitter, node: Node) -> Any:
        a = arguments(node)
        dilations = spread(a["dilation"], rank)
        windows = _windows(a, rank)
        pooled = _batched(e, node, rank, lambda x: e.add("MaxPool", x, dilations=dilations, **windows))
        return (pooled, "") if with_indices else pooled

    return emit


def _average_pool(rank: int) -> Emit:
    def emit(e: Emitter, node: Node) -> str | None:
        a, windows = arguments(node), _windows(arguments(node), rank)
        divisor = a.get("divisor_override")
        if a["ceil_mode"]:
            return _average_beyond(e, node, rank, windows)
        counted = int(a["count_include_pad"] or divisor is not None)
        pooled = _batched(e, node, rank, lambda x: e.add("AveragePool", x, count_include_pad=counted, **windows))
        if divisor is None:
            return pooled
        return e.add("Mul", pooled, e.like(node, math.prod(windows["kernel_shape"]) / divisor))

    return emit


def _average_beyond(e: Emitter, node: Node, rank: int, windows: dict[str, Any]) -> str | None:
    """Windows that reach beyond the padding, which ONNX counts differently: zeros all around, then torch's counts."""
    source: Any = node.args[0]
    size, target = e.type(source).one[-rank:], e.type(node).one[-rank:]
    if any(axis >= e.rank(source) - rank for axis in e.type(source).free):
        return None
    before = windows["pads"][:rank]
    reach = [(t - 1) * s + k for t, s, k in zip(target, windows["strides"], windows["kernel_shape"], strict=True)]
    after = [max(0, r - n - b) for r, n, b in zip(reach, size, before, strict=True)]
    ones = torch.ones(1, 1, *size, dtype=e.dtype(node))
    share = node.target(ones, *node.args[1:], **node.kwargs)  # type: ignore[operator]
    pairs = [p for pair in zip(reversed(before), reversed(after), strict=True) for p in pair]
    filled = _pool_all(torch.nn.functional.pad(ones, pairs), rank, windows)
    ratio = (share / filled).nan_to_num(0.0)
    kept = {"kernel_shape": windows["kernel_shape"], "strides": windows["strides"]}

    def pool(x: str) -> str:
        padded = e.add("Pad", x, e.integers(0, 0, *before, 0, 0, *after))
        return e.add("Mul", e.add("AveragePool", padded, **kept), e.constant(ratio.numpy()))

    return _batched(e, node, rank, pool)


def _pool_all(x: Tensor, rank: int, windows: dict[str, Any]) -> Tensor:
    """Means of whole windows, zeros included."""
    pool = {1: torch.nn.functional.avg_pool1d, 2: torch.nn.functional.avg_pool2d, 3: torch.nn.functional.avg_pool3d}
    pooled: Tensor = pool[rank](x, windows["kernel_shape"], windows["strides"])
    return pooled


def _adaptive_average(rank: int) -> Emit:
    """Equal windows where the target divides the map, else a matrix of shares along every axis."""

    def emit(e: Emitter, node: Node) -> str | None:
        source: Any = node.args[0]
        size, target = e.type(source).one[-rank:], e.type(node).one[-rank:]
        if all(n == 1 for n in target):
            return _batched(e, node, rank, lambda x: e.add("GlobalAveragePool", x))
        if any(axis >= e.rank(source) - rank for axis in e.type(source).free):
            return None
        if not any(n % t for n, t in zip(size, target, strict=True)):
            window = [n // t for n, t in zip(size, target, strict=True)]
            return _batched(e, node, rank, lambda x: e.add("AveragePool", x, kernel_shape=window, strides=window))
        return _shares(e, node, size, target)

    return emit


def _shares(e: Emitter, node: Node, size: tuple[int, ...], target: tuple[int, ...]) -> str:
    x = e.value(node.args[0])
    for axis, (n, t) in enumerate(zip(size, target, strict=True)):
        if n == t:
            continue
        shares = torch.zeros(t, n, dtype=e.dtype(node))
        for row, (start, end) in enumerate(_spans(n, t)):
            shares[row, start:end] = 1 / (end - start)
        after = math.prod(size[axis + 1 :])
        flat = e.add("Reshape", x, e.integers(-1, n, after)) if after > 1 else e.add("Reshape", x, e.integers(-1, n))
        x = (
            e.add("MatMul", e.constant(shares.numpy()), flat)
            if after > 1
            else e.add("MatMul", flat, e.constant(shares.t().contiguous().numpy()))
        )
    return e.add("Reshape", x, e.shape_of(node))


def _spans(size: int, target: int) -> list[tuple[int, int]]:
    """torch's windows: from floor(i n / t) to ceil((i + 1) n / t)."""
    return [(i * size // target, -(-(i + 1) * size // target)) for i in range(target)]


def _adaptive_max(rank: int) -> Emit:
    """Every axis by itself: its windows gathered (short ones repeat their last element), then their maximum."""

    def emit(e: Emitter, node: Node) -> tuple[str, str] | None:
        source: Any = node.args[0]
        kind, made = e.type(source), e.types[node][0]
        first = e.rank(source) - rank
        if any(axis >= first for axis in kind.free):
            return None
        x = e.value(source)
        for axis in range(first, e.rank(source)):
            n, t = kind.one[axis], made.one[axis]
            spans = _spans(n, t)
            if n == t:
                continue
            width = max(end - start for start, end in spans)
            places = [[min(start + i, end - 1) for i in range(width)] for start, end in spans]
            x = e.add("Gather", x, e.constant(places, "int64"), axis=axis)
            x = e.add("ReduceMax", x, axes=[axis + 1], keepdims=0)
        return x, ""

    return emit


POOLING: dict[Any, Emit] = {
    **{getattr(aten, f"max_pool{n}d").default: _max_pool(n) for n in (1, 2, 3)},
    **{getattr(aten, f"max_pool{n}d_with_indices").default: _max_pool(n, with_indices=True) for n in (1, 2, 3)},
    **{getattr(aten, f"avg_pool{n}d").default: _average_pool(n) for n in (1, 2, 3)},
    **{getattr(aten, f"adaptive_avg_pool{n}d").default: _adaptive_average(n) for n in (1, 2, 3)},
    **{getattr(aten, f"_adaptive_avg_pool{n}d").default: _adaptive_average(n) for n in (2, 3)},
    **{getattr(aten, f"adaptive_max_pool{n}d").default: _adaptive_max(n) for n in (1, 2, 3)},
}
