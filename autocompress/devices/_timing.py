"""How devices use the clock: consecutive runs one by one, and one figure from many samples."""

import time
from collections.abc import Callable, Sequence


def stopwatch(run: Callable[[], object], runs: int) -> list[float]:
    """Seconds of each of `runs` consecutive calls; `run` returns when its work is done."""
    clock = time.perf_counter
    samples = []
    for _ in range(runs):
        start = clock()
        run()
        samples.append(clock() - start)
    return samples


def middle_mean(samples: Sequence[float]) -> float:
    """Mean of the middle half: steady against bursts, and finer than a profiler's whole microseconds."""
    ordered = sorted(samples)
    quarter = len(ordered) // 4
    middle = ordered[quarter : len(ordered) - quarter]
    return sum(middle) / len(middle)
