"""A profile of a new device from other profiles and ten models: rooflines with other rates than any known one."""

import random
import warnings
from dataclasses import replace
from pathlib import Path

import numpy as np
import pytest
from scipy.stats import spearmanr

from autocompress.devices.roofline import Rates
from autocompress.profiles import Profile, ProfileWarning, calibrate, load
from autocompress.profiles.files import Description
from autocompress.profiles.onboarding import choose_models, onboard
from autocompress.profiles.predictor import NOMINAL_COVERAGE
from autocompress.vocabulary.errors import ProfileError
from autocompress.vocabulary.formats import FP32, INT8
from autocompress.vocabulary.precision import lower
from tests.profiles.nets import REFERENCE, KernelDevice, device_for, plans_for, random_net

CALIBRATED = plans_for(40)
PLANS = [random_net(random.Random(seed)) for seed in range(500, 560)]
NEW = [random_net(random.Random(seed)) for seed in range(1000, 1040)]
COMPUTE = [(2e10, 8e10), (4e9, 3.5e10), (6e10, 7e10)]


def device(fp32: float, int8: float, bytes_per_s: float, launch_s: float) -> KernelDevice:
    macs_per_s = {FP32: fp32, INT8: int8}
    rates = Rates(macs_per_s=macs_per_s, bytes_per_s=bytes_per_s, launch_s=launch_s)
    return replace(device_for(CALIBRATED), rates=rates)


def seconds(on: KernelDevice, kernels: dict) -> float:  # type: ignore[type-arg]
    return replace(on, artifacts={Path("new"): lower(kernels)}).open(Path("new")).seconds


def ratio(on: KernelDevice, kernels: dict) -> float:  # type: ignore[type-arg]
    return seconds(on, kernels) / on.open(REFERENCE).seconds


UNKNOWN = device(9e9, 6e10, 4e9, 5e-6)


@pytest.fixture(scope="module")
def known() -> list[Profile]:
    devices = [device(*macs, 1e10 / (i + 1), 2e-6 * (i + 1)) for i, macs in enumerate(COMPUTE)]
    return [calibrate(d, CALIBRATED, REFERENCE, [], name=f"known{i}") for i, d in enumerate(devices)]


@pytest.fixture(scope="module")
def description(known: list[Profile]) -> Description:
    reference_s = UNKNOWN.open(REFERENCE).seconds
    return Description(**{**dict(known[0].description), "name": "new", "reference_s": reference_s})


@pytest.fixture(scope="module")
def learnt(known: list[Profile], description: Description) -> Profile:
    chosen = choose_models(known, PLANS, 10)
    return onboard(description, known, PLANS, {i: ratio(UNKNOWN, PLANS[i]) for i in chosen})


def errors(profile: Profile) -> np.ndarray:
    truth = np.array([ratio(UNKNOWN, kernels) for kernels in NEW])
    predicted = np.array([profile.predict(kernels).seconds / profile.reference_s for kernels in NEW])
    found: np.ndarray = np.abs(predicted / truth - 1)
    return found


def test_ten_models_tell_what_no_known_device_does(known: list[Profile], learnt: Profile) -> None:
    truth = [ratio(UNKNOWN, kernels) for kernels in NEW]
    assert spearmanr([learnt.predict(kernels).seconds for kernels in NEW], truth).statistic > 0.98
    assert errors(learnt).mean() < 0.06
    assert errors(learnt).mean() < 0.6 * min(errors(profile).mean() for profile in known)


def test_its_intervals_cover_new_models(learnt: Profile) -> None:
    found = [(learnt.predict(kernels), seconds(UNKNOWN, kernels)) for kernels in NEW]
    stderr = (NOMINAL_COVERAGE * (1 - NOMINAL_COVERAGE) / len(found)) ** 0.5
    covered = np.mean([latency.low <= truth <= latency.high for latency, truth in found])
    assert covered >= NOMINAL_COVERAGE - 2 * stderr, "what so few models can tell"
    assert all(latency.low <= latency.seconds <= latency.high for latency, _ in found)


def test_it_says_that_no_kernel_was_measured(learnt: Profile) -> None:
    assert learnt.predict(PLANS[0]).measured_fraction == 0.0
    assert learnt.description.learnt_from == ("known0", "known1", "known2")


def test_one_known_profile_is_enough(known: list[Profile], description: Description) -> None:
    measured = {i: ratio(UNKNOWN, PLANS[i]) for i in choose_models(known[:1], PLANS, 10)}
    assert errors(onboard(description, known[:1], PLANS, measured)).mean() < 0.8 * errors(known[0]).mean()


def test_it_is_saved_and_loaded_as_any_profile(learnt: Profile, tmp_path: Path) -> None:
    learnt.save(tmp_path / "new")
    with warnings.catch_warnings():
        warnings.simplefilter("ignore", ProfileWarning)
        loaded = load(tmp_path / "new")
    assert loaded.description == learnt.description
    for kernels in NEW[:5]:
        assert loaded.predict(kernels).seconds == pytest.approx(learnt.predict(kernels).seconds, rel=1e-3)
        assert loaded.predict(kernels).high == pytest.approx(learnt.predict(kernels).high, rel=5e-3)


def test_what_cant_be_learnt_is_told(known: list[Profile], description: Description) -> None:
    with pytest.raises(ProfileError, match="learnt from others' profiles, got none"):
        onboard(description, [], PLANS, {0: 1.0, 1: 1.0, 2: 1.0})
    with pytest.raises(ProfileError, match="measured on 'ort:cpu': 2, but it takes at least 3"):
        onboard(description, known, PLANS, {0: 1.0, 1: 1.0})
    with pytest.raises(ProfileError, match=r"measured at 0\.0"):
        onboard(description, known, PLANS, {0: 1.0, 1: 0.0, 2: 1.0, 3: 1.0})
    with pytest.raises(ProfileError, match="1 to 60 can be chosen"):
        choose_models(known, PLANS, 61)
