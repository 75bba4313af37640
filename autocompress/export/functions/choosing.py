"""How comparisons, logic and choices are written in ONNX."""

import math
from typing import Any

import torch
from torch.fx import Node

from autocompress.export.emitter import Emit, Emitter, cast
from autocompress.export.functions.arithmetic import both, computed_in
from autocompress.export.types import TensorType
from autocompress.graph.calls import arguments

aten = torch.ops.aten


def _common_type(e: Emitter, *operands: Any) -> torch.dtype:
    """What torch promotes tensors and numbers to: tensors without axes count less than those with."""
    found = [_stand_in(e, operand) for operand in operands]
    return torch.result_type(*found)


def _stand_in(e: Emitter, operand: Any) -> Any:
    kind = e.types.get(operand) if isinstance(operand, Node) else None
    if isinstance(kind, TensorType):
        return torch.empty([1] * len(kind.one), dtype=kind.dtype, device="meta")
    return operand if kind is None else kind.values[0]


def _compare(op: str, inverted: bool = False) -> Emit:
    def emit(e: Emitter, node: Node) -> str:
        a = arguments(node)
        dtype = _common_type(e, a["self"], a["other"])
        dtype = dtype if op == "Equal" and dtype is torch.bool else computed_in(dtype)
        made = e.add(op, e.cast_to(a["self"], dtype), e.cast_to(a["other"], dtype))
        return e.add("Not", made) if inverted else made

    return emit


def _logic(op: str) -> Emit:
    def emit(e: Emitter, node: Node) -> str:
        return e.add(op, *(e.cast_to(operand, torch.bool) for operand in node.args[:2]))

    return emit


def _not(e: Emitter, node: Node) -> str:
    return e.add("Not", e.cast_to(node.args[0], torch.bool))


def _bits(op: str) -> Emit:
    """Bitwise operators, on Booleans only: operator set 17 has none for integers."""
    return lambda e, node: _logic(op)(e, node) if e.dtype(node) is torch.bool else None


def _inverted_bits(e: Emitter, node: Node) -> str:
    if e.dtype(node) is torch.bool:
        return _not(e, node)
    dtype = computed_in(e.dtype(node))
    made = e.add("Sub", e.value(-1, dtype), e.cast_to(node.args[0], dtype))
    return made if dtype is e.dtype(node) else cast(e, made, e.dtype(node))


def _choose(e: Emitter, condition: Any, yes: Any, no: Any, dtype: torch.dtype) -> str:
    """Where; ONNX Runtime has it for wide types and uint8."""
    inner = torch.uint8 if dtype is torch.bool else computed_in(dtype)
    made = e.add("Where", e.cast_to(condition, torch.bool), e.cast_to(yes, inner), e.cast_to(no, inner))
    return made if inner is dtype else cast(e, made, dtype)


def _where(e: Emitter, node: Node) -> str:
    a = arguments(node)
    return _choose(e, a["condition"], a["self"], a["other"], e.dtype(node))


def _masked_fill(e: Emitter, node: Node) -> str:
    a = arguments(node)
    return _choose(e, a["mask"], a["value"], a["self"], e.dtype(node))


def _is_nan(e: Emitter, node: Node) -> str:
    return e.add("IsNaN", e.cast_to(node.args[0], torch.float32))


def _is_inf(e: Emitter, node: Node) -> str:
    return e.add("IsInf", e.cast_to(node.args[0], torch.float32))


def _is_finite(e: Emitter, node: Node) -> str:
    return e.add("Not", e.add("Or", _is_nan(e, node), _is_inf(e, node)))


def _without_nan(e: Emitter, node: Node) -> str:
    """NaN and infinities replaced, by default with zero and the largest finite numbers."""
    a = arguments(node)
    x, most = e.value(a["self"]), torch.finfo(e.dtype(node)).max
    high, low = (most if a["posinf"] is None else a["posinf"], -most if a["neginf"] is None else a["neginf"])
    x = e.add("Where", e.add("IsNaN", x), e.like(node, a["nan"] or 0.0), x)
    for limit, replaced in ((math.inf, high), (-math.inf, low)):
        x = e.add("Where", e.add("Equal", x, e.like(node, limit)), e.like(node, replaced), x)
    return x


_BITWISE = ("Tensor", "Scalar", "Scalar_Tensor")
_COMPARISONS = (("eq", "Equal"), ("lt", "Less"), ("le", "LessOrEqual"), ("gt", "Greater"), ("ge", "GreaterOrEqual"))

CHOOSING: dict[Any, Emit] = {
    **{overload: _compare(op) for name, op in _COMPARISONS for overload in both(name)},
    **dict.fromkeys(both("ne"), _compare("Equal", inverted=True)),
    aten.logical_and.default: _logic("And"),
    aten.logical_or.default: _logic("Or"),
    aten.logical_xor.default: _logic("Xor"),
    aten.logical_not.default: _not,
    **dict.fromkeys([*both("bitwise_and", *_BITWISE), *both("__and__")], _bits("And")),
    **dict.fromkeys([*both("bitwise_or", *_BITWISE), *both("__or__")], _bits("Or")),
    **dict.fromkeys([*both("bitwise_xor", *_BITWISE), *both("__xor__")], _bits("Xor")),
    aten.bitwise_not.default: _inverted_bits,
    aten.where.self: _where,
    aten.where.ScalarSelf: _where,
    aten.where.ScalarOther: _where,
    aten.where.Scalar: _where,
    aten.masked_fill.Scalar: _masked_fill,
    aten.masked_fill.Tensor: _masked_fill,
    aten.isnan.default: _is_nan,
    aten.isinf.default: _is_inf,
    aten.isfinite.default: _is_finite,
    aten.nan_to_num.default: _without_nan,
}
