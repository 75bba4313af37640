"""Number formats as a table: what weights and activations of a kernel are, and what a file stores of them."""

import math
from collections.abc import Container
from dataclasses import dataclass
from enum import StrEnum
from functools import cache

from autocompress.vocabulary import plugins
from autocompress.vocabulary.errors import PluginError, nearest

FP32, INT8, W8, W4 = "fp32", "int8", "w8", "w4"
TRAINED_IN = FP32
"""What a layer computes in that is left alone."""


_SCALE_BYTES = 4


class Mode(StrEnum):
    """How activations come into the format: not at all, by grids found before, or by grids found while running."""

    FLOAT = "float"
    STATIC = "static"
    DYNAMIC = "dynamic"
    WEIGHT_ONLY = "weight-only"


@dataclass(frozen=True, slots=True)
class Format:
    """One row; `name` is that in plans, profiles and parameters of a study.

    `symmetric` is about weights; `group_size` is how many of them share a scale (None: all of an output channel, or, in
    a float format, none has one). `channel_bytes` are stored beside the weights of each output channel: its bias, and
    its scale and zero point if it has any. `layers` are the kinds that have kernels in the format, where they have at
    least so many weights that these can pay; which devices have the kernels, Capabilities say.
    """

    name: str
    weight_bits: int
    activation_bits: int
    mode: Mode
    symmetric: bool = True
    group_size: int | None = None
    channel_bytes: int = 4
    layers: frozenset[str] = frozenset({"conv", "linear"})
    least_weights: int = 0

    def __post_init__(self) -> None:
        if self.mode is Mode.WEIGHT_ONLY and (self.layers != {"linear"} or self.group_size is None):
            raise ValueError(f"{self.name}: weight-only formats are of linear layers and in groups")

    @property
    def is_float(self) -> bool:
        return self.mode is Mode.FLOAT

    @property
    def is_static(self) -> bool:
        """Whether tensors exist in the format: what lies between two such layers is in it too."""
        return self.mode is Mode.STATIC

    def suits(self, kind: str, weights: int) -> bool:
        """Whether a layer may be in this format."""
        return kind in self.layers and weights >= self.least_weights

    def stored_bytes(self, weights: int, channels: int) -> int:
        """Groups are filled up; each has a float scale."""
        scales = 0
        if self.group_size is not None:
            scales = channels * math.ceil(weights / channels / self.group_size)
            weights = scales * self.group_size
        return weights * self.weight_bits // 8 + scales * _SCALE_BYTES + channels * self.channel_bytes


_OWN = (
    Format(FP32, 32, 32, Mode.FLOAT, layers=frozenset({"conv", "conv_transpose", "linear"})),
    Format(W8, 8, 32, Mode.WEIGHT_ONLY, group_size=128, layers=frozenset({"linear"}), least_weights=2**16),
    Format(INT8, 8, 8, Mode.STATIC, channel_bytes=9),
    Format(W4, 4, 32, Mode.WEIGHT_ONLY, group_size=128, layers=frozenset({"linear"}), least_weights=2**16),
)
"""INT8 is QDQ: uint8 activations over the whole tensor, int8 weights per output channel. W8 and W4 are MatMulNBits of
ONNX Runtime 1.31, where groups of 128 were quicker than those of 32 at every shape, and little was gained below 2^16
weights: 256 to 256 channels took 0.88 of fp32's time at one position and 0.92 at 16, 128 to 256 took longer at 16 (one
core of an Intel Xeon with AMX)."""


@cache
def formats() -> tuple[Format, ...]:
    """All rows, plug-ins' too, from mildest to strongest; the first is TRAINED_IN. Raises PluginError."""
    rows = [*_OWN, *map(_installed, plugins.names(plugins.FORMATS))]
    return tuple(sorted(rows, key=lambda row: (-row.weight_bits, -row.activation_bits, row.name)))


@cache
def format_of(name: str) -> Format:
    """The row of a name. Raises ValueError, saying the nearest."""
    rows = {row.name: row for row in formats()}
    if name not in rows:
        raise ValueError(f"unknown number format {name!r}: {nearest(name, rows)}")
    return rows[name]


def formats_of(available: Container[str]) -> tuple[Format, ...]:
    """Those among the available ones, from mildest to strongest."""
    return tuple(row for row in formats() if row.name in available)


def mildest(available: Container[str], kind: str) -> Format | None:
    """What a kind of layer computes in at best, where hardware has but these formats; None if it has none for it."""
    return next((row for row in formats_of(available) if kind in row.layers), None)


def _installed(name: str) -> Format:
    row = plugins.load(plugins.FORMATS, name)
    if not isinstance(row, Format) or row.name != name or name in {own.name for own in _OWN}:
        raise PluginError(
            f"{plugins.owner(plugins.FORMATS, name)} declares {plugins.FORMATS} {name!r}, which is {row!r}; it must be "
            f"a Format of that name, other than {', '.join(own.name for own in _OWN)}"
        )
    return row
