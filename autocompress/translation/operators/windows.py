"""Operators that slide over positions, each as one call of torch: convolutions and pools."""

import math
import operator
from collections.abc import Callable, Mapping, Sequence
from typing import Any

import torch
import torch.nn.functional as F
from torch import Tensor

from autocompress.translation.values import (
    Attributes,
    Call,
    Number,
    Size,
    Translate,
    Unsupported,
    Value,
    computed,
)


def padded_convolution(x: Tensor, weight: Tensor, bias: Tensor | None, pads: list[int], settings: list[Any]) -> Tensor:
    return torch.convolution(F.pad(x, pads), weight, bias, *settings)


def padded_max_pool(
    x: Tensor, pads: list[int], window: list[int], stride: list[int], dilation: list[int], ceil_mode: bool
) -> Tensor:
    filled = F.pad(x, pads, value=-math.inf)
    return _MAX_POOLS[len(window)](filled, window, stride, 0, dilation, ceil_mode=ceil_mode)


def padded_average_pool(x: Tensor, pads: list[int], window: list[int], stride: list[int], counted: bool) -> Tensor:
    pool = _AVERAGE_POOLS[len(window)]
    total = pool(F.pad(x, pads), window, stride)
    if counted:
        return total
    share = pool(F.pad(torch.ones_like(x[:1, :1]), pads), window, stride)
    return total / share


def lp_pool(x: Tensor, order: float, pads: list[int], window: list[int], stride: list[int]) -> Tensor:
    powers = F.pad(x.abs().pow(order), pads)
    return (_AVERAGE_POOLS[len(window)](powers, window, stride) * math.prod(window)).pow(1 / order)


def cropped(x: Tensor, pads: list[int]) -> Tensor:
    """Without this much on each side; `pads` as F.pad takes them, negative."""
    return F.pad(x, pads)


_MAX_POOLS: Mapping[int, Callable[..., Tensor]] = {1: F.max_pool1d, 2: F.max_pool2d, 3: F.max_pool3d}
_AVERAGE_POOLS: Mapping[int, Callable[..., Tensor]] = {1: F.avg_pool1d, 2: F.avg_pool2d, 3: F.avg_pool3d}


class Window:
    """The settings of a node that slides over an input, its padding resolved to numbers."""

    def __init__(self, a: Attributes, x: Value, kernel: Sequence[int]) -> None:
        rank = len(kernel)
        ones = [1] * rank
        self.kernel = list(kernel)
        self.strides = list(a.get("strides", ones))
        self.dilations = list(a.get("dilations", ones))
        self.pads: list[Number] = self._pads(a, x)

    def _pads(self, a: Attributes, x: Value) -> list[Number]:
        mode = a.get("auto_pad", "NOTSET")
        if mode in ("NOTSET", "VALID"):
            return list(a.get("pads", [0] * 2 * len(self.kernel)))
        pairs = [self._same(x.size(axis + 2), axis, mode == "SAME_LOWER") for axis in range(len(self.kernel))]
        return [pair[0] for pair in pairs] + [pair[1] for pair in pairs]

    def _same(self, size: Number, axis: int, more_before: bool) -> tuple[Number, Number]:
        """Padding that makes the output as long as the input, divided by the stride and rounded up."""
        stride, reach = self.strides[axis], (self.kernel[axis] - 1) * self.dilations[axis] + 1
        if stride == 1:
            total: Number = reach - 1
        else:
            steps = computed(operator.floordiv, computed(operator.add, size, stride - 1), stride)
            covered = computed(operator.add, computed(operator.mul, computed(operator.sub, steps, 1), stride), reach)
            total = computed(torch.sym_max, computed(operator.sub, covered, size), 0)
        less = computed(operator.floordiv, total, 2)
        more = computed(operator.sub, total, less)
        return (more, less) if more_before else (less, more)

    @property
    def rank(self) -> int:
        return len(self.kernel)

    @property
    def symmetric(self) -> bool:
        plain = not any(isinstance(n, Size) for n in self.pads)
        return plain and self.pads[: self.rank] == self.pads[self.rank :]

    @property
    def one_sided(self) -> list[int]:
        return list(self.pads[: self.rank])

    @property
    def two_sided(self) -> list[Number]:
        """ONNX lists all befores, then all afters; torch (before, after) from the last axis on."""
        return [n for axis in reversed(range(self.rank)) for n in (self.pads[axis], self.pads[axis + self.rank])]


def _convolution(a: Attributes, x: Value, w: Value, b: Value | None = None) -> Call:
    window = Window(a, x, w.example.shape[2:])
    tail = [False, [0] * window.rank, a.get("group", 1)]
    if window.symmetric:
        return Call(torch.convolution, (x, w, b, window.strides, window.one_sided, window.dilations, *tail))
    settings = [window.strides, [0] * window.rank, window.dilations, *tail]
    return Call(padded_convolution, (x, w, b, window.two_sided, settings))


def transposed_pads(a: Attributes, x: Value, window: Window) -> tuple[list[Number], list[int]]:
    """(padding as ONNX lists it, what is added at the end), from the output's shape where that is given.

    The output's length is stride (length - 1) + added + reach - padding.
    """
    rank = window.rank
    more = list(a.get("output_padding", [0] * rank))
    wanted = list(a.get("output_shape", ()))[-rank:]
    mode = a.get("auto_pad", "NOTSET")
    if not wanted and mode in ("NOTSET", "VALID"):
        return window.pads, more
    befores, afters = [], []
    for axis in range(rank):
        stride, reach = window.strides[axis], (window.kernel[axis] - 1) * window.dilations[axis] + 1
        size = x.size(axis + 2)
        if isinstance(size, Size) and wanted:
            raise Unsupported("with an output shape that an axis of free size can't have")
        total = stride * (size - 1) + more[axis] + reach - wanted[axis] if wanted else more[axis] + reach - stride
        total = max(total, 0)
        less = total // 2
        befores.append(total - less if mode != "SAME_UPPER" else less)
        afters.append(less if mode != "SAME_UPPER" else total - less)
    return [*befores, *afters], more


def _transposed_convolution(a: Attributes, x: Value, w: Value, b: Value | None = None) -> Call:
    window = Window({**a, "auto_pad": "NOTSET"}, x, w.example.shape[2:])  # type: ignore[arg-type]
    pads, more = transposed_pads(a, x, window)
    tail = (window.dilations, True, more, a.get("group", 1))
    befores, afters = pads[: window.rank], pads[window.rank :]
    if befores == afters:
        return Call(torch.convolution, (x, w, b, window.strides, befores, *tail))
    whole = Call(torch.convolution, (x, w, b, window.strides, [0] * window.rank, *tail))
    return Call(cropped, (whole, [-n for pair in zip(reversed(befores), reversed(afters), strict=True) for n in pair]))


def _max_pool(a: Attributes, x: Value) -> Call:
    if a.outputs > 1:
        raise Unsupported("with its second output, the indices,")
    window = Window(a, x, a["kernel_shape"])
    ceil_mode = bool(a.get("ceil_mode", 0))
    if window.symmetric and all(2 * p <= k for p, k in zip(window.one_sided, window.kernel, strict=True)):
        settings = (window.kernel, window.strides, window.one_sided, window.dilations, ceil_mode)
        return Call(_MAX_POOLS[window.rank], (x, *settings))
    settings = (window.two_sided, window.kernel, window.strides, window.dilations, ceil_mode)
    return Call(padded_max_pool, (x, *settings))


def _average_pool(a: Attributes, x: Value) -> Call:
    window = Window(a, x, a["kernel_shape"])
    counted, ceil_mode = bool(a.get("count_include_pad", 0)), bool(a.get("ceil_mode", 0))
    padded = any(isinstance(n, Size) or n for n in window.pads)
    if window.dilations != [1] * window.rank or (ceil_mode and padded):
        raise Unsupported("with dilation, or padding that meets ceil_mode")
    pool = _AVERAGE_POOLS[window.rank]
    if window.symmetric and all(2 * p <= k for p, k in zip(window.one_sided, window.kernel, strict=True)):
        return Call(pool, (x, window.kernel, window.strides, window.one_sided, ceil_mode, counted))
    return Call(padded_average_pool, (x, window.two_sided, window.kernel, window.strides, counted))


def _lp_pool(a: Attributes, x: Value) -> Call:
    window = Window(a, x, a["kernel_shape"])
    if window.dilations != [1] * window.rank or a.get("ceil_mode", 0):
        raise Unsupported("with dilation or ceil_mode")
    return Call(lp_pool, (x, a.get("p", 2), window.two_sided, window.kernel, window.strides))


def _grid_sample(a: Attributes, x: Value, grid: Value) -> Call:
    modes = {"linear": "bilinear", "cubic": "bicubic"}
    mode = a.get("mode", "bilinear")
    settings = (modes.get(mode, mode), a.get("padding_mode", "zeros"), bool(a.get("align_corners", 0)))
    return Call(F.grid_sample, (x, grid, *settings))


WINDOWS: Mapping[str, Translate] = {
    "Conv": _convolution, "ConvTranspose": _transposed_convolution, "MaxPool": _max_pool,
    "AveragePool": _average_pool, "LpPool": _lp_pool, "GridSample": _grid_sample,
}  # fmt: skip
