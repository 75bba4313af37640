"""Profiles: what is predicted, saved and loaded, and what a damaged folder is told."""

import random
import re
import warnings
from collections import Counter
from collections.abc import Sequence
from dataclasses import replace
from pathlib import Path

import numpy as np
import pytest
from scipy.stats import spearmanr

from autocompress.devices.base import Array, NodeTime
from autocompress.profiles import Profile, ProfileWarning, calibrate, list_profiles, load, predictor
from autocompress.profiles.calibration import TURNS, attribute
from autocompress.profiles.kernel_times import KernelTimes, RooflineTimes
from autocompress.profiles.profile import SEARCH_PATH_VARIABLE
from autocompress.profiles.sites import sites
from autocompress.vocabulary.errors import DeviceError, ProfileError, StorageError
from autocompress.vocabulary.formats import FP32, INT8
from autocompress.vocabulary.precision import lower
from autocompress.vocabulary.workload import Kernel, Workload
from tests.profiles.nets import REFERENCE, KernelDevice, KernelSession, device_for, plans_for, random_net

PLANS = plans_for(60)
DEVICE = device_for(PLANS, dispatch_s=1e-6, profiler_s=3e-6)
NEW = [random_net(random.Random(seed)) for seed in range(1000, 1040)]


@pytest.fixture(scope="module")
def profile() -> Profile:
    return calibrate(DEVICE, PLANS, REFERENCE, [], name="roof", holdout=20)


@pytest.fixture
def folder(profile: Profile, tmp_path: Path) -> Path:
    profile.save(tmp_path / "roof")
    return tmp_path / "roof"


def true_seconds(kernels: dict, **settings: float) -> float:  # type: ignore[type-arg]
    device = replace(DEVICE, artifacts={Path("new"): lower(kernels)}, **settings)
    return device.open(Path("new")).seconds


def quietly(folder: str | Path) -> Profile:
    with warnings.catch_warnings():
        warnings.simplefilter("ignore", ProfileWarning)
        return load(folder)


def test_new_models_are_predicted_though_the_profiler_lies(profile: Profile) -> None:
    """Whole models take 1 us a kernel longer than their kernels, and profiling adds 3 us to each."""
    truth = np.array([true_seconds(kernels) for kernels in NEW])
    predicted = np.array([profile.predict(kernels).seconds for kernels in NEW])
    error = np.abs(predicted / truth - 1)
    assert error.mean() < 0.02
    assert error.max() < 0.1
    assert spearmanr(predicted, truth).statistic > 0.99


def test_kernels_slow_each_other_down(monkeypatch: pytest.MonkeyPatch) -> None:
    """Models of many kernels take longer than the sum; more than twice as many are met than were calibrated with."""
    profile = calibrate(replace(DEVICE, growth=0.2), PLANS, REFERENCE, [], holdout=20)
    most = max(len(kernels) for _, kernels, _ in PLANS)
    larger = [net for net in (random_net(random.Random(s), depth=14) for s in range(1000, 1040)) if len(net) > most]

    def error() -> float:
        return float(np.mean([profile.predict(net).seconds / true_seconds(net, growth=0.2) - 1 for net in larger]))

    found = error()
    monkeypatch.setattr(predictor.ClassCorrection, "crowding", lambda self, kernels: 1.0)
    assert -0.07 < found < 0
    assert error() < 2 * found, "without it, the same predictor is twice as far off"


def mixed_net(int8: int, float_: int, width: int) -> dict[str, Kernel]:
    """A chain of int8 convolutions with float ones of another width at its end."""
    kernels, source, channels = dict[str, Kernel](), "x", 12
    for i in range(int8 + float_):
        dtype, outputs = (INT8, 12) if i < int8 else (FP32, width)
        workload = Workload("conv", channels, outputs, (32, 32), (32, 32), (3, 3), (1, 1), 1, dtype)
        kernels[f"conv{i}"] = Kernel(f"conv{i}", f"conv{i}", (source,), workload)
        source, channels = f"conv{i}", outputs
    return kernels


def test_float_kernels_that_lower_the_clock_slow_int8_ones(monkeypatch: pytest.MonkeyPatch) -> None:
    def observed(counts: Sequence[int], float_: Sequence[int]) -> list[predictor.Observation]:
        nets = [mixed_net(i, f, width) for i in counts for f in float_ for width in (8, 16)]
        return [predictor.Observation(tuple(sites(n).values()), true_seconds(n, throttle=0.3)) for n in nets]

    known, new = observed((2, 4, 8, 12), (0, 1, 2, 4)), observed((3, 6, 10), (1, 3))
    times = RooflineTimes(DEVICE.rates, (site for model in known for site in model.sites))

    def error() -> float:
        learnt = predictor.Predictor(times, known)
        return float(np.mean([abs(learnt.predict(model.sites).ratio / model.ratio - 1) for model in new]))

    found = error()
    assert found < 0.02
    monkeypatch.setattr(predictor, "time_lowered", lambda kernels: 0.0)
    assert error() > 1.5 * found, "kernels that differ in nothing else take 30 % more in some models"


def test_intervals_cover_new_models(profile: Profile) -> None:
    found = [(profile.predict(kernels), true_seconds(kernels)) for kernels in NEW]
    assert np.mean([latency.low <= truth <= latency.high for latency, truth in found]) >= 0.85
    assert all(latency.low <= latency.seconds <= latency.high for latency, _ in found)


def test_the_held_out_third_is_never_profiled(profile: Profile) -> None:
    held_out = {row.id for row, _ in profile.held_out()}
    assert len(held_out) == 20
    kept = {site for key, kernels, _ in PLANS if key not in held_out for site in sites(kernels).values()}
    assert profile.kernels.keys() == kept


def test_a_burst_of_other_work_gets_neither_into_models_nor_into_kernels() -> None:
    """While it lasts, all but the reference takes up to twice as long; each model has one of its turns during it."""

    class Busy(KernelDevice):
        def open(self, path: Path, threads: int = 1) -> KernelSession:
            session = super().open(path, threads)
            return replace(session, seconds=session.seconds * (1 if path == REFERENCE else factor()))

        def profile(self, path: Path, inputs: Sequence[Array], runs: int) -> list[NodeTime]:
            nodes = super().profile(path, inputs, runs)
            begun.append(path)
            return [replace(node, seconds=factor() * node.seconds) for node in nodes]

    def factor() -> float:
        return 2.0 if len(begun) // len(few) == 1 else 1.0

    begun: list[Path] = []
    few = PLANS[:10]
    busy = calibrate(Busy(DEVICE.artifacts), few, REFERENCE, [], holdout=0)
    quiet = calibrate(KernelDevice(DEVICE.artifacts), few, REFERENCE, [], holdout=0)
    assert len(begun) == TURNS * len(few)
    assert [row.ratio for row in busy.models] == pytest.approx([row.ratio for row in quiet.models])
    for site, row in quiet.kernels.items():
        assert busy.kernels[site].time_s == pytest.approx(row.time_s)


def test_the_measured_fraction_is_the_share_of_known_kernels(profile: Profile) -> None:
    known = next(kernels for key, kernels, _ in PLANS if key not in {row.id for row, _ in profile.held_out()})
    unknown = {n: k.with_workload(out_channels=k.workload.out_channels + 1) for n, k in known.items()}
    assert profile.predict(known).measured_fraction > 0.9
    assert profile.predict(unknown).measured_fraction < 0.05
    assert profile.predict(known).origin == "predicted"


@pytest.mark.parametrize(
    ("device", "name"), [("ort:cpu", "ort-cpu"), ("tvm:rpc://board:9090/rpi4?mcpu=x", "tvm-rpc-board-9090-rpi4-mcpu-x")]
)
def test_a_profile_is_called_after_its_device(device: str, name: str) -> None:
    profile = calibrate(replace(DEVICE, name=device), PLANS[:1], REFERENCE, [], holdout=0)
    assert profile.name == name


def test_a_plan_is_priced_lowered_or_not(profile: Profile) -> None:
    assert profile.predict(NEW[0]) == profile.predict(lower(NEW[0]))


def test_a_breakdown_adds_up_to_the_prediction(profile: Profile) -> None:
    parts = profile.breakdown(NEW[0])
    assert parts.keys() == {kernel.name for kernel in lower(NEW[0])}
    assert sum(parts.values()) == pytest.approx(profile.predict(NEW[0]).seconds, rel=0.02)


def test_known_kernels_are_priced_without_estimating(profile: Profile, monkeypatch: pytest.MonkeyPatch) -> None:
    calls: list[int] = []
    estimate = KernelTimes._estimate
    monkeypatch.setattr(KernelTimes, "_estimate", lambda self, new: (calls.append(len(new)), estimate(self, new))[1])
    fresh = Profile(profile.description, profile.kernels, profile.models)
    fresh.held_out()
    assert len(calls) == 1, "all that a fit needs is estimated together"
    fresh.warm(NEW)
    assert len(calls) == 2, "all misses of many plans are estimated together"
    for kernels in NEW:
        fresh.predict(kernels)
    assert len(calls) == 2


def test_prices_are_kept_while_the_table_grows(profile: Profile, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(predictor, "_FIRST_ROWS", 2)
    fresh = Profile(profile.description, profile.kernels, profile.models)
    assert [fresh.predict(kernels).seconds for kernels in NEW] == [profile.predict(k).seconds for k in NEW]


def test_measured_candidates_correct_the_profile_and_widen_its_interval(profile: Profile) -> None:
    """The truth about a kind of model nobody calibrated: 30 % slower than its kernels let expect."""
    slow = [{n: k.with_workload(dtype=INT8) for n, k in net.items()} for net in NEW]
    truth = [1.3 * true_seconds(kernels) / profile.reference_s for kernels in slow]
    before = [abs(profile.predict(k).seconds / profile.reference_s / t - 1) for k, t in zip(slow, truth, strict=True)]
    learnt = profile.with_measurements(list(zip(slow[:20], truth[:20], strict=True)))
    after = [abs(learnt.predict(k).seconds / profile.reference_s / t - 1) for k, t in zip(slow, truth, strict=True)]
    assert np.mean(after[20:]) < 0.5 * np.mean(before[20:])
    assert learnt._predictor.factor > profile._predictor.factor
    assert len(learnt.models) == len(profile.models) + 20


def test_a_loaded_profile_predicts_the_same(profile: Profile, folder: Path) -> None:
    loaded = quietly(folder)
    assert loaded.description == profile.description
    assert loaded.capabilities == profile.capabilities
    assert len(loaded.held_out()) == len(profile.held_out())
    for kernels in NEW[:10]:
        saved, original = loaded.predict(kernels), profile.predict(kernels)
        assert saved.seconds == pytest.approx(original.seconds, rel=1e-3)
        assert saved.high == pytest.approx(original.high, rel=5e-3)
    again = quietly(folder)
    assert again.predict(NEW[0]) == loaded.predict(NEW[0]), "a fit is deterministic"


def test_measured_candidates_survive_saving(profile: Profile, tmp_path: Path) -> None:
    learnt = profile.with_measurements([(NEW[0], 1.2 * true_seconds(NEW[0]) / profile.reference_s)])
    learnt.save(tmp_path / "learnt")
    assert quietly(tmp_path / "learnt").predict(NEW[1]).seconds == pytest.approx(
        learnt.predict(NEW[1]).seconds, rel=1e-3
    )


def test_another_runtime_version_is_warned_about(folder: Path) -> None:
    with pytest.warns(ProfileWarning, match=r"made with kernels 1, installed is onnxruntime .*calibrate again"):
        load(folder)


def test_profiles_are_found_by_name(folder: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setenv(SEARCH_PATH_VARIABLE, str(folder.parent))
    assert list_profiles()["roof"] == folder
    assert quietly("roof").name == "roof"
    with pytest.raises(ProfileError, match=r"no profile 'rooof'.*did you mean 'roof'"):
        load("rooof")


def test_a_newer_schema_is_refused(folder: Path) -> None:
    file = folder / "profile.toml"
    file.write_text(file.read_text().replace("schema_version = 1", "schema_version = 2"))
    with pytest.raises(ProfileError, match=r"has schema 2.*update autocompress"):
        load(folder)


DAMAGE = {
    "not TOML": ("profile.toml", lambda text: "[" + text, r"profile\.toml is damaged"),
    "an unknown key": ("profile.toml", lambda text: "cores = 2\n" + text, "cores: Extra inputs"),
    "a negative time": ("profile.toml", lambda text: text.replace("reference_s = ", "reference_s = -"), "reference_s"),
    "a lost column": ("kernels.csv", lambda text: text.replace(",out_channels", ""), r"kernels\.csv:2 is damaged"),
    "half a file": ("kernels.csv", lambda text: text[: len(text) // 2], "is damaged"),
    "no number": ("kernels.csv", lambda text: text.replace("conv,fp32,3", "conv,fp32,three"), "kernels.csv:.*three"),
    "an unknown format": ("kernels.csv", lambda text: text.replace(",fp32,", ",fp31,", 1), "fp31"),
    "an unknown layout": ("kernels.csv", lambda text: text.replace(",planar", ",planer", 1), "planer.*planar"),
    "a NaN ratio": ("models.csv", lambda text: re.sub(r"(p0,\w+),[^,]*", r"\1,nan", text), r"models\.csv"),
    "a kernel that is not there": ("models.csv", lambda text: text.rstrip() + " 999999\n", "'999999' is not in"),
}


@pytest.mark.parametrize("damage", DAMAGE)
def test_a_damaged_folder_is_told_in_one_line(folder: Path, damage: str) -> None:
    file, change, clue = DAMAGE[damage]
    text = (folder / file).read_text()
    assert change(text) != text
    (folder / file).write_text(change(text))
    with pytest.raises(ProfileError, match=clue) as caught:
        load(folder)
    assert "\n" not in str(caught.value)


@pytest.mark.parametrize("file", ["profile.toml", "kernels.csv", "models.csv"])
def test_a_missing_file_is_named(folder: Path, file: str) -> None:
    (folder / file).unlink()
    with pytest.raises(ProfileError, match=file):
        load(folder)


def test_a_folder_that_cant_be_written_is_told(profile: Profile, tmp_path: Path) -> None:
    (tmp_path / "file").write_text("")
    with pytest.raises(StorageError, match="can't write the profile"):
        profile.save(tmp_path / "file" / "profile")


def test_calibration_resumes_after_an_interruption(tmp_path: Path) -> None:
    def interrupted(done: int, total: int) -> None:
        raise KeyboardInterrupt

    first, second = device_for(PLANS), device_for(PLANS)
    with pytest.raises(KeyboardInterrupt):
        calibrate(first, PLANS, REFERENCE, [], resume_dir=tmp_path, progress=interrupted)
    with (tmp_path / "turns.jsonl").open("a") as log:
        log.write('{"key": "p59", "ratio"')
    resumed = calibrate(second, PLANS, REFERENCE, [], resume_dir=tmp_path)
    once, again = Counter(first.measured), Counter(second.measured)
    opened = max(once[path] for path in once if path != REFERENCE)
    for _, _, path in PLANS:
        assert once[path] in (0, opened)
        assert once[path] + again[path] == TURNS * opened
    whole = calibrate(device_for(PLANS), PLANS, REFERENCE, [])
    assert [row.ratio for row in resumed.models] == pytest.approx([row.ratio for row in whole.models])


def test_calibration_needs_plans_and_a_device_that_works() -> None:
    with pytest.raises(ProfileError, match="at least one plan"):
        calibrate(DEVICE, [], REFERENCE, [])

    class Lost(type(DEVICE)):  # type: ignore[misc]
        def open(self, path: Path, threads: int = 1) -> None:
            raise DeviceError("lost")

    with pytest.raises(DeviceError, match="lost"):
        calibrate(Lost(DEVICE.artifacts), PLANS, REFERENCE, [])


def test_few_models_still_give_a_profile() -> None:
    few = PLANS[:4]
    profile = calibrate(device_for(few), few, REFERENCE, [], holdout=1)
    latency = profile.predict(few[0][1])
    assert 0 <= latency.low < latency.seconds < latency.high


def node(name: str, source: str, seconds: float, inputs: tuple[str, ...], outputs: tuple[str, ...]) -> NodeTime:
    return NodeTime(name, source, "Op", "none", seconds, inputs, outputs)


def test_nodes_go_to_the_kernel_that_they_stand_for() -> None:
    nodes = [
        node("reorder_in", "", 1, ("x",), ("a",)),
        node("conv_nchwc", "conv/Relu", 10, ("a",), ("b",)),
        node("reorder_out", "", 2, ("b",), ("c",)),
        node("conv_1", "conv_1", 20, ("c",), ("d",)),
        node("q", "conv_1>q", 4, ("d",), ("e",)),
    ]
    found = attribute(nodes, ["conv", "conv_1", "conv_1>q"], overhead_s=0.5)
    assert found == {"conv": 0.5 + 9.5 + 1.5, "conv_1": 19.5, "conv_1>q": 3.5}
