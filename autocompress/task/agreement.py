"""Whether two runs of one model differ by more than rounding."""

import math
from dataclasses import dataclass
from typing import Any

import numpy as np
from numpy.typing import NDArray

SAFETY = 16.0
"""Factor on the rounding bound: runtimes sum in other orders, fuse, and use fast exponentials (a few ulp each)."""

INT8_STEPS = 255
"""Steps of an 8-bit tensor over its range."""


@dataclass(frozen=True, slots=True)
class Agreement:
    """The root-mean-square difference relative to the larger of the values' spread and size, and what is allowed."""

    relative_rms: float
    allowed: float
    reason: str = ""

    @property
    def holds(self) -> bool:
        return not self.reason and self.relative_rms <= self.allowed

    def __str__(self) -> str:
        return self.reason or f"{self.relative_rms:.2g} of its range (rms), where rounding explains {self.allowed:.2g}"


def tolerance(kernels: int, quantised: int = 0, half: bool = False) -> float:
    """What rounding explains of a difference, relative to the values' range.

    Each kernel adds a few units in the last place of its sums: errors of L kernels, each of up to 4,096 terms, grow as
    sqrt(L * 4096) * eps (Higham and Mary 2019, section 2), times SAFETY. A tensor that is rounded to 8 bits on one side
    only is off by a step's uniform error, a variance of step^2 / 12; those of q tensors add up to sqrt(q / 12) steps,
    and the values' range may differ by as much again.
    """
    if half:
        return float(SAFETY * math.sqrt(kernels) * np.finfo(np.float16).eps)
    rounding = SAFETY * math.sqrt(kernels * 4096) * float(np.finfo(np.float32).eps)
    return rounding + 2 * math.sqrt(quantised / 12) / INT8_STEPS


def compared(found: NDArray[Any], expected: NDArray[Any], allowed: float) -> Agreement:
    """Of integers and truth values each must be equal; of floats infinities and NaN must stand in the same places."""
    if found.shape != expected.shape or found.dtype != expected.dtype:
        kinds = f"{found.shape} of {found.dtype} where {expected.shape} of {expected.dtype} is right"
        return Agreement(math.inf, allowed, f"it is {kinds}")
    if not np.issubdtype(expected.dtype, np.floating):
        wrong = int((found != expected).sum())
        return Agreement(0.0, allowed, f"{wrong} of {found.size} entries differ" if wrong else "")
    a, b = found.astype(np.float64), expected.astype(np.float64)
    finite = np.isfinite(b)
    if not np.array_equal(np.isfinite(a), finite) or not np.array_equal(a[~finite], b[~finite], equal_nan=True):
        return Agreement(math.inf, allowed, "other entries are infinite or not a number")
    if not finite.any():
        return Agreement(0.0, allowed)
    scale = max(float(np.ptp(b[finite])), float(np.abs(b[finite]).max()), float(np.finfo(np.float32).tiny))
    return Agreement(float(np.sqrt(np.mean((a[finite] - b[finite]) ** 2))) / scale, allowed)
