import math
from dataclasses import replace

import pytest
from hypothesis import given
from hypothesis import strategies as st

from autocompress.compression.plan import Plan
from autocompress.search.candidate import Candidate, Rung, Status
from autocompress.search.engine import Baseline, Price
from autocompress.search.rungs import (
    Limits,
    by_rank,
    drop,
    on_one_scale,
    pareto_front,
    spread,
    to_fill,
    to_finish,
    to_train,
)
from autocompress.task.task import Score
from autocompress.vocabulary.pareto import dominates
from autocompress.vocabulary.workload import Latency

ORIGINAL = Score(0.92, 0.004, 5000)
BASELINE = Baseline(ORIGINAL, ORIGINAL, Latency(1.0, 0.99, 1.01, 1.0, "measured"), 4000, 1000, 10)


def candidate(name: str, score: float, seconds: float, rung: Rung = Rung.VALIDATED) -> Candidate:
    latency = Latency(seconds, 0.9 * seconds, 1.1 * seconds, 1.0)
    return Candidate(name, Plan("f"), rung, Status.COMPLETE, latency, Score(score, 0.004, 5000), size_bytes=100)


points = st.lists(st.tuples(st.floats(0, 1), st.floats(0.1, 1)), min_size=1, max_size=30, unique=True)


def many(pairs):
    return [candidate(str(i), score, seconds) for i, (score, seconds) in enumerate(pairs)]


@given(points, st.integers(1, 10))
def test_whole_fronts_are_promoted_before_what_they_dominate(pairs, count):
    everyone = many(pairs)
    chosen = by_rank(everyone, count)
    assert len(chosen) == min(count, len(everyone))
    left = [c for c in everyone if c not in chosen]
    assert not any(dominates(c.cost, kept.cost) for c in left for kept in chosen)


def test_of_one_front_the_lonely_are_promoted_first():
    crowded = [candidate(f"c{i}", 0.9 - i / 1000, 0.5 - i / 1000) for i in range(5)]
    ends = [candidate("fast", 0.1, 0.1), candidate("good", 0.95, 1.0)]
    alone = candidate("alone", 0.5, 0.3)
    assert {c.id for c in by_rank([*crowded, *ends, alone], 3)} == {"fast", "good", "alone"}


@given(points, st.integers(1, 8))
def test_a_spread_is_a_front_and_no_larger_than_asked(pairs, count):
    chosen = spread(many(pairs), count)
    assert 1 <= len(chosen) <= count
    assert chosen == pareto_front(chosen)
    assert [c.best_latency.seconds for c in chosen] == sorted((c.best_latency.seconds for c in chosen), reverse=True)


def test_a_spread_keeps_the_fast_and_bad_beside_the_slow_and_good():
    """By score alone the fast ones would all go, though training may bring them back."""
    ladder = [candidate(str(i), 0.9 - 0.05 * i, 1 / (1 + 0.1 * i)) for i in range(9)]
    slowest, _, fastest = spread(ladder, 3)
    assert slowest.id in ("0", "1", "2") and fastest.id in ("6", "7", "8")


def test_only_plans_between_lossless_and_hopeless_are_trained():
    plans = [
        candidate("lossless", 0.9195, 0.5),
        candidate("slower", 0.90, 0.6),
        candidate("hopeful", 0.90, 0.4),
        candidate("fast", 0.83, 0.3),
        candidate("hopeless", 0.7, 0.2),
    ]
    assert [c.id for c in to_train(plans, BASELINE, 0.1, Limits(), 6)] == ["hopeful", "fast"]
    assert [c.id for c in to_train(plans, BASELINE, 0.1, Limits(budget_s=0.35), 6)] == ["fast"]
    assert [c.id for c in to_train(plans, BASELINE, 0.1, Limits(max_drop=0.05), 6)] == ["hopeful", "fast", "hopeless"]


def test_scores_on_the_subset_are_set_off_by_the_originals():
    """The subset is easier by two points; without setting it off, the worse plan would look better."""
    baseline = replace(BASELINE, subset_score=Score(0.94, 0.008, 1000))
    whole = candidate("whole", 0.90, 0.5)
    subset = replace(candidate("subset", 0.91, 0.5), score=Score(0.91, 0.009, 1000))
    assert drop(whole, baseline) == pytest.approx(0.02) and drop(subset, baseline) == pytest.approx(0.03)
    assert [c.score.value for c in on_one_scale([whole, subset], baseline)] == pytest.approx([0.90, 0.89])


def test_long_tranches_go_to_what_is_within_reach():
    trained = [
        candidate("done", 0.92, 0.5, Rung.FINE_TUNED),
        candidate("near", 0.91, 0.45, Rung.FINE_TUNED),
        candidate("reach", 0.89, 0.4, Rung.FINE_TUNED),
        candidate("far", 0.70, 0.3, Rung.FINE_TUNED),
    ]
    assert [c.id for c in to_finish(trained, BASELINE, 0.1, Limits(), 2)] == ["near", "reach"]
    assert [c.id for c in to_finish(trained, BASELINE, 0.1, Limits(), 3)] == ["near", "reach", "far"]


def test_last_tranches_go_to_the_gaps_between_what_is_trained():
    def trained(name, score, seconds):
        return replace(candidate(name, score, seconds, Rung.FINE_TUNED), trained_s=9.0)

    ends = [trained("mild", 0.915, 0.8), trained("strong", 0.90, 0.4)]
    plans = [
        candidate("above", 0.912, 0.79),
        candidate("middle", 0.905, 0.56),
        candidate("beaten", 0.895, 0.57),
        candidate("near", 0.899, 0.41),
        candidate("beyond", 0.89, 0.3),
    ]
    assert [c.id for c in to_fill(ends + plans, BASELINE, 0.1, Limits(), 1)] == ["middle"]
    assert [c.id for c in to_fill(ends + plans, BASELINE, 0.1, Limits(), 9)] == ["above", "middle", "near"]
    assert to_fill(plans, BASELINE, 0.1, Limits(), 9) == []


def test_limits_say_what_is_broken_and_by_how_much():
    price = Price(Latency(0.002, 0.0019, 0.0021, 1.0), 5000, 10, 10)
    limits = Limits(budget_s=0.001, max_size_bytes=4000)
    assert limits.violations(price) == pytest.approx({"latency": 1.0, "size": 0.25})
    assert limits.reason(price) == "predicted 2 ms > budget 1 ms; 5,000 bytes > 4,000 allowed"
    assert Limits().reason(price) == "" and not Limits().violations(price)


def test_measured_latency_decides_where_it_is_known():
    kept = candidate("a", 0.9, 0.5)
    assert Limits(budget_s=0.55).allow(kept)
    slow = Candidate(
        **{f: getattr(kept, f) for f in kept.__dataclass_fields__} | {"measured": Latency(0.6, 0.59, 0.61, 1)}
    )
    assert not Limits(budget_s=0.55).allow(slow)
    assert slow.outside_interval and math.isclose(slow.best_latency.seconds, 0.6)
