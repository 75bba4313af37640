"""Hardware that has nothing but int8: every plan computes in it, and the original stands for its conversion."""

from pathlib import Path

import pytest

from autocompress.compression.build import plan_kernels
from autocompress.compression.methods import methods
from autocompress.compression.methods.prune import Prune
from autocompress.compression.methods.quantize import Quantize
from autocompress.compression.plan import Plan, Step
from autocompress.devices.fake import FakeDevice
from autocompress.devices.roofline import Rates
from autocompress.graph import trace
from autocompress.profiles import Profile, load
from autocompress.search.profiling import sample_plans
from autocompress.search.space import find_space
from autocompress.vocabulary.formats import INT8
from tests.zoo import make

RATES = Rates(macs_per_s={INT8: 1e9}, bytes_per_s=1e9, launch_s=1e-6, channel_multiple={INT8: 16})
NPU = FakeDevice(RATES)


@pytest.fixture(scope="module")
def graph():  # type: ignore[no-untyped-def]
    return trace(*make("resnet"))


@pytest.fixture(scope="module")
def space(graph):  # type: ignore[no-untyped-def]
    return find_space(graph, methods(), NPU.capabilities())


@pytest.fixture
def profile() -> Profile:
    known = load("arm-cortex-a76-roofline")
    description = known.description.model_copy(update={"rates": RATES, "dtypes": (INT8,)})
    return Profile(description, {}, ())


def test_no_format_is_decided_and_all_are_int8(graph, space) -> None:  # type: ignore[no-untyped-def]
    assert not space.of(Quantize)
    for plan in sample_plans(space, 8, seed=0):
        dropped = {group for group, config in plan.configs(Prune).items() if config.keep == 0}
        lost = {layer for group in dropped for layer in space.effect(Step(group, Prune(0))).void.layers}
        assert plan.configs(Quantize).keys() == graph.layers.keys() - lost
        assert space.canonical(plan) == plan
        assert space.plan(space.choice(plan)) == plan


def test_the_original_is_priced_as_its_conversion(graph, space, profile: Profile) -> None:  # type: ignore[no-untyped-def]
    original, converted = Plan(graph.fingerprint), space.plan({})
    half = Plan(graph.fingerprint, converted.steps[::2])
    assert profile.predict(plan_kernels(half, graph)) == profile.predict(plan_kernels(converted, graph))
    assert profile.predict(plan_kernels(original, graph)) == profile.predict(plan_kernels(converted, graph))
    assert profile.predict(list(plan_kernels(original, graph).values())).seconds != pytest.approx(
        profile.predict(plan_kernels(converted, graph)).seconds
    ), "kernels that are lowered already are priced as they are"


def test_a_profile_of_it_says_so_when_it_is_loaded(profile: Profile, tmp_path: Path) -> None:
    profile.save(tmp_path / "npu")
    assert load(tmp_path / "npu").capabilities.dtypes == {INT8}
