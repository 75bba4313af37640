"""How each operator that owns parameters becomes a module of the lifted graph."""

import math
from collections.abc import Callable
from typing import Any

import torch
from torch import Tensor, nn
from torch.fx import Node

from autocompress.graph.calls import arguments
from autocompress.graph.lift import Constant, _Lift
from autocompress.graph.recurrent import GRU, LSTM, RNN

aten = torch.ops.aten

Lifting = Callable[[_Lift, Node], Node | None]
"""Makes a node's counterpart in the lifted graph; None leaves it a call of the operator."""

_CONVOLUTIONS: dict[int, Any] = {1: nn.Conv1d, 2: nn.Conv2d, 3: nn.Conv3d}
_TRANSPOSED: dict[int, Any] = {1: nn.ConvTranspose1d, 2: nn.ConvTranspose2d, 3: nn.ConvTranspose3d}
_BATCH_NORMS = {2: nn.BatchNorm1d, 3: nn.BatchNorm1d, 4: nn.BatchNorm2d, 5: nn.BatchNorm3d}
_INSTANCE_NORMS: dict[int, Any] = {3: nn.InstanceNorm1d, 4: nn.InstanceNorm2d, 5: nn.InstanceNorm3d}


def _given(lift: _Lift, a: dict[str, Any], *names: str) -> list[Constant | None] | None:
    """The constants behind these arguments (None for None); None if one of them is computed from inputs."""
    found = [lift.constant(a[name]) for name in names]
    return None if any(c is None and a[name] is not None for c, name in zip(found, names, strict=True)) else found


def _holding(lift: _Lift, module: nn.Module, **tensors: Constant | None) -> nn.Module:
    """A module made without memory, given the tensors it is to hold."""
    for name, constant in tensors.items():
        if constant is not None:
            setattr(module, name, lift.parameter(constant))
    return module


def _shape(node: Any) -> tuple[int, ...]:
    shape: tuple[int, ...] = tuple(node.meta["val"].shape)
    return shape


def _tuple(value: Any, rank: int) -> tuple[int, ...]:
    values = tuple(value) if isinstance(value, (list, tuple)) else (value,)
    return values * rank if len(values) == 1 else values


def _convolution(lift: _Lift, node: Node) -> Node | None:
    a = arguments(node)
    given = _given(lift, a, "weight", "bias")
    if given is None or given[0] is None:
        return None
    weight, bias = given[0], given[1]
    if a.get("transposed") or ("output_padding" in a and "transposed" not in a):
        return _transposed(lift, node, a, weight, bias)
    shape, groups = weight.value.shape, a["groups"]
    rank = len(shape) - 2
    padding = a["padding"] if isinstance(a["padding"], str) else _tuple(a["padding"], rank)
    module = _CONVOLUTIONS[rank](
        shape[1] * groups, shape[0], tuple(shape[2:]), _tuple(a["stride"], rank), padding,
        _tuple(a["dilation"], rank), groups, bias is not None, device="meta",
    )  # fmt: skip
    return _batched(lift, node, a["input"], rank, weight, _holding(lift, module, weight=weight, bias=bias))


def _transposed(lift: _Lift, node: Node, a: dict[str, Any], weight: Constant, bias: Constant | None) -> Node:
    shape, groups = weight.value.shape, a["groups"]
    rank = len(shape) - 2
    module = _TRANSPOSED[rank](
        shape[0], shape[1] * groups, tuple(shape[2:]), _tuple(a["stride"], rank), _tuple(a["padding"], rank),
        _tuple(a["output_padding"], rank), groups, bias is not None, _tuple(a["dilation"], rank), device="meta",
    )  # fmt: skip
    return _batched(lift, node, a["input"], rank, weight, _holding(lift, module, weight=weight, bias=bias))


def _batched(lift: _Lift, node: Node, x: Any, rank: int, weight: Constant, module: nn.Module) -> Node:
    """A call on (N, C, ...); one sample without a batch axis gets one for the call."""
    if len(_shape(x)) == rank + 2:
        return lift.module(weight, module, node, x)
    one = lift.call(aten.unsqueeze.default, (lift.value(x), 0), f"{node.name}_batch")
    made = lift.module(weight, module, node, x)
    made.args = (one,)
    return lift.call(aten.squeeze.dim, (made, 0), f"{node.name}_sample")


def _linear(lift: _Lift, node: Node) -> Node | None:
    a = arguments(node)
    given = _given(lift, a, "weight", "bias")
    if given is None or given[0] is None or given[0].value.dim() != 2:
        return None
    return _as_linear(lift, node, a["input"], *given)


def _as_linear(lift: _Lift, node: Node, x: Any, weight: Constant | None, bias: Constant | None) -> Node:
    assert weight is not None
    outputs, inputs = weight.value.shape
    module = nn.Linear(inputs, outputs, bias is not None, device="meta")
    return lift.module(weight, _holding(lift, module, weight=weight, bias=bias), node, x)


def _turned(lift: _Lift, weight: Constant) -> Constant:
    return lift.computed("turned", lambda w: w.t().contiguous(), weight)


def _matrix_product(lift: _Lift, node: Node) -> Node | None:
    """x @ W with a constant matrix W is a linear layer, and so is W @ x, turned, if W is a parameter."""
    left, right = node.args[:2]
    before, behind = lift.constant(left), lift.constant(right)
    if behind is not None and before is None and _is_matrix(behind):
        return _as_linear(lift, node, left, _turned(lift, behind), None)
    if before is not None and behind is None and before.trains and _is_matrix(before):
        return _left_product(lift, node, before, right)
    return None


def _is_matrix(constant: Constant) -> bool:
    return constant.value.dim() == 2 and _is_float(constant.value)


def _left_product(lift: _Lift, node: Node, weight: Constant, x: Any) -> Node | None:
    if x.meta["val"].dim() < 2:
        return None
    turned = lift.call(aten.transpose.int, (lift.value(x), -2, -1), f"{node.name}_turned")
    lift.new[turned] = turned
    made = _as_linear(lift, node, turned, weight, None)
    return lift.call(aten.transpose.int, (made, -2, -1), f"{node.name}_back")


def _affine_product(lift: _Lift, node: Node) -> Node | None:
    """b + x @ W with constant W and b, as `addmm` says it."""
    a = arguments(node)
    given = _given(lift, a, "self", "mat2")
    if given is None or a["alpha"] != 1 or a["beta"] != 1 or lift.constant(a["mat1"]) is not None:
        return None
    bias, weight = given
    if weight is None or bias is None or bias.value.dim() != 1 or len(bias.value) != weight.value.shape[1]:
        return None
    return _as_linear(lift, node, a["mat1"], _turned(lift, weight), bias)


def _is_float(tensor: Tensor) -> bool:
    return tensor.is_floating_point()


def _batch_norm(lift: _Lift, node: Node) -> Node | None:
    a = arguments(node)
    given = _given(lift, a, "weight", "bias", "running_mean", "running_var")
    if given is None or given[2] is None or a.get("training"):
        return None
    return _as_batch_norm(lift, node, a, given)


def _as_batch_norm(lift: _Lift, node: Node, a: dict[str, Any], given: list[Constant | None]) -> Node:
    weight, bias, mean, variance = given
    assert mean is not None and variance is not None
    rank = len(_shape(a["input"]))
    affine = weight is not None or bias is not None
    module = _BATCH_NORMS[rank](mean.value.numel(), eps=a["eps"], momentum=a["momentum"], affine=affine)
    _holding(lift, module, weight=weight, bias=bias)
    module.running_mean = mean.value.detach().clone()
    module.running_var = variance.value.detach().clone()
    if node.target is not aten.batch_norm.default and node.target is not aten.instance_norm.default:
        lift.single.add(node)
    return lift.module(weight or mean, module, node, a["input"])


def _layer_norm(lift: _Lift, node: Node) -> Node | None:
    a = arguments(node)
    given = _given(lift, a, "weight", "bias")
    if given is None:
        return None
    weight, bias = given
    module = nn.LayerNorm(a["normalized_shape"], a["eps"], weight is not None, bias is not None, device="meta")
    if node.target is aten.native_layer_norm.default:
        lift.single.add(node)
    return lift.module(weight, _holding(lift, module, weight=weight, bias=bias), node, a["input"])


def _rms_norm(lift: _Lift, node: Node) -> Node | None:
    a = arguments(node)
    given = _given(lift, a, "weight")
    if given is None:
        return None
    module = nn.RMSNorm(a["normalized_shape"], a["eps"], given[0] is not None, device="meta")
    return lift.module(given[0], _holding(lift, module, weight=given[0]), node, a["input"])


def _group_norm(lift: _Lift, node: Node) -> Node | None:
    a = arguments(node)
    given = _given(lift, a, "weight", "bias")
    if given is None or (given[0] is None) != (given[1] is None):
        return None
    weight, bias = given
    channels = _shape(a["input"])[1]
    module = nn.GroupNorm(a["num_groups"], channels, a["eps"], weight is not None, device="meta")
    return lift.module(weight, _holding(lift, module, weight=weight, bias=bias), node, a["input"])


def _instance_norm(lift: _Lift, node: Node) -> Node | None:
    a = arguments(node)
    given = _given(lift, a, "weight", "bias", "running_mean", "running_var")
    rank = len(_shape(a["input"]))
    if given is None or rank not in _INSTANCE_NORMS:
        return None
    if not a["use_input_stats"]:
        return _as_batch_norm(lift, node, a, given)
    weight, bias = given[:2]
    channels = _shape(a["input"])[1]
    module = _INSTANCE_NORMS[rank](channels, a["eps"], affine=weight is not None, device="meta")
    return lift.module(weight, _holding(lift, module, weight=weight, bias=bias), node, a["input"])


def _embedding(lift: _Lift, node: Node) -> Node | None:
    a = arguments(node)
    weight = lift.constant(a["weight"])
    if weight is None or weight.value.dim() != 2:
        return None
    padding = a["padding_idx"] if a["padding_idx"] is not None and a["padding_idx"] >= 0 else None
    rows, width = weight.value.shape
    module = nn.Embedding(rows, width, padding, device="meta")
    return lift.module(weight, _holding(lift, module, weight=weight), node, a["indices"])


def _prelu(lift: _Lift, node: Node) -> Node | None:
    a = arguments(node)
    weight = lift.constant(a["weight"])
    if weight is None or weight.value.dim() > 1:
        return None
    module = nn.PReLU(max(1, weight.value.numel()))
    if weight.value.dim() == 0:
        weight = lift.computed("as a vector", lambda w: w.reshape(1), weight)
    return lift.module(weight, _holding(lift, module, weight=weight), node, a["self"])


def _recurrent(kind: Any, states: str, **options: Any) -> Lifting:
    """LSTM, GRU or RNN with constant weights; initial states of zeros are left out."""

    def lifting(lift: _Lift, node: Node) -> Node | None:
        a = arguments(node)
        weights = [lift.constant(weight) for weight in a["params"]]
        directions = 2 if a["bidirectional"] else 1
        per_layer = len(weights) // (a["num_layers"] * directions)
        if None in weights or per_layer != (4 if a["has_biases"] else 2):
            return None  # projections have one more
        first: Any = weights[0]
        hidden = weights[1].value.shape[1]  # type: ignore[union-attr]
        module = kind(
            first.value.shape[1], hidden, a["num_layers"], bias=a["has_biases"], batch_first=a["batch_first"],
            dropout=a["dropout"], bidirectional=a["bidirectional"], device="meta", **options,
        )  # fmt: skip
        names = [name for layer in module._all_weights for name in layer]
        _holding(lift, module, **dict(zip(names, weights, strict=True)))
        given = a[states] if isinstance(a[states], (list, tuple)) else [a[states]]
        begins = () if all(_is_zero(lift, state) for state in given) else given
        return lift.module(first, module, node, a["input"], *begins)

    return lifting


def _is_zero(lift: _Lift, node: Any) -> bool:
    constant = lift.constant(node)
    if constant is not None:
        return not bool(constant.value.any())
    if not isinstance(node, Node):
        return False
    filled = node.target in (aten.full.default, aten.full_like.default) and bool(node.args[1] == 0)
    return filled or node.target in (aten.zeros.default, aten.zeros_like.default, aten.new_zeros.default)


def _squeeze(lift: _Lift, node: Node) -> Node:
    """Without axes, all of size one go; a free batch is none of them, even when it happens to be one."""
    sizes = _shape(node.args[0])
    axes = [axis for axis, size in enumerate(sizes) if isinstance(size, int) and size == 1]
    return lift.call(aten.squeeze.dims, (lift.value(node.args[0]), axes), node.name)


def _attention(lift: _Lift, node: Node) -> Node | None:
    """The scale is spelled out, since a head may become narrower; heads that share keys are repeated."""
    a = arguments(node)
    if a["scale"] is None and isinstance(width := _shape(a["query"])[-1], int):
        a["scale"] = 1 / math.sqrt(width)
    keys = [lift.value(a["key"]), lift.value(a["value"])]
    if a["enable_gqa"]:
        times = _shape(a["query"])[-3] // _shape(a["key"])[-3]
        keys = [_repeated(lift, key, times) for key in keys]
    args = (lift.value(a["query"]), *keys, lift.value(a["attn_mask"]), 0.0, a["is_causal"])
    return lift.call(node.target, args, node.name, {"scale": a["scale"]})


def _repeated(lift: _Lift, heads: Node, times: int) -> Node:
    """(N, heads, T, D) with every head `times` times in a row."""
    one = lift.call(aten.unsqueeze.default, (heads, 2), f"{heads.name}_one")
    many = lift.call(aten.expand.default, (one, [-1, -1, times, -1, -1]), f"{heads.name}_many")
    return lift.call(aten.flatten.using_ints, (many, 1, 2), f"{heads.name}_repeated")


LIFTS: dict[Any, Lifting] = {
    **{getattr(aten, f"conv{rank}d").default: _convolution for rank in (1, 2, 3)},
    **{getattr(aten, f"conv{rank}d").padding: _convolution for rank in (1, 2, 3)},
    aten.conv_transpose1d.default: _convolution,
    aten.conv_transpose2d.input: _convolution,
    aten.conv_transpose3d.input: _convolution,
    aten.convolution.default: _convolution,
    aten.linear.default: _linear,
    aten.matmul.default: _matrix_product,
    aten.mm.default: _matrix_product,
    aten.addmm.default: _affine_product,
    aten.batch_norm.default: _batch_norm,
    aten._native_batch_norm_legit_no_training.default: _batch_norm,
    aten.native_layer_norm.default: _layer_norm,
    aten.layer_norm.default: _layer_norm,
    aten.rms_norm.default: _rms_norm,
    aten.group_norm.default: _group_norm,
    aten.instance_norm.default: _instance_norm,
    aten.embedding.default: _embedding,
    aten.prelu.default: _prelu,
    aten.lstm.input: _recurrent(LSTM, "hx"),
    aten.gru.input: _recurrent(GRU, "hx"),
    aten.rnn_tanh.input: _recurrent(RNN, "hx"),
    aten.rnn_relu.input: _recurrent(RNN, "hx", nonlinearity="relu"),
    aten.squeeze.default: _squeeze,
    aten.scaled_dot_product_attention.default: _attention,
}
