"""Rooflines: what a kernel takes on hardware of known peak rates, whether that hardware is at hand or exists at all.

Peak rates come from a datasheet, so the times are estimates of the best case: nothing was measured.
"""

import tomllib
from pathlib import Path
from typing import Annotated, Any

from pydantic import AfterValidator, BaseModel, ConfigDict, Field, PositiveInt, ValidationError, model_validator

from autocompress.vocabulary.errors import ProfileError, nearest
from autocompress.vocabulary.formats import FP32, INT8, format_of
from autocompress.vocabulary.workload import WEIGHTED_OPS, Workload

Rate = Annotated[float, Field(gt=0, allow_inf_nan=False)]
FormatName = Annotated[str, AfterValidator(lambda name: format_of(name).name)]
"""A row of the table of number formats."""


class Rates(BaseModel):
    """Peak rates: multiply-accumulates per second in each number format that the hardware computes in, bytes per
    second of main memory, and seconds to launch a kernel. Channels are rounded up to `channel_multiple`."""

    model_config = ConfigDict(extra="forbid", frozen=True)

    macs_per_s: dict[FormatName, Rate] = Field(default={FP32: 2e10, INT8: 8e10}, min_length=1)
    bytes_per_s: Rate = 1e10
    launch_s: Annotated[float, Field(ge=0, allow_inf_nan=False)] = 2e-6
    channel_multiple: dict[FormatName, PositiveInt] = {FP32: 16, INT8: 4}

    @model_validator(mode="after")
    def _same_formats(self) -> "Rates":
        if self.macs_per_s.keys() != self.channel_multiple.keys():
            raise ValueError("macs_per_s and channel_multiple must name the same number formats")
        return self


def roofline(workload: Workload, rates: Rates) -> float:
    """Seconds of one kernel: the longer of computing, with a layer's channels rounded up, and moving its tensors, after
    a launch. An operation that does not multiply is known by its bytes alone.

    A number format that the hardware lacks computes at the pace of its slowest. Williams, Waterman & Patterson,
    Roofline, CACM 2009.
    """
    w = workload
    multiple = rates.channel_multiple.get(w.dtype, 1)
    padded = 1.0
    if w.op in WEIGHTED_OPS:
        padded = ceil_to(w.in_channels, multiple) * ceil_to(w.out_channels, multiple) / (w.in_channels * w.out_channels)
    pace = rates.macs_per_s.get(w.dtype) or min(rates.macs_per_s.values())
    row = format_of(w.dtype)
    moved_bits = (w.elements - w.weights) * row.activation_bits + w.weights * row.weight_bits
    return rates.launch_s + max(w.macs * padded / pace, moved_bits / 8 / rates.bytes_per_s)


def read_rates(path: Path) -> Rates:
    """The table [rates] of a TOML file, such as a profile's own. Raises ProfileError, saying what is wrong where."""
    try:
        document = tomllib.loads(path.read_text(encoding="utf-8"))
    except OSError as error:
        raise ProfileError(f"can't read the rates in {str(path)!r}: {error.strerror}; give a TOML file") from error
    except (tomllib.TOMLDecodeError, UnicodeDecodeError) as error:
        raise ProfileError(f"{path} is not TOML: {error}") from error
    if "rates" not in document:
        raise ProfileError(f"{path} has no table [rates]; it needs {', '.join(Rates.model_fields)}")
    try:
        return Rates.model_validate(document["rates"])
    except ValidationError as error:
        raise ProfileError(f"{path}: {_explained(error.errors()[0])}") from error


def _explained(found: Any) -> str:
    place = ".".join(str(part) for part in ("rates", *found["loc"]))
    if found["type"] == "extra_forbidden":
        return f"unknown key {place!r}: {nearest(str(found['loc'][-1]), Rates.model_fields)}"
    return f"{place} = {found['input']!r}: {found['msg'][0].lower()}{found['msg'][1:]}"


def ceil_to(channels: int, multiple: int) -> int:
    """`channels` rounded up to a multiple."""
    return -(-channels // multiple) * multiple
