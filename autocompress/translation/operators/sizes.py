"""Operators on numbers that depend on the inputs' sizes, in Python: what exporters make of `x.shape`."""

import operator
from collections.abc import Callable, Mapping, Sequence
from typing import Any

import numpy as np
import torch
from numpy.typing import NDArray

from autocompress.translation.operators.pointwise import DTYPES
from autocompress.translation.values import (
    Attributes,
    Number,
    Sizes,
    Unsupported,
    Value,
    ceil,
    computed,
    floor,
    integers,
    objects,
    product,
    quotient,
    simplified,
)

Array = NDArray[np.object_]
OnSizes = Callable[..., Value]

_LARGEST = 64
"""Elements of a tensor that may still be a list of sizes."""


def computable(op: str, operands: Sequence[Value | None]) -> bool:
    """Whether Python can compute the operator: of sizes beside small constants; moved by constants alone."""
    given = [o for o in operands if o is not None]
    plain = all(isinstance(o, Sizes) or (o.node is None and o.example.numel() <= _LARGEST) for o in given)
    sized = [isinstance(o, Sizes) for o in given]
    moved = op not in _MOVED or (sized[0] and not any(sized[1:]))
    return op in ON_SIZES and plain and any(sized) and moved


def shape_of(a: Attributes, x: Value) -> Value:
    found = x.shape[a.get("start", 0) : a.get("end")]
    return simplified(objects(found, [len(found)]), torch.int64)


def size_of(a: Attributes, x: Value) -> Value:
    return simplified(objects([product(x.shape)], []), torch.int64)


def _array(value: Value) -> Array:
    return value.array if isinstance(value, Sizes) else objects(value.entries(), value.example.shape)


def _mapped(function: Callable[..., Any], *arrays: Array) -> Array:
    found = np.frompyfunc(lambda *numbers: computed(function, *numbers), len(arrays), 1)(*arrays)
    return found if isinstance(found, np.ndarray) else objects([found], [])


def _each(function: Callable[..., Any], dtype: torch.dtype | None = None) -> OnSizes:
    def evaluate(a: Attributes, *values: Value) -> Value:
        found = _array(values[0])
        for value in values[1:]:
            found = _mapped(function, found, _array(value))
        found = _mapped(function, found) if len(values) == 1 else found
        return simplified(found, dtype or values[0].dtype)

    return evaluate


def _moved(move: Callable[..., Array]) -> OnSizes:
    def evaluate(a: Attributes, x: Value, *others: Value | None) -> Value:
        return simplified(move(a, _array(x), *others), x.dtype)

    return evaluate


def _axes(a: Attributes, axes: Value | None) -> tuple[int, ...] | None:
    if axes is not None:
        return tuple(integers(axes))
    return tuple(a["axes"]) if "axes" in a else None


def _gather(a: Attributes, x: Array, indices: Value) -> Array:
    chosen = np.asarray(integers(indices)).reshape(tuple(indices.example.shape))
    found = np.take(x, chosen, axis=a.get("axis", 0))
    return found if isinstance(found, np.ndarray) else objects([found], [])


def _slice(a: Attributes, x: Array, *bounds: Value | None) -> Array:
    given = [None if bound is None else integers(bound) for bound in bounds]
    starts, ends, axes, steps = (*given, None, None, None, None)[:4]
    starts, ends = starts or list(a["starts"]), ends or list(a["ends"])
    axes = axes or list(a.get("axes", range(len(starts))))
    index = [slice(None)] * x.ndim
    for axis, start, end, step in zip(axes, starts, ends, steps or [1] * len(starts), strict=True):
        index[axis] = slice(start, None if step < 0 and end < -len(x) else end, step)
    return x[tuple(index)]


def _squeeze(a: Attributes, x: Array, axes: Value | None = None) -> Array:
    return np.squeeze(x, axis=_axes(a, axes))


def _unsqueeze(a: Attributes, x: Array, axes: Value | None = None) -> Array:
    where = _axes(a, axes)
    assert where is not None, "an operand or an attribute gives them"
    return np.expand_dims(x, where)


def _reshape(a: Attributes, x: Array, shape: Value) -> Array:
    return x.reshape(integers(shape))


def _concat(a: Attributes, *parts: Value) -> Value:
    return simplified(np.concatenate([_array(part) for part in parts], axis=a["axis"]), parts[0].dtype)


def _cast(a: Attributes, x: Value) -> Value:
    dtype = DTYPES[a["to"]]
    if dtype.is_floating_point == x.dtype.is_floating_point:
        return simplified(_array(x), dtype)
    changes: dict[bool, Callable[..., Any]] = {True: torch.sym_float, False: _to_int}
    return simplified(_mapped(changes[dtype.is_floating_point], _array(x)), dtype)


def _to_int(number: Any) -> Any:
    return floor(number) if isinstance(number, (float, torch.SymFloat)) else number


def _where(a: Attributes, chosen: Value, x: Value, y: Value) -> Value:
    if isinstance(chosen, Sizes):
        raise Unsupported("with a condition on the size of an input")
    parts = np.broadcast_arrays(np.asarray(chosen.example.numpy()), _array(x), _array(y))
    picked = [b if c else d for c, b, d in zip(*(part.flat for part in parts), strict=True)]
    return simplified(objects(picked, parts[0].shape), x.dtype)


def _expand(a: Attributes, x: Array, shape: Value) -> Array:
    return np.broadcast_to(x, np.broadcast_shapes(x.shape, tuple(integers(shape))))


def _multiplied(a: Attributes, x: Array, axes: Value | None = None) -> Array:
    if x.ndim > 1 and _axes(a, axes) not in (None, tuple(range(x.ndim))):
        raise Unsupported("along one of several axes of sizes")
    return objects([product(list(x.flat))], [1] * x.ndim if a.get("keepdims", 1) else [])


def _power(base: Number, exponent: Number) -> Number:
    return base**exponent


_MOVED = frozenset({"Gather", "Slice", "Squeeze", "Unsqueeze", "Reshape", "Expand", "ReduceProd"})

ON_SIZES: Mapping[str, OnSizes] = {
    "Add": _each(operator.add), "Sub": _each(operator.sub), "Mul": _each(operator.mul), "Div": _each(quotient),
    "Mod": _each(operator.mod), "Neg": _each(operator.neg), "Max": _each(torch.sym_max), "Min": _each(torch.sym_min),
    "Floor": _each(floor), "Ceil": _each(ceil), "Sqrt": _each(torch.sym_sqrt), "Pow": _each(_power),
    "Equal": _each(operator.eq, torch.bool), "Less": _each(operator.lt, torch.bool),
    "Greater": _each(operator.gt, torch.bool), "LessOrEqual": _each(operator.le, torch.bool),
    "GreaterOrEqual": _each(operator.ge, torch.bool), "Not": _each(operator.not_, torch.bool),
    "Gather": _moved(_gather), "Slice": _moved(_slice), "Squeeze": _moved(_squeeze), "Unsqueeze": _moved(_unsqueeze),
    "Reshape": _moved(_reshape), "Expand": _moved(_expand), "ReduceProd": _moved(_multiplied), "Concat": _concat,
    "Cast": _cast, "Where": _where,
}  # fmt: skip
