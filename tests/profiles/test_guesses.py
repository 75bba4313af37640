"""What a profile never measured is priced by what can be known of it, widely, and says so."""

import random
from dataclasses import replace
from pathlib import Path

import pytest

from autocompress.profiles import Profile, load
from autocompress.vocabulary.workload import Kernel, Workload
from tests.profiles.nets import random_net

SHIPPED = Path(__file__).parents[2] / "hardware_profiles"
MEASURED = ["ethos-u55-128", "intel-xeon-amx-openvino", "intel-xeon-amx-ort"]
NET = random_net(random.Random(3))


@pytest.fixture(scope="module", params=MEASURED)
def profile(request: pytest.FixtureRequest) -> Profile:
    return load(SHIPPED / request.param)


def with_unknown(positions: int, op: str = "logcumsumexp", **settings: tuple[int, ...]) -> dict[str, Kernel]:
    size = (positions, positions)
    return NET | {"new": Kernel("new", "new", ("x",), Workload(op, 16, 16, size, size, **settings))}


def test_an_unknown_operator_costs_its_bytes(profile: Profile) -> None:
    """More bytes take more time; at the size of a video they outweigh everything else."""
    plain, *more = (profile.predict(kernels) for kernels in (NET, *map(with_unknown, (8, 64, 1024))))
    seconds = [plain.seconds, *(latency.seconds for latency in more)]
    assert seconds == sorted(set(seconds))
    assert seconds[-1] > 2 * seconds[0]


def test_it_counts_as_unmeasured_and_widens_the_interval(profile: Profile) -> None:
    plain, guessed = profile.predict(NET), profile.predict(with_unknown(1024))
    assert guessed.measured_fraction <= 0.5 * plain.measured_fraction
    share = 1 - plain.seconds / guessed.seconds
    assert guessed.high - guessed.low > share * guessed.seconds, "the guess may be off by half at least"
    assert profile.guessed(with_unknown(64)) >= {"new"} and "new" not in profile.guessed(NET)


def test_multiplications_of_an_unknown_operator_are_priced(profile: Profile) -> None:
    """A recurrent layer of the same bytes in and out takes longer with more cells behind them."""
    few, many = (profile.predict(with_unknown(32, "lstm", window=(layers, 1))).seconds for layers in (1, 64))
    assert many > few


def test_what_a_profile_knows_is_no_guess(profile: Profile) -> None:
    assert not profile.guessed(NET)


def test_once_models_with_it_were_timed_it_is_no_guess() -> None:
    profile = load(SHIPPED / "intel-xeon-amx-ort")
    timed = [(with_unknown(positions), 1.0 + positions / 100) for positions in range(8, 72, 4)]
    learnt = profile.with_measurements(timed)
    assert not learnt.guessed(with_unknown(30))
    before, after = (p.predict(with_unknown(30)) for p in (profile, learnt))
    assert abs(after.seconds / learnt.reference_s - 1.3) < abs(before.seconds / profile.reference_s - 1.3)


def test_a_second_call_of_a_layer_costs_as_much_as_the_first(profile: Profile) -> None:
    first = next(name for name, kernel in NET.items() if kernel.workload.op == "conv")
    again = replace(NET[first], name=f"{first}@2")
    seconds = profile.breakdown(NET | {again.name: again})
    assert seconds[again.name] == pytest.approx(seconds[first], rel=0.2), "but for how its output is read"
