"""Who is promoted from rung to rung: by non-dominated rank, kept spread over latency."""

import math
from collections.abc import Iterable, Sequence
from dataclasses import dataclass, replace

from autocompress.search.candidate import Candidate
from autocompress.search.engine import Baseline, Price
from autocompress.task.task import Score
from autocompress.vocabulary.pareto import crowding, ranks

NEGLIGIBLE_STDERRS = 0.25
"""A loss below this many standard errors of the score is none, so no training is spent on it."""

HOPEFUL_SHARE = 0.15
"""Repaired plans that lost at most this share of the way from the original's score to the worst seen are worth
training: on the CIFAR ResNets a short one wins back a third to a half of what repair could not."""

HOPEFUL_DROPS = 5.0
"""Where a drop is allowed: plans within this many times of it are."""

WORTHWHILE_SHARE = 0.06
"""After the first tranche, plans that have lost at most this share of that way are worth the long one."""


@dataclass(frozen=True, slots=True)
class Limits:
    """What a model has to keep; None where nothing is asked."""

    budget_s: float | None = None
    max_drop: float | None = None
    max_size_bytes: int | None = None

    def violations(self, price: Price) -> dict[str, float]:
        """By how much of itself each limit on the price is exceeded; at most 0 where it is kept."""
        found = {}
        if self.budget_s is not None:
            found["latency"] = price.latency.seconds / self.budget_s - 1
        if self.max_size_bytes is not None:
            found["size"] = price.size_bytes / self.max_size_bytes - 1
        return found

    def reason(self, price: Price) -> str:
        """Which limits a price breaks, empty if none."""
        broken = [name for name, excess in self.violations(price).items() if excess > 0]
        told = {
            "latency": f"predicted {price.latency.seconds * 1e3:.4g} ms > budget {(self.budget_s or 0) * 1e3:.4g} ms",
            "size": f"{price.size_bytes:,} bytes > {self.max_size_bytes or 0:,} allowed",
        }
        return "; ".join(told[name] for name in broken)

    def allow(self, candidate: Candidate) -> bool:
        """Whether the best known latency and size keep to the limits."""
        slow = self.budget_s is not None and candidate.best_latency.seconds > self.budget_s
        large = self.max_size_bytes is not None and (candidate.size_bytes or 0) > self.max_size_bytes
        return not (slow or large)


def by_rank(candidates: Sequence[Candidate], count: int) -> list[Candidate]:
    """The `count` best: whole fronts while they fit, of the next front those farthest from their neighbours."""
    levels = ranks([c.cost for c in candidates])
    chosen: list[Candidate] = []
    for level in range(max(levels, default=-1) + 1):
        front = [c for c, rank in zip(candidates, levels, strict=True) if rank == level]
        lonely = crowding([c.cost for c in front])
        order = sorted(range(len(front)), key=lambda i: (-lonely[i], front[i].best_latency.seconds))
        chosen += [front[i] for i in order[: count - len(chosen)]]
    return chosen


def pareto_front(candidates: Sequence[Candidate]) -> list[Candidate]:
    """The candidates that none dominates, slowest first."""
    levels = ranks([c.cost for c in candidates])
    front = [c for c, rank in zip(candidates, levels, strict=True) if rank == 0]
    return slowest_first(front)


def slowest_first(candidates: Iterable[Candidate]) -> list[Candidate]:
    """By falling best known latency; those that take equally long stay in their order."""
    return sorted(candidates, key=lambda c: -c.best_latency.seconds)


def spread(candidates: Sequence[Candidate], count: int) -> list[Candidate]:
    """At most `count`, the best score in each of as many equal ranges of speed, slowest first.

    A choice that a faster one also beats in score is left out; ranges left empty are filled by rank.
    """
    if len(candidates) <= count:
        return pareto_front(candidates)
    speeds = [1 / c.best_latency.seconds for c in candidates]
    slowest, width = min(speeds), (max(speeds) - min(speeds)) / count or 1.0
    best: dict[int, Candidate] = {}
    for candidate, speed in zip(candidates, speeds, strict=True):
        place = min(count - 1, int((speed - slowest) / width))
        if place not in best or candidate.cost < best[place].cost:
            best[place] = candidate
    chosen = pareto_front(list(best.values()))
    others = [c for c in by_rank(candidates, len(candidates)) if c not in chosen]
    return pareto_front([*chosen, *others[: count - len(chosen)]])


def drop(candidate: Candidate, baseline: Baseline) -> float:
    """Score lost against the original on the same samples; negative for a gain."""
    assert candidate.score is not None, "only scored candidates have a drop"
    whole = candidate.score.samples == baseline.score.samples
    return (baseline.score if whole else baseline.subset_score).value - candidate.score.value


def on_one_scale(candidates: Sequence[Candidate], baseline: Baseline) -> list[Candidate]:
    """The same candidates with scores that compare: those known on the subset alone are set off by what the original
    scores there."""
    level = baseline.score
    return [replace(c, score=Score(level.value - drop(c, baseline), level.stderr, level.samples)) for c in candidates]


def hopeful(candidates: Sequence[Candidate], baseline: Baseline, worst: float, limits: Limits) -> list[Candidate]:
    """Candidates within the limits that have not lost too much to be worth a further look."""
    most = HOPEFUL_SHARE * (baseline.score.value - worst)
    if limits.max_drop is not None:
        most = HOPEFUL_DROPS * limits.max_drop
    return [c for c in candidates if drop(c, baseline) <= most and limits.allow(c)]


def worthwhile(candidates: Sequence[Candidate], baseline: Baseline, worst: float, limits: Limits) -> list[Candidate]:
    """Candidates within the limits that lost so little that more training may bring them to what is asked."""
    reach = max(WORTHWHILE_SHARE * (baseline.score.value - worst), 2 * (limits.max_drop or 0.0))
    return [c for c in candidates if drop(c, baseline) <= reach and limits.allow(c)]


def to_train(
    scored: Sequence[Candidate], baseline: Baseline, worst: float, limits: Limits, count: int
) -> list[Candidate]:
    """Plans worth a first tranche of fine-tuning, slowest first: those faster than what needs no training, and not
    beyond hope. `worst` is the lowest score seen."""
    return _originals(scored, spread(_needy(scored, baseline, worst, limits), count))


def to_fill(
    scored: Sequence[Candidate], baseline: Baseline, worst: float, limits: Limits, count: int
) -> list[Candidate]:
    """Untrained plans for a last tranche, slowest first: each time the one whose latency is farthest (as a ratio) from
    all that are trained or chosen, of the best that are slower than the fastest worthwhile trained one."""
    trained = [c for c in worthwhile(scored, baseline, worst, limits) if c.trained_s > 0]
    known = [c.best_latency.seconds for c in trained]
    front = pareto_front(_needy(scored, baseline, worst, limits))
    between = [c for c in front if c.best_latency.seconds > min(known, default=math.inf)]
    chosen: list[Candidate] = []
    while between and len(chosen) < count:
        loneliest = max(between, key=lambda c: min(abs(math.log(c.best_latency.seconds / s)) for s in known))
        between.remove(loneliest)
        chosen.append(loneliest)
        known.append(loneliest.best_latency.seconds)
    return _originals(scored, slowest_first(chosen))


def _needy(scored: Sequence[Candidate], baseline: Baseline, worst: float, limits: Limits) -> list[Candidate]:
    """Untrained plans that lost something, but not beyond hope, and are faster than all that lost nothing; on one
    scale."""
    lossless = NEGLIGIBLE_STDERRS * baseline.score.stderr
    good = [c.best_latency.seconds for c in scored if drop(c, baseline) <= lossless]
    fastest_good = min(good, default=baseline.latency.seconds)
    faster = [c for c in hopeful(scored, baseline, worst, limits) if c.best_latency.seconds < fastest_good]
    needy = [c for c in faster if c.trained_s == 0 and drop(c, baseline) > lossless]
    return on_one_scale(needy, baseline)


def _originals(scored: Sequence[Candidate], chosen: Sequence[Candidate]) -> list[Candidate]:
    """The chosen with the scores they really have."""
    by_id = {c.id: c for c in scored}
    return [by_id[c.id] for c in chosen]


def to_finish(
    trained: Sequence[Candidate], baseline: Baseline, worst: float, limits: Limits, count: int
) -> list[Candidate]:
    """Fine-tuned plans worth a long tranche, slowest first: within reach of the drop allowed, spread over latency.

    If too few are, those with the least drop are taken.
    """
    front = [c for c in pareto_front(trained) if limits.allow(c)]
    lossless = NEGLIGIBLE_STDERRS * baseline.score.stderr
    needy = sorted((c for c in front if drop(c, baseline) > lossless), key=lambda c: drop(c, baseline))
    within = worthwhile(needy, baseline, worst, limits)
    chosen = spread(within, count) if len(within) >= count else needy[:count]
    return slowest_first(chosen)
