"""What several latencies come to: closed forms, and what all objectives agree on."""

import pytest
from hypothesis import given
from hypothesis import strategies as st

from autocompress.search.objective import Objective, combined
from autocompress.vocabulary.workload import Latency


def latency(seconds: float, origin: str = "measured") -> Latency:
    return Latency(seconds, 0.9 * seconds, 1.1 * seconds, 1.0, origin)


ORIGINALS = {"cpu": latency(4.0), "npu": latency(1.0)}
FOUND = {"cpu": latency(1.0), "npu": latency(0.5, "estimate")}


def test_each_reads_on_the_first() -> None:
    assert combined(Objective.EACH, FOUND, ORIGINALS) == FOUND["cpu"]


def test_the_best_is_the_runtime_that_a_user_takes() -> None:
    assert combined(Objective.BEST, FOUND, ORIGINALS) == FOUND["npu"]


def test_the_worst_is_where_least_is_gained_in_the_first_ones_seconds() -> None:
    """Half of the original's time on the npu is worse than a quarter on the cpu: as if it took half there too."""
    found = combined(Objective.WORST, FOUND, ORIGINALS)
    assert (found.low, found.seconds, found.high) == pytest.approx((1.8, 2.0, 2.2))
    assert found.origin == "estimate", "how it is known is how the deciding one is known"


@given(st.sampled_from(Objective), st.floats(1e-6, 1e3))
def test_one_profile_is_itself(objective: Objective, seconds: float) -> None:
    assert combined(objective, {"cpu": latency(seconds)}, ORIGINALS) == latency(seconds)


@given(st.lists(st.tuples(st.floats(1e-3, 1e3), st.floats(1e-3, 1e3)), min_size=1, max_size=5))
def test_the_worst_is_no_better_than_any(pairs: list[tuple[float, float]]) -> None:
    found = {str(i): latency(a) for i, (a, _) in enumerate(pairs)}
    originals = {str(i): latency(b) for i, (_, b) in enumerate(pairs)}
    shares = [found[name].seconds / originals[name].seconds for name in found]
    worst = combined(Objective.WORST, found, originals).seconds / originals["0"].seconds
    assert worst == pytest.approx(max(shares))
