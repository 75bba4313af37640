"""One run's models on several devices: how differently they rank, and what a choice made for the wrong device costs.

Scores are the run's; only prices change, so that a further device costs seconds. Every latency here is predicted by its
profile, or an estimate where the profile is one.
"""

import json
from collections.abc import Mapping, Sequence
from dataclasses import asdict, dataclass, replace
from pathlib import Path
from typing import Any

from scipy.stats import spearmanr

from autocompress.compression.build import plan_kernels
from autocompress.compression.plan import Plan
from autocompress.compression.tracing import trace_task
from autocompress.profiles import Profile
from autocompress.search import Study, kernel_records, load
from autocompress.search.candidate import Candidate, Status
from autocompress.search.records import RunFolder
from autocompress.search.rungs import on_one_scale
from autocompress.task.task import Task
from autocompress.vocabulary.errors import RunError, UserError
from autocompress.vocabulary.formats import TRAINED_IN, formats_of
from autocompress.vocabulary.pareto import front, hypervolume
from autocompress.vocabulary.workload import Kernels, Latency

FILE, TABLE = "compare.json", "compare.csv"
"""What a comparison leaves in the run's folder; the report shows it."""

MARGIN = 0.05
"""The hypervolume's reference point lies beyond the slowest and the worst model by this share of the range."""

ALLOWED_DROP = 0.01
"""Where neither the run nor the user says how much score may be lost."""


@dataclass(frozen=True, slots=True)
class Priced:
    """A model's score and its latency on one device."""

    id: str
    score: float
    latency: Latency

    @property
    def seconds(self) -> float:
        return self.latency.seconds


@dataclass(frozen=True, slots=True)
class Comparison:
    """`originals` are what the original takes on each profile after the exact rewrites alone. `spearman[a][b]`
    correlates the ranks by latency of all models on a and b. `regret[a][b]` is the share of the hypervolume on b that
    is lost by taking the models of a's front. `chosen` are the models that a user of each device would take: within
    `max_drop` and, if given, `budget_ms`, the fastest; None where no model fits. `time_lost[a][b]` is how much longer
    a's choice takes on b than b's own, as a share; None where there is none. `notes` say what to mind."""

    models: int
    profiles: tuple[str, ...]
    originals: Mapping[str, Latency]
    fronts: Mapping[str, Sequence[Priced]]
    spearman: Mapping[str, Mapping[str, float]]
    regret: Mapping[str, Mapping[str, float]]
    max_drop: float
    budget_ms: float | None
    chosen: Mapping[str, Priced | None]
    time_lost: Mapping[str, Mapping[str, float | None]]
    notes: tuple[str, ...] = ()

    def to_dict(self) -> dict[str, Any]:
        return asdict(self)

    @staticmethod
    def from_dict(document: Mapping[str, Any]) -> "Comparison":
        fronts = {name: [_priced(row) for row in rows] for name, rows in document["fronts"].items()}
        chosen = {name: row and _priced(row) for name, row in document["chosen"].items()}
        originals = {name: Latency(**row) for name, row in document["originals"].items()}
        lists = {name: tuple(document[name]) for name in ("profiles", "notes")}
        return Comparison(**{**document, **lists, "originals": originals, "fronts": fronts, "chosen": chosen})


@dataclass(frozen=True, slots=True)
class Choice:
    """What a user of a device asks for: `least_score` on validation, and a budget there if there is one."""

    least_score: float
    budget_s: float | None = None

    def of(self, prices: Mapping[str, Priced]) -> Priced | None:
        """The fastest model that fits; with a budget the best one that does."""
        fit = [row for row in prices.values() if row.score >= self.least_score]
        if self.budget_s is None:
            return min(fit, key=lambda row: (row.seconds, -row.score), default=None)
        within = [row for row in fit if row.seconds <= self.budget_s]
        return max(within, key=lambda row: (row.score, -row.seconds), default=None)


def compare(
    run: Path,
    profiles: Mapping[str, Profile],
    max_drop: float | None = None,
    budget_ms: float | None = None,
    task: Task | None = None,
) -> Comparison:
    """Price every scored model of a run on every profile; nothing is built. Writes compare.json and compare.csv.

    What the models execute stands in the run's folder; `task` is for a run that was killed before it was written.
    Raises RunError for another model's run or if that is missing, UserError for fewer than two profiles.
    """
    if len(profiles) < 2:
        raise UserError("compare needs two profiles or more: --profile A --profile B")
    study = load(run)
    candidates = _scored(study)
    kernels = _kernels(study, candidates, task)
    for profile in profiles.values():
        profile.warm(kernels.values())
    prices = {
        name: {c.id: Priced(c.id, c.score.value, p.predict(kernels[c.id])) for c in candidates if c.score}
        for name, p in profiles.items()
    }
    original = kernels[Plan(candidates[0].plan.fingerprint).key]
    originals = {name: profile.predict(original) for name, profile in profiles.items()}
    assert study.baseline is not None, "scored candidates have a baseline"
    allowed = next(d for d in (max_drop, study.settings.max_drop, ALLOWED_DROP) if d is not None)
    choice = Choice(study.baseline.score.value - allowed, budget_ms / 1e3 if budget_ms else None)
    found = replace(compare_prices(prices, originals, choice, allowed), notes=_notes(profiles))
    _keep(RunFolder(run), found, prices)
    return found


def compare_prices(
    prices: Mapping[str, Mapping[str, Priced]], originals: Mapping[str, Latency], choice: Choice, max_drop: float = 0.0
) -> Comparison:
    """`prices[profile][model]`; every profile prices the same models."""
    names = tuple(prices)
    fronts = {name: _front(list(prices[name].values())) for name in names}
    chosen = {name: choice.of(prices[name]) for name in names}
    return Comparison(
        models=len(next(iter(prices.values()))),
        profiles=names,
        originals=originals,
        fronts=fronts,
        spearman={a: {b: _spearman(prices[a], prices[b]) for b in names} for a in names},
        regret={a: {b: _regret([row.id for row in fronts[a]], prices[b]) for b in names} for a in names},
        max_drop=max_drop,
        budget_ms=choice.budget_s and 1e3 * choice.budget_s,
        chosen=chosen,
        time_lost={a: {b: _time_lost(chosen[a], chosen[b], prices[b]) for b in names} for a in names},
    )


def read_comparison(run: Path) -> Comparison | None:
    """The last comparison of a run, None if there was none. Raises RunError for a damaged file."""
    path = run / FILE
    if not path.is_file():
        return None
    try:
        return Comparison.from_dict(json.loads(path.read_text(encoding="utf-8")))
    except (ValueError, KeyError, TypeError) as error:
        raise RunError(f"{path} is damaged: {error}; run `autocompress compare` again, or remove it") from error


def _kernels(study: Study, candidates: Sequence[Candidate], task: Task | None) -> dict[str, Kernels]:
    """What each candidate executes, and the original after exact rewrites."""
    fingerprint = candidates[0].plan.fingerprint
    graph = trace_task(task) if task is not None else None
    if graph is not None and graph.fingerprint != fingerprint:
        raise RunError(
            f"{study.path} is of model {fingerprint}, the task's model is {graph.fingerprint}; "
            "give the task it was searched with"
        )
    plans = {plan.key: plan for plan in [Plan(fingerprint), *(c.plan for c in candidates)]}
    if graph is not None:
        return {key: plan_kernels(plan, graph) for key, plan in plans.items()}
    found = kernel_records.read(study.path)
    if found is None or not plans.keys() <= found.keys():
        raise RunError(f"{study.path} does not say what its models execute: run the search to its end, or give --task")
    return found


def _notes(profiles: Mapping[str, Profile]) -> tuple[str, ...]:
    lacking = {name: p.capabilities.dtypes for name, p in profiles.items() if TRAINED_IN not in p.capabilities.dtypes}
    return tuple(
        f"{name} computes in {_or(dtypes)} only: layers that a plan leaves in {TRAINED_IN} are priced in "
        f"{formats_of(dtypes)[0].name} there, while the score is with them in {TRAINED_IN}"
        for name, dtypes in lacking.items()
    )


def _or(dtypes: frozenset[str]) -> str:
    return " or ".join(row.name for row in formats_of(dtypes))


def _priced(row: Mapping[str, Any]) -> Priced:
    return Priced(row["id"], row["score"], Latency(**row["latency"]))


def _keep(folder: RunFolder, found: Comparison, prices: Mapping[str, Mapping[str, Priced]]) -> None:
    folder.write(folder.path / FILE, json.dumps(found.to_dict(), indent=1))
    on_front = {name: {row.id for row in rows} for name, rows in found.fronts.items()}
    rows = []
    for key, first in next(iter(prices.values())).items():
        row: dict[str, Any] = {"id": key, "score": first.score}
        for name in found.profiles:
            latency = prices[name][key].latency
            row |= {f"ms on {name}": 1e3 * latency.seconds, f"how known on {name}": latency.origin}
            row |= {f"front on {name}": key in on_front[name]}
        rows.append(row)
    folder.write_table(TABLE, tuple(rows[0]), rows)


def _scored(study: Study) -> list[Candidate]:
    """Those of the trials' subset are set off by what the original scores there, so that all compare."""
    candidates = [c for c in study.candidates if c.score is not None and c.status is Status.COMPLETE]
    if len(candidates) < 2 or study.baseline is None:
        raise RunError(f"{study.path} has {len(candidates)} scored models, nothing to compare; search longer")
    return on_one_scale(candidates, study.baseline)


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


def _time_lost(chosen: Priced | None, own: Priced | None, prices: Mapping[str, Priced]) -> float | None:
    if chosen is None or own is None:
        return None
    return prices[chosen.id].seconds / own.seconds - 1
