"""Timing models side by side with a reference, so that the ratio survives a noisy host.

Absolute milliseconds do not repeat across processes, ratios inside one process do. So models and a reference are
visited in turn on one core (A B C, then C B A, with A the reference), the first runs of a visit are discarded, rounds
in which the reference is not near its best are set aside, all are loaded anew every few rounds, and the figure is the
median over rounds of model time / reference time.
"""

import gc
import math
import os
import platform
import tempfile
from collections.abc import Callable, Iterator, Mapping, Sequence
from contextlib import contextmanager
from dataclasses import dataclass
from itertools import cycle
from pathlib import Path
from statistics import median

import numpy as np

from autocompress.devices.base import Array, Device, Session
from autocompress.vocabulary.errors import DeviceError
from autocompress.vocabulary.workload import Latency, Measurement

try:
    import fcntl
except ImportError:  # Windows has no advisory locks of this kind
    fcntl = None  # type: ignore[assignment]

ROUNDS = 60
RUNS_PER_ROUND = 8
WARMUP_RUNS = 2
"""Runs discarded at each visit: the caches still hold the model visited before."""

GATE = 1.08
"""A round counts while the reference takes at most this multiple of its best (its 10th percentile)."""

MIN_GATED = 12
"""With fewer gated rounds the gate is said not to have opened, and all rounds count with a wider interval."""

GATED_SHARE = 0.6
"""Of fewer than MIN_GATED rounds, this share is enough: they are one turn of several."""

ROUNDS_PER_SESSION = 5
"""Models are loaded anew this often: one session's luck with memory moves its times by 1 to 3 % for its whole life."""

REFERENCES = 4
"""Sessions of the reference, visited in turn: its luck would be in every ratio. With one, and twice the rounds per
session, the ratios of 48 ResNet-56 plans differed between processes by 2.3 % (standard deviation), so by 1.3 %."""

MAX_EXTENSION = 3
"""At most this many times the asked rounds are spent waiting for the gate to open."""

SWEEP_ROUNDS = 10

REPEATABILITY = 0.01
"""Standard deviation of the ratio of one model measured again later (two equal models: about 1 %)."""

CONFIDENCE_Z = 1.96
"""Standard normal quantile of a two-sided 95 % interval."""

_VISITS_PER_REFERENCE = 4

Progress = Callable[[int, int], None]
"""Called with (rounds done, rounds expected)."""


@dataclass(frozen=True, slots=True)
class Ratio:
    """A model's time over the reference's, with its 95 % interval; `gated` is False if the gate never opened."""

    value: float
    low: float
    high: float
    gated: bool


def measure(
    device: Device,
    models: Mapping[str, Path],
    reference: Path,
    inputs: Sequence[Array],
    *,
    rounds: int = ROUNDS,
    progress: Progress | None = None,
) -> dict[str, Measurement]:
    """Time every model next to the reference, at batch size 1 and on one thread.

    At least `rounds` rounds are run, and up to MAX_EXTENSION times as many while fewer than MIN_GATED of them (of fewer
    rounds than that, the GATED_SHARE) passed the gate. Raises DeviceError when the device refuses a model or reports a
    time that is not positive and finite.
    """
    places = {name: _Place(device, path) for name, path in models.items()}
    return _interleaved(places, _Place(device, reference), inputs, rounds, progress)


def measure_across(
    devices: Sequence[Device], model: Path, inputs: Sequence[Array], *, rounds: int = ROUNDS
) -> dict[str, Measurement]:
    """Time one model on every device of this machine, in turn in one process; the reference is the first device.

    Raises DeviceError as `measure` does.
    """
    places = {device.name: _Place(device, model) for device in devices}
    return _interleaved(places, places[devices[0].name], inputs, rounds, None)


@dataclass(frozen=True, slots=True)
class _Place:
    """A model on a device."""

    device: Device
    path: Path

    def open(self) -> Session:
        return self.device.open(self.path)


def _interleaved(
    places: Mapping[str, _Place], reference: _Place, inputs: Sequence[Array], rounds: int, progress: Progress | None
) -> dict[str, Measurement]:
    samples = _Samples(list(places))
    with undisturbed() as core:
        while len(samples) < rounds or (len(samples) < MAX_EXTENSION * rounds and not samples.enough(rounds)):
            if len(samples) % ROUNDS_PER_SESSION == 0:
                sessions = {name: place.open() for name, place in places.items()}
                references = cycle([reference.open() for _ in range(REFERENCES)])
            samples.add(_round(sessions, references, inputs, backwards=len(samples) % 2 == 1))
            if progress is not None:
                progress(len(samples), max(rounds, len(samples)))
    return {name: samples.measurement(name, place.device, core) for name, place in places.items()}


def sweep(
    device: Device, model: Path, sample: Sequence[Array], batch_sizes: Sequence[int], *, rounds: int = SWEEP_ROUNDS
) -> dict[int, float]:
    """Batch size → median seconds per sample, on one thread: where a device's throughput stops growing.

    `sample` is one sample, repeated; its times are comparable with one another, not with those of another process.
    Raises DeviceError when the device refuses a batch, for want of memory perhaps.
    """
    batches = {size: [np.repeat(array, size, axis=0) for array in sample] for size in batch_sizes}
    times: dict[int, list[float]] = {size: [] for size in batch_sizes}
    with undisturbed():
        session = device.open(model)
        for turn in range(rounds):
            for size in list(batches)[:: -1 if turn % 2 else 1]:
                times[size].append(_visit(session, batches[size]) / size)
    return {size: median(found) for size, found in times.items()}


def to_ratio(measurement: Measurement) -> Ratio:
    """Median over the gated rounds of model time / reference time, with its interval.

    The interval is the distribution-free 95 % one of a median, by order statistics (Conover, Practical Nonparametric
    Statistics, 1999, section 3.2), stretched by REPEATABILITY for what differs from process to process. If the gate
    never opened, it is the range that holds the middle 80 % of all rounds instead.
    """
    gated = [r for r, ok in zip(_ratios(measurement), measurement.gated, strict=True) if ok]
    if len(gated) < min(MIN_GATED, len(measurement.gated)):
        ratios = np.array(_ratios(measurement))
        low, value, high = (float(q) for q in np.quantile(ratios, (0.1, 0.5, 0.9)))
        return _stretched(low, value, high, gated=False)
    return _stretched(*median_interval(gated), gated=True)


def to_latency(measurement: Measurement, reference_s: float) -> Latency:
    """Seconds of a model whose reference takes `reference_s` seconds when the host is quiet.

    An estimate repeats exactly, so its interval is a point; how far it is from the hardware, nobody here measured.
    """
    ratio = to_ratio(measurement)
    seconds, low, high = (reference_s * bound for bound in (ratio.value, ratio.low, ratio.high))
    if measurement.estimate:
        return Latency(seconds, seconds, seconds, measured_fraction=0.0, origin="estimate")
    return Latency(seconds, low, high, 1.0, "measured" if ratio.gated else "measured, busy host")


def reference_seconds(measurement: Measurement) -> float:
    """The reference's own time: the median of its gated rounds (of all, if the gate never opened)."""
    pairs = zip(measurement.reference_times_s, measurement.gated, strict=True)
    return median([time for time, ok in pairs if ok] or measurement.reference_times_s)


def median_interval(samples: Sequence[float]) -> tuple[float, float, float]:
    """(low, median, high): order statistics that enclose the true median with 95 % confidence or more.

    Below six samples no pair of order statistics does, and the range is returned.
    """
    ordered = sorted(samples)
    count = len(ordered)
    rank = max(0, math.floor((count - CONFIDENCE_Z * math.sqrt(count)) / 2))
    return ordered[rank], median(ordered), ordered[count - 1 - rank]


def gate(reference_times_s: Sequence[float]) -> tuple[bool, ...]:
    """Which rounds count: those in which the reference is near its best time."""
    best = float(np.quantile(reference_times_s, 0.1))
    return tuple(time <= GATE * best for time in reference_times_s)


def _ratios(measurement: Measurement) -> list[float]:
    return [t / r for t, r in zip(measurement.times_s, measurement.reference_times_s, strict=True)]


def _stretched(low: float, value: float, high: float, *, gated: bool) -> Ratio:
    repeat = CONFIDENCE_Z * REPEATABILITY * value
    return Ratio(value, value - math.hypot(value - low, repeat), value + math.hypot(high - value, repeat), gated)


@dataclass(frozen=True, slots=True)
class _Visit:
    """Median seconds of a model's runs in one round and of the reference's around it."""

    time_s: float
    reference_s: float


class _Samples:
    """Rounds so far, one visit per model and round."""

    def __init__(self, names: Sequence[str]) -> None:
        self._visits: dict[str, list[_Visit]] = {name: [] for name in names}
        self._rounds = 0

    def __len__(self) -> int:
        return self._rounds

    def add(self, visits: Mapping[str, _Visit]) -> None:
        self._rounds += 1
        for name, visit in visits.items():
            self._visits[name].append(visit)

    def enough(self, rounds: int) -> bool:
        """Whether every model has its gated rounds."""
        wanted = MIN_GATED if rounds >= MIN_GATED else math.ceil(GATED_SHARE * rounds)
        return all(sum(gate([v.reference_s for v in visits])) >= wanted for visits in self._visits.values())

    def measurement(self, name: str, device: Device, core: str) -> Measurement:
        environment = {**device.environment(), "threads": "1", "core": core, "python": platform.python_version()}
        visits = self._visits[name]
        references = tuple(v.reference_s for v in visits)
        times = tuple(v.time_s for v in visits)
        return Measurement(
            times, references, WARMUP_RUNS, RUNS_PER_ROUND, gate(references), environment, device.estimate
        )


def _round(
    sessions: Mapping[str, Session], references: Iterator[Session], inputs: Sequence[Array], *, backwards: bool
) -> dict[str, _Visit]:
    """Visit every model once, the reference first, last and in between, so that each model stands between two."""
    names = list(sessions)[:: -1 if backwards else 1]
    visits: dict[str, _Visit] = {}
    before = _visit(next(references), inputs)
    for start in range(0, len(names), _VISITS_PER_REFERENCE):
        times = {name: _visit(sessions[name], inputs) for name in names[start : start + _VISITS_PER_REFERENCE]}
        after = _visit(next(references), inputs)
        visits |= {name: _Visit(time, (before + after) / 2) for name, time in times.items()}
        before = after
    return visits


def _visit(session: Session, inputs: Sequence[Array]) -> float:
    return typical_seconds(session.time(inputs, WARMUP_RUNS + RUNS_PER_ROUND)[WARMUP_RUNS:])


def typical_seconds(samples: Sequence[float]) -> float:
    """The median of a few runs. Raises DeviceError where it can't be a time."""
    time = median(samples)
    if not (math.isfinite(time) and time > 0):
        raise DeviceError(f"a run was timed at {time} seconds; a time must be positive: check the device's clock")
    return time


@contextmanager
def undisturbed() -> Iterator[str]:
    """For taking times: on one core without garbage collection, while no other process of this user takes any.

    Yields the core, or "any" where pinning is not permitted.
    """
    with _only_stopwatch(), _quiet_core() as core:
        yield core


@contextmanager
def _only_stopwatch() -> Iterator[None]:
    """Waits until no other process of this user is timing: two stopwatches on one host would time each other."""
    if fcntl is None:
        yield
        return
    with (Path(tempfile.gettempdir()) / f"autocompress-timing-{os.getuid()}.lock").open("w") as file:
        fcntl.flock(file, fcntl.LOCK_EX)
        yield


@contextmanager
def _quiet_core() -> Iterator[str]:
    collecting = gc.isenabled()
    gc.collect()
    gc.disable()
    allowed = _affinity()
    core = _pin(allowed)
    try:
        yield core
    finally:
        if core != "any":
            os.sched_setaffinity(0, allowed)
        if collecting:
            gc.enable()


def _affinity() -> set[int]:
    return os.sched_getaffinity(0) if hasattr(os, "sched_getaffinity") else set()


def _pin(allowed: set[int]) -> str:
    """The last core that this process may use: the first one serves most interrupts."""
    try:
        os.sched_setaffinity(0, {max(allowed)})
    except (AttributeError, OSError, ValueError):
        return "any"
    return str(max(allowed))
