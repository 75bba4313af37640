"""Linear layers of which only the weights are stored in few bits, computing in torch what ONNX Runtime will.

Weights that lie beside each other along the input share a scale. MatMulNBits (with accuracy_level 4, its quick way)
rounds what it reads as well, to 8 bits over the same groups, each position by itself: with random weights and inputs
this simulation is off by 3e-6, where without that rounding it is by 2e-2.
"""

from typing import Any

import torch
import torch.nn.functional as F
from torch import Tensor, nn

from autocompress.vocabulary.formats import Format

_INPUT_MAX = 127
_LEAST_SCALE = 1e-18
"""Keeps the step of a group of zeros a normal float32 number."""


class RoundGroups(nn.Module):
    """Rounds (half to even) `group_size` neighbours along the last axis to steps of their largest over 127."""

    def __init__(self, group_size: int) -> None:
        super().__init__()
        self.group_size = group_size

    def forward(self, x: Tensor) -> Tensor:
        step = self.step(x)
        return (x / step).round() * step

    def step(self, x: Tensor) -> Tensor:
        """The step of each element of `x`."""
        largest = _grouped(x.abs(), self.group_size).amax(-1, keepdim=True)
        steps = (largest / _INPUT_MAX).clamp_min(_LEAST_SCALE).expand(*largest.shape[:-1], self.group_size)
        return steps.flatten(-2)[..., : x.shape[-1]]


class WeightOnlyLinear(nn.Linear):
    """A linear layer with a weight of `bits` bits in groups. In each group the weight furthest from zero, whatever its
    sign, is the lowest code, -2^(bits-1): that has all codes used and needs no zero point."""

    bits: int
    rounding: RoundGroups

    def forward(self, x: Tensor) -> Tensor:
        return F.linear(self.rounding(x), self.rounded_weight, self.bias)

    @property
    def rounded_weight(self) -> Tensor:
        """The weight as the runtime sees it, in float."""
        codes, scales = self.codes()
        return (codes * scales[..., None]).flatten(1)[:, : self.in_features]

    def codes(self) -> tuple[Tensor, Tensor]:
        """[outputs, groups, group size] whole numbers from -2^(bits-1) to 2^(bits-1) - 1, and the scale of each group;
        the last group is filled up with zeros."""
        half = 2 ** (self.bits - 1)
        groups = _grouped(self.weight.detach(), self.rounding.group_size)
        furthest = groups.gather(-1, groups.abs().argmax(-1, keepdim=True))
        scales = furthest / -half
        scales = torch.where(scales.abs() < _LEAST_SCALE, torch.full_like(scales, _LEAST_SCALE), scales)
        return (groups / scales).round().clamp(-half, half - 1), scales.squeeze(-1)


def store_weights(layer: nn.Module, row: Format) -> None:
    """Turns a linear layer, in place, into a WeightOnlyLinear of a row of the table that has groups."""
    stored: Any = layer
    assert row.group_size is not None, row
    stored.__class__ = WeightOnlyLinear
    stored.bits, stored.rounding = row.weight_bits, RoundGroups(row.group_size)


def _grouped(x: Tensor, size: int) -> Tensor:
    """[..., n] as [..., groups, size], filled up with zeros."""
    groups: Tensor = F.pad(x, (0, -x.shape[-1] % size)).unflatten(-1, (-1, size))
    return groups
