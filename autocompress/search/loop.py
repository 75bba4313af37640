"""The search itself: stages in order, each resumable, within a limit of time."""

import math
import warnings
from collections.abc import Callable, Iterator
from contextlib import contextmanager
from dataclasses import asdict, dataclass, field
from importlib.metadata import version
from pathlib import Path
from typing import Any

from optuna.samplers import BaseSampler

from autocompress.compression.plan import Plan
from autocompress.profiles import ProfileWarning
from autocompress.search import kernel_records
from autocompress.search.candidate import Candidate, Rung, Status
from autocompress.search.clock import Clock
from autocompress.search.config import Settings, override, to_document
from autocompress.search.engine import Baseline, Evaluator, Setup
from autocompress.search.ledger import Ledger, best_front
from autocompress.search.progress import Progress, Snapshot, silent
from autocompress.search.promotion import VALIDATION_SHARE, Promotion
from autocompress.search.records import RunFolder
from autocompress.search.rungs import Limits
from autocompress.search.samplers import make_sampler, quiet
from autocompress.search.sensitivity import Probes, probe
from autocompress.search.space import Space
from autocompress.search.study import Study, load
from autocompress.search.trials import Trials, open_study
from autocompress.search.warmstart import WarmStart, fastest_choice
from autocompress.search.workers import crew
from autocompress.task.task import Task
from autocompress.vocabulary.errors import BudgetError, ConfigError, RunError

TABLES_EVERY_S = 5.0
"""The tables are written anew at most this often while the search runs; the journal always is at once."""

_VERSIONED = ("autocompress", "torch", "onnx", "onnxruntime", "optuna", "numpy")

Opener = Callable[[Setup], Evaluator]


def search(
    task: Task,
    *,
    out: Path | str,
    settings: Settings | None = None,
    progress: Progress | None = None,
    sampler: BaseSampler | None = None,
    **given: Any,
) -> Study:
    """Search compressed versions of the task's model and verify the best, resuming what `out` holds already.

    `given` are settings by name (profile, budget_ms, speedup, max_drop, max_size_bytes, trials, time_s, workers,
    storage, seed, ...); they override `settings`. `sampler` is any Optuna sampler, instead of the one that settings
    name. Ctrl-C ends the search early: what is known by then is written and returned. Raises UserError for what can't
    be done as asked, StorageError where the disk fails (nothing that was finished is lost).
    """
    from autocompress.search.evaluator import open_evaluator

    resolved = override(settings or Settings(), **given)
    return run(open_evaluator(task, resolved), resolved, Path(out), progress or silent, sampler)


def run(
    opener: Opener, settings: Settings, out: Path, progress: Progress = silent, sampler: BaseSampler | None = None
) -> Study:
    """The search with any evaluator; `opener` is called once the folder is held."""
    quiet()
    folder = RunFolder(out)
    clock = Clock(settings.limit_s, settings.shares.model_dump())
    with folder.opened():
        session = _Session(settings, folder, clock, progress)
        with session.ending():
            setup_ends = clock.enter("setup")
            seconds = (lambda: clock.until(setup_ends)) if clock.limited else (lambda: None)
            session.open(opener(Setup(folder.path, session.tell, seconds)))
            session.stages(sampler)
    return load(out)


@dataclass
class _Session:
    """One call of `run`: what its stages share, and what is told and written whatever happens."""

    settings: Settings
    folder: RunFolder
    clock: Clock
    progress: Progress
    stage: tuple[str, str] = ("setup", "")
    baseline: Baseline | None = None
    ledger: Ledger = field(init=False)
    state: dict[str, Any] = field(init=False)
    evaluator: Evaluator = field(init=False)
    limits: Limits = field(default_factory=Limits)
    _written: float = -math.inf

    def __post_init__(self) -> None:
        self.ledger = Ledger(self.folder)
        self.state = {"complete": False, **self.folder.read_state()}

    def open(self, evaluator: Evaluator) -> None:
        """Makes sure that the folder is this model's, and that there is a baseline. Raises RunError."""
        self.evaluator = evaluator
        if self.folder.exists:
            found = self.folder.read_run().get("fingerprint")
            if found != evaluator.fingerprint:
                raise RunError(
                    f"{self.folder.path} is the run of model {found}, the task's model is {evaluator.fingerprint}; "
                    "give that task, or another --out"
                )
        self.folder.write_run(self._document())
        if "baseline" in self.state:
            self.baseline = Baseline.from_document(self.state["baseline"])
        else:
            self.tell("setup", "scoring and timing the original")
            self.baseline = evaluator.baseline()
            self.state["baseline"] = self.baseline.to_document()
            self.folder.write_state(self.state)
            for doubt in self.baseline.doubts:
                warnings.warn(doubt, ProfileWarning, stacklevel=2)
        evaluator.adopt(self.baseline)
        if not (evaluator.trainable and self.settings.fine_tuning.enabled):
            self.clock.skip("fine_tuning")
        self.limits = _limits(self.settings, self.baseline)

    def stages(self, sampler: BaseSampler | None) -> None:
        assert self.baseline is not None, "the session is open"
        space = self.evaluator.space()
        self.state["slowing"] = [asdict(option) for option in space.slowing]
        if not space.decisions:
            raise ConfigError(
                "there is nothing to decide about this model: every layer is frozen or `decisions` leaves none; "
                "`autocompress inspect` tells why"
            )
        self._require_reachable(space)
        promotion = Promotion(
            self.evaluator, self.ledger, self.folder, self.settings, self.limits, self.baseline, self.clock, self.tell,
            self.state.setdefault("lessons", []),
        )  # fmt: skip
        fruitful = self._round(space, sampler, promotion, warm=self.settings.warm_start.enabled)
        if self.state["complete"] and not fruitful:
            return
        self.state["complete"] = False
        self.folder.write_state(self.state)
        while fruitful and self.clock.spare:
            fruitful = self._round(space, sampler, promotion, warm=False)
        promotion.measure(self.clock.enter("measuring"))
        self.state["complete"] = True
        self.tell("done", "")

    def _round(self, space: Space, sampler: BaseSampler | None, promotion: Promotion, *, warm: bool) -> bool:
        """Trials, then fine-tuning of the best; False if nothing came of it.

        One round takes all the time there is, unless nothing asks for training: then the next one has what was left.
        """
        before = dict(self.ledger.candidates)
        deadline = self.clock.enter("trials")
        self._trials(space, sampler, deadline, warm=warm)
        if self.state["complete"] and before == self.ledger.candidates:
            return False
        promotion.validate(deadline)
        promotion.time_early(deadline)
        promotion.fine_tune(self.clock.enter("fine_tuning"))
        return before != self.ledger.candidates

    def tell(self, stage: str, detail: str) -> None:
        """Tells the watcher where the search is; now and then the tables are brought up to date."""
        self.stage = (stage, detail)
        if self.clock.elapsed - self._written > TABLES_EVERY_S:
            self._write_tables()
        self.progress(self._snapshot())

    @contextmanager
    def ending(self) -> Iterator[None]:
        """Whatever happens, all that is known is written; Ctrl-C ends a search without an error."""
        try:
            yield
        except KeyboardInterrupt:
            if not self.folder.exists:
                raise
            self.tell("interrupted", "")
        finally:
            self.clock.leave()
            spent = self.state.setdefault("stage_seconds", {})
            for stage, seconds in self.clock.stage_seconds.items():
                spent[stage] = spent.get(stage, 0.0) + seconds
            if self.folder.exists:
                self.folder.write_state(self.state)
                self._write_tables()
                self._write_kernels()

    def _write_kernels(self) -> None:
        """What the scored plans execute, so that `compare` needs neither the task nor the model."""
        if self.baseline is None:
            return
        plans = [Plan(self.evaluator.fingerprint), *(c.plan for c in self.ledger.at(*Rung))]
        kernels = {plan.key: self.evaluator.kernels(plan) for plan in plans}
        self.folder.write(self.folder.path / kernel_records.FILE, kernel_records.encode(kernels))

    def _trials(self, space: Space, sampler: BaseSampler | None, deadline: float, *, warm: bool) -> None:
        assert self.baseline is not None, "the session is open"
        baseline = self.baseline
        begun, limit, workers = len(self.ledger.candidates), self.settings.trials, self.settings.workers
        until = self.clock.after(self.clock.until(deadline) * (1 - VALIDATION_SHARE))

        def trials(worker: int = 0) -> Trials:
            chosen = sampler or make_sampler(self.settings.sampler, self.settings.seed + begun)
            if worker:
                chosen.reseed_rng()
            study = open_study(self.folder, space, chosen, self.settings.storage, self.settings.latencies)
            return Trials(
                study, space, self.evaluator, self.ledger, self.folder, self.limits, baseline,
                self.settings.samples.subset,
            )  # fmt: skip

        def finished() -> bool:
            return self.clock.until(until) <= self._typical_s() or (limit is not None and self.ledger.built >= limit)

        first = trials()
        first.reconcile()
        if warm:
            for seconds in self._latencies():
                first.enqueue(self._warm_start(space, until, seconds).proposals())
        self.evaluator.share(workers)
        with crew(workers - 1, lambda worker: trials(worker).run(finished, lambda candidate: None)):
            first.run(finished, lambda candidate: self.tell("trials", candidate.origin))
        self.evaluator.share(1)
        self.ledger.refresh()

    def _latencies(self) -> list[Callable[[Plan], float]]:
        """The predicted seconds that are minimised, one function each."""
        assert self.baseline is not None, "the session is open"

        def on(profile: str | None) -> Callable[[Plan], float]:
            def seconds(plan: Plan) -> float:
                price = self.evaluator.price(plan)
                return (price.latency if profile is None else price.devices[profile]).seconds

            return seconds

        return [on(None)] if self.settings.latencies == 1 else [on(profile) for profile in self.baseline.devices]

    def _warm_start(self, space: Space, until: float, seconds: Callable[[Plan], float]) -> WarmStart:
        known: dict[str, float] = self.state.setdefault("divergences", {})
        end = self.clock.after(self.clock.until(until) * self.settings.warm_start.share)

        def divergence(plan: Any) -> float:
            self.tell("warm start", f"{len(known) + 1} sensitivities")
            return self.evaluator.divergence(plan)

        probes = Probes(space, divergence, known, lambda: self.clock.until(end) <= 0)
        errors = probe(probes)
        self.folder.write_state(self.state)
        return WarmStart(
            space, seconds, errors, probes, self.settings.warm_start.latencies, self.limits.budget_s,
        )  # fmt: skip

    def _require_reachable(self, space: Space) -> None:
        """Raises BudgetError if even the fastest plan is over the budget, before anything is built."""
        if self.limits.budget_s is None:
            return
        choice = fastest_choice(space, lambda plan: self.evaluator.price(plan).latency.seconds)
        least_s = self.evaluator.price(space.plan(choice)).latency.seconds
        if least_s > self.limits.budget_s:
            assert self.baseline is not None, "limits follow from the baseline"
            raise BudgetError(
                f"budget {self.limits.budget_s * 1e3:.4g} ms is below what any plan can reach; the nearest is "
                f"{least_s * 1e3:.4g} ms (speed-up {self.baseline.latency.seconds / least_s:.3g}), predicted with "
                "every decision at its fastest: ask for more time than that"
            )

    def _typical_s(self) -> float:
        """Seconds of a recent trial, so that none is begun that would end too late."""
        recent = [c.seconds for c in list(self.ledger.candidates.values())[-8:] if c.status is not Status.REJECTED]
        return sum(recent) / len(recent) if recent else 0.0

    def _snapshot(self) -> Snapshot:
        front = best_front(self.ledger.candidates.values())
        return Snapshot(
            stage=self.stage[0],
            detail=self.stage[1],
            trials=self.ledger.built,
            trials_limit=self.settings.trials,
            rejected=self.ledger.count(Status.REJECTED),
            failed=self.ledger.count(Status.FAILED),
            elapsed_s=self.clock.elapsed,
            time_left_s=self.clock.left if self.clock.limited else None,
            baseline=self.baseline,
            front=front,
            best=self._best(front),
        )

    def _best(self, front: list[Candidate]) -> Candidate | None:
        """The best score within the budget; without one, the fastest within the drop, if any is asked."""
        within = [c for c in front if self.limits.allow(c)]
        if self.limits.budget_s is None and self.limits.max_drop is not None and self.baseline is not None:
            on_subset = any(c.rung is Rung.REPAIRED for c in within)
            original = self.baseline.subset_score if on_subset else self.baseline.score
            kept = [c for c in within if c.score and original.value - c.score.value <= self.limits.max_drop]
            return min(kept, key=lambda c: c.best_latency.seconds, default=None)
        return min(within, key=lambda c: c.cost, default=None)

    def _write_tables(self) -> None:
        self._written = self.clock.elapsed
        self.ledger.write_tables(self.baseline)

    def _document(self) -> dict[str, Any]:
        return {
            "fingerprint": self.evaluator.fingerprint,
            "versions": {name: version(name) for name in _VERSIONED},
            "environment": dict(self.evaluator.environment),
            "settings": to_document(self.settings),
        }


def _limits(settings: Settings, baseline: Baseline) -> Limits:
    asked_ms = settings.budget_ms
    budget_s = asked_ms / 1e3 if asked_ms is not None else None
    if settings.speedup is not None:
        budget_s = baseline.latency.seconds / settings.speedup
    return Limits(budget_s, settings.max_drop, settings.max_size_bytes)
