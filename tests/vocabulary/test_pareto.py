import math
import random

import pytest
from hypothesis import given
from hypothesis import strategies as st

from autocompress.vocabulary.pareto import crowding, dominates, front, hypervolume, ranks

coordinate = st.integers(0, 6).map(float)
planes = st.lists(st.tuples(coordinate, coordinate), max_size=24)
spaces = st.integers(1, 4).flatmap(lambda d: st.lists(st.tuples(*[coordinate] * d), min_size=1, max_size=16))


def slow_ranks(points):
    """Peel fronts off, comparing all pairs."""
    left, found, rank = set(range(len(points))), [0] * len(points), 0
    while left:
        peeled = {i for i in left if not any(dominates(points[j], points[i]) for j in left)}
        for i in peeled:
            found[i] = rank
        left -= peeled
        rank += 1
    return found


def counted_volume(points, reference):
    """Unit cells of the integer grid that some point dominates."""
    cells = [()]
    for r in reference:
        cells = [(*cell, x) for cell in cells for x in range(int(r))]
    return float(sum(any(all(p <= x for p, x in zip(q, cell, strict=True)) for q in points) for cell in cells))


@given(planes)
def test_ranks_in_the_plane_agree_with_peeling(points):
    assert ranks(points) == slow_ranks(points)


@given(spaces)
def test_ranks_in_any_dimension_agree_with_peeling(points):
    assert ranks(points) == slow_ranks(points)


@given(planes)
def test_front_holds_what_nothing_dominates(points):
    assert front(points) == [i for i, p in enumerate(points) if not any(dominates(q, p) for q in points)]


def test_equal_points_stand_together():
    assert ranks([(1, 2), (1, 2), (2, 2)]) == [0, 0, 1]
    assert not dominates((1, 2), (1, 2))


@given(planes)
def test_hypervolume_in_the_plane_counts_cells(points):
    assert hypervolume(points, (5, 6)) == counted_volume(points, (5, 6))


@given(st.lists(st.tuples(coordinate, coordinate, coordinate), max_size=10))
def test_hypervolume_in_space_counts_cells(points):
    assert hypervolume(points, (5, 4, 6)) == counted_volume(points, (5, 4, 6))


def test_hypervolume_in_four_dimensions_agrees_with_monte_carlo():
    draw = random.Random(0)
    points = [tuple(draw.random() for _ in range(4)) for _ in range(12)]
    hits = sum(
        any(all(p < x for p, x in zip(q, sample, strict=True)) for q in points)
        for sample in ([draw.random() for _ in range(4)] for _ in range(20_000))
    )
    assert hypervolume(points, (1, 1, 1, 1)) == pytest.approx(hits / 20_000, abs=0.015)


@given(planes, st.tuples(coordinate, coordinate))
def test_a_further_point_never_shrinks_the_hypervolume(points, more):
    assert hypervolume([*points, more], (7, 7)) >= hypervolume(points, (7, 7))


def test_crowding_is_infinite_at_the_ends_and_grows_with_the_gap():
    found = crowding([(0, 10), (1, 9), (5, 5), (10, 0)])
    assert found[0] == found[3] == math.inf
    assert found[1] == pytest.approx(0.5 + 0.5)
    assert found[2] == pytest.approx(0.9 + 0.9)
    assert crowding([]) == []


def test_a_score_that_is_no_number_is_refused():
    with pytest.raises(ValueError, match="finite"):
        ranks([(math.nan, 1.0)])
