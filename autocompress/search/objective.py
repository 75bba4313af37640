"""What a search minimises when it aims at several profiles: each latency by itself, the worst of them, or the best.

With one profile all three are the same. The first profile is the one whose seconds people read.
"""

from collections.abc import Mapping
from enum import StrEnum

from autocompress.vocabulary.workload import Latency


class Objective(StrEnum):
    """EACH: a model is as good as it is on every device, so each is an objective of its own. WORST: one model for all
    devices, judged where it gains least over the original. BEST: runtimes of one machine, of which the user will take
    the fastest."""

    EACH = "each"
    WORST = "worst"
    BEST = "best"


def combined(objective: Objective, found: Mapping[str, Latency], originals: Mapping[str, Latency]) -> Latency:
    """One latency of a model whose latencies on the profiles are `found`; those of the original are `originals`.

    EACH: the first profile's. BEST: the least. WORST: the time on the first profile that would be as large a share of
    the original's as the largest share on any; so it compares with a budget in the first profile's seconds.
    """
    first = next(iter(found))
    if objective is Objective.EACH or len(found) == 1:
        return found[first]
    if objective is Objective.BEST:
        return min(found.values(), key=lambda latency: latency.seconds)
    worst = max(found, key=lambda name: found[name].seconds / originals[name].seconds)
    unit = originals[first].seconds / originals[worst].seconds
    at = found[worst]
    return Latency(unit * at.seconds, unit * at.low, unit * at.high, at.measured_fraction, at.origin)
