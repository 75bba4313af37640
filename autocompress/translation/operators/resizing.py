"""Resizing, each as one call of torch: its own where that means the same, else a mix of neighbours along each axis."""

import math
import operator
from collections.abc import Callable, Mapping, Sequence
from dataclasses import dataclass

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
    floor,
)


def resized_along(x: Tensor, axis: int, low: list[int], high: list[int], weight: list[float]) -> Tensor:
    """Between two neighbours each; the weight is that of the second."""
    first = x.index_select(axis, torch.tensor(low, device=x.device))
    if not any(weight):
        return first
    shape = [1] * x.dim()
    shape[axis] = -1
    share = torch.tensor(weight, dtype=x.dtype, device=x.device).reshape(shape)
    return first + (x.index_select(axis, torch.tensor(high, device=x.device)) - first) * share


@dataclass(frozen=True, slots=True)
class _Enlarged:
    """One axis of a resize."""

    size: Number
    target: Number
    scale: float | None
    """As the file gives it; None: the quotient of the sizes."""

    @property
    def factor(self) -> float:
        if self.scale is not None:
            return self.scale
        if isinstance(self.size, Size) or isinstance(self.target, Size):
            raise Unsupported("of an axis of free size")
        return float(self.target / self.size)


def _resize(a: Attributes, x: Value, *operands: Value | None) -> Call:
    """To sizes, or by scales; the operands are (roi, scales, sizes) since opset 11, (scales) before."""
    axes = _enlarged(a, x, operands)
    mode = a.get("mode", "nearest")
    place = a.get("coordinate_transformation_mode", "half_pixel" if a.opset >= 11 else "asymmetric")
    rounding = a.get("nearest_mode", "round_prefer_floor" if a.opset >= 11 else "floor")
    stretched = a.get("keep_aspect_ratio_policy", "stretch") == "stretch"
    if a.get("antialias", 0) or a.get("exclude_outside", 0) or not stretched:
        raise Unsupported("with antialias, exclude_outside or a kept aspect ratio")
    changed = [axis for axis, one in enumerate(axes) if one.target is not one.size and one.target != one.size]
    changed = [axis for axis in changed if axes[axis].scale != 1]
    if not changed:
        return Call(torch.clone, (x,))
    simple = _by_torch(x, axes, changed, mode, place)
    return simple if simple is not None else _by_axis(x, axes, changed, (mode, place, rounding))


def _enlarged(a: Attributes, x: Value, operands: Sequence[Value | None]) -> list[_Enlarged]:
    given = [operand for operand in operands if operand is not None and 0 not in operand.shape]
    targets, factors = None, a.get("scales")
    if factors is None and a.opset < 11:
        factors = given[0].known().tolist()
    elif factors is None:
        _, scales, sizes = (*operands, None, None, None)[:3]
        targets = sizes.entries() if sizes is not None and 0 not in sizes.shape else None
        factors = scales.known().tolist() if targets is None and scales is not None else None
    where = [axis % x.rank for axis in a.get("axes", range(x.rank))]
    found = {axis: _Enlarged(x.size(axis), x.size(axis), 1.0) for axis in range(x.rank)}
    for i, axis in enumerate(where):
        size = x.size(axis)
        if targets is not None:
            found[axis] = _Enlarged(size, targets[i], None)
        elif factors is not None:
            found[axis] = _Enlarged(size, _scaled(size, factors[i]), factors[i])
    return [found[axis] for axis in range(x.rank)]


def _scaled(size: Number, factor: float) -> Number:
    if factor == int(factor):
        return computed(operator.mul, size, int(factor))
    return computed(floor, computed(operator.mul, size, factor))


_LINEAR = {3: "linear", 4: "bilinear", 5: "trilinear"}


def _by_torch(x: Value, axes: list[_Enlarged], changed: list[int], mode: str, place: str) -> Call | None:
    """torch's own, where it means the same."""
    if changed[0] < 2 or x.rank not in _LINEAR:
        return None
    targets = [axis.target for axis in axes[2:]]
    whole = all(axes[axis].scale is not None and float(axes[axis].factor).is_integer() for axis in changed)
    sized = [axes[axis] for axis in changed if not isinstance(axes[axis].size, Size)]
    whole = whole or (len(sized) == len(changed) and all(float(one.factor).is_integer() for one in sized))
    exact = whole or all(
        one.scale is None or (not isinstance(one.size, Size) and one.target == one.size * one.scale)
        for one in (axes[axis] for axis in changed)
    )
    if mode == "nearest" and whole and place in ("half_pixel", "asymmetric", "pytorch_half_pixel"):
        return Call(F.interpolate, (x, targets), {"mode": "nearest"})
    corners = place == "align_corners"
    if not exact or place not in ("half_pixel", "pytorch_half_pixel", "align_corners") or 1 in targets:
        return None
    if mode == "linear":
        return Call(F.interpolate, (x, targets), {"mode": _LINEAR[x.rank], "align_corners": corners})
    if mode == "cubic" and x.rank == 4:
        return Call(F.interpolate, (x, targets), {"mode": "bicubic", "align_corners": corners})
    return None


def _by_axis(x: Value, axes: list[_Enlarged], changed: list[int], how: tuple[str, str, str]) -> Call:
    mode, place, rounding = how
    if mode not in ("nearest", "linear"):
        raise Unsupported(f"in mode {mode} with {place}")
    call: Call | Value = x
    for axis in changed:
        one = axes[axis]
        if isinstance(one.size, Size) or isinstance(one.target, Size):
            raise Unsupported(f"in mode {mode} with {place} of an axis of free size")
        places = [_source(i, one, place) for i in range(one.target)]
        call = Call(resized_along, (call, axis, *_neighbours(places, one.size, mode, rounding)))
    assert isinstance(call, Call), "some axis is changed"
    return call


def _source(position: int, one: _Enlarged, place: str) -> float:
    """Where an output's element lies in the input, as onnx's Resize defines it."""
    match place:
        case "asymmetric":
            return position / one.factor
        case "align_corners":
            return position * float(one.size - 1) / float(one.target - 1) if one.target > 1 else 0.0
        case "half_pixel":
            return (position + 0.5) / one.factor - 0.5
        case "pytorch_half_pixel":
            return (position + 0.5) / one.factor - 0.5 if one.target > 1 else 0.0
        case "half_pixel_symmetric":
            adjusted = float(one.target) / (one.factor * one.size)
            return float(float(one.size) / 2 * (1 - adjusted) + (position + 0.5) / one.factor - 0.5)
        case "tf_half_pixel_for_nn":
            return (position + 0.5) / one.factor
    raise Unsupported(f"with {place}")


_ROUNDINGS: Mapping[str, Callable[[float], int]] = {
    "round_prefer_floor": lambda n: math.ceil(n - 0.5), "round_prefer_ceil": lambda n: math.floor(n + 0.5),
    "floor": math.floor, "ceil": math.ceil,
}  # fmt: skip


def _neighbours(
    places: Sequence[float], size: int, mode: str, rounding: str
) -> tuple[list[int], list[int], list[float]]:
    if mode == "nearest":
        nearest = [min(max(_ROUNDINGS[rounding](place), 0), size - 1) for place in places]
        return nearest, nearest, [0.0] * len(nearest)
    inside = [min(max(place, 0.0), size - 1.0) for place in places]
    low = [math.floor(place) for place in inside]
    return low, [min(n + 1, size - 1) for n in low], [place - n for place, n in zip(inside, low, strict=True)]


RESIZING: Mapping[str, Translate] = {"Resize": _resize, "Upsample": _resize}
