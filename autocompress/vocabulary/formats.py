"""Number formats as a table: what weights and activations of a kernel are, and what a file stores of them."""

from collections.abc import Container
from dataclasses import dataclass
from enum import StrEnum

from autocompress.vocabulary.workload import DType


class Mode(StrEnum):
    """How activations come into the format: not at all, by grids found before, or by grids found while running."""

    FLOAT = "float"
    STATIC = "static"
    DYNAMIC = "dynamic"
    WEIGHT_ONLY = "weight-only"


@dataclass(frozen=True, slots=True)
class Format:
    """One row. `symmetric` is about weights; `group_size` is how many of them share a scale (None: all of an output
    channel, or, in a float format, none has one). `channel_bytes` are stored beside the weights of each output channel:
    its bias, and its scale and zero point if it has any. Which kernels of a device run it, Capabilities say."""

    dtype: DType
    weight_bits: int
    activation_bits: int
    mode: Mode
    symmetric: bool = True
    group_size: int | None = None
    channel_bytes: int = 4

    @property
    def is_float(self) -> bool:
        return self.mode is Mode.FLOAT

    def stored_bytes(self, weights: int, channels: int) -> int:
        return weights * self.weight_bits // 8 + channels * self.channel_bytes


FORMATS: dict[DType, Format] = {
    row.dtype: row
    for row in (
        Format(DType.FP32, 32, 32, Mode.FLOAT),
        Format(DType.INT8, 8, 8, Mode.STATIC, channel_bytes=9),
    )
}
"""From mildest to strongest; the first is what models are trained in. INT8 is QDQ: uint8 activations over the whole
tensor, int8 weights per output channel."""


def formats_of(available: Container[DType]) -> tuple[Format, ...]:
    """Those among the available ones, from mildest to strongest."""
    return tuple(row for row in FORMATS.values() if row.dtype in available)
