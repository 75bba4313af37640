"""What a search aims at: a hardware profile that prices plans, and the device behind it, which times files if it can.

Prices follow the present speed of the device: a profile's times are ratios, and the original's is measured anew.
"""

import math
import time
import warnings
from collections.abc import Mapping, Sequence
from dataclasses import dataclass, field
from functools import cached_property
from pathlib import Path
from typing import NamedTuple

import numpy as np
from numpy.typing import NDArray

from autocompress.devices import DEFAULT_DEVICE, Device, open_device
from autocompress.devices.measure import (
    ROUNDS,
    RUNS_PER_ROUND,
    WARMUP_RUNS,
    measure,
    reference_seconds,
    to_latency,
    typical_seconds,
)
from autocompress.profiles import Profile, ProfileWarning
from autocompress.search.engine import Baseline, Lesson, Timing, Timings
from autocompress.search.objective import Objective, combined
from autocompress.vocabulary.errors import ConfigError, DeviceError, DeviceLostError
from autocompress.vocabulary.workload import Capabilities, Kernels, Latency

SCORES_ON = DEFAULT_DEVICE
"""Scores the files of a search whose devices are all elsewhere."""

LEAST_ROUNDS = 16
"""Rounds of timing, however little time is left: fewer give no interval."""

ATTEMPTS = 3
"""How often timing is begun on a device that is lost in the middle of it."""

RECOVERY_S = 2.0
"""What a lost device is given to come back, longer after each attempt."""


REPEATS, OWN_REPEATS = 1.4, 1.2
"""The untouched model's time is told to be off where it lies outside its interval by more than such a factor: times of
one model differ by 12 to 21 % between processes on a shared host, ratios to the original by a few."""


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

    def doubt(self, original: Latency, rewritten: Latency, kernels: Kernels, key: str) -> str | None:
        """Tells of a profile whose price of the rewritten original, whose kernels and plan key these are, is not what
        was timed; a profile of this very model is held to the ratio alone, a datasheet to nothing but a stopwatch."""
        if rewritten.origin == "predicted" or (rewritten.origin == "estimate" and self.profile.description.rates):
            return None
        found, own = self.profile.predict(kernels), self._is_of(key)
        pace = original.seconds / self.profile.reference_s if own else 1.0
        seconds, low, high = (pace * bound for bound in (found.seconds, found.low, found.high))
        margin = OWN_REPEATS if own else REPEATS
        if low / margin <= rewritten.high and rewritten.low <= high * margin:
            return None
        predicted, least, most, timed = (f"{1e3 * bound:.3g}" for bound in (seconds, low, high, rewritten.seconds))
        device = self.profile.device
        return (
            f"profile {self.name!r} predicts {predicted} ms ({least} to {most}) for the model as it is, {device} takes "
            f"{timed} ms: prices are scaled to that, but may rank wrongly; calibrate with `autocompress profile "
            f"{device} --task TASK --out DIR`, then search with --profile DIR"
        )

    def adopt(self, original: Latency, rewritten: Latency, kernels: Kernels, key: str) -> None:
        """From now on prices are relative to these: a profile of this very model follows the original, that of another
        one the rewritten original, whose kernels and plan key these are."""
        self._reference_s = original.seconds
        if self._is_of(key):
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

    def _is_of(self, key: str) -> bool:
        """Whether the profile was made from the plans of the model whose empty plan this is."""
        return any(row.id == key for row in self.profile.models)

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


class Targets:
    """All profiles of a search, by name, and how their latencies come to what is minimised.

    The first one's device scores files; where it is not here, SCORES_ON does.
    """

    def __init__(self, objective: Objective, targets: Sequence[Target]) -> None:
        names = [target.name for target in targets]
        if twice := sorted({name for name in names if names.count(name) > 1}):
            raise ConfigError(f"several of the profiles are called {twice[0]!r}; rename one in its profile.toml")
        self.by_name = {target.name: target for target in targets}
        self._objective = objective
        self._originals: Mapping[str, Latency] = {}
        for target in targets:
            if target.device is None:
                _tell_of_absent(target)

    @property
    def first(self) -> str:
        return next(iter(self.by_name))

    @property
    def each(self) -> bool:
        """Whether every latency is an objective of its own."""
        return self._objective is Objective.EACH and len(self.by_name) > 1

    @property
    def profiles(self) -> list[Profile]:
        return [target.profile for target in self.by_name.values()]

    @cached_property
    def capabilities(self) -> Capabilities:
        """What all the devices can make use of."""
        found = [profile.capabilities for profile in self.profiles]
        dtypes = frozenset.intersection(*(c.dtypes for c in found)) or found[0].dtypes
        multiples = {dtype: math.lcm(*(c.channel_multiple.get(dtype, 1) for c in found)) for dtype in dtypes}
        return Capabilities(dtypes, multiples)

    def device(self, profile: str | None = None) -> Device:
        return self.by_name[profile or self.first].device or open_device(SCORES_ON)

    def runs_on(self, fastest: str | None) -> Device:
        """The device that a model is verified on: of the runtimes of one machine the one that a user will take."""
        return self.device(fastest if self._objective is Objective.BEST else None)

    def combined(self, found: Mapping[str, Latency]) -> Latency:
        return combined(self._objective, found, self._originals or found)

    def price(self, kernels: Kernels) -> dict[str, Latency]:
        return {name: target.price(kernels) for name, target in self.by_name.items()}

    def baseline(self, rewritten: Path, kernels: Kernels) -> dict[str, tuple[Latency, Latency]]:
        """Profile → the original's latency, and that after exact rewrites, whose file and kernels these are."""
        return {name: target.baseline(rewritten, kernels) for name, target in self.by_name.items()}

    def doubts(self, timed: Mapping[str, tuple[Latency, Latency]], kernels: Kernels, key: str) -> tuple[str, ...]:
        """Tells of every profile whose price is not what `baseline` found."""
        found = (target.doubt(*timed[name], kernels, key) for name, target in self.by_name.items())
        return tuple(doubt for doubt in found if doubt is not None)

    def adopt(self, baseline: Baseline, kernels: Kernels, key: str) -> None:
        """Prices follow the devices' present speed. A run from before there were several profiles knows one."""
        self._originals = {name: baseline.devices.get(name, baseline.latency) for name in self.by_name}
        for name, target in self.by_name.items():
            plain = self._originals[name]
            target.adopt(plain, baseline.rewritten_on.get(name, baseline.rewritten or plain), kernels, key)

    def measure(
        self,
        paths: Mapping[str, Path],
        seconds: float,
        most_rounds: int,
        predicted: Mapping[str, Mapping[str, Latency]],
    ) -> Timings:
        """On every device in turn; what the first can't time is refused."""
        share_s = seconds / len(self.by_name)
        timed = {name: target.measure(paths, share_s, most_rounds) for name, target in self.by_name.items()}
        refused = {key: f"{self.first}: {reason}" for key, reason in timed[self.first].refused.items()}
        found = {}
        for key in (key for key in paths if key not in refused):
            measured = {name: t.found[key] for name, t in timed.items() if key in t.found}
            devices = {name: measured.get(name) or predicted[key][name] for name in self.by_name}
            chosen = measured if self._objective is Objective.BEST else devices
            found[key] = Timing(self.combined(chosen), devices)
        return Timings(found, refused)

    def learn(self, timed: Sequence[tuple[Kernels, Mapping[str, Latency]]]) -> list[Lesson]:
        """From models whose latencies on the profiles are these; what was only predicted teaches nothing."""
        lessons = []
        for name, target in self.by_name.items():
            seen = [(k, target.price(k), d[name]) for k, d in timed if name in d and d[name].origin != "predicted"]
            lessons.append(target.learn(seen))
        return [lesson for lesson in lessons if lesson is not None]


def _tell_of_absent(target: Target) -> None:
    warnings.warn(
        f"the device of profile {target.name!r} can't be used here ({target.absent}): its latencies stay predictions",
        ProfileWarning,
        stacklevel=5,
    )
