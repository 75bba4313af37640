"""What a search aims at: a hardware profile that prices plans, and the device behind it, which times files if it can.

Prices follow the present speed of the device: a profile's times are ratios, and the original's is measured anew.
"""

import time
from collections.abc import Mapping, Sequence
from dataclasses import dataclass, field
from pathlib import Path
from typing import NamedTuple

import numpy as np
from numpy.typing import NDArray

from autocompress.devices import Device
from autocompress.errors import DeviceError, DeviceLostError
from autocompress.measure import (
    ROUNDS,
    RUNS_PER_ROUND,
    WARMUP_RUNS,
    measure,
    reference_seconds,
    to_latency,
    typical_seconds,
)
from autocompress.profiles import Profile
from autocompress.search.engine import Lesson
from autocompress.workload import Kernels, Latency

LEAST_ROUNDS = 16
"""Rounds of timing, however little time is left: fewer give no interval."""

ATTEMPTS = 3
"""How often timing is begun on a device that is lost in the middle of it."""

RECOVERY_S = 2.0
"""What a lost device is given to come back, longer after each attempt."""


class Timed(NamedTuple):
    """Latencies of the files that could be timed, and for the others why not."""

    found: dict[str, Latency]
    refused: dict[str, str]


@dataclass
class Target:
    """One profile of a search. `original` is the file that every other is timed beside, `inputs` one sample of it."""

    profile: Profile
    original: Path
    inputs: Sequence[NDArray[np.generic]]
    device: Device | None = None
    absent: str = ""
    _scale: float = 1.0
    _reference_s: float = field(init=False)

    def __post_init__(self) -> None:
        self._reference_s = self.profile.reference_s
        try:
            self.device = self.profile.open_device()
            self.device.open(self.original)
        except DeviceError as error:
            self.device, self.absent = None, str(error)

    @property
    def name(self) -> str:
        return self.profile.name

    def price(self, kernels: Kernels) -> Latency:
        """At the present speed of the device, by all that is known."""
        found = self.profile.predict(kernels)
        seconds, low, high = (self._scale * bound for bound in (found.seconds, found.low, found.high))
        return Latency(seconds, low, high, found.measured_fraction, found.origin)

    def baseline(self, rewritten: Path, kernels: Kernels) -> tuple[Latency, Latency]:
        """The original as plainly exported and after the exact rewrites, whose kernels these are: timed if the device
        is here; else both as the rewritten one is priced."""
        if self.device is None:
            price = self.profile.predict(kernels)
            return price, price
        paths = {"original": self.original, "rewritten": rewritten}
        found = measure(self.device, paths, self.original, self.inputs, rounds=ROUNDS)
        reference_s = reference_seconds(found["original"])
        return to_latency(found["original"], reference_s), to_latency(found["rewritten"], reference_s)

    def adopt(self, original: Latency, rewritten: Latency, kernels: Kernels, key: str) -> None:
        """From now on prices are relative to these: a profile of this very model follows the original, that of another
        one the rewritten original, whose kernels and plan key these are."""
        self._reference_s = original.seconds
        if any(row.id == key for row in self.profile.models):
            self._scale = original.seconds / self.profile.reference_s
        else:
            self._scale = rewritten.seconds / self.profile.predict(kernels).seconds

    def measure(self, paths: Mapping[str, Path], seconds: float, most_rounds: int) -> Timed:
        """Times the files in turn with the original, within about `seconds`."""
        if self.device is None:
            return Timed({}, dict.fromkeys(paths, self.absent))
        refused = {key: reason for key, path in paths.items() if (reason := self._refusal(path))}
        usable = {key: path for key, path in paths.items() if key not in refused}
        if not usable:
            return Timed({}, refused)
        round_s = (1.25 * len(usable) + 1) * (RUNS_PER_ROUND + WARMUP_RUNS) * self._reference_s
        rounds = max(LEAST_ROUNDS, int(min(most_rounds, seconds / round_s)))
        try:
            return Timed(self._timed(usable, rounds), refused)
        except DeviceError as error:
            return Timed({}, {**refused, **dict.fromkeys(usable, str(error))})

    def learn(self, timed: Sequence[tuple[Kernels, Latency, Latency]]) -> Lesson | None:
        """Corrects the profile by models that were timed: their kernels, latency as predicted before, and as found."""
        if not timed:
            return None
        errors = [abs(predicted.seconds / found.seconds - 1) for _, predicted, found in timed]
        inside = [predicted.low <= found.seconds <= predicted.high for _, predicted, found in timed]
        unit = self._scale * self.profile.reference_s
        self.profile = self.profile.with_measurements([(kernels, found.seconds / unit) for kernels, _, found in timed])
        return Lesson(self.name, len(timed), sum(errors) / len(errors), sum(inside) / len(inside))

    def _timed(self, paths: Mapping[str, Path], rounds: int) -> dict[str, Latency]:
        assert self.device is not None, "only called with a device"
        for attempt in range(1, ATTEMPTS + 1):
            try:
                found = measure(self.device, paths, self.original, self.inputs, rounds=rounds)
                return {key: to_latency(measurement, self._reference_s) for key, measurement in found.items()}
            except DeviceLostError:
                if attempt == ATTEMPTS:
                    raise
                time.sleep(attempt * RECOVERY_S)
        raise AssertionError("the last attempt returns or raises")

    def _refusal(self, path: Path) -> str:
        """Why the device can't run a file; empty if it can. A device that is lost now may be back when it is timed."""
        assert self.device is not None, "only called with a device"
        try:
            typical_seconds(self.device.open(path).time(self.inputs, 1))
        except DeviceLostError:
            return ""
        except DeviceError as error:
            return str(error)
        return ""
