"""How each layer (a module with parameters) is written in ONNX, in float or with weights of fewer bits."""

from typing import Any

import numpy as np
import torch
from torch import Tensor, nn
from torch.fx import Node

from autocompress.compression.fake_quant import FakeQuantize, QuantizedLayer
from autocompress.compression.weight_only import WeightOnlyLinear
from autocompress.export.emitter import Emit, Emitter
from autocompress.export.functions.activations import prelu
from autocompress.export.functions.normalising import group_norm, layer_norm, rms_norm
from autocompress.export.functions.padding import padded
from autocompress.export.functions.recurrent import emit_recurrent
from autocompress.export.layout import channels_last, enters_channels_last

_CONTRIBUTED = "com.microsoft"
"""The domain of operators that ONNX Runtime has beside the standard ones."""


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
    """Zero points are not shared: where ONNX Runtime 1.31 makes int8 weights uint8 (its session.x64quantprecision), it
    fails on one that two layers read."""
    zeros = torch.zeros(scale.shape, dtype=steps.dtype)
    tensors = (e.parameter(steps, name), e.parameter(scale, f"{name}_scale"), e.own_parameter(zeros, f"{name}_zero"))
    return e.add_named(f"{name}>dq", "DequantizeLinear", *tensors, axis=axis)


def _convolution(e: Emitter, node: Node, layer: Any) -> str | None:
    """Padding that isn't zeros is an operator before it; a map without a batch axis gets one meanwhile."""
    source: Any = node.args[0]
    if layer.padding_mode == "zeros":
        x, pads = e.value(source), _pads(layer)
    else:
        pads = [0] * (2 * len(layer.kernel_size))
        made = padded(e, source, layer._reversed_padding_repeated_twice, layer.padding_mode)
        if made is None:
            return None
        x = made
    return _batched(
        e, node, layer, "Conv", x,
        kernel_shape=layer.kernel_size, strides=layer.stride, dilations=layer.dilation, group=layer.groups, pads=pads,
    )  # fmt: skip


def _batched(e: Emitter, node: Node, layer: Any, op: str, x: str, **attributes: Any) -> str:
    if e.rank(node) == len(layer.kernel_size) + 2:
        return e.add(op, x, *_weight_and_bias(e, node, layer), **attributes)
    made = e.add(op, e.add("Unsqueeze", x, e.integers(0)), *_weight_and_bias(e, node, layer), **attributes)
    return e.add("Squeeze", made, e.integers(0))


def _pads(layer: Any) -> list[int]:
    if layer.padding == "valid":
        return [0] * (2 * len(layer.kernel_size))
    if layer.padding == "same":
        total = [d * (k - 1) for d, k in zip(layer.dilation, layer.kernel_size, strict=True)]
        return [n // 2 for n in total] + [n - n // 2 for n in total]
    return [int(n) for n in layer.padding] * 2


def _transposed_convolution(e: Emitter, node: Node, layer: Any) -> str:
    return _batched(
        e, node, layer, "ConvTranspose", e.value(node.args[0]),
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
        product = e.add("Gemm", rows, *_weight_and_bias(e, node, layer), transB=1)
        return e.add("Reshape", product, _sequence_shape(e, node, layer))
    name = str(node.target)
    if _is_kept_otherwise(e, node, layer.weight):
        weight = e.add_named(f"{name}.weight>t", "Transpose", e.parameter(layer.weight, f"{name}.weight"), perm=[1, 0])
    else:
        weight = e.parameter(layer.weight.t(), f"{name}.weight")
    product = e.add("MatMul", x, weight)
    return product if layer.bias is None else e.add("Add", product, e.parameter(layer.bias, f"{name}.bias"))


def _weight_only_linear(e: Emitter, node: Node, layer: WeightOnlyLinear) -> str:
    """ONNX Runtime's own operator. Without accuracy_level 4 (products of integers) 8 bits take 150 times as long in
    1.31."""
    codes, scales = layer.codes()
    name = str(node.target)
    operands = [e.value(node.args[0]), e.parameter(_packed(codes, layer.bits), f"{name}.weight")]
    operands.append(e.parameter(scales, f"{name}.weight_scale"))
    if layer.bias is not None:
        operands += ["", "", e.parameter(layer.bias, f"{name}.bias")]
    e.opsets[_CONTRIBUTED] = 1
    return e.add(
        "MatMulNBits", *operands, domain=_CONTRIBUTED, K=layer.in_features, N=layer.out_features, bits=layer.bits,
        block_size=layer.rounding.group_size, accuracy_level=4,
    )  # fmt: skip


def _packed(codes: Tensor, bits: int) -> Tensor:
    """Codes along the last axis as bytes, the first in the lowest bits, counted from the lowest code."""
    per_byte = 8 // bits
    places = torch.arange(per_byte, dtype=torch.int32) * bits
    steps = (codes + 2 ** (bits - 1)).to(torch.int32).reshape(*codes.shape[:-1], -1, per_byte)
    packed: Tensor = (steps << places).sum(-1)
    return packed.to(torch.uint8)


def _sequence_shape(e: Emitter, node: Node, layer: Any) -> str:
    if len(e.type(node).free) <= 1:
        return e.shape_of(node)
    return e.vector([*e.dims(node.args[0])[:-1], layer.weight.shape[0]])


def _is_kept_otherwise(e: Emitter, node: Node, weight: Tensor) -> bool:
    """Whether another layer's weight is the same and stored as torch has it (an embedding tied to a head): it is stored
    once, and the runtime turns it when the file is loaded."""
    for other in e.model.graph.nodes:
        module = e.model.get_submodule(str(other.target)) if other.op == "call_module" else None
        found = getattr(module, "weight", None)
        if other is node or isinstance(module, (QuantizedLayer, WeightOnlyLinear)) or not isinstance(found, Tensor):
            continue
        turned = isinstance(module, nn.Linear) and e.rank(other.args[0]) != 2
        if not turned and found.shape == weight.shape and (found is weight or torch.equal(found, weight)):
            return True
    return False


def _batch_norm(e: Emitter, node: Node, layer: Any) -> str | None:
    if layer.running_mean is None:
        return None
    size, name = layer.running_mean.shape, str(node.target)
    weight = layer.weight if layer.weight is not None else torch.ones(size)
    bias = layer.bias if layer.bias is not None else torch.zeros(size)
    tensors = {"weight": weight, "bias": bias, "mean": layer.running_mean, "variance": layer.running_var}
    operands = [e.parameter(tensor, f"{name}.{key}") for key, tensor in tensors.items()]
    return e.add("BatchNormalization", e.value(node.args[0]), *operands, epsilon=layer.eps)


def _instance_norm(e: Emitter, node: Node, layer: Any) -> str | None:
    """By statistics that were kept it is a batch norm."""
    if layer.running_mean is not None:
        return _batch_norm(e, node, layer)
    source: Any = node.args[0]
    if e.rank(source) != {"1": 3, "2": 4, "3": 5}.get(type(layer).__name__[-2:-1], e.rank(source)):
        return None
    channels, name = e.type(source).one[1], str(node.target)
    weight = layer.weight if layer.weight is not None else torch.ones(channels)
    bias = layer.bias if layer.bias is not None else torch.zeros(channels)
    operands = [e.parameter(weight, f"{name}.weight"), e.parameter(bias, f"{name}.bias")]
    return e.add("InstanceNormalization", e.value(source), *operands, epsilon=layer.eps)


def _affine(e: Emitter, node: Node, layer: Any, *shape: int) -> list[str | None]:
    """A norm's weight and bias, as another shape if one is given."""
    found = []
    for key in ("weight", "bias"):
        tensor = getattr(layer, key, None)
        if tensor is not None and shape:
            tensor = tensor.reshape(shape)
        found.append(None if tensor is None else e.parameter(tensor, f"{node.target}.{key}"))
    return found


def _layer_norm(e: Emitter, node: Node, layer: Any) -> str:
    weight, bias = _affine(e, node, layer)
    return layer_norm(e, node.args[0], len(layer.normalized_shape), weight, bias, layer.eps)


def _rms_norm(e: Emitter, node: Node, layer: Any) -> str:
    weight, _ = _affine(e, node, layer)
    return rms_norm(e, node.args[0], len(layer.normalized_shape), weight, layer.eps)


def _group_norm(e: Emitter, node: Node, layer: Any) -> str:
    weight, bias = _affine(e, node, layer, -1, *[1] * (e.rank(node) - 2))
    return group_norm(e, node.args[0], layer.num_groups, weight, bias, layer.eps)


def _prelu(e: Emitter, node: Node, layer: Any) -> str:
    source: Any = node.args[0]
    slope = layer.weight
    if slope.numel() > 1 and e.rank(source) > 2:
        slope = slope.reshape(-1, *[1] * (e.rank(source) - 2))
    return prelu(e, source, e.parameter(slope, f"{node.target}.weight"), 1)


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
    ((WeightOnlyLinear,), _weight_only_linear),
    ((nn.Linear,), _linear),
    ((nn.BatchNorm1d, nn.BatchNorm2d, nn.BatchNorm3d), _batch_norm),
    ((nn.InstanceNorm1d, nn.InstanceNorm2d, nn.InstanceNorm3d), _instance_norm),
    ((nn.LayerNorm,), _layer_norm),
    ((nn.RMSNorm,), _rms_norm),
    ((nn.GroupNorm,), _group_norm),
    ((nn.PReLU,), _prelu),
    ((nn.Embedding,), _embedding),
    ((nn.LSTM, nn.GRU, nn.RNN), emit_recurrent),
)


def emit_layer(layer: nn.Module) -> Emit | None:
    """How to write this module, None if there is no way."""
    for kinds, emit in _LAYERS:
        if isinstance(layer, kinds):
            return lambda e, node, emit=emit: emit(e, node, layer)  # type: ignore[misc]
    return None
