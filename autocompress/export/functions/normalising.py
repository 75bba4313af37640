"""How normalisations without a module of their own are written in ONNX."""

from typing import Any

import torch
from torch.fx import Node

from autocompress.export.emitter import Emit, Emitter
from autocompress.export.functions.reducing import reduced
from autocompress.graph.calls import arguments

aten = torch.ops.aten


def _softmax(op: str) -> Emit:
    def emit(e: Emitter, node: Node) -> str:
        a = arguments(node)
        x = e.cast_to(a["self"], e.dtype(node))
        return e.add(op, x, axis=int(a["dim"])) if e.rank(node) else e.like(node, 1.0 if op == "Softmax" else 0.0)

    return emit


def _per_channel(e: Emitter, x: Any, tensor: Any, start: float) -> str:
    """A weight or bias of the channels (axis 1), or what stands for none."""
    if tensor is not None:
        return e.value(tensor)
    return e.constant(torch.full((e.type(x).one[1],), start, dtype=e.dtype(x)).numpy())


def layer_norm(e: Emitter, x: Any, axes: int, weight: str | None, bias: str | None, epsilon: float) -> str:
    """Over the last `axes` axes."""
    if weight is None:
        weight = e.constant(torch.ones(e.type(x).one[-axes:], dtype=e.dtype(x)).numpy())
    operands = [weight] if bias is None else [weight, bias]
    return e.add("LayerNormalization", e.value(x), *operands, axis=-axes, epsilon=epsilon)


def _layer_norm(e: Emitter, node: Node) -> Any:
    a = arguments(node)
    weight, bias = (None if a[name] is None else e.value(a[name]) for name in ("weight", "bias"))
    made = layer_norm(e, a["input"], len(a["normalized_shape"]), weight, bias, float(a["eps"]))
    return (made, "", "") if node.target is aten.native_layer_norm.default else made


def rms_norm(e: Emitter, x: Any, axes: int, weight: str | None, epsilon: float | None) -> str:
    """x / sqrt(mean(x^2) + epsilon), over the last `axes` axes."""
    value, last = e.value(x), list(range(-axes, 0))
    epsilon = torch.finfo(e.dtype(x)).eps if epsilon is None else epsilon
    squares = reduced(e, "ReduceMean", e.add("Mul", value, value), last, True)
    made = e.add("Div", value, e.add("Sqrt", e.add("Add", squares, e.like(x, epsilon))))
    return made if weight is None else e.add("Mul", made, weight)


def _rms_norm(e: Emitter, node: Node) -> Any:
    a = arguments(node)
    weight = None if a["weight"] is None else e.value(a["weight"])
    made = rms_norm(e, a["input"], len(a["normalized_shape"]), weight, a["eps"])
    return (made, "") if node.target is aten._fused_rms_norm.default else made


def group_norm(e: Emitter, x: Any, groups: int, weight: str | None, bias: str | None, epsilon: float) -> str:
    """Instance norm over (batch, group, everything else), then the affine part by channel, of shape (C, 1, ...)."""
    kind = e.type(x)
    ones, zeros = (e.constant(f((groups,), dtype=kind.dtype).numpy()) for f in (torch.ones, torch.zeros))
    grouped = e.add("Reshape", e.value(x), e.integers(0, groups, -1))
    normal = e.add("InstanceNormalization", grouped, ones, zeros, epsilon=epsilon)
    normal = e.add("Reshape", normal, e.shape_of(x))
    normal = normal if weight is None else e.add("Mul", normal, weight)
    return normal if bias is None else e.add("Add", normal, bias)


def _spread_channels(e: Emitter, x: Any, tensor: Any) -> str | None:
    """A channel's number for all its positions: (C, 1, ..., 1)."""
    if tensor is None:
        return None
    shape = (-1, *[1] * (e.rank(x) - 2))
    known = e.constant_value(tensor)
    if known is not None:
        return e.parameter(known.reshape(shape), tensor.name)
    return e.add("Reshape", e.value(tensor), e.integers(*shape))


def _group_norm(e: Emitter, node: Node) -> str:
    a = arguments(node)
    x = a["input"]
    weight, bias = (_spread_channels(e, x, a[name]) for name in ("weight", "bias"))
    return group_norm(e, x, int(a["num_groups"]), weight, bias, float(a["eps"]))


def _native_group_norm(e: Emitter, node: Node) -> tuple[str, str, str]:
    a = arguments(node)
    x = a["input"]
    weight, bias = (_spread_channels(e, x, a[name]) for name in ("weight", "bias"))
    return group_norm(e, x, int(a["group"]), weight, bias, float(a["eps"])), "", ""


def _instance_norm(e: Emitter, node: Node) -> str | None:
    a = arguments(node)
    if not a["use_input_stats"]:
        return _batch_norm(e, node)[0]
    x = a["input"]
    scale, shift = _per_channel(e, x, a["weight"], 1.0), _per_channel(e, x, a["bias"], 0.0)
    return e.add("InstanceNormalization", e.value(x), scale, shift, epsilon=float(a["eps"]))


def _batch_norm(e: Emitter, node: Node) -> tuple[str, str, str]:
    a = arguments(node)
    x = a["input"]
    operands = [_per_channel(e, x, a["weight"], 1.0), _per_channel(e, x, a["bias"], 0.0)]
    operands += [e.value(a["running_mean"]), e.value(a["running_var"])]
    return e.add("BatchNormalization", e.value(x), *operands, epsilon=float(a["eps"])), "", ""


def _running(several: bool) -> Emit:
    """Batch norm by statistics that are given; by its own batch's it is not a function of one sample."""

    def emit(e: Emitter, node: Node) -> Any:
        a = arguments(node)
        if a.get("training") or a.get("train") or a["running_mean"] is None:
            return None
        made = _batch_norm(e, node)
        return made if several else made[0]

    return emit


NORMALISING: dict[Any, Emit] = {
    aten.softmax.int: _softmax("Softmax"),
    aten._softmax.default: _softmax("Softmax"),
    aten.log_softmax.int: _softmax("LogSoftmax"),
    aten._log_softmax.default: _softmax("LogSoftmax"),
    aten.layer_norm.default: _layer_norm,
    aten.native_layer_norm.default: _layer_norm,
    aten.rms_norm.default: _rms_norm,
    aten._fused_rms_norm.default: _rms_norm,
    aten.group_norm.default: _group_norm,
    aten.native_group_norm.default: _native_group_norm,
    aten.instance_norm.default: _instance_norm,
    aten.batch_norm.default: _running(several=False),
    aten.native_batch_norm.default: _running(several=True),
    aten._native_batch_norm_legit_no_training.default: _running(several=True),
}
