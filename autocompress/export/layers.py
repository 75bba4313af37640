"""How each layer (a module with parameters) is written in ONNX, in float or with int8 weights."""

from typing import Any

import numpy as np
import torch
from torch import Tensor, nn
from torch.fx import Node

from autocompress.compression.fake_quant import FakeQuantize, QuantizedLayer
from autocompress.export.emitter import Emit, Emitter
from autocompress.export.layout import channels_last, enters_channels_last


def _weight_and_bias(e: Emitter, node: Node, layer: Any) -> list[str]:
    """The operands after the activation, the bias left out where there is none."""
    name = str(node.target)
    if isinstance(layer, QuantizedLayer):
        return _int8_operands(e, name, layer)
    operands = [e.parameter(layer.weight, f"{name}.weight")]
    return operands if layer.bias is None else [*operands, e.parameter(layer.bias, f"{name}.bias")]


def _int8_operands(e: Emitter, name: str, layer: QuantizedLayer) -> list[str]:
    """int8 weight and int32 bias, each behind the DequantizeLinear that runtimes fuse into the layer."""
    weight, bias = layer.integers()
    operands = [_dequantized(e, f"{name}.weight", weight, layer.weight_scale, layer.channel_axis)]
    return operands if bias is None else [*operands, _dequantized(e, f"{name}.bias", bias, layer.bias_scale, 0)]


def _dequantized(e: Emitter, name: str, steps: Tensor, scale: Tensor, axis: int) -> str:
    zeros = torch.zeros(scale.shape, dtype=steps.dtype)
    tensors = (e.parameter(steps, name), e.parameter(scale, f"{name}_scale"), e.parameter(zeros, f"{name}_zero"))
    return e.add_named(f"{name}>dq", "DequantizeLinear", *tensors, axis=axis)


def _convolution(e: Emitter, node: Node, layer: Any) -> str | None:
    pads = _pads(layer)
    if layer.padding_mode != "zeros" or pads is None:
        return None
    return e.add(
        "Conv", e.value(node.args[0]), *_weight_and_bias(e, node, layer),
        kernel_shape=layer.kernel_size, strides=layer.stride, dilations=layer.dilation, group=layer.groups, pads=pads,
    )  # fmt: skip


def _pads(layer: Any) -> list[int] | None:
    if layer.padding == "valid":
        return [0] * (2 * len(layer.kernel_size))
    if layer.padding == "same":
        total = [d * (k - 1) for d, k in zip(layer.dilation, layer.kernel_size, strict=True)]
        return [n // 2 for n in total] + [n - n // 2 for n in total]
    return [int(n) for n in layer.padding] * 2


def _transposed_convolution(e: Emitter, node: Node, layer: Any) -> str:
    return e.add(
        "ConvTranspose", e.value(node.args[0]), *_weight_and_bias(e, node, layer),
        kernel_shape=layer.kernel_size, strides=layer.stride, dilations=layer.dilation, group=layer.groups,
        pads=list(layer.padding) * 2, output_padding=layer.output_padding,
    )  # fmt: skip


def _linear(e: Emitter, node: Node, layer: Any) -> str:
    """Gemm for vectors; for sequences a matrix product in float, and in int8 one Gemm over all positions."""
    source: Any = node.args[0]
    x = e.value(source)
    if e.rank(source) == 2:
        return e.add("Gemm", x, *_weight_and_bias(e, node, layer), transB=1)
    if isinstance(layer, QuantizedLayer):
        rows = e.add_named(f"{node.target}/rows", "Reshape", x, e.integers(-1, layer.weight.shape[1]))
        return e.add("Reshape", e.add("Gemm", rows, *_weight_and_bias(e, node, layer), transB=1), e.shape_of(node))
    name = str(node.target)
    product = e.add("MatMul", x, e.parameter(layer.weight.t(), f"{name}.weight"))
    return product if layer.bias is None else e.add("Add", product, e.parameter(layer.bias, f"{name}.bias"))


def _batch_norm(e: Emitter, node: Node, layer: Any) -> str:
    size, name = layer.running_mean.shape, str(node.target)
    weight = layer.weight if layer.weight is not None else torch.ones(size)
    bias = layer.bias if layer.bias is not None else torch.zeros(size)
    tensors = {"weight": weight, "bias": bias, "mean": layer.running_mean, "variance": layer.running_var}
    operands = [e.parameter(tensor, f"{name}.{key}") for key, tensor in tensors.items()]
    return e.add("BatchNormalization", e.value(node.args[0]), *operands, epsilon=layer.eps)


def _layer_norm(e: Emitter, node: Node, layer: Any) -> str:
    name = str(node.target)
    operands = [e.parameter(layer.weight, f"{name}.weight")]
    if layer.bias is not None:
        operands.append(e.parameter(layer.bias, f"{name}.bias"))
    return e.add(
        "LayerNormalization", e.value(node.args[0]), *operands, axis=-len(layer.normalized_shape), epsilon=layer.eps
    )


def _group_norm(e: Emitter, node: Node, layer: Any) -> str:
    """Instance norm over (batch, group, everything else), then the affine part channel by channel."""
    groups, name = layer.num_groups, str(node.target)
    grouped = e.add("Reshape", e.value(node.args[0]), e.integers(0, groups, -1))
    ones, zeros = e.constant(np.ones(groups, np.float32)), e.constant(np.zeros(groups, np.float32))
    normal = e.add("InstanceNormalization", grouped, ones, zeros, epsilon=layer.eps)
    normal = e.add("Reshape", normal, e.shape_of(node))
    view = (-1, *[1] * (e.rank(node) - 2))
    scaled = e.add("Mul", normal, e.parameter(layer.weight.reshape(view), f"{name}.weight"))
    return e.add("Add", scaled, e.parameter(layer.bias.reshape(view), f"{name}.bias"))


def _embedding(e: Emitter, node: Node, layer: Any) -> str:
    return e.add("Gather", e.parameter(layer.weight, f"{node.target}.weight"), e.value(node.args[0]), axis=0)


def _rounding(e: Emitter, node: Node, layer: Any) -> str:
    """A quantise and dequantise pair: what stands between them exists in uint8."""
    scale = e.constant(layer.scale.detach().numpy())
    zero_point = e.constant(layer.zero_point.numpy(), np.uint8)
    codes = e.add_named(f"{e.kernel}>q", "QuantizeLinear", e.value(node.args[0]), scale, zero_point)
    if not enters_channels_last(e.model, node):
        return e.add_named(f"{e.kernel}>dq", "DequantizeLinear", codes, scale, zero_point)
    codes = channels_last(e, codes, e.type(node).one)
    values = e.add_named(f"{e.kernel}>dq", "DequantizeLinear", codes, scale, zero_point)
    return e.add("Transpose", values, perm=[0, 3, 1, 2])


_LAYERS: tuple[tuple[tuple[type[nn.Module], ...], Any], ...] = (
    ((FakeQuantize,), _rounding),
    ((nn.Conv1d, nn.Conv2d, nn.Conv3d), _convolution),
    ((nn.ConvTranspose1d, nn.ConvTranspose2d, nn.ConvTranspose3d), _transposed_convolution),
    ((nn.Linear,), _linear),
    ((nn.BatchNorm1d, nn.BatchNorm2d, nn.BatchNorm3d), _batch_norm),
    ((nn.LayerNorm,), _layer_norm),
    ((nn.GroupNorm,), _group_norm),
    ((nn.Embedding,), _embedding),
)


def emit_layer(layer: nn.Module) -> Emit | None:
    """How to write this module, None if there is no way."""
    for kinds, emit in _LAYERS:
        if isinstance(layer, kinds):
            return lambda e, node, emit=emit: emit(e, node, layer)  # type: ignore[misc]
    return None
