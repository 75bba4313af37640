"""Profiles of several models made one: nothing is lost, and each model is predicted as before."""

import random

import pytest

from autocompress.profiles import Profile, calibrate
from autocompress.profiles.merge import merge
from autocompress.vocabulary.errors import ProfileError
from tests.profiles.nets import REFERENCE, device_for, plans_for, random_net

PLANS = plans_for(60)
DEVICE = device_for(PLANS, dispatch_s=1e-6)


@pytest.fixture(scope="module")
def halves() -> dict[str, Profile]:
    return {
        name: calibrate(DEVICE, plans, REFERENCE, [], name=name, holdout=10)
        for name, plans in (("shallow", PLANS[:30]), ("deep", PLANS[30:]))
    }


def test_the_merged_profile_predicts_what_either_does(halves: dict[str, Profile]) -> None:
    merged = merge("both", halves)
    assert merged.name == "both"
    assert len(merged.models) == 60
    assert merged.kernels.keys() == halves["shallow"].kernels.keys() | halves["deep"].kernels.keys()
    for seed in range(2000, 2020):
        kernels = random_net(random.Random(seed))
        assert merged.predict(kernels).seconds == pytest.approx(halves["deep"].predict(kernels).seconds, rel=0.1)


def test_times_are_in_the_first_ones_units(halves: dict[str, Profile]) -> None:
    slow = halves["deep"]
    slower = Profile(
        slow.description.model_copy(update={"reference_s": 2 * slow.reference_s}),
        {site: row.model_copy(update={"time_s": 2 * (row.time_s or 0.0)}) for site, row in slow.kernels.items()},
        slow.models,
    )
    merged = merge("both", {"shallow": halves["shallow"], "slower": slower})
    doubled = {row.id: row.ratio for row in merged.models}
    for row in slow.models:
        unit = slow.reference_s / halves["shallow"].reference_s
        assert doubled[f"slower/{row.id}"] == pytest.approx(2 * unit * row.ratio, rel=1e-5), "six digits are kept"


def test_a_kernel_seen_in_both_counts_by_how_often(halves: dict[str, Profile]) -> None:
    merged = merge("both", halves)
    shared = halves["shallow"].kernels.keys() & halves["deep"].kernels.keys()
    assert shared
    for site in shared:
        a, b = halves["shallow"].kernels[site], halves["deep"].kernels[site]
        assert a.time_s is not None and b.time_s is not None
        mean = (a.time_s * a.samples + b.time_s * b.samples) / (a.samples + b.samples)
        assert merged.kernels[site].time_s == pytest.approx(mean, rel=1e-4)
        assert merged.kernels[site].samples == a.samples + b.samples


def test_profiles_of_different_devices_do_not_mix(halves: dict[str, Profile]) -> None:
    other = halves["deep"]
    strange = Profile(other.description.model_copy(update={"device": "openvino:cpu"}), other.kernels, other.models)
    with pytest.raises(ProfileError, match="device is 'ort:cpu' in one, 'openvino:cpu' in another"):
        merge("both", {"shallow": halves["shallow"], "deep": strange})
