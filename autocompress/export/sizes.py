"""How numbers that are computed from sizes are written: tensors of one element, int64, double or bool."""

import math
import operator
from collections.abc import Callable
from typing import Any

import numpy as np
import torch
from onnx import TensorProto

from autocompress.export.writer import Writer

Written = tuple[str, type]
"""A tensor of one element and what it holds: int, float or bool."""
_TYPES: dict[type, tuple[Any, int]] = {
    int: (np.int64, TensorProto.INT64),
    float: (np.float64, TensorProto.DOUBLE),
    bool: (np.bool_, TensorProto.BOOL),
}


def number(w: Writer, value: float) -> Written:
    """A constant."""
    kind = type(value)
    return w.constant([value], _TYPES[kind][0]), kind


def compute(w: Writer, target: Any, operands: list[Written]) -> Written | None:
    """Writes a Python operator or function on numbers; None if it has no row here."""
    rule = _RULES.get(target)
    return None if rule is None else rule(w, *operands)


def converted(w: Writer, operand: Written, kind: type) -> str:
    return operand[0] if operand[1] is kind else w.add_size("Cast", operand[0], to=_TYPES[kind][1])


def _alike(w: Writer, operands: tuple[Written, ...]) -> tuple[list[str], type]:
    kind = float if any(k is float for _, k in operands) else int
    return [converted(w, operand, kind) for operand in operands], kind


def _same_kind(op: str) -> Callable[..., Written]:
    def write(w: Writer, *operands: Written) -> Written:
        tensors, kind = _alike(w, operands)
        return w.add_size(op, *tensors), kind

    return write


def _compared(op: str, inverted: bool = False) -> Callable[..., Written]:
    def write(w: Writer, *operands: Written) -> Written:
        found = w.add_size(op, *_alike(w, operands)[0])
        return (w.add_size("Not", found) if inverted else found), bool

    return write


def _floor_division(w: Writer, *operands: Written) -> Written:
    (left, right), kind = _alike(w, operands)
    if kind is float:
        return w.add_size("Floor", w.add_size("Div", left, right)), float
    rest = w.add_size("Mod", left, right)
    return w.add_size("Div", w.add_size("Sub", left, rest), right), int


def _remainder(w: Writer, *operands: Written) -> Written | None:
    (left, right), kind = _alike(w, operands)
    return (w.add_size("Mod", left, right), int) if kind is int else None


def _division(w: Writer, left: Written, right: Written) -> Written:
    return w.add_size("Div", converted(w, left, float), converted(w, right, float)), float


def _whole(op: str | None) -> Callable[..., Written]:
    """Rounding to an integer; torch.sym_int and trunc cut towards zero as a cast does."""

    def write(w: Writer, operand: Written) -> Written:
        if operand[1] is int:
            return operand
        rounded = w.add_size(op, operand[0]) if op and operand[1] is float else operand[0]
        return converted(w, (rounded, operand[1]), int), int

    return write


def _as_float(w: Writer, operand: Written) -> Written:
    return converted(w, operand, float), float


def _in_float(op: str) -> Callable[..., Written]:
    return lambda w, operand: (w.add_size(op, converted(w, operand, float)), float)


def _choice(w: Writer, condition: Written, yes: Written, no: Written) -> Written:
    (a, b), kind = _alike(w, (yes, no))
    return w.add_size("Where", condition[0], a, b), kind


def _sum(w: Writer, *operands: Written) -> Written:
    total = operands[0]
    for operand in operands[1:]:
        total = _same_kind("Add")(w, total, operand)
    return total


_RULES: dict[Any, Callable[..., Written | None]] = {
    operator.add: _same_kind("Add"),
    operator.sub: _same_kind("Sub"),
    operator.mul: _same_kind("Mul"),
    operator.neg: _same_kind("Neg"),
    operator.pos: lambda w, operand: operand,
    operator.abs: _same_kind("Abs"),
    operator.pow: _same_kind("Pow"),
    operator.floordiv: _floor_division,
    operator.mod: _remainder,
    operator.truediv: _division,
    operator.eq: _compared("Equal"),
    operator.ne: _compared("Equal", inverted=True),
    operator.lt: _compared("Less"),
    operator.le: _compared("LessOrEqual"),
    operator.gt: _compared("Greater"),
    operator.ge: _compared("GreaterOrEqual"),
    operator.and_: lambda w, a, b: (w.add_size("And", a[0], b[0]), bool),
    operator.or_: lambda w, a, b: (w.add_size("Or", a[0], b[0]), bool),
    math.floor: _whole("Floor"),
    math.ceil: _whole("Ceil"),
    math.trunc: _whole(None),
    round: _whole("Round"),
    torch.sym_int: _whole(None),
    torch.sym_float: _as_float,
    torch.sym_max: _same_kind("Max"),
    torch.sym_min: _same_kind("Min"),
    max: _same_kind("Max"),
    min: _same_kind("Min"),
    torch.sym_not: lambda w, operand: (w.add_size("Not", operand[0]), bool),
    torch.sym_ite: _choice,
    torch.sym_sum: _sum,
    torch.sym_sqrt: _in_float("Sqrt"),
    math.sqrt: _in_float("Sqrt"),
}
