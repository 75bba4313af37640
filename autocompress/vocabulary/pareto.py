"""Dominance between cost vectors: fronts, ranks, crowding and hypervolume; smaller is better in every coordinate."""

import math
from bisect import bisect_right
from collections.abc import Sequence

Point = Sequence[float]


def dominates(a: Point, b: Point) -> bool:
    """Whether `a` is nowhere worse than `b` and somewhere better. Equal points don't dominate each other."""
    return all(x <= y for x, y in zip(a, b, strict=True)) and tuple(a) != tuple(b)


def front(points: Sequence[Point]) -> list[int]:
    """Indices, ascending, of the points that none dominates; equal points stay together."""
    return [index for index, rank in enumerate(ranks(points)) if rank == 0]


def ranks(points: Sequence[Point]) -> list[int]:
    """Each point's rank: 0 on the front, 1 on the front of what is left, and so on.

    A point's rank is one more than the worst rank that dominates it. In lexicographic order all that dominate a point
    come before it, so ranks follow one by one (efficient non-dominated sort, Zhang et al. 2015); in two dimensions a
    rank dominates a later point iff its least second coordinate does, and these grow with the rank: O(n log n).
    """
    _require_finite(points)
    result = [0] * len(points)
    fronts: list[list[Point]] = []
    lows: list[float] = []
    seen: dict[tuple[float, ...], int] = {}
    for index in sorted(range(len(points)), key=lambda i: tuple(points[i])):
        point = tuple(points[index])
        if point not in seen:
            flat = len(point) == 2
            seen[point] = bisect_right(lows, point[1]) if flat else _first_open(fronts, point)
            _put(fronts, lows, seen[point], point)
        result[index] = seen[point]
    return result


def crowding(points: Sequence[Point]) -> list[float]:
    """Distance to the neighbours of one front, summed over coordinates scaled to [0, 1]; infinite at the ends.

    Deb et al. 2002 (NSGA-II), section III-B. Larger means lonelier, which is worth keeping.
    """
    _require_finite(points)
    result = [0.0] * len(points)
    for axis in range(len(points[0]) if points else 0):
        order = sorted(range(len(points)), key=lambda i: points[i][axis])
        spread = points[order[-1]][axis] - points[order[0]][axis]
        result[order[0]] = result[order[-1]] = math.inf
        for before, here, after in zip(order, order[1:], order[2:], strict=False):
            result[here] += (points[after][axis] - points[before][axis]) / spread if spread else 0.0
    return result


def hypervolume(points: Sequence[Point], reference: Point) -> float:
    """Volume between the front and the reference point; points that don't dominate the reference add nothing.

    Exact in any dimension by slicing along the last coordinate (hypervolume by slicing objectives, While et al. 2006):
    O(n log n) in two dimensions, fit for a handful of dimensions.
    """
    inside = [tuple(p) for p in points if all(x < r for x, r in zip(p, reference, strict=True))]
    _require_finite(inside)
    return _volume(inside, tuple(reference))


def _volume(points: list[tuple[float, ...]], reference: tuple[float, ...]) -> float:
    if not points:
        return 0.0
    if len(reference) == 1:
        return reference[0] - min(points)[0]
    ordered = sorted(points, key=lambda p: p[-1])
    if len(reference) == 2:
        return _area(ordered, reference)
    total = 0.0
    for count, point in enumerate(ordered, start=1):
        above = ordered[count][-1] if count < len(ordered) else reference[-1]
        if above > point[-1]:
            total += (above - point[-1]) * _volume([p[:-1] for p in ordered[:count]], reference[:-1])
    return total


def _area(ordered: list[tuple[float, ...]], reference: tuple[float, ...]) -> float:
    """Sweep upwards; each point that reaches further left adds the strip between it and the reference."""
    total, left = 0.0, reference[0]
    for x, y in ordered:
        if x < left:
            total += (left - x) * (reference[1] - y)
            left = x
    return total


def _first_open(fronts: list[list[Point]], point: Point) -> int:
    return next((r for r, members in enumerate(fronts) if not any(dominates(m, point) for m in members)), len(fronts))


def _put(fronts: list[list[Point]], lows: list[float], rank: int, point: Point) -> None:
    if rank == len(fronts):
        fronts.append([])
        lows.append(math.inf)
    fronts[rank].append(point)
    lows[rank] = min(lows[rank], point[1]) if len(point) > 1 else point[0]


def _require_finite(points: Sequence[Point]) -> None:
    for point in points:
        if not all(math.isfinite(x) for x in point):
            raise ValueError(f"a cost vector must be finite, found {tuple(point)}")
