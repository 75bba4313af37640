"""Operators on elements, each as one call of torch."""

import math
import operator
from collections.abc import Callable, Mapping
from typing import Any

import torch
import torch.nn.functional as F
from torch import Tensor

from autocompress.translation.values import Attributes, Call, Operand, Translate, Unsupported, Value, scalar

DTYPES = {
    1: torch.float32, 2: torch.uint8, 3: torch.int8, 5: torch.int16, 6: torch.int32, 7: torch.int64, 9: torch.bool,
    10: torch.float16, 11: torch.float64, 12: torch.uint32, 16: torch.bfloat16,
}  # fmt: skip
"""By the number that onnx.proto gives an element type."""


def cast(x: Tensor, dtype: torch.dtype) -> Tensor:
    return x.to(dtype)


def hard_sigmoid(x: Tensor, alpha: float, beta: float) -> Tensor:
    return (alpha * x + beta).clamp(0, 1)


def prelu(x: Tensor, slope: Tensor) -> Tensor:
    return torch.where(x < 0, slope * x, x)


def celu(x: Tensor, alpha: float) -> Tensor:
    return x.clamp(min=0) + (alpha * (torch.exp(x / alpha) - 1)).clamp(max=0)


def thresholded_relu(x: Tensor, alpha: float) -> Tensor:
    return torch.where(x > alpha, x, torch.zeros_like(x))


def shrink(x: Tensor, bias: float, threshold: float) -> Tensor:
    moved = torch.where(x > threshold, x - bias, torch.zeros_like(x))
    return torch.where(x < -threshold, x + bias, moved)


def is_infinite(x: Tensor, positive: bool, negative: bool) -> Tensor:
    return torch.isinf(x) & ((x > 0) & positive | (x < 0) & negative)


def quick_gelu(x: Tensor, alpha: float) -> Tensor:
    return x * torch.sigmoid(alpha * x)


def biased(x: Tensor, bias: Tensor | None, approximate: str) -> Tensor:
    return F.gelu(x if bias is None else x + bias, approximate=approximate)


def average(*tensors: Tensor) -> Tensor:
    total = tensors[0]
    for tensor in tensors[1:]:
        total = total + tensor
    return total / len(tensors)


def as_shaped(x: Tensor, like: Tensor) -> Tensor:
    return x.reshape(like.shape)


def _folded(function: Callable[..., Tensor], first: Any, *others: Any) -> Call:
    call = Call(torch.clone, (first,))
    for i, other in enumerate(others):
        call = Call(function, (call if i else first, other))
    return call


def hard_max(x: Tensor, axis: int) -> Tensor:
    hot = F.one_hot(x.argmax(axis), x.shape[axis]).to(x.dtype)
    return hot.movedim(-1, axis)


def of(target: Callable[..., Any], **renamed: tuple[str, Any]) -> Translate:
    """torch's function of all operands; `renamed` maps its keyword to an attribute and that one's default."""

    def translate(a: Attributes, *operands: Value) -> Call:
        return Call(target, operands, {key: a.get(name, default) for key, (name, default) in renamed.items()})

    return translate


def _plain(number: Value, beside: Value) -> Any:
    """A constant's only number, where it leaves the other operand's shape and type as they are."""
    found = scalar(number)
    same = number.dtype.is_floating_point == beside.dtype.is_floating_point and torch.bool not in (
        number.dtype, beside.dtype,
    )  # fmt: skip
    return found if found is not None and number.rank <= beside.rank and same else None


def arithmetic(target: Callable[..., Any], with_number: Callable[..., Any]) -> Translate:
    """A single constant is written as the number that it is."""

    def translate(a: Attributes, x: Value, y: Value) -> Call:
        left, right = _plain(x, y), _plain(y, x)
        if right is not None:
            return Call(target, (x, right))
        return Call(with_number, (left, y)) if left is not None else Call(target, (x, y))

    return translate


def _division(a: Attributes, x: Value, y: Value) -> Call:
    if x.dtype.is_floating_point:
        return arithmetic(torch.div, operator.truediv)(a, x, y)
    return Call(torch.div, (x, y), {"rounding_mode": "trunc"})


def _power(a: Attributes, x: Value, y: Value) -> Call:
    exponent = _plain(y, x)
    if exponent is not None:
        return Call(torch.pow, (x, exponent))
    raised = Call(torch.pow, (x, y))
    return raised if x.dtype == y.dtype else Call(cast, (raised, x.dtype))


def _extreme(of_two: Callable[..., Any], bound: str) -> Translate:
    def translate(a: Attributes, *operands: Value) -> Call:
        if len(operands) != 2:
            return _folded(of_two, *operands)
        for x, number in (operands, operands[::-1]):
            if x.dtype.is_floating_point and (found := _plain(number, x)) is not None:
                nothing = found == (-math.inf if bound == "min" else math.inf)
                return Call(torch.clone, (x,)) if nothing else Call(torch.clamp, (x,), {bound: found})
        return Call(of_two, operands)

    return translate


def _summed(a: Attributes, *operands: Value) -> Call:
    return _folded(torch.add, *operands)


def _clip(a: Attributes, x: Value, low: Value | None = None, high: Value | None = None) -> Call:
    given: list[Any] = [bound.known().item() if bound is not None else None for bound in (low, high)]
    bounds = [a.get(name, number) for name, number in zip(("min", "max"), given, strict=True)]
    if bounds == [0, 6] and x.dtype.is_floating_point:
        return Call(F.relu6, (x,))
    return Call(torch.clone, (x,)) if bounds == [None, None] else Call(torch.clamp, (x, *bounds))


def _cast(a: Attributes, x: Value) -> Call:
    if a["to"] not in DTYPES:
        raise Unsupported(f"to element type {a['to']}")
    return Call(cast, (x, DTYPES[a["to"]]))


def _cast_like(a: Attributes, x: Value, like: Value) -> Call:
    return Call(cast, (x, like.dtype))


def _normalised(function: Callable[..., Tensor]) -> Translate:
    """Softmax and its like; up to opset 12 the default axis is 1, and all axes from it on are one."""

    def translate(a: Attributes, x: Value) -> Call:
        axis = a.get("axis", -1 if a.opset >= 13 else 1)
        if a.opset >= 13 or axis % x.rank == x.rank - 1:
            return Call(function, (x, axis))
        return Call(as_shaped, (Call(function, (Call(torch.flatten, (x, axis % x.rank)), -1)), x))

    return translate


def _gelu(a: Attributes, x: Value) -> Call:
    return Call(F.gelu, (x,), {"approximate": a.get("approximate", "none")})


def _fast_gelu(a: Attributes, x: Value, bias: Value | None = None) -> Call:
    return Call(biased, (x, bias, "tanh"))


def _remainder(a: Attributes, x: Value, y: Value) -> Call:
    return Call(torch.fmod if a.get("fmod", 0) else torch.remainder, (x, y))


def _shifted(a: Attributes, x: Value, y: Value) -> Call:
    return Call(torch.bitwise_left_shift if a["direction"] == "LEFT" else torch.bitwise_right_shift, (x, y))


def _where(a: Attributes, chosen: Value, x: Value, y: Value) -> Call:
    def plain(number: Value, other: Value) -> Any:
        found = scalar(number)
        shaped = other.rank >= number.rank or chosen.rank >= number.rank
        fits = other.dtype.is_floating_point and scalar(other) is None
        return number if found is None or not shaped or not fits else found

    return Call(torch.where, (chosen, plain(x, y), plain(y, x)))


def _infinite(a: Attributes, x: Value) -> Call:
    return Call(is_infinite, (x, bool(a.get("detect_positive", 1)), bool(a.get("detect_negative", 1))))


def _dropout(a: Attributes, x: Value, *settings: Value | None) -> Call:
    training = settings[1] if len(settings) > 1 else None
    if a.outputs > 1 or (training is not None and scalar(training)):
        raise Unsupported("in training mode")
    return Call(torch.clone, (x,))


_SELU = (1.67326319217681884765625, 1.05070102214813232421875)
"""Defaults of alpha and gamma, as onnx.proto's operators have them."""


def _selu(x: Tensor, alpha: float, gamma: float) -> Tensor:
    return gamma * torch.where(x > 0, x, alpha * (torch.exp(x) - 1))


def _scaled_elu(a: Attributes, x: Value) -> Call:
    alpha, gamma = a.get("alpha", _SELU[0]), a.get("gamma", _SELU[1])
    usual = all(math.isclose(*pair, rel_tol=1e-6) for pair in ((alpha, _SELU[0]), (gamma, _SELU[1])))
    return Call(F.selu, (x,)) if usual else Call(_selu, (x, alpha, gamma))


_SAME: Mapping[str, Callable[..., Tensor]] = {
    "Relu": torch.relu, "Sigmoid": torch.sigmoid, "Tanh": torch.tanh, "Exp": torch.exp, "Log": torch.log,
    "Erf": torch.erf, "Neg": torch.neg, "Abs": torch.abs, "Sqrt": torch.sqrt, "Reciprocal": torch.reciprocal,
    "Floor": torch.floor, "Ceil": torch.ceil, "Round": torch.round, "Sign": torch.sign, "Sin": torch.sin,
    "Cos": torch.cos, "Tan": torch.tan, "Asin": torch.asin, "Acos": torch.acos, "Atan": torch.atan,
    "Sinh": torch.sinh, "Cosh": torch.cosh, "Asinh": torch.asinh, "Acosh": torch.acosh, "Atanh": torch.atanh,
    "Not": torch.logical_not, "Softplus": F.softplus, "Softsign": F.softsign, "HardSwish": F.hardswish,
    "Mish": F.mish, "IsNaN": torch.isnan, "And": torch.logical_and, "Or": torch.logical_or,
    "Xor": torch.logical_xor, "Equal": torch.eq, "Less": torch.lt, "LessOrEqual": torch.le, "Greater": torch.gt,
    "GreaterOrEqual": torch.ge, "BitwiseAnd": torch.bitwise_and, "BitwiseOr": torch.bitwise_or,
    "BitwiseXor": torch.bitwise_xor, "BitwiseNot": torch.bitwise_not, "Mean": average,
}  # fmt: skip

POINTWISE: Mapping[str, Translate] = {
    **{name: of(target) for name, target in _SAME.items()},
    "HardSigmoid": of(hard_sigmoid, alpha=("alpha", 0.2), beta=("beta", 0.5)),
    "LeakyRelu": of(F.leaky_relu, negative_slope=("alpha", 0.01)), "Elu": of(F.elu, alpha=("alpha", 1.0)),
    "Celu": of(celu, alpha=("alpha", 1.0)), "ThresholdedRelu": of(thresholded_relu, alpha=("alpha", 1.0)),
    "Selu": _scaled_elu,
    "Shrink": of(shrink, bias=("bias", 0.0), threshold=("lambd", 0.5)), "PRelu": of(prelu), "Gelu": _gelu,
    "Add": arithmetic(torch.add, operator.add), "Sub": arithmetic(torch.sub, operator.sub),
    "Mul": arithmetic(torch.mul, operator.mul), "Div": _division, "Pow": _power, "Mod": _remainder,
    "BitShift": _shifted, "Max": _extreme(torch.maximum, "min"), "Min": _extreme(torch.minimum, "max"),
    "Sum": _summed, "Where": _where, "Clip": _clip, "Cast": _cast, "CastLike": _cast_like, "IsInf": _infinite,
    "Softmax": _normalised(torch.softmax), "LogSoftmax": _normalised(torch.log_softmax),
    "Hardmax": _normalised(hard_max), "Dropout": _dropout, "Identity": of(torch.clone),
}  # fmt: skip

CONTRIBUTED: Mapping[str, Translate] = {
    "Gelu": of(F.gelu), "FastGelu": _fast_gelu, "BiasGelu": lambda a, x, bias: Call(biased, (x, bias, "none")),
    "QuickGelu": of(quick_gelu, alpha=("alpha", 1.702)),
}  # fmt: skip
"""Of the domain com.microsoft."""


def is_constant(value: Value | None) -> bool:
    return isinstance(value, Operand) and value.node is None
