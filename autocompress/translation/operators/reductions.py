"""Operators over axes, each as one call of torch."""

from collections.abc import Callable, Mapping
from typing import Any

import torch
import torch.nn.functional as F
from torch import Tensor

from autocompress.translation.values import Attributes, Call, Translate, Unsupported, Value, integers, scalar


def product_over(x: Tensor, axes: list[int], keepdim: bool) -> Tensor:
    for axis in sorted((axis % x.dim() for axis in axes), reverse=True):
        x = x.prod(axis, keepdim=keepdim)
    return x


def sum_of_magnitudes(x: Tensor, axes: list[int], keepdim: bool) -> Tensor:
    return x.abs().sum(axes, keepdim)


def root_of_squares(x: Tensor, axes: list[int], keepdim: bool) -> Tensor:
    return (x * x).sum(axes, keepdim).sqrt()


def sum_of_squares(x: Tensor, axes: list[int], keepdim: bool) -> Tensor:
    return (x * x).sum(axes, keepdim)


def log_of_sum(x: Tensor, axes: list[int], keepdim: bool) -> Tensor:
    return x.sum(axes, keepdim).log()


def last_argmax(x: Tensor, axis: int, keepdim: bool) -> Tensor:
    return x.shape[axis] - 1 - x.flip(axis).argmax(axis, keepdim)


def last_argmin(x: Tensor, axis: int, keepdim: bool) -> Tensor:
    return x.shape[axis] - 1 - x.flip(axis).argmin(axis, keepdim)


def running_sum(x: Tensor, axis: int, exclusive: bool, reverse: bool) -> Tensor:
    x = x.flip(axis) if reverse else x
    total = x.cumsum(axis, dtype=x.dtype)
    total = total - x if exclusive else total
    return total.flip(axis) if reverse else total


def mean_and_variance_normalised(x: Tensor, axes: list[int]) -> Tensor:
    mean = x.mean(axes, True)
    return (x - mean) / ((x * x).mean(axes, True) - mean * mean).sqrt().clamp(min=1e-9)


def norm(x: Tensor, order: float, axis: int | list[int], keepdim: bool) -> Tensor:
    return x.abs().sum(axis, keepdim) if order == 1 else (x * x).sum(axis, keepdim).sqrt()


def normalised(x: Tensor, order: float, axis: int) -> Tensor:
    length = norm(x, order, axis, True)
    return torch.where(length == 0, torch.zeros_like(x), x / length)


def general_norm(x: Tensor, order: float, axes: list[int]) -> Tensor:
    return x.abs().pow(order).sum(axes, True).pow(1 / order)


def _reduction(target: Callable[..., Any]) -> Translate:
    """The axes are an attribute or, since opset 18 (13 for the sum), an operand; none at all are all."""

    def translate(a: Attributes, x: Value, axes: Value | None = None) -> Call:
        given = integers(axes) if axes is not None else list(a.get("axes", ()))
        if not given and a.get("noop_with_empty_axes", 0):
            return Call(torch.clone, (x,))
        return Call(target, (x, given or list(range(x.rank)), bool(a.get("keepdims", 1))))

    return translate


def _extreme(first: Callable[..., Any], last: Callable[..., Any]) -> Translate:
    def translate(a: Attributes, x: Value) -> Call:
        target = last if a.get("select_last_index", 0) else first
        return Call(target, (x, a.get("axis", 0), bool(a.get("keepdims", 1))))

    return translate


def _over_positions(target: Callable[..., Any]) -> Translate:
    return lambda a, x: Call(target, (x, list(range(2, x.rank)), True))


def _running_sum(a: Attributes, x: Value, axis: Value) -> Call:
    (along,) = integers(axis)
    return Call(running_sum, (x, along, bool(a.get("exclusive", 0)), bool(a.get("reverse", 0))))


def _top(a: Attributes, x: Value, count: Value | None = None) -> Call:
    if not a.get("sorted", 1):
        raise Unsupported("unsorted")
    k = a["k"] if count is None else count.entries()[0]
    return Call(torch.topk, (x, k, a.get("axis", -1), bool(a.get("largest", 1)), True))


def _local_response(a: Attributes, x: Value) -> Call:
    if a["size"] % 2 == 0:
        raise Unsupported("over an even number of channels")
    return Call(F.local_response_norm, (x, a["size"], a.get("alpha", 1e-4), a.get("beta", 0.75), a.get("bias", 1.0)))


def _lp_normalised(a: Attributes, x: Value) -> Call:
    return Call(normalised, (x, a.get("p", 2), a.get("axis", -1)))


def _global_lp(a: Attributes, x: Value) -> Call:
    return Call(general_norm, (x, a.get("p", 2), list(range(2, x.rank))))


def _mean_variance(a: Attributes, x: Value) -> Call:
    return Call(mean_and_variance_normalised, (x, list(a.get("axes", (0, 2, 3)))))


def _one_hot(a: Attributes, indices: Value, depth: Value, values: Value) -> Call:
    size, (off, on) = scalar(depth), values.known().tolist()
    if size is None:
        raise Unsupported("of a depth that depends on the data")
    return Call(one_hot, (indices, int(size), off, on, a.get("axis", -1), values.dtype))


def one_hot(indices: Tensor, depth: int, off: Any, on: Any, axis: int, dtype: torch.dtype) -> Tensor:
    wanted = torch.where(indices < 0, indices + depth, indices).unsqueeze(axis)
    shape = [1] * wanted.dim()
    shape[axis] = depth
    there = torch.arange(depth, device=indices.device).reshape(shape) == wanted
    made: Tensor = there.to(dtype) * (on - off) + off
    return made


REDUCTIONS: Mapping[str, Translate] = {
    "ReduceMean": _reduction(torch.mean), "ReduceSum": _reduction(torch.sum), "ReduceMax": _reduction(torch.amax),
    "ReduceMin": _reduction(torch.amin), "ReduceProd": _reduction(product_over),
    "ReduceL1": _reduction(sum_of_magnitudes), "ReduceL2": _reduction(root_of_squares),
    "ReduceSumSquare": _reduction(sum_of_squares), "ReduceLogSum": _reduction(log_of_sum),
    "ReduceLogSumExp": _reduction(torch.logsumexp), "GlobalAveragePool": _over_positions(torch.mean),
    "GlobalMaxPool": _over_positions(torch.amax), "GlobalLpPool": _global_lp,
    "ArgMax": _extreme(torch.argmax, last_argmax),
    "ArgMin": _extreme(torch.argmin, last_argmin), "CumSum": _running_sum, "TopK": _top, "LRN": _local_response,
    "LpNormalization": _lp_normalised, "MeanVarianceNormalization": _mean_variance, "OneHot": _one_hot,
}  # fmt: skip
