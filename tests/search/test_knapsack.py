import itertools

from hypothesis import given
from hypothesis import strategies as st

from autocompress.search.knapsack import Knapsack

row = st.lists(st.tuples(st.integers(0, 9), st.integers(-4, 9)), min_size=1, max_size=4)


def enumerated(errors, times, budget):
    """Least summed error over all combinations within the budget."""
    fitting = [
        sum(e[i] for e, i in zip(errors, pick, strict=True))
        for pick in itertools.product(*(range(len(e)) for e in errors))
        if sum(t[i] for t, i in zip(times, pick, strict=True)) <= budget
    ]
    return min(fitting, default=None)


@given(st.lists(row, min_size=1, max_size=4), st.integers(-10, 30))
def test_agrees_with_enumeration_where_times_fall_on_buckets(rows, budget):
    errors = [[float(e) for e, _ in r] for r in rows]
    times = [[float(t) for _, t in r] for r in rows]
    largest = max(float(budget), sum(min(t) for t in times))
    room = int(largest - sum(min(t) for t in times))
    chosen = Knapsack(errors, times, largest, buckets=max(room, 1)).choose(budget)
    expected = enumerated(errors, times, budget)
    found = None if chosen is None else sum(e[i] for e, i in zip(errors, chosen, strict=True))
    assert found == expected


@given(st.lists(row, min_size=1, max_size=5), st.floats(-5, 30), st.integers(1, 50))
def test_never_exceeds_the_budget_however_coarse_the_buckets(rows, budget, buckets):
    times = [[t * 0.37 for _, t in r] for r in rows]
    chosen = Knapsack([[float(e) for e, _ in r] for r in rows], times, 25.0, buckets).choose(budget)
    if chosen is not None:
        assert sum(t[i] for t, i in zip(times, chosen, strict=True)) <= budget + 1e-6


def test_one_table_serves_a_ladder_of_budgets():
    solver = Knapsack([[0.0, 1.0, 4.0]] * 3, [[10.0, 6.0, 1.0]] * 3, 30.0, buckets=27)
    spent = [sum((10, 6, 1)[i] for i in solver.choose(budget)) for budget in (30, 22, 13, 3)]
    assert spent == [30, 22, 13, 3]
    assert solver.choose(2.9) is None


def test_the_milder_of_equal_options_is_taken():
    assert Knapsack([[0.0, 0.0]], [[1.0, 1.0]], 5.0).choose(5.0) == [0]


def test_nothing_to_decide():
    assert Knapsack([], [], 1.0).choose(0.5) == []
    assert Knapsack([], [], 1.0).choose(-0.5) is None
