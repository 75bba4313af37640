"""How arithmetic on tensors and numbers is written in ONNX, with torch's promotion of types."""

import math
from typing import Any

import torch
from torch.fx import Node

from autocompress.export.emitter import Emit, Emitter, cast
from autocompress.export.functions.activations import same
from autocompress.export.types import ELEMENT_TYPES
from autocompress.graph.calls import arguments

aten = torch.ops.aten

_NARROW = (torch.bool, torch.uint8, torch.int8, torch.int16)


def computed_in(dtype: torch.dtype) -> torch.dtype:
    """The type in which ONNX Runtime has kernels for arithmetic: narrow integers wrap when they are cast back."""
    return torch.int32 if dtype in _NARROW else dtype


def back(e: Emitter, node: Node, made: str, dtype: torch.dtype) -> str:
    """A value computed in `dtype`, in the node's own type."""
    return made if e.dtype(node) is dtype else cast(e, made, e.dtype(node))


def _binary(op: str, on_bool: str | None = None) -> Emit:
    """Arithmetic on two tensors or a tensor and a number, operands cast to the result's type."""

    def emit(e: Emitter, node: Node) -> str:
        a = arguments(node)
        result = e.dtype(node)
        if result is torch.bool and on_bool and a.get("alpha", 1) == 1:
            return e.add(on_bool, *(e.cast_to(a[name], torch.bool) for name in ("self", "other")))
        dtype = computed_in(result)
        left, right = e.cast_to(a["self"], dtype), e.cast_to(a["other"], dtype)
        if a.get("alpha", 1) != 1:
            right = e.add("Mul", right, e.value(a["alpha"], dtype))
        return back(e, node, e.add(op, left, right), dtype)

    return emit


def _reversed_sub(e: Emitter, node: Node) -> str:
    a = arguments(node)
    dtype = computed_in(e.dtype(node))
    right = e.cast_to(a["self"], dtype)
    if a.get("alpha", 1) != 1:
        right = e.add("Mul", right, e.value(a["alpha"], dtype))
    return back(e, node, e.add("Sub", e.cast_to(a["other"], dtype), right), dtype)


def _divide(e: Emitter, node: Node) -> str:
    """torch's `/`, or its quotient rounded down or to zero; ONNX divides integers towards zero."""
    a = arguments(node)
    mode, dtype = a.get("rounding_mode"), computed_in(e.dtype(node))
    left, right = e.cast_to(a["self"], dtype), e.cast_to(a["other"], dtype)
    if mode == "floor":
        return back(e, node, floor_division(e, left, right, dtype), dtype)
    made = e.add("Div", left, right)
    if mode == "trunc" and dtype.is_floating_point:
        made = _truncated(e, made)
    return back(e, node, made, dtype)


def _floor_divide(e: Emitter, node: Node) -> str:
    a = arguments(node)
    dtype = computed_in(e.dtype(node))
    left, right = e.cast_to(a["self"], dtype), e.cast_to(a["other"], dtype)
    return back(e, node, floor_division(e, left, right, dtype), dtype)


def floor_division(e: Emitter, left: str, right: str, dtype: torch.dtype) -> str:
    if dtype.is_floating_point:
        return e.add("Floor", e.add("Div", left, right))
    return e.add("Div", e.add("Sub", left, e.add("Mod", left, right)), right)


def _remainder(e: Emitter, node: Node) -> str:
    """The sign is the divisor's, as ONNX has it for integers."""
    a = arguments(node)
    dtype = computed_in(e.dtype(node))
    left, right = (e.cast_to(a[name], dtype) for name in ("self", "other"))
    if not dtype.is_floating_point:
        return back(e, node, e.add("Mod", left, right), dtype)
    return e.add("Sub", left, e.add("Mul", e.add("Floor", e.add("Div", left, right)), right))


def _fmod(e: Emitter, node: Node) -> str:
    """The sign is the dividend's."""
    a = arguments(node)
    dtype = computed_in(e.dtype(node))
    made = e.add("Mod", *(e.cast_to(a[name], dtype) for name in ("self", "other")), fmod=1)
    return back(e, node, made, dtype)


def _truncated(e: Emitter, x: str) -> str:
    return e.add("Mul", e.add("Sign", x), e.add("Floor", e.add("Abs", x)))


def _trunc(e: Emitter, node: Node) -> str:
    x: Any = node.args[0]
    return _truncated(e, e.value(x)) if e.dtype(x).is_floating_point else e.add("Identity", e.value(x))


def _fraction(e: Emitter, node: Node) -> str:
    x = e.value(node.args[0])
    return e.add("Sub", x, _truncated(e, x))


def _rounded(op: str) -> Emit:
    """To whole numbers, which integers are already."""
    return lambda e, node: e.add(op if e.dtype(node).is_floating_point else "Identity", e.value(node.args[0]))


def _round_to(e: Emitter, node: Node) -> str | None:
    a = arguments(node)
    if not e.dtype(node).is_floating_point:
        return None
    scale = e.like(node, 10.0 ** a["decimals"])
    return e.add("Div", e.add("Round", e.add("Mul", e.value(a["self"]), scale)), scale)


def _unsigned(op: str) -> Emit:
    """Abs, neg and sign, in a type that has kernels."""

    def emit(e: Emitter, node: Node) -> str:
        dtype = computed_in(e.dtype(node))
        return back(e, node, e.add(op, e.cast_to(node.args[0], dtype)), dtype)

    return emit


def _power(e: Emitter, node: Node) -> str:
    a = arguments(node)
    dtype, exponent = computed_in(e.dtype(node)), a["exponent"]
    base = e.cast_to(a["self"], dtype)
    if exponent == 0.5 and dtype.is_floating_point:
        return e.add("Sqrt", base)
    return back(e, node, e.add("Pow", base, e.cast_to(exponent, dtype)), dtype)


def _square(e: Emitter, node: Node) -> str:
    dtype = computed_in(e.dtype(node))
    x = e.cast_to(node.args[0], dtype)
    return back(e, node, e.add("Mul", x, x), dtype)


def _rsqrt(e: Emitter, node: Node) -> str:
    return e.add("Reciprocal", e.add("Sqrt", e.cast_to(node.args[0], e.dtype(node))))


def _log(base: float | None, shift: float = 0.0) -> Emit:
    def emit(e: Emitter, node: Node) -> str:
        x = e.cast_to(node.args[0], e.dtype(node))
        made = e.add("Log", e.add("Add", x, e.like(node, shift)) if shift else x)
        return made if base is None else e.add("Div", made, e.like(node, math.log(base)))

    return emit


def _exponential(base: float, shift: float = 0.0) -> Emit:
    def emit(e: Emitter, node: Node) -> str:
        x = e.cast_to(node.args[0], e.dtype(node))
        made = e.add("Exp", x) if base == math.e else e.add("Pow", e.like(node, base), x)
        return e.add("Sub", made, e.like(node, shift)) if shift else made

    return emit


def _erfc(e: Emitter, node: Node) -> str:
    return e.add("Sub", e.like(node, 1), e.add("Erf", e.cast_to(node.args[0], e.dtype(node))))


def _atan2(e: Emitter, node: Node) -> str:
    """atan(y / x), half a turn further where x is negative."""
    a = arguments(node)
    dtype = e.dtype(node)
    y, x = e.cast_to(a["self"], dtype), e.cast_to(a["other"], dtype)
    zero = e.like(node, 0)
    slope = e.add("Atan", e.add("Div", y, x))
    turn = e.add("Where", e.add("Less", y, zero), e.like(node, -math.pi), e.like(node, math.pi))
    turned = e.add("Where", e.add("Less", x, zero), e.add("Add", slope, turn), slope)
    still = e.add("And", e.add("Equal", x, zero), e.add("Equal", y, zero))
    return e.add("Where", still, zero, turned)


def _hypotenuse(e: Emitter, node: Node) -> str:
    a = arguments(node)
    squares = [e.add("Mul", x, x) for x in (e.cast_to(a[name], e.dtype(node)) for name in ("self", "other"))]
    return e.add("Sqrt", e.add("Add", *squares))


def _clip(low: str | float | None, high: str | float | None) -> Emit:
    """Clip between bounds that are numbers, tensors, or the names of arguments that hold them."""

    def emit(e: Emitter, node: Node) -> str:
        a = arguments(node)
        bounds = [a[bound] if isinstance(bound, str) else bound for bound in (low, high)]
        dtype = computed_in(e.dtype(node))
        x = e.cast_to(a["self"], dtype)
        if any(isinstance(bound, Node) for bound in bounds) or not dtype.is_floating_point:
            for op, bound in zip(("Max", "Min"), bounds, strict=True):
                x = x if bound is None else e.add(op, x, e.cast_to(bound, dtype))
            return back(e, node, x, dtype)
        return e.add("Clip", x, *("" if b is None else e.value(float(b), dtype) for b in bounds))

    return emit


def _cast(e: Emitter, node: Node) -> str:
    source: Any = node.args[0]
    if e.dtype(source) is e.dtype(node):
        return e.value(source)
    return e.add("Cast", e.value(source), to=ELEMENT_TYPES[e.dtype(node)])


def _fused_multiply(op: str) -> Emit:
    """self + value * (tensor1 op tensor2)."""

    def emit(e: Emitter, node: Node) -> str:
        a, dtype = arguments(node), e.dtype(node)
        product = e.add(op, e.cast_to(a["tensor1"], dtype), e.cast_to(a["tensor2"], dtype))
        product = product if a["value"] == 1 else e.add("Mul", product, e.value(a["value"], dtype))
        return e.add("Add", e.cast_to(a["self"], dtype), product)

    return emit


def _lerp(e: Emitter, node: Node) -> str:
    a, dtype = arguments(node), e.dtype(node)
    start = e.value(a["self"])
    way = e.add("Mul", e.add("Sub", e.value(a["end"]), start), e.cast_to(a["weight"], dtype))
    return e.add("Add", start, way)


def both(name: str, *overloads: str) -> list[Any]:
    """The overloads of an operator for two tensors and for a tensor and a number."""
    packet = getattr(aten, name)
    return [getattr(packet, overload) for overload in overloads or ("Tensor", "Scalar")]


_CASTS = (aten._to_copy.default, aten.to.dtype, aten.to.dtype_layout, aten.to.device, aten.to.other,
          aten.type_as.default)  # fmt: skip
_IN_FLOAT = {
    "exp": "Exp", "erf": "Erf", "sqrt": "Sqrt", "reciprocal": "Reciprocal", "sin": "Sin", "cos": "Cos", "tan": "Tan",
    "asin": "Asin", "acos": "Acos", "atan": "Atan", "sinh": "Sinh", "cosh": "Cosh", "asinh": "Asinh", "acosh": "Acosh",
    "atanh": "Atanh",
}  # fmt: skip

ARITHMETIC: dict[Any, Emit] = {
    **{getattr(aten, name).default: same(op) for name, op in _IN_FLOAT.items()},
    **dict.fromkeys(both("add"), _binary("Add", on_bool="Or")),
    **dict.fromkeys(both("sub"), _binary("Sub")),
    **dict.fromkeys(both("mul"), _binary("Mul", on_bool="And")),
    **dict.fromkeys(both("rsub"), _reversed_sub),
    **dict.fromkeys(both("div", "Tensor", "Scalar", "Tensor_mode", "Scalar_mode"), _divide),
    **dict.fromkeys(both("true_divide"), _divide),
    **dict.fromkeys([aten.floor_divide.default, aten.floor_divide.Scalar], _floor_divide),
    **dict.fromkeys(both("remainder", "Tensor", "Scalar", "Scalar_Tensor"), _remainder),
    **dict.fromkeys(both("fmod"), _fmod),
    aten.maximum.default: _binary("Max", on_bool="Or"),
    aten.max.other: _binary("Max", on_bool="Or"),
    aten.minimum.default: _binary("Min", on_bool="And"),
    aten.min.other: _binary("Min", on_bool="And"),
    aten.fmax.default: _binary("Max", on_bool="Or"),
    aten.fmin.default: _binary("Min", on_bool="And"),
    aten.abs.default: _unsigned("Abs"),
    aten.neg.default: _unsigned("Neg"),
    aten.sign.default: _unsigned("Sign"),
    aten.sgn.default: _unsigned("Sign"),
    aten.trunc.default: _trunc,
    aten.fix.default: _trunc,
    aten.frac.default: _fraction,
    aten.ceil.default: _rounded("Ceil"),
    aten.floor.default: _rounded("Floor"),
    aten.round.default: _rounded("Round"),
    aten.round.decimals: _round_to,
    aten.pow.Tensor_Scalar: _power,
    aten.pow.Tensor_Tensor: _power,
    aten.pow.Scalar: _power,
    aten.square.default: _square,
    aten.rsqrt.default: _rsqrt,
    aten.log.default: _log(None),
    aten.log2.default: _log(2),
    aten.log10.default: _log(10),
    aten.log1p.default: _log(None, shift=1),
    aten.expm1.default: _exponential(math.e, shift=1),
    aten.exp2.default: _exponential(2),
    aten.erfc.default: _erfc,
    aten.special_erfc.default: _erfc,
    aten.atan2.default: _atan2,
    aten.hypot.default: _hypotenuse,
    aten.relu6.default: _clip(0.0, 6.0),
    aten.hardtanh.default: _clip("min_val", "max_val"),
    aten.clamp.default: _clip("min", "max"),
    aten.clamp.Tensor: _clip("min", "max"),
    aten.clamp_min.default: _clip("min", None),
    aten.clamp_min.Tensor: _clip("min", None),
    aten.clamp_max.default: _clip(None, "max"),
    aten.clamp_max.Tensor: _clip(None, "max"),
    **dict.fromkeys(_CASTS, _cast),
    aten.addcmul.default: _fused_multiply("Mul"),
    aten.addcdiv.default: _fused_multiply("Div"),
    aten.lerp.Scalar: _lerp,
    aten.lerp.Tensor: _lerp,
}
