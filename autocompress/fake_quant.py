"""Modules that compute in float what an int8 runtime computes, with straight-through gradients for training."""

from typing import Any

import torch
import torch.nn.functional as F
from torch import Tensor, nn

ACTIVATION_MIN, ACTIVATION_MAX = 0, 255
"""Activations are uint8: the pair (uint8, int8) has the fast kernels on x86."""
WEIGHT_MIN, WEIGHT_MAX = -127, 127
"""Weights are int8 and symmetric, so that they need no zero point."""


class FakeQuantize(nn.Module):
    """Rounds (half to even) and saturates a tensor to the uint8 grid `scale * (q - zero_point)`."""

    scale: Tensor
    zero_point: Tensor

    def __init__(self, scale: float, zero_point: int) -> None:
        super().__init__()
        self.register_buffer("scale", torch.tensor(scale, dtype=torch.float32))
        self.register_buffer("zero_point", torch.tensor(zero_point, dtype=torch.int32))

    @staticmethod
    def over(low: float, high: float) -> "FakeQuantize":
        """The grid that covers [low, high] and 0, on which 0 is exact: padding and ReLU cost no error."""
        low, high = min(low, 0.0), max(high, 0.0)
        scale = max((high - low) / (ACTIVATION_MAX - ACTIVATION_MIN), torch.finfo(torch.float32).tiny)
        return FakeQuantize(scale, min(ACTIVATION_MAX, round(ACTIVATION_MIN - low / scale)))

    def forward(self, x: Tensor) -> Tensor:
        return torch.fake_quantize_per_tensor_affine(x, self.scale, self.zero_point, ACTIVATION_MIN, ACTIVATION_MAX)


class _QuantizedWeight(nn.Module):
    """A layer whose weight is rounded to int8 with one scale per output channel, which lies on `channel_axis`."""

    channel_axis = 0
    weight: Any
    weight_scale: Tensor

    @property
    def quantized_weight(self) -> Tensor:
        """The weight as the runtime sees it, in float."""
        zero = torch.zeros(self.weight_scale.shape, dtype=torch.int32)
        return torch.fake_quantize_per_channel_affine(
            self.weight, self.weight_scale, zero, self.channel_axis, WEIGHT_MIN, WEIGHT_MAX
        )

    @property
    def integer_weight(self) -> Tensor:
        """The weight's int8 codes."""
        with torch.no_grad():
            shape = [1] * self.weight.dim()
            shape[self.channel_axis] = -1
            inverse = 1 / self.weight_scale
            codes: Tensor = (self.weight * inverse.reshape(shape)).round()
            return codes.clamp(WEIGHT_MIN, WEIGHT_MAX).to(torch.int8)


class _QuantizedConv(_QuantizedWeight):
    _conv_forward: Any
    bias: Any

    def forward(self, x: Tensor) -> Tensor:
        result: Tensor = self._conv_forward(x, self.quantized_weight, self.bias)
        return result


class _QuantizedConvTranspose(_QuantizedWeight):
    channel_axis = 1
    function: Any

    def forward(self, x: Tensor) -> Tensor:
        layer: Any = self
        result: Tensor = type(self).function(
            x, self.quantized_weight, layer.bias, layer.stride, layer.padding, layer.output_padding, layer.groups,
            layer.dilation,
        )  # fmt: skip
        return result


class QuantizedLinear(_QuantizedWeight, nn.Linear):
    def forward(self, x: Tensor) -> Tensor:
        return F.linear(x, self.quantized_weight, self.bias)


class QuantizedConv1d(_QuantizedConv, nn.Conv1d): ...


class QuantizedConv2d(_QuantizedConv, nn.Conv2d): ...


class QuantizedConv3d(_QuantizedConv, nn.Conv3d): ...


class QuantizedConvTranspose1d(_QuantizedConvTranspose, nn.ConvTranspose1d):  # type: ignore[misc]
    function = F.conv_transpose1d


class QuantizedConvTranspose2d(_QuantizedConvTranspose, nn.ConvTranspose2d):  # type: ignore[misc]
    function = F.conv_transpose2d


class QuantizedConvTranspose3d(_QuantizedConvTranspose, nn.ConvTranspose3d):  # type: ignore[misc]
    function = F.conv_transpose3d


QuantizedLayer = _QuantizedWeight
"""Any layer with int8 weights."""

_QUANTIZED: dict[type[nn.Module], type[_QuantizedWeight]] = {
    nn.Linear: QuantizedLinear,
    nn.Conv1d: QuantizedConv1d,
    nn.Conv2d: QuantizedConv2d,
    nn.Conv3d: QuantizedConv3d,
    nn.ConvTranspose1d: QuantizedConvTranspose1d,
    nn.ConvTranspose2d: QuantizedConvTranspose2d,
    nn.ConvTranspose3d: QuantizedConvTranspose3d,
}


def quantize_weight(layer: nn.Module, input_scale: float) -> None:
    """Turns a layer, in place, into one with int8 weights; its parameters stay the trainable float ones.

    The scale is each channel's largest weight over 127, or more where the int32 bias, whose step is `input_scale` times
    that scale, would overflow. A transposed convolution with groups has one scale for all channels of equal place.
    """
    quantized: Any = layer
    quantized.__class__ = _QUANTIZED[type(layer)]
    weight = quantized.weight.detach()
    others = tuple(d for d in range(weight.dim()) if d != quantized.channel_axis)
    scale = weight.abs().amax(others) / WEIGHT_MAX
    if quantized.bias is not None:
        least = quantized.bias.detach().abs() / (input_scale * 2.0**30)
        scale = torch.maximum(scale, least.reshape(-1, scale.numel()).amax(0))
    quantized.register_buffer("weight_scale", scale.clamp_min(torch.finfo(torch.float32).tiny).float())
