"""How activation functions are written in ONNX."""

import math
from typing import Any

import torch
from torch.fx import Node

from autocompress.export.emitter import Emit, Emitter
from autocompress.graph.calls import arguments

aten = torch.ops.aten


def same(op: str, **attributes: Any) -> Emit:
    """An ATen operator that is one ONNX operator of its first argument, in the result's type."""
    return lambda e, node: e.add(op, e.cast_to(node.args[0], e.dtype(node)), **attributes)


def _leaky_relu(e: Emitter, node: Node) -> str:
    a = arguments(node)
    return e.add("LeakyRelu", e.value(a["self"]), alpha=float(a["negative_slope"]))


def _elu(e: Emitter, node: Node) -> str:
    """scale * (x if x > 0 else alpha (exp(x input_scale) - 1)), of which ONNX has Elu without the scales."""
    a = arguments(node)
    return _scaled_elu(e, node, float(a["alpha"]), float(a["scale"]), float(a["input_scale"]))


def _scaled_elu(e: Emitter, node: Node, alpha: float, scale: float = 1.0, input_scale: float = 1.0) -> str:
    x: Any = node.args[0]
    if input_scale == 1:
        made = e.add("Elu", e.value(x), alpha=alpha)
    else:
        inner = e.add("Elu", e.add("Mul", e.value(x), e.like(x, input_scale)), alpha=alpha)
        made = e.add("Where", e.add("Greater", e.value(x), e.like(x, 0)), e.value(x), inner)
    return made if scale == 1 else e.add("Mul", made, e.like(x, scale))


def _celu(e: Emitter, node: Node) -> str:
    alpha = float(arguments(node)["alpha"])
    return _scaled_elu(e, node, alpha, input_scale=1 / alpha)


def _selu(e: Emitter, node: Node) -> str:
    return e.add("Selu", e.value(node.args[0]), alpha=1.6732632423543772, gamma=1.0507009873554805)


def _gelu(e: Emitter, node: Node) -> str:
    """x/2 (1 + erf(x/sqrt 2)), or its tanh approximation, in the forms that ONNX Runtime fuses."""
    a = arguments(node)
    x = a["self"]
    if a["approximate"] == "none":
        inner = e.add("Erf", e.add("Div", e.value(x), e.like(x, math.sqrt(2))))
    else:
        cube = e.add("Mul", e.add("Pow", e.value(x), e.like(x, 3)), e.like(x, 0.044715))
        inner = e.add("Tanh", e.add("Mul", e.add("Add", e.value(x), cube), e.like(x, math.sqrt(2 / math.pi))))
    return e.add("Mul", e.add("Mul", e.value(x), e.add("Add", inner, e.like(x, 1))), e.like(x, 0.5))


def _silu(e: Emitter, node: Node) -> str:
    x = e.value(node.args[0])
    return e.add("Mul", x, e.add("Sigmoid", x))


def _mish(e: Emitter, node: Node) -> str:
    x = e.value(node.args[0])
    return e.add("Mul", x, e.add("Tanh", e.add("Softplus", x)))


def _softplus(e: Emitter, node: Node) -> str:
    """log(1 + exp(beta x)) / beta, and x itself above the threshold, where the two differ by less than rounding."""
    a = arguments(node)
    x, beta = a["self"], a["beta"]
    if beta == 1 and a["threshold"] >= 20:
        return e.add("Softplus", e.value(x))
    scaled = e.add("Mul", e.value(x), e.like(x, beta))
    soft = e.add("Div", e.add("Softplus", scaled), e.like(x, beta))
    return e.add("Where", e.add("Greater", scaled, e.like(x, a["threshold"])), e.value(x), soft)


def _log_sigmoid(e: Emitter, node: Node) -> str:
    return e.add("Neg", e.add("Softplus", e.add("Neg", e.value(node.args[0]))))


def _log_sigmoid_forward(e: Emitter, node: Node) -> tuple[str, str]:
    return _log_sigmoid(e, node), ""


def _threshold(e: Emitter, node: Node) -> str:
    a = arguments(node)
    x = a["self"]
    above = e.add("Greater", e.value(x), e.like(x, a["threshold"]))
    return e.add("Where", above, e.value(x), e.like(x, a["value"]))


def _shrink(hard: bool) -> Emit:
    def emit(e: Emitter, node: Node) -> str:
        limit = float(arguments(node)["lambd"])
        return e.add("Shrink", e.value(node.args[0]), lambd=limit, bias=0.0 if hard else limit)

    return emit


def _glu(e: Emitter, node: Node) -> str:
    a = arguments(node)
    left, right = e.add_many("Split", 2, e.value(a["self"]), axis=int(a["dim"]))
    return e.add("Mul", left, e.add("Sigmoid", right))


def _prelu(e: Emitter, node: Node) -> str:
    """One slope, or one for every channel (axis 1), which ONNX wants broadcast from the right."""
    x, slope = node.args[:2]
    return prelu(e, x, e.value(slope), e.type(slope).one[0] if e.rank(slope) else 1)


def prelu(e: Emitter, x: Any, slope: str, slopes: int) -> str:
    if slopes > 1 and e.rank(x) > 2:
        slope = e.add("Reshape", slope, e.integers(slopes, *[1] * (e.rank(x) - 2)))
    return e.add("PRelu", e.value(x), slope)


def _rrelu(e: Emitter, node: Node) -> str:
    a = arguments(node)
    return e.add("LeakyRelu", e.value(a["self"]), alpha=(float(a["lower"]) + float(a["upper"])) / 2)


ACTIVATIONS: dict[Any, Emit] = {
    aten.relu.default: same("Relu"),
    aten.sigmoid.default: same("Sigmoid"),
    aten.tanh.default: same("Tanh"),
    aten.hardswish.default: same("HardSwish"),
    aten.hardsigmoid.default: same("HardSigmoid", alpha=1 / 6, beta=0.5),
    aten.leaky_relu.default: _leaky_relu,
    aten.elu.default: _elu,
    aten.celu.default: _celu,
    aten.selu.default: _selu,
    aten.gelu.default: _gelu,
    aten.silu.default: _silu,
    aten.mish.default: _mish,
    aten.softplus.default: _softplus,
    aten.log_sigmoid.default: _log_sigmoid,
    aten.log_sigmoid_forward.default: _log_sigmoid_forward,
    aten.threshold.default: _threshold,
    aten.hardshrink.default: _shrink(hard=True),
    aten.softshrink.default: _shrink(hard=False),
    aten.glu.default: _glu,
    aten.prelu.default: _prelu,
    aten._prelu_kernel.default: _prelu,
    aten.rrelu.default: _rrelu,
}
