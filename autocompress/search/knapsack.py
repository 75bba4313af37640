"""One option per decision so that the summed error is least within a time, for a ladder of times at once."""

import math
from collections.abc import Sequence

import numpy as np

BUCKETS = 2000


class Knapsack:
    """Multiple-choice knapsack by dynamic programming over time buckets.

    DP[d][b] = min over options of DP[d-1][b - t] + e (Frantar and Alistarh 2022, SPDY, section 3.2). `errors[d][o]`
    and `times[d][o]` belong to option o of decision d; times may be negative, for options that save. They are rounded
    up to buckets of (largest budget - least possible time) / `buckets`, so no choice exceeds its budget; it is exact
    where times fall on bucket edges. Ties go to the milder option.
    """

    def __init__(
        self,
        errors: Sequence[Sequence[float]],
        times: Sequence[Sequence[float]],
        largest: float,
        buckets: int = BUCKETS,
    ) -> None:
        least = [min(row) for row in times]
        self._floor = sum(least)
        room = largest - self._floor
        self._width = room / buckets if room > 0 else 1.0
        self._slots = buckets if room > 0 else 0
        self._picks: list[np.ndarray] = []
        self._costs: list[list[int]] = []
        best = np.zeros(self._slots + 1)
        for row, spent, low in zip(errors, times, least, strict=True):
            costs = [self._slots_of(time - low) for time in spent]
            totals = np.array([_shifted(best, cost) + error for cost, error in zip(costs, row, strict=True)])
            self._picks.append(totals.argmin(0))
            self._costs.append(costs)
            best = totals.min(0)

    def choose(self, budget: float) -> list[int] | None:
        """Option of every decision; None if even the least time exceeds the budget."""
        slot = min(self._slots, math.floor((budget - self._floor) / self._width + _ROUNDING))
        if slot < 0:
            return None
        chosen: list[int] = []
        for picks, costs in zip(reversed(self._picks), reversed(self._costs), strict=True):
            chosen.append(int(picks[slot]))
            slot -= costs[chosen[-1]]
        return chosen[::-1]

    def _slots_of(self, time: float) -> int:
        return math.ceil(time / self._width - _ROUNDING)


_ROUNDING = 1e-9
"""Share of a bucket that floating-point division may be off by."""


def _shifted(best: np.ndarray, slots: int) -> np.ndarray:
    """What was best with `slots` fewer buckets; impossible (infinite) below."""
    result = np.full_like(best, np.inf)
    if slots < len(best):
        result[slots:] = best[: len(best) - slots]
    return result
