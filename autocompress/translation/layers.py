"""Operators with constant weights as torch's layers, which train: a convolution, not a call with a tensor."""

from collections.abc import Callable, Mapping
from hashlib import sha256
from typing import Any

import torch
import torch.nn.functional as F
from torch import Tensor, nn

from autocompress.translation.operators.matrices import check_inference, normalised_shape
from autocompress.translation.operators.pointwise import is_constant
from autocompress.translation.operators.windows import Window, transposed_pads
from autocompress.translation.values import Attributes, Call, Value, scalar

_TELLING = 1024
"""Tensors of at least this many elements that are equal are one; shorter ones (biases of zeros) may be so by chance."""

Change = Callable[[Tensor], Tensor]


class Weights:
    """Constants as parameters: what the file stores once, or stores twice alike, is one parameter."""

    def __init__(self) -> None:
        self._made: dict[Any, nn.Parameter] = {}
        self._seen: list[Tensor] = []

    def parameter(self, constant: Value, change: Change | None = None) -> nn.Parameter:
        tensor = constant.example if change is None else change(constant.example)
        key = self._key(constant.example, tensor.detach().contiguous())
        if key not in self._made:
            self._made[key] = nn.Parameter(tensor.detach().clone().contiguous())
        return self._made[key]

    def _key(self, source: Tensor, tensor: Tensor) -> Any:
        if tensor.numel() > 1 and bool((tensor == tensor.reshape(-1)[0]).all()):
            return len(self._made)  # exporters store ones and zeros of all layers once: nothing was shared
        content = sha256(tensor.reshape(-1).view(torch.uint8).numpy().tobytes()).digest()
        self._seen.append(source)  # an id is of this tensor only while that lives
        return tuple(tensor.shape), tensor.dtype, content, 0 if tensor.numel() >= _TELLING else id(source)


Layer = Callable[..., Call | None]
"""(weights, attributes, value or None, ...) → call of a module, None where only a function will do."""


def filled(module: nn.Module, **tensors: Tensor | None) -> nn.Module:
    """The module with these as its own parameters and buffers."""
    for name, tensor in tensors.items():
        setattr(module, name, tensor)
    return module.eval()


def _optional(weights: Weights, constant: Value | None, change: Change | None = None) -> nn.Parameter | None:
    return None if constant is None else weights.parameter(constant, change)


def _all_constant(*values: Value | None) -> bool:
    return all(value is None or is_constant(value) for value in values)


_CONVOLUTIONS: Mapping[int, Any] = {1: nn.Conv1d, 2: nn.Conv2d, 3: nn.Conv3d}
_TRANSPOSED: Mapping[int, Any] = {1: nn.ConvTranspose1d, 2: nn.ConvTranspose2d, 3: nn.ConvTranspose3d}
_BATCH_NORMS: Mapping[int, Any] = {2: nn.BatchNorm1d, 3: nn.BatchNorm1d, 4: nn.BatchNorm2d, 5: nn.BatchNorm3d}
_INSTANCE_NORMS: Mapping[int, Any] = {3: nn.InstanceNorm1d, 4: nn.InstanceNorm2d, 5: nn.InstanceNorm3d}


def _convolution(weights: Weights, a: Attributes, x: Value, w: Value, b: Value | None = None) -> Call | None:
    if not _all_constant(w, b) or w.rank - 2 not in _CONVOLUTIONS:
        return None
    shape, groups = w.example.shape, a.get("group", 1)
    window = Window(a, x, shape[2:])
    pads = window.one_sided if window.symmetric else [0] * window.rank
    module = _CONVOLUTIONS[window.rank](
        shape[1] * groups, shape[0], tuple(shape[2:]), tuple(window.strides), tuple(pads), tuple(window.dilations),
        groups, b is not None, device="meta",
    )  # fmt: skip
    source = x if window.symmetric else Call(F.pad, (x, window.two_sided))
    return Call(filled(module, weight=weights.parameter(w), bias=_optional(weights, b)), (source,))


def _transposed(weights: Weights, a: Attributes, x: Value, w: Value, b: Value | None = None) -> Call | None:
    window = Window({**a, "auto_pad": "NOTSET"}, x, w.example.shape[2:])  # type: ignore[arg-type]
    pads, more = transposed_pads(a, x, window)
    befores, afters = pads[: window.rank], pads[window.rank :]
    if not _all_constant(w, b) or befores != afters or window.rank not in _TRANSPOSED:
        return None
    shape, groups = w.example.shape, a.get("group", 1)
    module = _TRANSPOSED[window.rank](
        shape[0], shape[1] * groups, tuple(shape[2:]), tuple(window.strides), tuple(befores), tuple(more), groups,
        b is not None, tuple(window.dilations), device="meta",
    )  # fmt: skip
    return Call(filled(module, weight=weights.parameter(w), bias=_optional(weights, b)), (x,))


def _linear(weights: Weights, w: Value, b: Value | None, change: Change, scale_bias: float = 1.0) -> nn.Module:
    outputs = change(w.example).shape[0]
    module = nn.Linear(w.example.numel() // max(outputs, 1), outputs, b is not None, device="meta")
    bias = _optional(weights, b, lambda t: (t * scale_bias if scale_bias != 1 else t).reshape(-1).expand(outputs))
    return filled(module, weight=weights.parameter(w, change), bias=bias)


def _gemm(weights: Weights, a: Attributes, x: Value, w: Value, c: Value | None = None) -> Call | None:
    per_output = c is None or c.example.numel() == c.example.shape[-1:].numel()
    if not _all_constant(w, c) or not per_output or a.get("transA", 0):
        return None
    alpha, turned = a.get("alpha", 1.0), a.get("transB", 0)

    def change(t: Tensor) -> Tensor:
        scaled = t * alpha if alpha != 1 else t
        return scaled if turned else scaled.T

    return Call(_linear(weights, w, c, change, a.get("beta", 1.0)), (x,))


def _product(weights: Weights, a: Attributes, x: Value, w: Value) -> Call | None:
    if is_constant(x) or not is_constant(w) or w.rank != 2 or not w.dtype.is_floating_point:
        return None
    return Call(_linear(weights, w, None, lambda t: t.T), (x,))


def _fused_product(weights: Weights, a: Attributes, x: Value, w: Value) -> Call | None:
    alpha, turned = a.get("alpha", 1.0), a.get("transB", 0)
    if is_constant(x) or not is_constant(w) or w.rank != 2 or a.get("transA", 0):
        return None
    return Call(_linear(weights, w, None, lambda t: t * alpha if turned else (t * alpha).T), (x,))


def _batch_norm(
    weights: Weights, a: Attributes, x: Value, scale: Value, bias: Value, mean: Value, variance: Value
) -> Call | None:
    check_inference(a)
    if not _all_constant(scale, bias, mean, variance) or x.rank not in _BATCH_NORMS:
        return None
    size, epsilon = scale.example.numel(), a.get("epsilon", 1e-5)
    module = _BATCH_NORMS[x.rank](size, eps=epsilon, momentum=1 - a.get("momentum", 0.9), device="meta")
    return Call(
        filled(
            module, weight=weights.parameter(scale), bias=weights.parameter(bias),
            running_mean=mean.example.clone(), running_var=variance.example.clone(),
            num_batches_tracked=torch.tensor(0),
        ), (x,),
    )  # fmt: skip


def _layer_norm(weights: Weights, a: Attributes, x: Value, scale: Value, bias: Value | None = None) -> Call | None:
    shape = normalised_shape(a, x)
    fits = _all_constant(scale, bias) and list(scale.example.shape) == shape and a.outputs == 1
    if not fits or (bias is not None and list(bias.example.shape) != shape):
        return None
    module = nn.LayerNorm(shape, a.get("epsilon", 1e-5), bias=bias is not None, device="meta")
    return Call(filled(module, weight=weights.parameter(scale), bias=_optional(weights, bias)), (x,))


def _rms_norm(weights: Weights, a: Attributes, x: Value, scale: Value) -> Call | None:
    shape = normalised_shape(a, x)
    if not is_constant(scale) or list(scale.example.shape) != shape:
        return None
    module = nn.RMSNorm(shape, a.get("epsilon", 1e-5), device="meta")
    return Call(filled(module, weight=weights.parameter(scale)), (x,))


def _instance_norm(weights: Weights, a: Attributes, x: Value, scale: Value, bias: Value) -> Call | None:
    if not _all_constant(scale, bias) or x.rank not in _INSTANCE_NORMS:
        return None
    plain = bool((scale.example == 1).all() and (bias.example == 0).all())
    module = _INSTANCE_NORMS[x.rank](
        scale.example.numel(), eps=a.get("epsilon", 1e-5), affine=not plain, device="meta"
    )  # fmt: skip
    if not plain:
        filled(module, weight=weights.parameter(scale), bias=weights.parameter(bias))
    return Call(module.eval(), (x,))


def _group_norm(weights: Weights, a: Attributes, x: Value, scale: Value, bias: Value) -> Call | None:
    channels = x.size(1)
    if not _all_constant(scale, bias) or not isinstance(channels, int):
        return None
    each = channels // scale.example.numel()

    def spread(t: Tensor) -> Tensor:
        return t.repeat_interleave(each)

    module = nn.GroupNorm(a["num_groups"], channels, a.get("epsilon", 1e-5), device="meta")
    return Call(filled(module, weight=weights.parameter(scale, spread), bias=weights.parameter(bias, spread)), (x,))


def _embedding(weights: Weights, a: Attributes, table: Value, indices: Value) -> Call | None:
    looked_up = is_constant(table) and not is_constant(indices) and table.rank == 2 and a.get("axis", 0) % 2 == 0
    if not looked_up or not table.dtype.is_floating_point:
        return None
    rows, width = table.example.shape
    module = nn.Embedding(rows, width, device="meta")
    return Call(filled(module, weight=weights.parameter(table)), (indices,))


def _prelu(weights: Weights, a: Attributes, x: Value, slope: Value) -> Call | None:
    if not is_constant(slope):
        return None
    size = slope.example.numel()
    per_channel = x.rank >= 2 and slope.rank == x.rank - 1 and slope.example.shape[0] == size == x.size(1)
    if scalar(slope) is None and not per_channel:
        return None
    module = nn.PReLU(size, device="meta")
    return Call(filled(module, weight=weights.parameter(slope, lambda t: t.reshape(-1))), (x,))


LAYERS: Mapping[tuple[str, str], Layer] = {
    ("", "Conv"): _convolution, ("", "ConvTranspose"): _transposed, ("", "Gemm"): _gemm, ("", "MatMul"): _product,
    ("", "BatchNormalization"): _batch_norm, ("", "LayerNormalization"): _layer_norm, ("", "Gather"): _embedding,
    ("", "InstanceNormalization"): _instance_norm, ("", "GroupNormalization"): _group_norm, ("", "PRelu"): _prelu,
    ("", "RMSNormalization"): _rms_norm, ("", "SimplifiedLayerNormalization"): _rms_norm,
    ("com.microsoft", "LayerNormalization"): _layer_norm, ("com.microsoft", "FusedMatMul"): _fused_product,
    ("com.microsoft", "SimplifiedLayerNormalization"): _rms_norm,
}  # fmt: skip
