"""Sensitivities and the plans they suggest, on the synthetic net."""

import math
from itertools import pairwise

import pytest
from hypothesis import given
from hypothesis import strategies as st

from autocompress.compression.methods.prune import Prune
from autocompress.compression.methods.quantize import Quantize
from autocompress.compression.plan import Plan
from autocompress.search.sensitivity import Probes, probe
from autocompress.search.space import Decision, Space
from autocompress.search.warmstart import WarmStart, fastest_choice
from autocompress.vocabulary.errors import BuildError
from tests.search.fake import FakeEvaluator, fake_space

SPACE = fake_space()


def seconds(plan):
    return FakeEvaluator().price(plan).latency.seconds


def probes(divergence=None, allowed: float = math.inf) -> Probes:
    """Probes that expire after so many questions."""
    known: dict[str, float] = {}
    return Probes(SPACE, divergence or FakeEvaluator().divergence, known, lambda: len(known) >= allowed)


def warm(budget_s: float | None = None, allowed: float = math.inf) -> WarmStart:
    asked = probes(allowed=allowed)
    return WarmStart(SPACE, seconds, probe(asked), asked, rungs=5, budget_s=budget_s)


@given(st.lists(st.floats(0, 10), min_size=60, max_size=60), st.integers(0, 30))
def test_errors_are_zero_first_and_never_fall_whatever_is_measured(noise, allowed):
    values = iter(noise)
    errors = probe(probes(lambda plan: next(values), allowed))
    for decision in SPACE.decisions:
        found = errors[decision.name]
        assert len(found) == len(decision.options) and found[0] == 0
        assert list(found) == sorted(found)


def test_probed_options_keep_their_error():
    errors = probe(probes())
    for decision in SPACE.of(Prune):
        alone = FakeEvaluator().divergence(SPACE.plan({decision.name: len(decision.options) - 1}))
        assert errors[decision.name][-1] == pytest.approx(alone)


def test_nearly_lossless_formats_take_one_probe():
    asked = probes()
    probe(asked)
    singles = {SPACE.plan({d.name: 1}).key for d in SPACE.of(Quantize)}
    assert not singles & asked.known.keys()


def test_a_plan_that_cannot_be_probed_counts_as_worst():
    def divergence(plan):
        if any(step.target == "b2" for step in plan.steps):
            raise BuildError("no")
        return FakeEvaluator().divergence(plan)

    errors = probe(probes(divergence))
    assert errors["prune:b2"][-1] > 1e6 > errors["prune:b1"][-1]


def test_a_probe_is_asked_once():
    evaluator = FakeEvaluator()
    asked = probes(evaluator.divergence)
    probe(asked)
    probe(asked)
    assert len(evaluator.log) == len(set(evaluator.log))


@pytest.mark.parametrize("allowed", [0, 3, math.inf])
def test_proposals_differ_and_begin_with_the_original(allowed):
    proposals = warm(allowed=allowed).proposals()
    keys = [SPACE.plan(p.choice).key for p in proposals]
    assert len(keys) == len(set(keys)) and proposals[0].choice == {}
    assert len(proposals) > 10


def test_nothing_slower_than_lossless_formats_is_proposed():
    proposals = warm().proposals()
    pays = next(p for p in proposals if p.origin == "int8 where it pays")
    uniform = {"original", "int8", "int8 where it pays", "strongest"}
    floor_s = seconds(SPACE.plan(pays.choice))
    assert all(seconds(SPACE.plan(p.choice)) < floor_s for p in proposals if p.origin not in uniform)


def test_each_format_is_tried_everywhere_and_the_best_mixture_is_built_on():
    """One layer is quickest in int8, the other in few-bit weights: no format alone is best."""
    rows = {"a": ("fp32", "int8"), "b": ("fp32", "w8", "int8", "w4")}
    space = Space("feed", tuple(
        Decision(f"quantize:{layer}", layer, Quantize, (None, *map(Quantize, names[1:])), names)
        for layer, names in rows.items()
    ))  # fmt: skip
    times = {("a", "int8"): 0.5, ("b", "w8"): 0.9, ("b", "int8"): 0.8, ("b", "w4"): 0.4}

    def price(plan: Plan) -> float:
        chosen = {target: config.dtype for target, config in plan.configs(Quantize).items()}
        return sum(times.get((layer, chosen.get(layer, "fp32")), 1.0) for layer in rows)

    asked = Probes(space, lambda plan: 1e-3, {}, lambda: False)
    found = dict(WarmStart(space, price, probe(asked), asked, rungs=3).contexts())
    assert list(found) == ["fp32", "int8", "w8", "w4", "int8 or w8 or w4 where it pays"]
    assert found["int8"] == {"quantize:a": 1, "quantize:b": 2} and found["w4"] == {"quantize:b": 3}
    assert found["int8 or w8 or w4 where it pays"] == {"quantize:a": 1, "quantize:b": 3}


def test_formats_that_pay_leave_the_stem_alone():
    name, fastest = warm().contexts()[-1]
    assert name == "int8 where it pays"
    assert fastest == {f"quantize:b{b}": 1 for b in range(4)}


def test_branches_are_dropped_one_by_one_the_cheapest_first():
    """Branches take equal time, and each matters more than the one before it."""
    steps = [p for p in warm().proposals() if p.origin.startswith("int8 where it pays") and "dropped" in p.origin]
    dropped = [sorted(n for n, i in p.choice.items() if n.startswith("prune") and i == 4) for p in steps]
    assert dropped[0] == ["prune:b0"]
    assert all(set(before) < set(after) for before, after in pairwise(dropped))


def test_ladders_get_faster_and_solved_plans_are_no_worse_than_bisected_ones():
    start = warm()
    _, context = start.contexts()[-1]
    whole = start._price(context)
    additive = lambda choice: sum(start.errors[name][index] for name, index in choice.items())  # noqa: E731
    solved, bisected = start._solved(context), start._bisected(context)
    for ladder in (solved, bisected):
        times = [start._price(choice) for choice in ladder]
        assert times == sorted(times, reverse=True) and all(t < whole for t in times)
    assert len(solved) == len(bisected) == 5
    for better, worse in zip(solved, bisected, strict=True):
        assert additive(better) <= additive(worse) + 1e-9 or start._price(better) < start._price(worse)


def test_ladders_end_at_the_budget_and_below():
    start = warm(budget_s=0.25e-3)
    assert start._ladder(0.5e-3)[0] == pytest.approx(0.25e-3)
    assert all(seconds(SPACE.plan(choice)) <= 0.25e-3 for choice in start._solved(start.contexts()[-1][1]))


def test_the_fastest_choice_is_the_fastest():
    found = seconds(SPACE.plan(fastest_choice(SPACE, seconds)))
    assert found == pytest.approx(0.05e-3)
