"""The profiles that ship: each loads, says what it stands on, and prices models; a datasheet's by the roofline."""

import random
from pathlib import Path

import pytest

from autocompress.devices.fake import FakeDevice
from autocompress.devices.roofline import roofline
from autocompress.profiles import Profile, load
from autocompress.profiles.profile import UNCALIBRATED
from autocompress.vocabulary.precision import lower
from tests.profiles.nets import random_net

SHIPPED = Path(__file__).parents[2] / "hardware_profiles"
NAMES = sorted(path.parent.name for path in SHIPPED.glob("*/profile.toml"))
ROOFLINES = [name for name in NAMES if name.endswith("-roofline")]
NETS = [random_net(random.Random(seed)) for seed in range(8)]


@pytest.fixture(params=NAMES)
def profile(request: pytest.FixtureRequest) -> Profile:
    return load(SHIPPED / request.param)


def test_there_are_some() -> None:
    assert {"arm-cortex-a76-roofline", "nvidia-h200-roofline"} <= set(NAMES)


def test_a_profile_has_its_folder_s_name_and_says_where_it_comes_from(profile: Profile) -> None:
    assert profile.name in NAMES
    assert profile.description.source
    assert profile.calibrated == (profile.description.rates is None)


def test_a_profile_prices_models_that_it_never_saw(profile: Profile) -> None:
    for kernels in NETS:
        latency = profile.predict(kernels)
        assert 0 < latency.low <= latency.seconds <= latency.high
        assert (latency.origin == "estimate") == profile.description.estimate


@pytest.mark.parametrize("name", ROOFLINES)
def test_a_datasheet_s_price_is_the_sum_of_rooflines(name: str) -> None:
    profile = load(SHIPPED / name)
    rates = profile.description.rates
    assert rates is not None
    for kernels in NETS:
        total = sum(roofline(kernel.workload, rates) for kernel in lower(kernels))
        latency = profile.predict(kernels)
        assert latency.seconds == pytest.approx(total)
        assert (latency.low, latency.high) == pytest.approx((total, UNCALIBRATED * total))
        assert latency.measured_fraction == 0
        assert sum(profile.breakdown(kernels).values()) == pytest.approx(total)


@pytest.mark.parametrize("name", ROOFLINES)
def test_a_datasheet_s_device_is_its_roofline(name: str) -> None:
    profile = load(SHIPPED / name)
    device = profile.open_device()
    assert isinstance(device, FakeDevice)
    assert device.rates == profile.description.rates
    assert device.estimate
    assert "uncalibrated" in device.environment()["processor"]


@pytest.mark.parametrize("name", ROOFLINES)
def test_what_is_measured_later_corrects_a_datasheet(name: str, tmp_path: Path) -> None:
    """Hardware that takes twice its roofline is learnt from a few models, and the profile is saved with them."""
    profile = load(SHIPPED / name)
    nets = [random_net(random.Random(seed)) for seed in range(100, 130)]
    learnt = profile.with_measurements([(kernels, 2 * profile.predict(kernels).seconds) for kernels in nets])
    for kernels in NETS:
        assert learnt.predict(kernels).seconds == pytest.approx(2 * profile.predict(kernels).seconds, rel=0.1)
    learnt.save(tmp_path / "learnt")
    again = load(tmp_path / "learnt")
    assert again.calibrated
    assert again.predict(NETS[0]).seconds == pytest.approx(learnt.predict(NETS[0]).seconds, rel=1e-3)
