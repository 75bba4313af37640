"""Timing: the ratio survives what the host does, and the interval says how well."""

import gc
import math
import os
import subprocess
import sys
import tempfile
import threading
from collections.abc import Callable, Sequence
from dataclasses import dataclass, field, replace
from pathlib import Path

import numpy as np
import pytest
from hypothesis import given
from hypothesis import strategies as st

from autocompress.devices import measure as timing
from autocompress.devices.base import Array, NodeTime
from autocompress.devices.measure import gate, measure, median_interval, reference_seconds, sweep, to_latency, to_ratio
from autocompress.vocabulary.errors import DeviceError
from autocompress.vocabulary.formats import FP32
from autocompress.vocabulary.workload import Capabilities, Measurement

REFERENCE_S = 1e-3


@dataclass
class Host:
    """A device without hardware: a model's name says how long it takes, `slowdown(visit)` what the host adds."""

    slowdown: Callable[[int], float] = lambda visit: 1.0
    noise: float = 0.0
    visits: list[str] = field(default_factory=list)
    name: str = "host"
    runtime: str = "host 1"
    estimate: bool = False
    draw: np.random.Generator = field(default_factory=lambda: np.random.default_rng(0))

    def capabilities(self) -> Capabilities:
        return Capabilities(frozenset({FP32}), {FP32: 1})

    def environment(self) -> dict[str, str]:
        return {"device": self.name, "runtime": self.runtime, "processor": "none"}

    def open(self, path: Path, threads: int = 1) -> "HostSession":
        return HostSession(self, path.stem)

    def profile(self, path: Path, inputs: Sequence[Array], runs: int) -> list[NodeTime]:
        raise NotImplementedError


@dataclass
class HostSession:
    host: Host
    model: str

    def run(self, *inputs: Array) -> Array:
        return np.zeros(1)

    def providers(self) -> dict[str, str]:
        return {}

    def time(self, inputs: Sequence[Array], runs: int) -> list[float]:
        factor = self.host.slowdown(len(self.host.visits))
        self.host.visits.append(self.model)
        exact = float(self.model) * REFERENCE_S * factor
        jitter = np.exp(self.host.noise * self.host.draw.normal(size=runs))
        cold = [10.0] * timing.WARMUP_RUNS + [1.0] * (runs - timing.WARMUP_RUNS)
        return [exact * c * float(j) for c, j in zip(cold, jitter, strict=True)]


def run(host: Host, *models: str, rounds: int = 30) -> dict[str, Measurement]:
    return measure(host, {name: Path(f"{name}.onnx") for name in models}, Path("1.onnx"), [], rounds=rounds)


def synthetic(ratios: Sequence[float], references: Sequence[float] | None = None) -> Measurement:
    references = references or [REFERENCE_S] * len(ratios)
    times = tuple(ratio * reference for ratio, reference in zip(ratios, references, strict=True))
    return Measurement(times, tuple(references), 2, 8, gate(references), {})


def test_the_ratio_is_recovered_under_common_drift() -> None:
    """The host gets 30 % slower meanwhile, then faster again."""
    host = Host(slowdown=lambda visit: 1.15 - 0.15 * math.cos(visit / 40), noise=0.01)
    found = run(host, "0.4", "0.75", "2.5", rounds=60)
    for name, measurement in found.items():
        ratio = to_ratio(measurement)
        assert ratio.value == pytest.approx(float(name), rel=0.01)
        assert ratio.low < float(name) < ratio.high


def test_cold_runs_are_discarded() -> None:
    assert to_ratio(run(Host(), "0.5")["0.5"]).value == pytest.approx(0.5)


def test_models_are_visited_there_and_back_between_visits_of_the_reference() -> None:
    host = Host()
    run(host, "2", "3", "4", "5", "6", rounds=2)
    there, back = host.visits[:8], host.visits[8:]
    assert there == ["1", "2", "3", "4", "5", "1", "6", "1"]
    assert back == ["1", "6", "5", "4", "3", "1", "2", "1"]


@dataclass
class Lucky(Host):
    """Every session of one model is slower or faster by one of these factors, in turn, for its whole life."""

    whose: str = ""
    factors: tuple[float, ...] = ()
    opened: int = 0

    def open(self, path: Path, threads: int = 1) -> HostSession:
        if path.stem != self.whose:
            return super().open(path, threads)
        self.opened += 1
        return LuckySession(self, path.stem, self.factors[self.opened % len(self.factors)])


@dataclass
class LuckySession(HostSession):
    luck: float

    def time(self, inputs: Sequence[Array], runs: int) -> list[float]:
        return [seconds * self.luck for seconds in super().time(inputs, runs)]


def test_no_session_of_the_reference_decides_for_all_models() -> None:
    """Every fourth is 5 % slow: a round that stood between two visits of that one would be 5 % off."""
    host = Lucky(whose="1", factors=(1.0, 1.0, 1.0, 1.05))
    found = run(host, "0.5", "2", "3", "4", "5", rounds=10)
    assert host.opened == 10 / timing.ROUNDS_PER_SESSION * timing.REFERENCES
    for name, measurement in found.items():
        ratios = np.array(measurement.times_s) / measurement.reference_times_s / float(name)
        assert ratios.min() > 1 / 1.03
        assert to_ratio(measurement).value == pytest.approx(float(name), rel=0.025)


def test_no_session_decides_by_its_luck() -> None:
    """Every session of the model is 5 % slower or faster for its whole life; one that lived on would decide."""

    host = Lucky(whose="0.5", factors=(0.95, 1.05))
    ratio = to_ratio(run(host, "0.5", rounds=60)["0.5"])
    assert host.opened == 60 / timing.ROUNDS_PER_SESSION
    assert ratio.value == pytest.approx(0.5)
    assert ratio.low < 0.95 * 0.5 + 1e-9 and ratio.high > 1.05 * 0.5 - 1e-9


def test_rounds_beside_a_busy_neighbour_are_set_aside() -> None:
    """In every third round the host is busy, which slows the reference more than the model."""

    @dataclass
    class Busy(Host):
        def open(self, path: Path, threads: int = 1) -> HostSession:
            return BusySession(self, path.stem)

    class BusySession(HostSession):
        def time(self, inputs: Sequence[Array], runs: int) -> list[float]:
            busy = (len(self.host.visits) // 3) % 3 == 2
            factor = (1.8 if self.model == "1" else 1.2) if busy else 1.0
            return [seconds * factor for seconds in super().time(inputs, runs)]

    found = run(Busy(), "0.5", rounds=30)["0.5"]
    assert sum(found.gated) == 20
    assert to_ratio(found).value == pytest.approx(0.5)
    assert reference_seconds(found) == pytest.approx(REFERENCE_S)


def test_a_short_measurement_waits_for_as_many_quiet_rounds_as_its_ratio_wants() -> None:
    """Every third round is busy, so that 16 rounds hold 11 quiet ones: one more is run."""
    found = run(Host(slowdown=lambda visit: 2.0 if visit // 3 % 3 == 2 else 1.0), "0.5", rounds=16)["0.5"]
    assert len(found.gated) == 17 and sum(found.gated) == timing.MIN_GATED
    assert to_ratio(found).gated


def test_a_gate_that_never_opens_is_waited_for_then_told_and_widens_the_interval() -> None:
    draw = np.random.default_rng(0)
    host = Host(slowdown=lambda visit: float(draw.uniform(1, 40)))
    found = run(host, "0.5", rounds=20)["0.5"]
    assert len(found.gated) == timing.MAX_EXTENSION * 20
    ratio = to_ratio(found)
    assert not ratio.gated
    quiet = to_ratio(run(Host(noise=0.01), "0.5", rounds=20)["0.5"])
    assert quiet.gated
    assert ratio.high - ratio.low > 5 * (quiet.high - quiet.low)


def test_a_latency_is_the_ratio_in_the_references_seconds() -> None:
    measurement = synthetic([0.49, 0.5, 0.51] * 10)
    latency, ratio = to_latency(measurement, 2e-3), to_ratio(measurement)
    assert latency.seconds == pytest.approx(1e-3)
    assert (latency.low, latency.high) == pytest.approx((2e-3 * ratio.low, 2e-3 * ratio.high))
    assert (latency.origin, latency.measured_fraction) == ("measured", 1.0)


def test_a_latency_says_when_the_host_was_never_quiet() -> None:
    references = [REFERENCE_S * (1 + 0.5 * (i % 2)) for i in range(8)] + [REFERENCE_S * (2 + i) for i in range(32)]
    measurement = synthetic([0.5 + 0.001 * i for i in range(40)], references)
    latency = to_latency(measurement, 2e-3)
    assert not to_ratio(measurement).gated
    assert latency.origin == "measured, busy host"


def test_an_estimate_is_never_called_measured() -> None:
    latency = to_latency(replace(synthetic([0.5] * 30), estimate=True), 2e-3)
    assert (latency.origin, latency.measured_fraction) == ("estimate", 0.0)
    assert latency.low == latency.seconds == latency.high == pytest.approx(1e-3)


def test_no_interval_is_narrower_than_what_repeats_between_processes() -> None:
    ratio = to_ratio(synthetic([0.5] * 30))
    assert ratio.high - ratio.value == pytest.approx(timing.CONFIDENCE_Z * timing.REPEATABILITY * 0.5)


def test_the_intervals_of_medians_cover_the_true_median() -> None:
    draw = np.random.default_rng(0)
    intervals = [median_interval(list(draw.lognormal(0, 0.3, size=30))) for _ in range(1000)]
    covered = np.mean([low <= 1 <= high for low, _, high in intervals])
    assert 0.94 <= covered <= 0.99


@given(st.lists(st.floats(0.1, 10), min_size=1, max_size=50))
def test_an_interval_encloses_its_median(samples: list[float]) -> None:
    low, middle, high = median_interval(samples)
    assert min(samples) <= low <= middle <= high <= max(samples)


@given(st.floats(1e-6, 1.0), st.integers(20, 40))
def test_scaling_host_speed_changes_no_ratio(scale: float, rounds: int) -> None:
    ratios = [0.5 + 0.01 * (i % 5) for i in range(rounds)]
    slow = synthetic(ratios, [scale] * rounds)
    assert to_ratio(slow).value == pytest.approx(to_ratio(synthetic(ratios)).value)


@pytest.mark.parametrize("seconds", ["0", "nan", "inf"])
def test_a_time_that_is_none_is_refused(seconds: str) -> None:
    with pytest.raises(DeviceError, match="must be positive"):
        run(Host(), seconds)


def test_the_process_is_left_as_it_was() -> None:
    before = os.sched_getaffinity(0)

    def failing(visit: int) -> float:
        assert not gc.isenabled()
        raise DeviceError("lost")

    with pytest.raises(DeviceError, match="lost"):
        run(Host(slowdown=failing), "0.5")
    assert gc.isenabled()
    assert os.sched_getaffinity(0) == before


def test_one_process_times_at_a_time(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    """Another process holds the stopwatch for a while; timing starts when it has let go."""
    monkeypatch.setattr(tempfile, "tempdir", str(tmp_path))
    lock = tmp_path / f"autocompress-timing-{os.getuid()}.lock"
    hold = "fcntl.flock(f, fcntl.LOCK_EX); print('held', flush=True); input()"
    script = f"import fcntl; f = open({str(lock)!r}, 'w'); {hold}"
    with subprocess.Popen([sys.executable, "-c", script], stdin=subprocess.PIPE, stdout=subprocess.PIPE) as other:
        assert other.stdout is not None and other.stdout.readline()
        host = Host()
        thread = threading.Thread(target=run, args=(host, "0.5"))
        thread.start()
        thread.join(0.2)
        assert thread.is_alive() and not host.visits
        other.communicate(b"done\n")
        thread.join(20)
    assert not thread.is_alive() and host.visits


def test_where_pinning_is_not_permitted_timing_goes_on(monkeypatch: pytest.MonkeyPatch) -> None:
    def refused(*arguments: object) -> None:
        raise PermissionError

    monkeypatch.setattr(os, "sched_setaffinity", refused)
    assert run(Host(), "0.5")["0.5"].environment["core"] == "any"


def test_raw_samples_and_conditions_are_kept() -> None:
    calls: list[tuple[int, int]] = []
    host = Host(noise=0.01)
    models = {"0.5": Path("0.5.onnx")}
    found = measure(host, models, Path("1.onnx"), [], rounds=20, progress=lambda *at: calls.append(at))
    assert len(found["0.5"].times_s) == len(found["0.5"].reference_times_s) == 20
    assert calls[-1] == (20, 20)
    assert {"device", "runtime", "threads", "core", "python"} <= found["0.5"].environment.keys()


def test_a_sweep_shares_what_a_batch_costs_among_its_samples() -> None:
    """The fixed part shrinks with the batch; whichever size runs while the host is slow is not blamed for it."""

    class Fixed(Host):
        def open(self, path: Path, threads: int = 1) -> HostSession:
            return FixedSession(self, path.stem)

    class FixedSession(HostSession):
        def time(self, inputs: Sequence[Array], runs: int) -> list[float]:
            return [(8e-3 + 1e-3 * len(inputs[0])) / REFERENCE_S * t for t in super().time(inputs, runs)]

    found = sweep(Fixed(lambda visit: 3.0 if visit % 7 == 0 else 1.0), Path("1.onnx"), [np.zeros((1, 3))], (1, 2, 8))
    assert found == pytest.approx({1: 9e-3, 2: 5e-3, 8: 2e-3})
