"""The trials: Optuna proposes a plan, it is priced, built and scored on a subset, and Optuna is told."""

import math
import time
from collections.abc import Callable, Iterator, Sequence
from contextlib import contextmanager
from dataclasses import dataclass
from pathlib import Path

import optuna
from optuna.storages import JournalStorage
from optuna.study import StudyDirection
from optuna.trial import Trial, TrialState, create_trial

from autocompress.compression.plan import Plan
from autocompress.search.candidate import Candidate, Rung, Status
from autocompress.search.engine import Baseline, Evaluator, Price
from autocompress.search.journal import Journal
from autocompress.search.ledger import Ledger, is_scored
from autocompress.search.records import RunFolder, storage_error
from autocompress.search.rungs import Limits
from autocompress.search.space import Space
from autocompress.search.warmstart import Proposal
from autocompress.vocabulary.errors import ConfigError, Failure, RunError, StorageError, TaskError

PLAN_KEY = "plan"
_SPACE_KEY = "space"
_ORIGIN_KEY = "origin"
_SAMPLED = "sampler"

STUCK = 200
"""Proposals in a row that led to nothing new, after which the sampler is taken to have run dry."""


@dataclass(frozen=True, slots=True)
class Trials:
    """Ask and tell. Values told are (score on the subset, seconds); a plan that breaks a limit by its price is told as
    infeasible, one that fails to build as failed, one that is known with the values it has."""

    study: optuna.Study
    space: Space
    evaluator: Evaluator
    ledger: Ledger
    folder: RunFolder
    limits: Limits
    baseline: Baseline
    subset: int

    def enqueue(self, proposals: Sequence[Proposal]) -> None:
        """The sampler's first trials will be these, but for those that are known or waiting already."""
        with guarded(self.folder):
            waiting = self.study.get_trials(deepcopy=False, states=(TrialState.WAITING,))
            queued = {trial.user_attrs.get(PLAN_KEY) for trial in waiting}
            for proposal in proposals:
                plan = self.space.plan(proposal.choice)
                if plan.key not in queued and not self._known(plan):
                    attributes = {_ORIGIN_KEY: proposal.origin, PLAN_KEY: plan.key}
                    self.study.enqueue_trial(self.space.values(proposal.choice), attributes)

    def run(self, finished: Callable[[], bool], tell: Callable[[Candidate], None]) -> None:
        """Trials until `finished`, or until nothing new comes up any more; `tell` is called after each new one."""
        fruitless = 0
        while not finished() and fruitless < STUCK:
            candidate = self.step()
            fruitless = fruitless + 1 if candidate is None or candidate.status is Status.REJECTED else 0
            if candidate is not None:
                tell(candidate)

    def step(self) -> Candidate | None:
        """One trial; None for a plan that is known, or that another worker is about to know."""
        with guarded(self.folder):
            trial = self.study.ask(self.space.distributions)
        plan = self.space.plan(self.space.from_values(trial.params))
        self.ledger.refresh()
        known = self._known(plan)
        if not known and not self.folder.claim(plan.key):
            with guarded(self.folder):
                self.study.tell(trial, state=TrialState.FAIL)
            return None
        if not known:
            self.ledger.record(self._candidate(plan, trial.user_attrs.get(_ORIGIN_KEY, _SAMPLED)))
        with guarded(self.folder):
            self._tell(trial, self.ledger[plan.key])
        return None if known else self.ledger[plan.key]

    def _known(self, plan: Plan) -> bool:
        """Plans that an earlier, narrower limit rejected are looked at again."""
        candidate = self.ledger.candidates.get(plan.key)
        rejected = candidate is not None and candidate.status is Status.REJECTED
        return candidate is not None and not (rejected and not self.limits.reason(price_of(candidate)))

    def _candidate(self, plan: Plan, origin: str) -> Candidate:
        price = self.evaluator.price(plan)
        reason = self.limits.reason(price)
        if reason:
            return priced(plan, price, Status.REJECTED, reason, origin)
        begun = time.perf_counter()
        scratch = self.folder.scratch / f"{plan.key}.onnx"
        try:
            artifact = self.evaluator.export(plan, None, scratch)
            score = self.evaluator.score(scratch, self.subset)
        except Failure as error:
            if isinstance(error, StorageError):
                raise
            return priced(plan, price, Status.FAILED, str(error), origin, time.perf_counter() - begun)
        finally:
            scratch.unlink(missing_ok=True)
        if not math.isfinite(score.value):
            raise TaskError(
                f"Task.score of plan {plan.key} is {score.value}; a score must be a finite number, larger is better"
            )
        return Candidate(
            plan.key, plan, Rung.REPAIRED, Status.COMPLETE, price.latency, score, size_bytes=artifact.size_bytes,
            params=price.params, macs=price.macs, seconds=time.perf_counter() - begun, origin=origin,
            devices=price.devices, each=price.each,
        )  # fmt: skip

    def _tell(self, trial: Trial, candidate: Candidate) -> None:
        trial.set_user_attr(PLAN_KEY, candidate.id)
        trial.set_user_attr("status", candidate.status.value)
        for name, excess in self.limits.violations(price_of(candidate)).items():
            trial.set_constraint(name, excess)
        if candidate.status is Status.FAILED:
            self.study.tell(trial, state=TrialState.FAIL)
        else:
            self.study.tell(trial, self._values(candidate))

    def _values(self, candidate: Candidate) -> tuple[float, ...]:
        """A rejected plan has no score: it gets the worst one, which constrained dominance never looks at."""
        if candidate.score is not None:
            return candidate.score.value, *candidate.minimised_s
        scores = [c.score.value for c in self.ledger.candidates.values() if is_scored(c) and c.score]
        return min(scores, default=self.baseline.subset_score.value), *candidate.minimised_s

    def reconcile(self) -> None:
        """Makes Optuna know what the ledger does, after a crash: trials cut off are tried again, lost ones told."""
        with guarded(self.folder):
            for trial in self.study.get_trials(deepcopy=False, states=(TrialState.RUNNING,)):
                self.study.tell(trial.number, state=TrialState.FAIL)
                plan = self.space.plan(self.space.from_values(trial.params))
                if len(trial.params) == len(self.space.decisions) and not self._known(plan):
                    origin = trial.user_attrs.get(_ORIGIN_KEY, _SAMPLED)
                    self.study.enqueue_trial(trial.params, {_ORIGIN_KEY: origin, PLAN_KEY: plan.key})
            finished = self.study.get_trials(deepcopy=False, states=(TrialState.COMPLETE, TrialState.FAIL))
            told = {trial.user_attrs.get(PLAN_KEY) for trial in finished}
            for candidate in self.ledger.candidates.values():
                if candidate.id not in told and candidate.status is not Status.FAILED:
                    self._tell_late(candidate)

    def _tell_late(self, candidate: Candidate) -> None:
        params = self.space.values(self.space.choice(candidate.plan))
        violations = self.limits.violations(price_of(candidate))
        self.study.add_trial(
            create_trial(
                params=params,
                distributions=dict(self.space.distributions),
                values=self._values(candidate),
                user_attrs={PLAN_KEY: candidate.id, "status": candidate.status.value, _ORIGIN_KEY: candidate.origin},
                constraints=violations or None,
            )
        )


def priced(plan: Plan, price: Price, status: Status, reason: str, origin: str, seconds: float = 0.0) -> Candidate:
    """A candidate of which no more is known than its price, and why."""
    return Candidate(
        plan.key, plan, Rung.PRICED, status, price.latency, size_bytes=price.size_bytes, params=price.params,
        macs=price.macs, reason=reason, seconds=seconds, origin=origin, devices=price.devices, each=price.each,
    )  # fmt: skip


def price_of(candidate: Candidate) -> Price:
    return Price(candidate.latency, candidate.size_bytes or 0, candidate.params or 0, candidate.macs or 0)


def open_study(
    folder: RunFolder, space: Space, sampler: optuna.samplers.BaseSampler, storage: str | None, latencies: int = 1
) -> optuna.Study:
    """The run's Optuna study, new or stored, which maximises a score and minimises so many latencies; a journal that
    can't be read is set aside and a new one begun.

    Raises RunError if the stored study searched another space.
    """
    try:
        with guarded(folder):
            study = _study(folder.study_journal, space, sampler, storage, latencies)
    except StorageError:
        raise
    except Exception as error:  # whatever a database driver, or a journal with a damaged line, may raise
        if storage is not None:
            told = " ".join(str(error).split())[:200]
            raise ConfigError(f"can't use the storage {storage!r}: {told}; give a URL that Optuna knows") from error
        set_aside(folder.study_journal)
        with guarded(folder):
            study = _study(folder.study_journal, space, sampler, storage, latencies)
    stored = study.user_attrs.get(_SPACE_KEY)
    if stored is not None and stored != space.document():
        changed = sorted(
            name for name in stored.keys() | space.document().keys() if stored.get(name) != space.document().get(name)
        )
        raise RunError(
            f"{folder.path} searched other decisions ({len(changed)} differ, such as {changed[0]!r}): the task, device "
            "or profile changed; give another --out"
        )
    if stored is None:
        with guarded(folder):
            study.set_user_attr(_SPACE_KEY, space.document())
    return study


def _study(
    journal: Path, space: Space, sampler: optuna.samplers.BaseSampler, storage: str | None, latencies: int
) -> optuna.Study:
    return optuna.create_study(
        study_name=f"autocompress-{space.fingerprint}",
        storage=storage or JournalStorage(Journal(journal)),
        sampler=sampler,
        directions=(StudyDirection.MAXIMIZE, *[StudyDirection.MINIMIZE] * latencies),
        load_if_exists=True,
    )


def set_aside(path: Path) -> None:
    """Renames a damaged file, so that nothing is lost."""
    path.replace(path.with_name(f"{path.name}.damaged"))


@contextmanager
def guarded(folder: RunFolder) -> Iterator[None]:
    """Turns a failing disk under Optuna's journal into a StorageError."""
    try:
        yield
    except OSError as error:
        raise storage_error(folder.study_journal, error) from error
