"""How each ATen operator that computes is written in ONNX."""

import math
from typing import Any

import numpy as np
import torch
from torch.fx import Node

from autocompress.export.emitter import Emit, Emitter, as_type
from autocompress.export.moves import MOVES
from autocompress.export.types import ELEMENT_TYPES
from autocompress.graph.calls import arguments

aten = torch.ops.aten


def _same(op: str, **attributes: Any) -> Emit:
    """An ATen operator that is one ONNX operator of its first argument."""
    return lambda e, node: e.add(op, e.value(node.args[0]), **attributes)


def _leaky_relu(e: Emitter, node: Node) -> str:
    a = arguments(node)
    return e.add("LeakyRelu", e.value(a["self"]), alpha=float(a["negative_slope"]))


def _elu(e: Emitter, node: Node) -> str | None:
    a = arguments(node)
    if a["scale"] != 1 or a["input_scale"] != 1:
        return None
    return e.add("Elu", e.value(a["self"]), alpha=float(a["alpha"]))


def _gelu(e: Emitter, node: Node) -> str | None:
    """x/2 (1 + erf(x/sqrt 2)), in the form that ONNX Runtime fuses."""
    a = arguments(node)
    if a["approximate"] != "none":
        return None
    x = e.value(a["self"])
    erf = e.add("Erf", e.add("Div", x, e.value(math.sqrt(2))))
    return e.add("Mul", e.add("Mul", x, e.add("Add", erf, e.value(1.0))), e.value(0.5))


def _silu(e: Emitter, node: Node) -> str:
    x = e.value(node.args[0])
    return e.add("Mul", x, e.add("Sigmoid", x))


def _mish(e: Emitter, node: Node) -> str:
    x = e.value(node.args[0])
    return e.add("Mul", x, e.add("Tanh", e.add("Softplus", x)))


def _softplus(e: Emitter, node: Node) -> str | None:
    a = arguments(node)
    return e.add("Softplus", e.value(a["self"])) if a["beta"] == 1 else None


def _rsqrt(e: Emitter, node: Node) -> str:
    return e.add("Reciprocal", e.add("Sqrt", e.value(node.args[0])))


def _clip(low: str | float, high: str | float | None) -> Emit:
    """Clip between bounds that are numbers or the names of arguments that hold them."""

    def emit(e: Emitter, node: Node) -> str | None:
        a = arguments(node)
        bounds = [a[bound] if isinstance(bound, str) else bound for bound in (low, high)]
        dtype = e.type(node).dtype
        if not dtype.is_floating_point or e.type(a["self"]).dtype is not dtype:
            return None
        return e.add("Clip", e.value(a["self"]), *("" if b is None else e.value(float(b), dtype) for b in bounds))

    return emit


def _binary(op: str) -> Emit:
    """Arithmetic on two tensors or a tensor and a number, operands cast to the result's type."""

    def emit(e: Emitter, node: Node) -> str | None:
        a = arguments(node)
        if a.get("rounding_mode") is not None:
            return None
        dtype = e.type(node).dtype
        left, right = as_type(e, a["self"], dtype), as_type(e, a["other"], dtype)
        if a.get("alpha", 1) != 1:
            right = e.add("Mul", right, e.value(a["alpha"], dtype))
        return e.add(op, left, right)

    return emit


def _power(e: Emitter, node: Node) -> str:
    a = arguments(node)
    dtype = e.type(node).dtype
    return e.add("Pow", as_type(e, a["self"], dtype), e.value(a["exponent"], dtype))


def _compare(op: str) -> Emit:
    def emit(e: Emitter, node: Node) -> str:
        a = arguments(node)
        operands = [x for x in (a["self"], a["other"]) if isinstance(x, Node)]
        dtype = e.type(operands[0]).dtype
        for operand in operands[1:]:
            dtype = torch.promote_types(dtype, e.type(operand).dtype)
        if any(isinstance(x, float) for x in (a["self"], a["other"])) and not dtype.is_floating_point:
            dtype = torch.float32
        return e.add(op, as_type(e, a["self"], dtype), as_type(e, a["other"], dtype))

    return emit


def _where(e: Emitter, node: Node) -> str:
    a = arguments(node)
    dtype = e.type(node).dtype
    return e.add("Where", e.value(a["condition"]), as_type(e, a["self"], dtype), as_type(e, a["other"], dtype))


def _masked_fill(e: Emitter, node: Node) -> str:
    a = arguments(node)
    dtype = e.type(node).dtype
    return e.add("Where", e.value(a["mask"]), e.value(a["value"], dtype), e.value(a["self"]))


def _cast(e: Emitter, node: Node) -> str:
    return e.add("Cast", e.value(node.args[0]), to=ELEMENT_TYPES[e.type(node).dtype])


def _spread(values: Any, rank: int) -> list[int]:
    listed = [int(v) for v in values] if isinstance(values, (list, tuple)) else [int(values)]
    return listed * rank if len(listed) == 1 else listed


def _windows(a: dict[str, Any], rank: int) -> dict[str, Any]:
    kernel = _spread(a["kernel_size"], rank)
    return {
        "kernel_shape": kernel,
        "strides": _spread(a["stride"], rank) if a["stride"] else kernel,
        "pads": _spread(a["padding"], rank) * 2,
        "ceil_mode": int(a["ceil_mode"]),
    }


def _max_pool(rank: int) -> Emit:
    def emit(e: Emitter, node: Node) -> str | None:
        a = arguments(node)
        if e.rank(a["self"]) != rank + 2:
            return None
        return e.add("MaxPool", e.value(a["self"]), dilations=_spread(a["dilation"], rank), **_windows(a, rank))

    return emit


def _average_pool(rank: int) -> Emit:
    """Windows that reach beyond the padding (ceil_mode with padding) are counted differently: left to torch."""

    def emit(e: Emitter, node: Node) -> str | None:
        a, windows = arguments(node), _windows(arguments(node), rank)
        if e.rank(a["self"]) != rank + 2 or (a["ceil_mode"] and any(windows["pads"])):
            return None
        divisor = a.get("divisor_override")
        counted = int(a["count_include_pad"] or divisor is not None)
        pooled = e.add("AveragePool", e.value(a["self"]), count_include_pad=counted, **windows)
        if divisor is None:
            return pooled
        return e.add("Mul", pooled, e.value(math.prod(windows["kernel_shape"]) / divisor))

    return emit


def _adaptive_pool(e: Emitter, node: Node) -> str | None:
    """Equal windows only: a target size that divides the map."""
    source: Any = node.args[0]
    size, target = e.type(source).one[2:], e.type(node).one[2:]
    if all(n == 1 for n in target):
        return e.add("GlobalAveragePool", e.value(source))
    if any(n % t for n, t in zip(size, target, strict=True)):
        return None
    window = [n // t for n, t in zip(size, target, strict=True)]
    return e.add("AveragePool", e.value(source), kernel_shape=window, strides=window)


def _axes(a: dict[str, Any], rank: int) -> list[int]:
    dims = a["dim"]
    listed = list(dims) if isinstance(dims, (list, tuple)) else ([] if dims is None else [dims])
    return sorted(d % rank for d in listed) or list(range(rank))


def _mean(e: Emitter, node: Node) -> str:
    """A mean over an image's positions is a global pooling, which runtimes have in int8 too."""
    a = arguments(node)
    x, rank = a["self"], e.rank(a["self"])
    axes = _axes(a, rank)
    if rank < 3 or axes != list(range(2, rank)) or rank == 3:
        return e.add("ReduceMean", e.value(x), axes=axes, keepdims=int(a["keepdim"]))
    pooled = e.add("GlobalAveragePool", e.value(x))
    return pooled if a["keepdim"] else e.add("Reshape", pooled, e.shape_of(node))


def _sum(e: Emitter, node: Node) -> str:
    a = arguments(node)
    axes = e.integers(*_axes(a, e.rank(a["self"])))
    return e.add("ReduceSum", as_type(e, a["self"], e.type(node).dtype), axes, keepdims=int(a["keepdim"]))


def _amax(e: Emitter, node: Node) -> str:
    a = arguments(node)
    return e.add("ReduceMax", e.value(a["self"]), axes=_axes(a, e.rank(a["self"])), keepdims=int(a["keepdim"]))


def _softmax(op: str) -> Emit:
    def emit(e: Emitter, node: Node) -> str:
        a = arguments(node)
        return e.add(op, as_type(e, a["self"], e.type(node).dtype), axis=int(a["dim"]))

    return emit


def _matmul(e: Emitter, node: Node) -> str:
    left, right = node.args[:2]
    return e.add("MatMul", e.value(left), e.value(right))


def _baddbmm(e: Emitter, node: Node) -> str | None:
    a = arguments(node)
    if a["beta"] != 1 or a["alpha"] != 1:
        return None
    return e.add("Add", e.add("MatMul", e.value(a["batch1"]), e.value(a["batch2"])), e.value(a["self"]))


def _attention(e: Emitter, node: Node) -> str | None:
    """softmax(q k^T / sqrt d + mask) v, the mask a constant or a tensor that is added or, if Boolean, chooses."""
    a = arguments(node)
    query, key = a["query"], a["key"]
    if a["dropout_p"] or a.get("enable_gqa"):
        return None
    width = e.type(query).one[-1]
    scale = a.get("scale") or 1 / math.sqrt(width)
    order = list(range(e.rank(key)))
    order[-2:] = order[:-3:-1]
    turned = e.add("Transpose", e.value(key), perm=order)
    scores = e.add("MatMul", e.add("Mul", e.value(query), e.value(scale)), turned)
    if a["is_causal"]:
        shape = (e.type(query).one[-2], e.type(key).one[-2])
        scores = e.add("Add", scores, e.constant(np.triu(np.full(shape, -np.inf, np.float32), 1)))
    elif a["attn_mask"] is not None:
        mask = e.value(a["attn_mask"])
        if e.type(a["attn_mask"]).dtype is torch.bool:
            mask = e.add("Where", mask, e.value(0.0), e.value(-math.inf))
        scores = e.add("Add", scores, mask)
    return e.add("MatMul", e.add("Softmax", scores, axis=-1), e.value(a["value"]))


def _with_tensor_and_number(name: str) -> tuple[Any, Any]:
    packet = getattr(aten, name)
    return packet.Tensor, packet.Scalar


_ARITHMETIC = (("add", "Add"), ("sub", "Sub"), ("mul", "Mul"), ("div", "Div"))
_COMPARISONS = (("eq", "Equal"), ("lt", "Less"), ("le", "LessOrEqual"), ("gt", "Greater"), ("ge", "GreaterOrEqual"))
_CASTS = (aten._to_copy.default, aten.to.dtype, aten.to.dtype_layout, aten.type_as.default)

FUNCTIONS: dict[Any, Emit] = {
    aten.relu.default: _same("Relu"),
    aten.sigmoid.default: _same("Sigmoid"),
    aten.tanh.default: _same("Tanh"),
    aten.exp.default: _same("Exp"),
    aten.log.default: _same("Log"),
    aten.erf.default: _same("Erf"),
    aten.neg.default: _same("Neg"),
    aten.abs.default: _same("Abs"),
    aten.sqrt.default: _same("Sqrt"),
    aten.reciprocal.default: _same("Reciprocal"),
    aten.hardswish.default: _same("HardSwish"),
    aten.hardsigmoid.default: _same("HardSigmoid", alpha=1 / 6, beta=0.5),
    aten.leaky_relu.default: _leaky_relu,
    aten.elu.default: _elu,
    aten.gelu.default: _gelu,
    aten.silu.default: _silu,
    aten.mish.default: _mish,
    aten.softplus.default: _softplus,
    aten.rsqrt.default: _rsqrt,
    aten.relu6.default: _clip(0.0, 6.0),
    aten.hardtanh.default: _clip("min_val", "max_val"),
    aten.clamp.default: _clip("min", "max"),
    aten.clamp_min.default: _clip("min", None),
    aten.pow.Tensor_Scalar: _power,
    **{overload: _binary(op) for name, op in _ARITHMETIC for overload in _with_tensor_and_number(name)},
    aten.maximum.default: _binary("Max"),
    aten.minimum.default: _binary("Min"),
    **{overload: _compare(op) for name, op in _COMPARISONS for overload in _with_tensor_and_number(name)},
    aten.where.self: _where,
    aten.masked_fill.Scalar: _masked_fill,
    **dict.fromkeys(_CASTS, _cast),
    aten.max_pool1d.default: _max_pool(1),
    aten.max_pool2d.default: _max_pool(2),
    aten.avg_pool1d.default: _average_pool(1),
    aten.avg_pool2d.default: _average_pool(2),
    aten.adaptive_avg_pool1d.default: _adaptive_pool,
    aten.adaptive_avg_pool2d.default: _adaptive_pool,
    aten.mean.dim: _mean,
    aten.sum.dim_IntList: _sum,
    aten.amax.default: _amax,
    aten.softmax.int: _softmax("Softmax"),
    aten._softmax.default: _softmax("Softmax"),
    aten.log_softmax.int: _softmax("LogSoftmax"),
    aten._log_softmax.default: _softmax("LogSoftmax"),
    aten.matmul.default: _matmul,
    aten.bmm.default: _matmul,
    aten.baddbmm.default: _baddbmm,
    aten.scaled_dot_product_attention.default: _attention,
    **MOVES,
}
