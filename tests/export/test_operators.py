"""Every emitter against torch: themes of functions on inputs of one kind, for one, two and three samples."""

import math
from collections.abc import Callable
from functools import cache
from typing import Any

import pytest
import torch
from torch import Tensor
from torch.nn import functional as F

from tests.export.exported import Functions, Written, assert_same, batch_of, flat

aten = torch.ops.aten
Theme = tuple[dict[str, Callable[..., Any]], tuple[Tensor, ...]]


def _draw(*shape: int) -> Tensor:
    return torch.randn(*shape, generator=torch.Generator().manual_seed(sum(shape)))


def _named(*names: str, of: Any = torch) -> dict[str, Callable[..., Any]]:
    return {name: getattr(of, name) for name in names}


def _ints(*shape: int, low: int = -5, high: int = 6, dtype: torch.dtype = torch.int64) -> Tensor:
    return torch.randint(low, high, shape, generator=torch.Generator().manual_seed(3)).to(dtype)


ACTIVATIONS: dict[str, Callable[..., Any]] = {
    **_named("relu", "relu6", "sigmoid", "tanh", "silu", "mish", "hardswish", "hardsigmoid", "softplus", "hardtanh",
             "elu", "celu", "selu", "leaky_relu", "gelu", "logsigmoid", "softsign", "tanhshrink", "hardshrink",
             "softshrink", of=F),
    "gelu tanh": lambda x: F.gelu(x, approximate="tanh"),
    "leaky_relu 0.3": lambda x: F.leaky_relu(x, 0.3),
    "elu 0.5": lambda x: F.elu(x, 0.5),
    "celu 0.7": lambda x: F.celu(x, 0.7),
    "aten elu": lambda x: aten.elu(x, 0.9, 1.3, 0.7),
    "softplus beta": lambda x: F.softplus(x, beta=2.0, threshold=5),
    "threshold": lambda x: F.threshold(x, 0.3, -2.0),
    "hardtanh wide": lambda x: F.hardtanh(x, -2.5, 0.5),
    "glu": lambda x: F.glu(x, 1),
    "glu last": lambda x: F.glu(x),
    "prelu one": lambda x: F.prelu(x, torch.tensor([0.3])),
    "prelu each": lambda x: F.prelu(x, torch.linspace(-1, 1, 4)),
    "rrelu": lambda x: F.rrelu(x),
    "log_sigmoid_forward": lambda x: aten.log_sigmoid_forward(x)[0],
    "dropout": lambda x: F.dropout(x, 0.5, training=False) + 1,
}  # fmt: skip
UNARY: dict[str, Callable[..., Any]] = {
    **_named("exp", "erf", "erfc", "abs", "neg", "sign", "sgn", "sin", "cos", "tan", "atan", "sinh", "cosh", "asinh",
             "ceil", "floor", "round", "trunc", "frac", "square", "expm1", "exp2", "isnan", "isinf", "isfinite",
             "reciprocal", "logical_not", "log1p"),
    "sqrt": lambda x: x.abs().sqrt(),
    "rsqrt": lambda x: (x.abs() + 0.1).rsqrt(),
    "log": lambda x: (x.abs() + 0.1).log(),
    "log2": lambda x: (x.abs() + 0.1).log2(),
    "log10": lambda x: (x.abs() + 0.1).log10(),
    "asin": lambda x: (x / 9).asin(),
    "acos": lambda x: (x / 9).acos(),
    "atanh": lambda x: (x / 9).atanh(),
    "acosh": lambda x: (x.abs() + 1).acosh(),
    "round 1": lambda x: x.round(decimals=1),
    "nan_to_num": lambda x: torch.nan_to_num(torch.log(x), nan=3.0),
    "nan and inf": lambda x: torch.isnan(x / 0 * 0),
    "inf": lambda x: torch.isinf(1 / (x * 0)),
    "clamp": lambda x: x.clamp(-0.2, 0.7),
    "clamp_min": lambda x: x.clamp_min(0.1),
    "clamp max": lambda x: x.clamp(max=0.5),
    "clamp_max": lambda x: x.clamp_max(0.5),
    "1 - x": lambda x: 1 - x,
    "3 / x": lambda x: 3 / x,
    "2 ** x": lambda x: 2**x,
    "x ** 3": lambda x: x**3,
    "x ** 0.5": lambda x: x.abs() ** 0.5,
    "x ** -2": lambda x: x**-2,
    "x // 0.7": lambda x: x // 0.7,
    "x % 0.7": lambda x: x % 0.7,
    "2 % x": lambda x: 2 % (x.abs() + 0.3),
    "fmod": lambda x: torch.fmod(x, 0.7),
    "rsub": lambda x: torch.rsub(x, 2.0, alpha=3),
    "div trunc": lambda x: torch.div(x, 0.3, rounding_mode="trunc"),
    "to int": lambda x: x.to(torch.int32),
    "to long": lambda x: x.long() * 2,
    "to bool": lambda x: (x > 0).to(torch.uint8),
    "to double": lambda x: x.double() + 1,
    "comparisons": lambda x: [x > 0.5, x >= 0, x < 1, x <= 2, x == 0, x != 0, x > 1],
    "masked_fill": lambda x: x.masked_fill(x < 0, -2.0),
    "masked_fill tensor": lambda x: x.masked_fill(x < 0, torch.tensor(-2.0)),
    "masked_fill inf": lambda x: x.masked_fill(x < 0, float("-inf")).softmax(-1),
    "where number": lambda x: torch.where(x > 0, x, 0.0),
    "where numbers": lambda x: torch.where(x > 0, 1.0, 0.0),
    "where number first": lambda x: torch.where(x > 0, 2.0, x),
    "where bool": lambda x: torch.where(x > 0, x > 1, x < -1),
    "lerp": lambda x: torch.lerp(x, x * 2, 0.3),
    "lerp tensor": lambda x: torch.lerp(x, x * 2, x.sigmoid()),
}  # fmt: skip
BINARY: dict[str, Callable[..., Any]] = {
    "add": lambda x, y: x + y,
    "add alpha": lambda x, y: torch.add(x, y, alpha=3),
    "sub alpha": lambda x, y: torch.sub(x, y, alpha=2),
    "rsub alpha": lambda x, y: torch.rsub(x, y, alpha=2),
    "mul": lambda x, y: x * y,
    "div": lambda x, y: x / y,
    "floor": lambda x, y: torch.div(x, y, rounding_mode="floor"),
    "trunc": lambda x, y: torch.div(x, y, rounding_mode="trunc"),
    "floor_divide": lambda x, y: x // y,
    "remainder": lambda x, y: x % y,
    "fmod": torch.fmod,
    "maximum": torch.maximum,
    "minimum": torch.minimum,
    "max other": torch.max,
    "comparisons": lambda x, y: [x > y, x >= y, x < y, x <= y, x == y, x != y],
    "with floats": lambda x, y: [x + 0.5, x * 0.5, x > 0.5, y == 2.0, x / 2, 2.5 - y],
    "where": lambda x, y: torch.where(x > y, x, y),
    "where mixed": lambda x, y: torch.where(x > y, x.float(), y),
    "addcmul": lambda x, y: torch.addcmul(x, x, y, value=2),
    "clamp": lambda x, y: x.clamp(-2, 3),
    "clamp tensor": lambda x, y: torch.clamp(x, y - 1, y + 1),
    "clamp_min tensor": lambda x, y: torch.clamp_min(x, y),
    "logical": lambda x, y: [torch.logical_and(x, y), torch.logical_or(x, y), torch.logical_xor(x, y)],
    "powers": lambda x, y: x**2,
    "abs": lambda x, y: [x.abs(), -y, y.sign()],
    "rounds": lambda x, y: [x.floor(), x.ceil(), x.round(), x.trunc()],
}
FLOATS_ONLY: dict[str, Callable[..., Any]] = {
    "atan2": torch.atan2,
    "addcdiv": lambda x, y: torch.addcdiv(x, x, y, value=0.5),
    "pow": lambda x, y: x.abs() ** y,
    "hypot-like": lambda x, y: (x.square() + y.square()).sqrt(),
    "fmax": torch.fmax,
}
BOOLEANS: dict[str, Callable[..., Any]] = {
    "and": lambda x, y: x & y,
    "or": lambda x, y: x | y,
    "xor": lambda x, y: x ^ y,
    "not": lambda x, y: ~x,
    "add": lambda x, y: x + y,
    "mul": lambda x, y: x * y,
    "times float": lambda x, y: x * 0.5 + y.float(),
    "plus int": lambda x, y: x + 1,
    "maximum": lambda x, y: [torch.maximum(x, y), torch.minimum(x, y)],
    "equal": lambda x, y: [x == y, x != y, x <= y],
    "where": lambda x, y: torch.where(x, y, ~y),
    "masked": lambda x, y: x.masked_fill(y, True),
    "sum": lambda x, y: [x.sum(1), x.sum(), x.float().mean(1)],
    "any": lambda x, y: [x.any(), x.any(1), x.any(1, keepdim=True), aten.any.dims(x, [1, 2])],
    "all": lambda x, y: [x.all(), x.all(1), x.all(1, keepdim=True), aten.all.dims(x, [1, 2])],
    "cumsum": lambda x, y: x.cumsum(1),
    "moves": lambda x, y: [x.transpose(1, 2), torch.cat([x, y], 1), x[:, 1:], x.flip(1), F.pad(x, (1, 1))],
    "expand": lambda x, y: x[:, :1].expand(-1, 3, -1),
    "tril": lambda x, y: x.tril(),
    "cast": lambda x, y: [x.float(), x.long(), x.int()],
    "xor number": lambda x, y: [x ^ True, aten.bitwise_or.Scalar_Tensor(True, x), aten.bitwise_and.Scalar(y, True)],
}
REDUCING: dict[str, Callable[..., Any]] = {
    "mean": lambda x: [x.mean(1), x.mean((2, 3)), x.mean((2, 3), keepdim=True), x.mean(-1, keepdim=True)],
    "mean all": lambda x: x.flatten(1).mean(1) + x.mean() * 0,
    "sum": lambda x: [x.sum(1), x.sum((1, 2)), x.sum(-1, keepdim=True), x.sum((1, 2, 3))],
    "prod": lambda x: [x.prod(1), x[:, 0, 0].prod(1, keepdim=True)],
    "amax": lambda x: [x.amax(-1, keepdim=True), x.amax((1, 2)), x.amin(1), x.max(), x.min()],
    "max dim": lambda x: [*x.max(1), *x.max(2, keepdim=True), *x.min(-1)],
    "argmax": lambda x: [x.argmax(1), x.argmax(-1, keepdim=True), x.argmin(2), x.flatten(1).argmax(1)],
    "argmax all": lambda x: (x[:1] * 1).argmax() if False else x.sum((2, 3)).argmax(1),
    "var": lambda x: [x.var(1), x.var((2, 3), unbiased=False), x.var((2, 3), keepdim=True), x.flatten(1).var(1)],
    "std": lambda x: [x.std(1), x.std((2, 3), correction=2), x.std(-1, keepdim=True)],
    "var_mean": lambda x: [*torch.var_mean(x, (2, 3)), *torch.std_mean(x, dim=1, correction=1)],
    "norm": lambda x: [x.norm(dim=1), x.norm(p=1, dim=(1, 2)), x.norm(p=3, dim=1, keepdim=True)],
    "vector norms": lambda x: [torch.linalg.vector_norm(x, o, (1, 2)) for o in (0, 1, 2, 2.5, math.inf, -math.inf)],
    "normalize": lambda x: F.normalize(x, dim=1),
    "logsumexp": lambda x: [x.logsumexp(1), x.logsumexp((2, 3), keepdim=True)],
    "softmax": lambda x: [x.softmax(1), x.softmax(-1), x.log_softmax(1), F.softmin(x, 2)],
    "cumsum": lambda x: [x.cumsum(1), x.cumsum(-1)],
    "cumprod": lambda x: [x.cumprod(1), x.cumprod(-1)],
    "topk": lambda x: [*x.topk(3, 2), *x.topk(2, -1, largest=False)],
    "sort": lambda x: [*x.sort(1), *x.sort(-1, descending=True), x.argsort(2)],
    "count_nonzero": lambda x: [torch.count_nonzero(x > 0, dim=1), (x > 0).sum((1, 2))],
    "aminmax": lambda x: [*torch.aminmax(x, dim=1)],
    "cosine": lambda x: (x * x).sum(1) / (x.norm(dim=1) * x.norm(dim=1)).clamp_min(1e-6),
    "any of floats": lambda x: [(x > 1).any(1), (x > -9).all(2), (x > 9).any(-1, keepdim=True)],
}
ORDER: dict[str, Callable[..., Any]] = {
    "sum": lambda x: [x.sum(1), x.sum(), x.sum(1, dtype=torch.float32)],
    "extremes": lambda x: [x.amax(1), x.amin(1), x.max(), *x.max(1), x.argmax(1), x.argmin(1)],
    "prod": lambda x: x.prod(1),
    "cumsum": lambda x: x.cumsum(1),
    "mean": lambda x: x.float().mean(1),
    "sort": lambda x: x.sort(1)[0],
    "any": lambda x: [x.any(1), x.all(1)],
    "bits": lambda x: ~x,
    "sin": lambda x: [x.sin(), x.float().exp(), x.sqrt() * 0, x.sigmoid()],
    "moves": lambda x: [x.roll(1, 1), x.flip(1), F.pad(x, (1, 1), value=7), x.repeat(1, 2), x.t().t()],
    "gather": lambda x: torch.gather(x, 1, (x % 3).abs()),
    "one_hot": lambda x: F.one_hot((x % 3).abs(), 3),
    "tril": lambda x: [x.tril(), x.triu(1)],
}
PRODUCTS: dict[str, Callable[..., Any]] = {
    "matmul": lambda x, y: x @ y.transpose(-1, -2),
    "matmul vector": lambda x, y: x @ torch.linspace(0, 1, 6),
    "matmul matrix": lambda x, y: x @ _draw(6, 5),
    "bmm": lambda x, y: torch.bmm(x, y.transpose(1, 2)),
    "mm": lambda x, y: torch.mm(x[:, 0], _draw(6, 3)),
    "mv": lambda x, y: torch.mv(x[:, 0], torch.ones(6)),
    "addmm": lambda x, y: [torch.addmm(torch.ones(3), x[:, 0], _draw(6, 3)),
                           torch.addmm(torch.ones(3), x[:, 0], _draw(6, 3), beta=0.5, alpha=2)],
    "baddbmm": lambda x, y: [torch.baddbmm(torch.ones(1, 4, 4), x, y.transpose(1, 2)),
                             torch.baddbmm(torch.ones(1, 4, 4), x, y.transpose(1, 2), beta=0, alpha=3)],
    "einsum": lambda x, y: torch.einsum("b i k, b j k -> b i j", x, y),
    "einsum dots": lambda x, y: torch.einsum("...ik,kj->...ij", x, _draw(6, 2)),
    "linear": lambda x, y: [F.linear(x, y[0] * 1), F.linear(x, _draw(3, 6), torch.ones(3))],
    "outer": lambda x, y: torch.outer(x[:, 0, 0], torch.arange(3.0)),
    "cdist": lambda x, y: [torch.cdist(x, y), torch.cdist(x, y, p=1.0)],
    }  # fmt: skip
ATTENTION: dict[str, Callable[..., Any]] = {
    "plain": lambda q, k: F.scaled_dot_product_attention(q, k, k),
    "causal": lambda q, k: F.scaled_dot_product_attention(q, k, k, is_causal=True),
    "boolean": lambda q, k: F.scaled_dot_product_attention(q, k, k, attn_mask=torch.ones(5, 5).tril().bool()),
    "computed boolean": lambda q, k: F.scaled_dot_product_attention(q, k, k, attn_mask=q @ k.transpose(-1, -2) > 1e-3),
    "float mask": lambda q, k: F.scaled_dot_product_attention(q, k, k, attn_mask=q @ k.transpose(-1, -2), scale=0.3),
    "grouped": lambda q, k: F.scaled_dot_product_attention(q, k[:, :2], k[:, 2:], enable_gqa=True),
    "grouped causal": lambda q, k: F.scaled_dot_product_attention(q, k[:, :1], k[:, :1], is_causal=True,
                                                                 enable_gqa=True),
    "empty rows": lambda q, k: F.scaled_dot_product_attention(q, k, k, attn_mask=torch.zeros(5, 5).bool()),
}  # fmt: skip
CONVOLUTIONS: dict[str, Callable[..., Any]] = {
    "conv2d": lambda x: F.conv2d(x, _draw(6, 4, 3, 3), torch.ones(6), 2, 1),
    "conv2d same": lambda x: F.conv2d(x, _draw(6, 2, 3, 3), padding="same", groups=2),
    "convolution": lambda x: aten.convolution(x, _draw(6, 4, 3, 3), None, [1, 2], [1, 0], [1, 1], False, [0, 0], 1),
    "transposed": lambda x: aten.convolution(x, _draw(4, 3, 3, 3), None, [2, 2], [1, 1], [1, 1], True, [1, 1], 1),
    "conv_transpose2d": lambda x: F.conv_transpose2d(x, _draw(4, 3, 2, 2), stride=2),
    "conv1d": lambda x: F.conv1d(x[:, :, 0], _draw(3, 4, 3), padding=1, dilation=1),
    "conv3d": lambda x: F.conv3d(x.unsqueeze(2), _draw(3, 4, 1, 3, 3)),
}
NORMALISING: dict[str, Callable[..., Any]] = {
    "layer_norm": lambda x: [F.layer_norm(x, (8, 8)), F.layer_norm(x, (8,), torch.ones(8) * 2, torch.ones(8))],
    "native_layer_norm": lambda x: aten.native_layer_norm(x, [8], None, None, 1e-5)[0],
    "group_norm": lambda x: [F.group_norm(x, 2), F.group_norm(x, 4, torch.arange(4.0), torch.ones(4))],
    "native_group_norm": lambda x: aten.native_group_norm(x, torch.ones(4), None, x.shape[0], 4, 64, 2, 1e-5)[0],
    "instance_norm": lambda x: [F.instance_norm(x), F.instance_norm(x, weight=torch.arange(4.0), bias=torch.ones(4))],
    "instance_norm kept": lambda x: F.instance_norm(x, torch.arange(4.0), torch.ones(4) * 2, use_input_stats=False),
    "rms_norm": lambda x: [F.rms_norm(x, (8,)), F.rms_norm(x, (8, 8), torch.ones(8, 8) * 3, 1e-3)],
    "batch_norm": lambda x: F.batch_norm(x, torch.arange(4.0), torch.ones(4) * 2),
    "no training": lambda x: aten._native_batch_norm_legit_no_training(
        x, torch.ones(4), None, torch.zeros(4), torch.ones(4) * 2, 0.1, 1e-5)[0],
    "local_response_norm": lambda x: F.local_response_norm(x, 3),
}  # fmt: skip
POOLING: dict[str, Callable[..., Any]] = {
    "max_pool2d": lambda x: [F.max_pool2d(x, 2), F.max_pool2d(x, 3, 2, 1), F.max_pool2d(x, 2, dilation=2)],
    "max_pool2d ceil": lambda x: F.max_pool2d(x, 3, 2, ceil_mode=True),
    "max_pool2d with indices": lambda x: aten.max_pool2d_with_indices(x, [2, 2])[0],
    "max_pool1d": lambda x: F.max_pool1d(x[:, :, 0], 3, 2, 1),
    "max_pool3d": lambda x: F.max_pool3d(x.unsqueeze(1), (1, 2, 2)),
    "max_pool3d with indices": lambda x: aten.max_pool3d_with_indices(x.unsqueeze(1), [2, 2, 2])[0],
    "avg_pool2d": lambda x: [F.avg_pool2d(x, 2), F.avg_pool2d(x, 3, 2, 1), F.avg_pool2d(x, (3, 2), 1)],
    "avg_pool2d without padding": lambda x: F.avg_pool2d(x, 3, 2, 1, count_include_pad=False),
    "avg_pool2d divisor": lambda x: F.avg_pool2d(x, 2, divisor_override=3),
    "avg_pool2d ceil": lambda x: [F.avg_pool2d(x, 3, 2, 1, ceil_mode=True, count_include_pad=c) for c in (False, True)],
    "avg_pool2d ceil bare": lambda x: [F.avg_pool2d(x, 3, 2, ceil_mode=True),
                                       F.avg_pool2d(x, 3, 2, 1, ceil_mode=True, divisor_override=2)],
    "avg_pool1d": lambda x: [F.avg_pool1d(x[:, :, 0], 3, 2, 1), F.avg_pool1d(x[:, :, 0], 3, 2, 1, True)],
    "avg_pool3d": lambda x: F.avg_pool3d(x.unsqueeze(1), 2, 2, (0, 1, 1)),
    "adaptive_avg": lambda x: [F.adaptive_avg_pool2d(x, s) for s in (1, (4, 2), (3, 5), (8, 3), 7, (None, 3), 11)],
    "adaptive_avg 1d": lambda x: [F.adaptive_avg_pool1d(x[:, :, 0], s) for s in (1, 3, 4)],
    "adaptive_avg 3d": lambda x: [F.adaptive_avg_pool3d(x.unsqueeze(1), s) for s in (1, (2, 4, 2), (3, 3, 5))],
    "aten adaptive": lambda x: aten._adaptive_avg_pool2d(x, [3, 3]),
    "adaptive_max": lambda x: [F.adaptive_max_pool2d(x, s) for s in (1, (4, 2), (3, 5), 11)],
    "adaptive_max 1d 3d": lambda x: [F.adaptive_max_pool1d(x[:, :, 0], 3), F.adaptive_max_pool3d(x.unsqueeze(1), 3)],
    "lp_pool": lambda x: F.lp_pool2d(x.abs(), 2, 2),
}  # fmt: skip
RESIZING: dict[str, Callable[..., Any]] = {
    **{f"{mode} {how}": (lambda x, mode=mode, how=how: F.interpolate(x, mode=mode, **how))
       for mode in ("nearest", "nearest-exact", "bilinear", "bicubic")
       for how in ({"scale_factor": 2}, {"size": (5, 11)}, {"scale_factor": 1.7}, {"scale_factor": 0.5},
                   {"scale_factor": 1.7, "recompute_scale_factor": True}, {"size": (1, 3)})},
    **{f"{mode} corners {how}": (lambda x, mode=mode, how=how: F.interpolate(x, mode=mode, align_corners=True, **how))
       for mode in ("bilinear", "bicubic") for how in ({"scale_factor": 2}, {"size": (5, 11)}, {"size": (1, 3)})},
    **{f"1d {mode}": (lambda x, mode=mode: [F.interpolate(x[:, :, 0], s, mode=mode) for s in (16, 5)])
       for mode in ("nearest", "nearest-exact", "linear")},
    **{f"3d {mode}": (lambda x, mode=mode: [F.interpolate(x.unsqueeze(1), s, mode=mode) for s in (8, (5, 3, 9))])
       for mode in ("nearest", "nearest-exact", "trilinear")},
    "linear corners": lambda x: F.interpolate(x[:, :, 0], 13, mode="linear", align_corners=True),
    "area": lambda x: F.interpolate(x, (3, 5), mode="area"),
}  # fmt: skip
SAMPLING: dict[str, Callable[..., Any]] = {
    **{f"{mode} {padding} {corners}": (lambda x, g, m=mode, p=padding, c=corners: F.grid_sample(
        x, g, mode=m, padding_mode=p, align_corners=c))
       for mode in ("bilinear", "nearest") for padding in ("zeros", "border", "reflection")
       for corners in (True, False)},
    "bicubic": lambda x, g: F.grid_sample(x, g, mode="bicubic", align_corners=False),
    "affine_grid": lambda x, g: F.affine_grid(g[:, 0, :3].transpose(1, 2), [x.shape[0], 4, 5, 6], align_corners=False),
}  # fmt: skip
PADDING: dict[str, Callable[..., Any]] = {
    "constant": lambda x: [F.pad(x, (1, 2, 0, 3)), F.pad(x, (1, 2), value=2.5), F.pad(x, (-1, -1, 0, 0))],
    "channels": lambda x: F.pad(x, (0, 0, 0, 0, 1, 2)),
    "before a max pool": lambda x: [F.max_pool2d(F.pad(-x.abs(), (0, 1, 0, 1)), 2, 1),
                                    F.max_pool1d(F.pad(-x[:, 0].abs(), (1, 1)), 2, 1)],
    **{f"{mode} {n}d": (lambda x, mode=mode, n=n: F.pad(x.flatten(2) if n == 1 else x if n == 2 else x.unsqueeze(1),
                                                       (1, 2, 2, 1, 3, 1)[: 2 * n], mode=mode))
       for mode in ("reflect", "replicate", "circular") for n in (1, 2, 3)},
    "aten": lambda x: [aten.reflection_pad2d(x, [1, 2, 3, 0]), aten.replication_pad2d(x, [1, 2, 3, 0])],
}  # fmt: skip
MOVES: dict[str, Callable[..., Any]] = {
    "slices": lambda x: [x[:, 1:3, ::2, :-1], x[:, 1], x[:, -1:, 2:4], x[..., -3:-1], x[:, :, 1:100]],
    "narrow": lambda x: [x.narrow(2, 1, 3), x.narrow(1, -2, 2)],
    "cat": lambda x: [torch.cat([x[:, :1], x, x], 1), torch.cat([x, x.double().float()], -1)],
    "cat empty": lambda x: torch.cat([torch.zeros(0), x], 1),
    "stack": lambda x: [torch.stack([x, -x], 2), torch.stack([x, x], -1), torch.stack([x, x], 1)],
    "permute": lambda x: [x.permute(0, 2, 3, 1), x.transpose(-1, -3), x.movedim(1, -1), x.swapaxes(1, 2), x.mT],
    "movedim": lambda x: [torch.movedim(x, (1, 2), (3, 1)), aten.movedim.intlist(x, [1, 3], [2, 1])],
    "reshape": lambda x: [x.flatten(2), x.unsqueeze(1), x[:, :1].squeeze(1), x.reshape(x.shape[0], 2, -1, 4)],
    "unflatten": lambda x: [x.unflatten(1, (2, 2)), x.unflatten(-1, (2, -1)), x.flatten(1).view(-1, 4, 64)],
    "squeeze": lambda x: [x[:, :1, :1].squeeze((1, 2)), x[:, :, :1].squeeze(2)],
    "batch folded": lambda x: x.reshape(x.shape[0] * 4, 64).softmax(-1).reshape(-1, 4, 64),
    "windows": lambda x: x.reshape(-1, 4, 2, 4, 2, 4).permute(0, 2, 4, 3, 5, 1).reshape(-1, 16, 4),
    "expand": lambda x: [x[:, :1].expand(-1, 5, -1, -1), x[:, :1].expand(x.shape[0], 2, 8, 8), x.unsqueeze(0) * 1],
    "token": lambda x: torch.cat([torch.ones(1, 1, 8).expand(x.shape[0], -1, -1), x[:, 0]], 1),
    "expand_as": lambda x: [x[:, :1].expand_as(x), torch.ones(8).expand(x.shape[0], 3, 8) + x[:, 0, :3]],
    "repeat": lambda x: [x.repeat(1, 2, 1, 1), x.repeat(2, 1, 1, 1, 1)[0], x.tile(2), x.tile(1, 2, 1, 2)],
    "repeat batch": lambda x: torch.arange(6.0).reshape(1, 6).repeat(x.shape[0], 1),
    "repeat_interleave": lambda x: [x.repeat_interleave(2, 1), x.repeat_interleave(3, -1),
                                    torch.repeat_interleave(x[:, 0], 2, 0)],
    "split": lambda x: [*x.split(3, 1), *x.split((1, 3), 1), *x.chunk(3, 2), *x.tensor_split(3, 1), *x.unbind(1)],
    "split indices": lambda x: [*torch.tensor_split(x, (1, 3), 2), *x.chunk(2, -1)],
    "shuffles": lambda x: [F.pixel_shuffle(x, 2), F.pixel_unshuffle(x, 2), F.channel_shuffle(x, 2)],
    "flip": lambda x: [x.flip(2), x.flip((1, 3))],
    "roll": lambda x: [x.roll(1, 3), x.roll((2, -3), (2, 3)), x.roll(9, 1), x.roll(0, 2)],
    "clone": lambda x: [x.clone(), x.contiguous() + 0],
    "unfold": lambda x: [x.unfold(3, 3, 2), x.unfold(1, 2, 1), x.unfold(2, 4, 4).unfold(3, 4, 4)],
    "im2col": lambda x: [F.unfold(x, 3), F.unfold(x, (3, 2), dilation=(1, 2), padding=1, stride=2)],
    "col2im": lambda x: [F.fold(F.unfold(x, 3, padding=1), 8, 3, padding=1),
                         F.fold(F.unfold(x, (3, 2), dilation=(1, 2), padding=1, stride=2), 8, (3, 2), (1, 2), 1, 2)],
    "as_strided": lambda x: [torch.as_strided(torch.arange(12.0), (3, 4), (1, 3)) + x[:, :1, 0, :4]],
    "meshgrid": lambda x: [*torch.meshgrid(x[0, 0, 0], torch.arange(3.0), indexing="ij"),
                           *torch.meshgrid(x[0, 0, 0], torch.arange(3.0), indexing="xy")],
    "triangles": lambda x: [x.tril(), x.triu(1), x.tril(-1)],
    "diagonal": lambda x: [x.diagonal(0, 2, 3), x.diagonal(1, 1, 3), x.diagonal(-2, 2, 3)],
}  # fmt: skip
INDEXING: dict[str, Callable[..., Any]] = {
    "index_select": lambda x, i: [x.index_select(1, torch.tensor([3, 0, 0])), x.index_select(2, torch.tensor(1))],
    "constants": lambda x, i: [x[:, [0, 2]], x[:, torch.tensor([[0, 1], [3, -1]])], x[:, :, torch.tensor([1, -2])]],
    "adjacent": lambda x, i: [x[:, [0, 1], [2, 3]], x[:, torch.tensor([[0], [1]]), torch.tensor([2, -1])]],
    "apart": lambda x, i: x[:, [0, 1], :, [2, 3]],
    "mask": lambda x, i: [x[:, torch.tensor([True, False, True, True])],
                          x[:, :, torch.eye(8).bool()], x[:, :, 2:5, torch.ones(8).bool()]],
    "computed": lambda x, i: [x[0, 0, 0][i], x[torch.arange(x.shape[0]), i], x[:, 1][torch.arange(i.shape[0]), :, i]],
    "computed pairs": lambda x, i: x[torch.arange(x.shape[0])[:, None], i[:, None], torch.tensor([[0, 5, -1]])],
    "gather": lambda x, i: [x.gather(1, i.view(-1, 1, 1, 1).expand(-1, 2, 8, 8)), x[:, 0].gather(2, x[:, 1].argsort())],
    "take": lambda x, i: torch.take(torch.arange(9.0), i),
    "index_put": lambda x, i: [
        aten.index_put(x, [None, torch.tensor([0, 2])], torch.zeros(())),
        aten.index_put(x, [None, torch.tensor([0, 2])], x[:, :2] * 2),
        aten.index_put(x, [None, None, torch.tensor([0, 2]), torch.tensor([1, 1])], torch.ones(2)),
        aten.index_put(x, [None, torch.tensor([1, 1])], torch.ones(8), True),
        aten.index_put(x, [None, None, torch.tensor([[0], [2]]), torch.arange(8)], x[:, :, :2] * 2, True),
        aten.index_put(x, [None, torch.tensor([[0, 2], [1, 1]])], x[:, :2, None] * 2, True),
    ],
    "index_put rows": lambda x, i: aten.index_put(x, [torch.arange(x.shape[0]), i], torch.ones(8, 8)),
    "index_put mask": lambda x, i: [aten.index_put(x, [x > 0], torch.tensor(3.0)),
                                    aten.index_put(x, [x[:, :, 0, 0] > 0], torch.tensor(3.0))],
    "scatter": lambda x, i: [x[:, :, 0, 0].scatter(1, i[:, None], 5.0),
                             x[:, :, 0, 0].scatter(1, i[:, None], x[:, :1, 1, 1]),
                             x[:, :, 0, 0].scatter_add(1, i[:, None], x[:, :1, 1, 1]),
                             torch.scatter_reduce(x[:, :, 0, 0], 1, i[:, None], x[:, :1, 1, 1], "sum")],
    "masked_scatter": lambda x, i: x.masked_scatter(x > 0, x.abs() * 3),
    "copy": lambda x, i: aten.copy(x, x[:, :1]) + aten.copy(x, torch.ones(8, dtype=torch.int64)),
    "select_scatter": lambda x, i: [torch.select_scatter(x, x[:, 0] * 2, 1, 2), x.select_scatter(x[:, 0, :, :], 1, -1)],
    "slice_scatter": lambda x, i: [x.slice_scatter(x[:, :2] * 2, 1, 1, 3), x.slice_scatter(x[..., :4] * 2, 3, 0, 8, 2),
                                   x.slice_scatter(x * 2, 1), x.slice_scatter(x[:, :, :3] * 2, 2, -3)],
    "embedding": lambda x, i: F.embedding(i, _draw(4, 3)),
    "embedding_bag": lambda x, i: [F.embedding_bag(torch.stack([i, i * 0], 1), _draw(4, 3), mode=m)
                                   for m in ("sum", "mean", "max")],
    "embedding_bag ragged": lambda x, i: [
        F.embedding_bag(torch.cat([i, torch.tensor([1, 2, 3])]), _draw(4, 3), torch.tensor([0, 0, 3]), mode="mean"),
        F.embedding_bag(torch.cat([i, torch.tensor([1, 3])]), _draw(4, 3), torch.tensor([0, 2]), mode="sum",
                        per_sample_weights=torch.cat([i.float(), torch.ones(2)])),
        F.embedding_bag(torch.stack([i, i * 0 + 1], 1), _draw(4, 3), mode="mean", padding_idx=1)],
    "one_hot": lambda x, i: F.one_hot(i, 5),
    "select computed": lambda x, i: [x.select(1, 2), x.select(-1, -1)],
}  # fmt: skip
FILLING: dict[str, Callable[..., Any]] = {
    "zeros": lambda x: [torch.zeros(x.shape[0], 2), torch.ones(2, *x.shape[:1] * 2), torch.full((x.shape[0],), 7)],
    "new": lambda x: [x.new_zeros(x.shape[0], 3), x.new_ones(x.shape[0]), x.new_full((x.shape[0], 1), 2.5)],
    "like": lambda x: [torch.zeros_like(x), torch.ones_like(x, dtype=torch.int64), torch.full_like(x, 3)],
    "like folded": lambda x: torch.zeros_like(x.flatten(0, 1)) + 1,
    "arange": lambda x: [torch.arange(x.shape[0]), torch.arange(1, x.shape[0] * 2 + 1, 2),
                         torch.arange(x.shape[0], dtype=torch.float32), torch.arange(0, x.shape[0], 0.5)],
    "eye": lambda x: torch.eye(x.shape[0]),
    "arithmetic": lambda x: [torch.zeros(x.shape[0] * 2 + 1), torch.zeros((x.shape[0] + 1) // 2),
                             torch.zeros(x.shape[0] * x.shape[0], 2), torch.zeros(x.numel()),
                             torch.zeros(max(2, x.shape[0])), torch.zeros(7 - x.shape[0]),
                             torch.zeros(math.ceil(x.shape[0] / 2)), torch.zeros(x.shape[0] % 3 + 1)],
    "number": lambda x: [x * x.shape[0], x / (x.shape[0] + 1), x + x.shape[0] ** 2],
    "scalar": lambda x: x + torch.scalar_tensor(x.shape[0]),
    "halves": lambda x: [x[: (x.shape[0] + 1) // 2], x[x.shape[0] // 2 :], x[-1:]],
}  # fmt: skip


@cache
def _themes() -> dict[str, Theme]:
    image, pairs = _draw(3, 4, 8, 8), (_ints(3, 4, 5), _ints(3, 4, 5, low=1, high=4))
    grid = torch.tanh(_draw(3, 5, 6, 2)) * 1.4
    themes: dict[str, Theme] = {
        "activations": (ACTIVATIONS, (_draw(3, 4, 6) * 3,)),
        "unary": (UNARY, (_draw(3, 4, 6) * 2,)),
        "binary": (BINARY | FLOATS_ONLY, (_draw(3, 4, 5), _draw(3, 4, 5).abs() + 0.3)),
        "negative divisors": (BINARY, (_draw(3, 4, 5), -_draw(3, 4, 5).abs() - 0.3)),
        "long": (BINARY, pairs),
        "int": (BINARY, tuple(x.int() for x in pairs)),
        "negative int divisors": (BINARY, (pairs[0], -pairs[1])),
        "byte": (BINARY | {}, tuple(x.abs().to(torch.int8) for x in pairs)),
        "mixed": (BINARY, (pairs[0], _draw(3, 4, 5).abs() + 0.3)),
        "broadcast": (BINARY, (_draw(3, 4, 5), _draw(3, 1, 5).abs() + 0.3)),
        "booleans": (BOOLEANS, (_draw(3, 4, 5) > 0, _draw(3, 5, 4).transpose(1, 2) > 0)),
        "reducing": (REDUCING, (image,)),
        "integer order": (ORDER, (_ints(3, 7),)),
        "products": (PRODUCTS, (_draw(3, 4, 6), _draw(3, 6, 4).transpose(1, 2).contiguous())),
        "attention": (ATTENTION, (_draw(3, 4, 5, 8), _draw(3, 4, 8, 5).transpose(2, 3).contiguous())),
        "convolutions": (CONVOLUTIONS, (image,)),
        "normalising": (NORMALISING, (image,)),
        "pooling": (POOLING, (image,)),
        "resizing": (RESIZING, (image,)),
        "sampling": (SAMPLING, (image, grid)),
        "padding": (PADDING, (image,)),
        "moves": (MOVES, (image,)),
        "indexing": (INDEXING, (image, torch.tensor([1, 3, 0]))),
        "filling": (FILLING, (image,)),
    }
    return themes


@cache
def _written(theme: str) -> Written:
    functions, inputs = _themes()[theme]
    return Written(Functions(list(functions.values())), inputs)


@cache
def _results(theme: str, batch: int) -> list[Any]:
    return _written(theme).run(*batch_of(_themes()[theme][1], batch))


@pytest.mark.parametrize("theme", _themes())
def test_functions_agree_with_torch(theme: str) -> None:
    """Each function by itself for every batch, so that the message names it."""
    functions, inputs = _themes()[theme]
    for batch in (1, 2, 3):
        fed, results = batch_of(inputs, batch), iter(_results(theme, batch))
        for name, function in functions.items():
            for expected in flat(function(*fed)):
                found = next(results)
                try:
                    assert_same(found, expected)
                except AssertionError as error:
                    raise AssertionError(f"{theme}: {name!r}, batch {batch}: {error}") from error
        assert next(results, None) is None
