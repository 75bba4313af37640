"""Products of matrices and normalisations, each as one call of torch."""

from collections.abc import Mapping
from typing import Any

import torch
import torch.nn.functional as F
from torch import Tensor

from autocompress.translation.operators.pointwise import is_constant
from autocompress.translation.values import Attributes, Call, Translate, Unsupported, Value


def scaled_gemm(a: Tensor, b: Tensor, c: Tensor | None, alpha: float, beta: float) -> Tensor:
    product = a @ b if alpha == 1 else alpha * (a @ b)
    return product if c is None else product + (c if beta == 1 else beta * c)


def transposed(x: Tensor) -> Tensor:
    return x.transpose(-1, -2)


def scaled_product(a: Tensor, b: Tensor, first: bool, second: bool, alpha: float) -> Tensor:
    product = (transposed(a) if first else a) @ (transposed(b) if second else b)
    return product if alpha == 1 else alpha * product


def rms_norm(x: Tensor, scale: Tensor, epsilon: float, axis: int) -> Tensor:
    axes = list(range(axis % x.dim(), x.dim()))
    return x * torch.rsqrt((x * x).mean(axes, True) + epsilon) * scale


def layer_norm(
    x: Tensor, shape: list[int], scale: Tensor, bias: Tensor | None, epsilon: float
) -> Tensor:  # fmt: skip
    """Whose scale is broadcast."""
    y = F.layer_norm(x, shape, None, None, epsilon) * scale
    return y if bias is None else y + bias


def group_norm(x: Tensor, groups: int, scale: Tensor, bias: Tensor, epsilon: float) -> Tensor:
    """A scale for each channel, or for each group."""
    each = x.shape[1] // scale.shape[0]
    return F.group_norm(x, groups, scale.repeat_interleave(each), bias.repeat_interleave(each), epsilon)


def skip_layer_norm(
    x: Tensor, skip: Tensor, scale: Tensor, shift: Tensor | None, bias: Tensor | None, epsilon: float
) -> tuple[Tensor, Tensor]:
    """(normalised, the sum): ONNX Runtime's second and third outputs are of training."""
    total = x + skip if bias is None else x + skip + bias
    return F.layer_norm(total, [total.shape[-1]], scale, shift, epsilon), total


def skip_rms_norm(
    x: Tensor, skip: Tensor, scale: Tensor, bias: Tensor | None, epsilon: float
) -> tuple[Tensor, Tensor]:  # fmt: skip
    total = x + skip if bias is None else x + skip + bias
    return rms_norm(total, scale, epsilon, -1), total


def attention(
    x: Tensor, weight: Tensor, bias: Tensor, mask: Tensor | None, extra: Tensor | None, heads: int, causal: bool
) -> Tensor:
    """ONNX Runtime's packed self-attention; a mask of (batch, length) says which positions are looked at."""
    batch, length = x.shape[0], x.shape[1]
    packed = (x @ weight + bias).reshape(batch, length, 3, heads, -1).permute(2, 0, 3, 1, 4)
    q, k, v = packed[0], packed[1], packed[2]
    scores = q @ k.transpose(-1, -2) / q.shape[-1] ** 0.5
    if mask is not None:
        scores = scores + (1 - mask.to(scores.dtype))[:, None, None, :] * -10000.0
    if causal:
        scores = scores + torch.full((length, length), -10000.0, device=x.device).triu(1)
    scores = scores if extra is None else scores + extra
    made: Tensor = (scores.softmax(-1) @ v).transpose(1, 2).reshape(batch, length, -1)
    return made


def _gemm(a: Attributes, x: Value, w: Value, c: Value | None = None) -> Call:
    plain = a.get("alpha", 1) == 1 and a.get("beta", 1) == 1 and not a.get("transA", 0)
    if plain and a.get("transB", 0) and (c is None or c.rank == 1):
        return Call(F.linear, (x, w, c))
    first: Any = Call(transposed, (x,)) if a.get("transA", 0) else x
    second: Any = Call(transposed, (w,)) if a.get("transB", 0) else w
    return Call(scaled_gemm, (first, second, c, a.get("alpha", 1.0), a.get("beta", 1.0)))


def _fused_product(a: Attributes, x: Value, y: Value) -> Call:
    if a.get("transBatchA", 0) or a.get("transBatchB", 0):
        raise Unsupported("with transposed batches")
    return Call(scaled_product, (x, y, bool(a.get("transA", 0)), bool(a.get("transB", 0)), a.get("alpha", 1.0)))


def _batch_norm(a: Attributes, x: Value, scale: Value, bias: Value, mean: Value, variance: Value) -> Call:
    check_inference(a)
    return Call(F.batch_norm, (x, mean, variance, scale, bias), {"eps": a.get("epsilon", 1e-5)})


def check_inference(a: Attributes) -> None:
    if a.get("training_mode", 0) or a.outputs > 1 or not a.get("spatial", 1):
        raise Unsupported("in training mode, or of single elements")


def normalised_shape(a: Attributes, x: Value) -> list[int]:
    return [int(n) for n in x.example.shape[a.get("axis", -1) :]]


def _layer_norm(a: Attributes, x: Value, scale: Value, bias: Value | None = None) -> Call:
    if a.outputs > 1:
        raise Unsupported("with its mean as an output")
    shape, epsilon = normalised_shape(a, x), a.get("epsilon", 1e-5)
    if list(scale.example.shape) == shape:
        return Call(F.layer_norm, (x, shape, scale, bias), {"eps": epsilon})
    return Call(layer_norm, (x, shape, scale, bias, epsilon))


def _rms_norm(a: Attributes, x: Value, scale: Value) -> Call:
    return Call(rms_norm, (x, scale, a.get("epsilon", 1e-5), a.get("axis", -1)))


def _instance_norm(a: Attributes, x: Value, scale: Value, bias: Value) -> Call:
    return Call(F.instance_norm, (x, None, None, scale, bias), {"eps": a.get("epsilon", 1e-5)})


def _group_norm(a: Attributes, x: Value, scale: Value, bias: Value) -> Call:
    return Call(group_norm, (x, a["num_groups"], scale, bias, a.get("epsilon", 1e-5)))


def _skip_layer_norm(
    a: Attributes, x: Value, skip: Value, scale: Value, shift: Value | None = None, bias: Value | None = None
) -> Call:
    return Call(skip_layer_norm, (x, skip, scale, shift, bias, a.get("epsilon", 1e-12)))


def _skip_rms_norm(a: Attributes, x: Value, skip: Value, scale: Value, bias: Value | None = None) -> Call:
    return Call(skip_rms_norm, (x, skip, scale, bias, a.get("epsilon", 1e-6)))


def _attention(
    a: Attributes, x: Value, weight: Value, bias: Value, mask: Value | None = None,
    past: Value | None = None, extra: Value | None = None,
) -> Call:  # fmt: skip
    usual = past is None and a.outputs == 1 and not a.get("qkv_hidden_sizes") and not a.get("do_rotary", 0)
    if not usual or (mask is not None and mask.rank != 2) or a.get("mask_filter_value", -10000.0) != -10000.0:
        raise Unsupported("with past keys, rotary positions, or a mask that is not (batch, length)")
    return Call(attention, (x, weight, bias, mask, extra, a["num_heads"], bool(a.get("unidirectional", 0))))


MATRICES: Mapping[str, Translate] = {
    "MatMul": lambda a, x, y: Call(torch.matmul, (x, y)), "Gemm": _gemm, "Det": lambda a, x: Call(torch.det, (x,)),
    "Einsum": lambda a, *operands: Call(torch.einsum, (a["equation"], *operands)),
    "BatchNormalization": _batch_norm, "LayerNormalization": _layer_norm, "RMSNormalization": _rms_norm,
    "InstanceNormalization": _instance_norm, "GroupNormalization": _group_norm,
    "SimplifiedLayerNormalization": _rms_norm,
}  # fmt: skip

CONTRIBUTED: Mapping[str, Translate] = {
    "FusedMatMul": _fused_product, "LayerNormalization": _layer_norm, "SimplifiedLayerNormalization": _rms_norm,
    "SkipLayerNormalization": _skip_layer_norm, "SkipSimplifiedLayerNormalization": _skip_rms_norm,
    "Attention": _attention,
}  # fmt: skip
"""Of the domain com.microsoft."""

__all__ = ["CONTRIBUTED", "MATRICES", "check_inference", "is_constant", "normalised_shape"]
