"""One run's models on several devices: how differently they rank, and what a front of the wrong device costs."""

from collections.abc import Mapping, Sequence
from dataclasses import asdict, dataclass
from pathlib import Path
from typing import Any

from scipy.stats import spearmanr

from autocompress.build import plan_kernels
from autocompress.errors import RunError, UserError
from autocompress.pareto import front, hypervolume
from autocompress.profiles import Profile
from autocompress.search import load
from autocompress.search.candidate import Candidate, Status
from autocompress.task import Task
from autocompress.tracing import trace_task

MARGIN = 0.05
"""The hypervolume's reference point lies beyond the slowest and the worst model by this share of the range."""


@dataclass(frozen=True, slots=True)
class Priced:
    """A model's score and predicted time on one device."""

    id: str
    score: float
    seconds: float


@dataclass(frozen=True, slots=True)
class Comparison:
    """`spearman[a][b]` correlates the ranks by latency of all models on a and b. `regret[a][b]` is the share of the
    hypervolume on b that is lost by taking the models of a's front; 0 on the diagonal."""

    models: int
    profiles: tuple[str, ...]
    fronts: Mapping[str, Sequence[Priced]]
    spearman: Mapping[str, Mapping[str, float]]
    regret: Mapping[str, Mapping[str, float]]

    def to_dict(self) -> dict[str, Any]:
        return asdict(self)


def compare(run: Path, task: Task, profiles: Mapping[str, Profile]) -> Comparison:
    """Price every scored model of a run on every profile; nothing is built. Raises RunError for another model's run."""
    if len(profiles) < 2:
        raise UserError("compare needs two profiles or more: --profile A --profile B")
    candidates = _scored(run)
    graph = trace_task(task)
    if graph.fingerprint != candidates[0].plan.fingerprint:
        raise RunError(
            f"{run} is of model {candidates[0].plan.fingerprint}, the task's model is {graph.fingerprint}; "
            "give the task it was searched with"
        )
    kernels = {c.id: plan_kernels(c.plan, graph) for c in candidates}
    prices = {
        name: {c.id: Priced(c.id, c.score.value, p.predict(kernels[c.id]).seconds) for c in candidates if c.score}
        for name, p in profiles.items()
    }
    return compare_prices(prices)


def compare_prices(prices: Mapping[str, Mapping[str, Priced]]) -> Comparison:
    """`prices[profile][model]`; every profile prices the same models."""
    names = tuple(prices)
    fronts = {name: _front(list(prices[name].values())) for name in names}
    return Comparison(
        len(next(iter(prices.values()))),
        names,
        fronts,
        {a: {b: _spearman(prices[a], prices[b]) for b in names} for a in names},
        {a: {b: _regret([row.id for row in fronts[a]], prices[b]) for b in names} for a in names},
    )


def _scored(run: Path) -> list[Candidate]:
    candidates = [c for c in load(run).candidates if c.score is not None and c.status is Status.COMPLETE]
    if len(candidates) < 2:
        raise RunError(f"{run} has {len(candidates)} scored models, nothing to compare; search longer, it resumes")
    return candidates


def _front(rows: Sequence[Priced]) -> list[Priced]:
    """By rising latency."""
    kept = front([(row.seconds, -row.score) for row in rows])
    return sorted((rows[i] for i in kept), key=lambda row: row.seconds)


def _spearman(a: Mapping[str, Priced], b: Mapping[str, Priced]) -> float:
    """1 where the ranks are undefined because every model takes equally long on both."""
    x, y = [a[key].seconds for key in a], [b[key].seconds for key in a]
    if len(set(x)) == 1 or len(set(y)) == 1:
        return 1.0 if len(set(x)) == len(set(y)) else 0.0
    return float(spearmanr(x, y).statistic)


def _regret(chosen: Sequence[str], prices: Mapping[str, Priced]) -> float:
    points = {key: (row.seconds, -row.score) for key, row in prices.items()}
    reference = tuple(
        max(axis) + MARGIN * ((max(axis) - min(axis)) or 1.0) for axis in zip(*points.values(), strict=True)
    )
    best = hypervolume(list(points.values()), reference)
    return max(0.0, 1 - hypervolume([points[key] for key in chosen], reference) / best)
