"""Modules that compute in float what an int8 runtime computes, with straight-through gradients for training."""

from typing import Any

import torch
import torch.nn.functional as F
from torch import Tensor, nn

ACTIVATION_MIN, ACTIVATION_MAX = 0, 255
"""Activations are uint8: the pair (uint8, int8) has the fast kernels on x86."""
WEIGHT_MIN, WEIGHT_MAX = -127, 127
"""Weights are int8 and symmetric, so that they need no zero point."""
_BIAS_LIMIT = 2.0**30
_LEAST_SCALE = 1e-18
"""Keeps the step of an all-zero channel, and its product with another, a normal float32 number."""


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
        scale = max((high - low) / (ACTIVATION_MAX - ACTIVATION_MIN), _LEAST_SCALE)
        return FakeQuantize(scale, min(ACTIVATION_MAX, round(ACTIVATION_MIN - low / scale)))

    def step(self, x: Tensor) -> Tensor:
        """The step of each element of `x`: one for all."""
        return self.scale

    def forward(self, x: Tensor) -> Tensor:
        return torch.fake_quantize_per_tensor_affine(x, self.scale, self.zero_point, ACTIVATION_MIN, ACTIVATION_MAX)


class QuantizedLayer(nn.Module):
    """A layer whose weight is rounded to int8, with one scale per output channel (along `channel_axis`), and whose bias
    is rounded to the int32 steps in which the products are summed. Its parameters stay the trainable float ones."""

    channel_axis = 0
    weight: Any
    bias: Any
    weight_scale: Tensor
    bias_scale: Tensor

    @property
    def quantized_weight(self) -> Tensor:
        """The weight as the runtime sees it, in float."""
        zero = torch.zeros(self.weight_scale.shape, dtype=torch.int32)
        return torch.fake_quantize_per_channel_affine(
            self.weight, self.weight_scale, zero, self.channel_axis, WEIGHT_MIN, WEIGHT_MAX
        )

    @property
    def quantized_bias(self) -> Tensor | None:
        """The bias as the runtime sees it, in float."""
        if self.bias is None:
            return None
        error = (self.bias / self.bias_scale).round() * self.bias_scale - self.bias
        result: Tensor = self.bias + error.detach()
        return result

    def integers(self) -> tuple[Tensor, Tensor | None]:
        """The int8 weight and the int32 bias."""
        shape = [1] * self.weight.dim()
        shape[self.channel_axis] = -1
        with torch.no_grad():
            steps = (self.weight * (1 / self.weight_scale).reshape(shape)).round()
            weight = steps.clamp(WEIGHT_MIN, WEIGHT_MAX).to(torch.int8)
            return weight, None if self.bias is None else (self.bias / self.bias_scale).round().to(torch.int32)


class _QuantizedConv(QuantizedLayer):
    _conv_forward: Any

    def forward(self, x: Tensor) -> Tensor:
        result: Tensor = self._conv_forward(x, self.quantized_weight, self.quantized_bias)
        return result


class _QuantizedConvTranspose(QuantizedLayer):
    channel_axis = 1
    function: Any

    def forward(self, x: Tensor) -> Tensor:
        layer: Any = self
        result: Tensor = type(self).function(
            x, self.quantized_weight, self.quantized_bias, layer.stride, layer.padding, layer.output_padding,
            layer.groups, layer.dilation,
        )  # fmt: skip
        return result


class QuantizedLinear(QuantizedLayer, nn.Linear):
    def forward(self, x: Tensor) -> Tensor:
        return F.linear(x, self.quantized_weight, self.quantized_bias)


class QuantizedConv1d(_QuantizedConv, nn.Conv1d): ...


class QuantizedConv2d(_QuantizedConv, nn.Conv2d): ...


class QuantizedConv3d(_QuantizedConv, nn.Conv3d): ...


class QuantizedConvTranspose1d(_QuantizedConvTranspose, nn.ConvTranspose1d):  # type: ignore[misc]
    function = F.conv_transpose1d


class QuantizedConvTranspose2d(_QuantizedConvTranspose, nn.ConvTranspose2d):  # type: ignore[misc]
    function = F.conv_transpose2d


class QuantizedConvTranspose3d(_QuantizedConvTranspose, nn.ConvTranspose3d):  # type: ignore[misc]
    function = F.conv_transpose3d


_QUANTIZED: dict[type[nn.Module], type[QuantizedLayer]] = {
    nn.Linear: QuantizedLinear,
    nn.Conv1d: QuantizedConv1d,
    nn.Conv2d: QuantizedConv2d,
    nn.Conv3d: QuantizedConv3d,
    nn.ConvTranspose1d: QuantizedConvTranspose1d,
    nn.ConvTranspose2d: QuantizedConvTranspose2d,
    nn.ConvTranspose3d: QuantizedConvTranspose3d,
}


def is_quantizable(layer: nn.Module) -> bool:
    return type(layer) in _QUANTIZED


def quantize_weight(layer: nn.Module, input_scale: Tensor) -> None:
    """Turns a layer, in place, into its QuantizedLayer; `input_scale` is the step of the tensor that it reads.

    A channel's scale is its largest weight over 127, or more where the bias would not fit into 31 bits. A grouped
    transposed convolution has one scale for all the channels of equal place in their groups.
    """
    quantized: Any = layer
    quantized.__class__ = _QUANTIZED[type(layer)]
    weight = quantized.weight.detach()
    others = tuple(d for d in range(weight.dim()) if d != quantized.channel_axis)
    scale = weight.abs().amax(others) / WEIGHT_MAX
    if quantized.bias is not None:
        least = quantized.bias.detach().abs() / (input_scale * _BIAS_LIMIT)
        scale = torch.maximum(scale, least.reshape(-1, scale.numel()).amax(0))
    scale = scale.clamp_min(_LEAST_SCALE)
    quantized.register_buffer("weight_scale", scale)
    repeats = 1 if quantized.bias is None else quantized.bias.numel() // scale.numel()
    quantized.register_buffer("bias_scale", (input_scale * scale).repeat(repeats))
