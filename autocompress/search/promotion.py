"""What happens to the best of the trials: all of validation, fine-tuning, then timing and certification."""

from collections.abc import Callable, Iterable, Iterator, Mapping, Sequence
from contextlib import contextmanager
from dataclasses import asdict, dataclass, field, replace
from pathlib import Path
from typing import Any

from autocompress.search.candidate import Candidate, Rung, Status
from autocompress.search.clock import Clock
from autocompress.search.config import Settings
from autocompress.search.engine import Baseline, Evaluator, Start
from autocompress.search.ledger import Ledger, is_scored
from autocompress.search.objective import Objective
from autocompress.search.records import RunFolder
from autocompress.search.rungs import (
    Limits,
    by_rank,
    drop,
    hopeful,
    on_one_scale,
    pareto_front,
    slowest_first,
    to_fill,
    to_finish,
    to_train,
    worthwhile,
)
from autocompress.vocabulary.errors import Failure, StorageError
from autocompress.vocabulary.workload import Artifact

VALIDATED = 24
"""Candidates of the trials that are scored on all of validation, and timed."""

VALIDATION_SHARE = 0.2
"""Share of the trials' time that is kept for that."""

NEIGHBOURS = 1
"""Fine-tuned plans, the next slower ones, whose weights a plan may start from beside its own."""

MIN_TRANCHE_S = 0.5
"""Training for less changes nothing."""

LEAST_FINALISTS = 5
"""Models verified in the end, however little time is left."""

CHECKS_PER_FINALIST = 1.5
"""A finalist is built and scored on the test split; the scores on validation are known of most."""

EARLY_CHUNK = 6
"""Plans are timed by so many before fine-tuning; between chunks the predictor learns, and the choice is made anew."""

TIMING_SHARE = 0.4
"""Share of the last stage that goes into timing; the rest exports, scores and certifies."""


@dataclass(frozen=True, slots=True)
class Promotion:
    """The stages after the trials; each looks at what candidates have reached, so that a resumed run goes on."""

    evaluator: Evaluator
    ledger: Ledger
    folder: RunFolder
    settings: Settings
    limits: Limits
    baseline: Baseline
    clock: Clock
    tell: Callable[[str, str], None]
    lessons: list[dict[str, Any]] = field(default_factory=list)
    _check_s: list[float] = field(default_factory=list)
    _overhead_s: list[float] = field(default_factory=list)

    def validate(self, deadline: float) -> None:
        """Scores the trials' best on all of validation, while time lasts."""
        waiting = hopeful(self.ledger.at(Rung.REPAIRED), self.baseline, self._worst(), self.limits)
        for candidate in by_rank(waiting, VALIDATED):
            if self.clock.until(deadline) <= candidate.seconds:
                return
            self.tell("validation", f"plan {candidate.id} on all of validation")
            begun = self.clock.elapsed
            with self._failing(candidate), self._scratch(candidate) as path:
                self.evaluator.export(candidate.plan, None, path)
                score = self.evaluator.score(path, None)
                self.ledger.record(replace(candidate, rung=Rung.VALIDATED, score=score))
            self._check_s.append(self.clock.elapsed - begun)

    def time_early(self, deadline: float) -> None:
        """Times what fine-tuning will choose from, since a search exploits the errors of its predictor.

        Weights don't change how long a model takes, so the trained one takes as long.
        """
        if not self._trains:
            return
        while untimed := self._to_time():
            seconds = self.clock.until(deadline) - sum(c.seconds for c in untimed)
            if seconds <= 0:
                return
            chunk = untimed[:EARLY_CHUNK]
            self.tell("validation", f"timing {len(untimed)} plans")
            paths = {c.id: self.folder.scratch / f"{c.id}.onnx" for c in chunk}
            for candidate in chunk:
                self.evaluator.export(candidate.plan, None, paths[candidate.id])
            timed = self._timed(paths, seconds * len(chunk) / len(untimed))
            for path in paths.values():
                path.unlink(missing_ok=True)
            if not timed:
                return

    def _to_time(self) -> list[Candidate]:
        """What may be fine-tuned by the prices of now, and was not timed yet."""
        most = 2 * self.settings.fine_tuning.candidates
        eligible = to_train(self.ledger.at(*Rung), self.baseline, self._worst(), self.limits, most)
        known = sum(c.measured is not None for c in self.ledger.at(*Rung))
        return [c for c in eligible if c.measured is None and not c.reason][: max(0, most - known)]

    def fine_tune(self, deadline: float) -> None:
        """A first tranche for plans spread over latency, a long one for those within reach of what is asked, and a last
        one for plans between them, which begin from what these have learnt."""
        settings = self.settings.fine_tuning
        if not self._trains:
            return
        whole = self.clock.until(deadline) if self.clock.limited else settings.time_s
        first_s = min(whole, max(whole * settings.first_share, 2 * self._overhead()))
        first_ends, long_ends, last_ends = map(self.clock.after, (first_s, whole * (1 - settings.gap_share), whole))
        most = self._trainable_by(first_ends, settings.candidates)
        first = to_train(self.ledger.at(*Rung), self.baseline, self._worst(), self.limits, most)
        first = slowest_first(first + self._untaught(first))
        self._tranches(first, first_ends)
        trained = [c for c in self.ledger.at(Rung.FINE_TUNED, Rung.MEASURED) if c.trained_s > 0]
        most = self._trainable_by(long_ends, settings.finalists)
        long = to_finish(trained, self.baseline, self._worst(), self.limits, most)
        long = slowest_first(long + [c for c in self._untaught(long) if c.trained_s > 0])
        self._tranches(long, long_ends)
        most = self._trainable_by(last_ends, settings.finalists)
        between = to_fill(self.ledger.at(*Rung), self.baseline, self._worst(), self.limits, most)
        self._tranches(between, last_ends)

    def _overhead(self) -> float:
        """Seconds that building, exporting and scoring a trained plan takes beside its training."""
        trials = [c.seconds for c in self.ledger.at(*Rung)]
        return _mean(self._overhead_s, 4 * _mean(trials, 0.0))

    def _trainable_by(self, end: float, most: int) -> int:
        """How many plans can each learn for as long as what goes with it takes; at least one, at most `most`."""
        each_s = 2 * self._overhead()
        return min(most, max(1, int(self.clock.until(end) / each_s))) if each_s else most

    def _untaught(self, others: Sequence[Candidate]) -> list[Candidate]:
        """At most one student of the task's own, that of most arithmetic within the limits: before it has learnt, no
        score speaks for it, so it learns beside the others whatever its score."""
        students = [c for c in self.ledger.at(*Rung) if self.evaluator.untaught(c.plan) and self.limits.allow(c)]
        if not students or any(c in students for c in others):
            return []
        return [max(students, key=lambda c: (c.trained_s, c.macs, -c.best_latency.seconds))]

    def measure(self, deadline: float) -> None:
        """Exports the best, times them in one go, scores and certifies each; only the front sees the test split."""
        artifacts = self._exported(self._finalists(self._affordable(deadline)))
        if not artifacts:
            return
        self.tell("measuring", f"timing {len(artifacts)} models beside the original")
        paths = {key: artifact.path for key, artifact in artifacts.items()}
        timed = self._timed(paths, TIMING_SHARE * self.clock.until(deadline))
        self._certify_in_turn(artifacts, timed, deadline)

    def _timed(self, paths: Mapping[str, Path], seconds: float) -> list[str]:
        """Keys of the files that could be timed; what could not stays a candidate, with the reason.

        The profiles learn from them, and what was not timed is priced again.
        """
        fresh = [key for key in paths if self.ledger[key].measured is None]
        timings = self.evaluator.measure(paths, seconds, {key: self.ledger[key].devices for key in paths})
        for key, timing in timings.found.items():
            self.ledger.record(replace(self.ledger[key], measured=timing.latency, devices=timing.devices, reason=""))
        for key, reason in timings.refused.items():
            self.ledger.record(replace(self.ledger[key], reason=f"not measured: {reason}"))
        lessons = self.evaluator.learn([self.ledger[key] for key in fresh if key in timings.found])
        if lessons:
            self.lessons.extend(asdict(lesson) for lesson in lessons)
            self._price_again()
        return list(timings.found)

    def _price_again(self) -> None:
        for candidate in [c for c in self.ledger.at(*Rung) if c.measured is None]:
            price = self.evaluator.price(candidate.plan)
            self.ledger.record(replace(candidate, latency=price.latency, devices=price.devices))

    def _certify_in_turn(self, artifacts: Mapping[str, Artifact], timed: Iterable[str], deadline: float) -> None:
        """The front first, anew whenever one of it fails; then the others. At least a few, then while time lasts."""
        spent_s: list[float] = []
        while len(spent_s) < LEAST_FINALISTS or self.clock.until(deadline) >= _mean(spent_s, 0.0):
            front = [c for c in self._front(timed) if c.rung is not Rung.MEASURED]
            others = [c for key in timed if is_scored(c := self.ledger[key]) and c.rung is not Rung.MEASURED]
            if not others:
                return
            candidate = by_rank(front or others, 1)[0]
            begun = self.clock.elapsed
            self._certify(candidate, artifacts[candidate.id], on_test=bool(front))
            spent_s.append(self.clock.elapsed - begun)

    def _front(self, timed: Iterable[str]) -> list[Candidate]:
        """What would be the run's front if all that was timed kept its promise."""
        standing = self.ledger.at(Rung.MEASURED) + [self.ledger[key] for key in timed]
        scored = list({c.id: c for c in standing if is_scored(c)}.values())
        return pareto_front([c for c in scored if self.limits.allow(c)] or scored)

    @property
    def _trains(self) -> bool:
        return self.settings.fine_tuning.enabled and self.evaluator.trainable

    def _tranches(self, candidates: Sequence[Candidate], end: float) -> None:
        """One tranche each, slowest plan first, so that each can begin where its milder neighbour ended."""
        for place, candidate in enumerate(candidates):
            seconds = self.clock.until(end) / (len(candidates) - place) - self._overhead()
            if seconds < MIN_TRANCHE_S:
                return
            self.tell("fine-tuning", f"plan {candidate.id}, {place + 1} of {len(candidates)}, {seconds:.0f} s")
            begun = self.clock.elapsed
            spent = replace(candidate, trained_s=candidate.trained_s + seconds)
            with self._failing(spent, status=Status.COMPLETE), self._scratch(candidate) as path:
                self._train(candidate, seconds, path)
            self._overhead_s.append(max(0.0, self.clock.elapsed - begun - seconds))

    def _train(self, candidate: Candidate, seconds: float, scratch: Path) -> None:
        """Keeps the trained weights if they score better than what the candidate had."""
        assert candidate.score is not None, "only scored candidates are trained"
        weights = self.folder.weights / f"{candidate.id}.safetensors"
        fresh = self.folder.scratch / weights.name
        trained = self.evaluator.fine_tune(candidate.plan, self._starts(candidate), seconds, fresh)
        self.evaluator.export(candidate.plan, fresh, scratch)
        score = self.evaluator.score(scratch, None)
        after = replace(candidate, rung=Rung.FINE_TUNED, trained_s=candidate.trained_s + trained.seconds)
        if drop(replace(candidate, score=score), self.baseline) < drop(candidate, self.baseline):
            fresh.replace(weights)
            place = str(weights.relative_to(self.folder.path))
            after = replace(after, score=score, weights=place, test_score=None, artifact=None)
        elif candidate.rung is Rung.REPAIRED:
            after = replace(after, rung=Rung.REPAIRED)
        self.ledger.record(after)

    def _starts(self, candidate: Candidate) -> list[Start]:
        """The candidate's own weights, and those of the fine-tuned plans next slower than it."""
        trained = [c for c in self.ledger.at(Rung.FINE_TUNED, Rung.MEASURED) if c.weights is not None]
        slower = [c for c in trained if c.best_latency.seconds > candidate.best_latency.seconds]
        nearest = sorted(slower, key=lambda c: c.best_latency.seconds)[:NEIGHBOURS]
        own = [candidate] if candidate.weights is not None else []
        return [Start(c.plan, self.folder.path / str(c.weights)) for c in own + nearest]

    def _affordable(self, deadline: float) -> int:
        """Finalists that can be scored on both splits and certified before the deadline; at least a few are."""
        asked = self.settings.measuring.candidates
        each_s = CHECKS_PER_FINALIST * _mean(self._check_s, 0.0)
        if not each_s or not self.clock.limited:
            return asked
        return min(asked, max(LEAST_FINALISTS, int((1 - TIMING_SHARE) * self.clock.until(deadline) / each_s)))

    def _finalists(self, count: int) -> list[Candidate]:
        """The best by rank of those within the limits (of all if none is), first of those that lost little, last of
        those beyond hope, and these only to make up a few; and the original. Less those done already."""
        scored = on_one_scale(self.ledger.at(*Rung), self.baseline)
        within = [c for c in scored if self.limits.allow(c)]
        good = worthwhile(within, self.baseline, self._worst(), self.limits)
        fair = [c for c in hopeful(within, self.baseline, self._worst(), self.limits) if c not in good]
        poor = [c for c in within or scored if c not in good + fair]
        ordered = [*by_rank(good, count), *by_rank(fair, count), *by_rank(poor, LEAST_FINALISTS)]
        most = count if len(good + fair) >= LEAST_FINALISTS else LEAST_FINALISTS
        chosen = [c.id for c in ordered[:most]]
        chosen += [c.id for c in scored if not c.plan.steps and c.id not in chosen]
        return [c for key in chosen if (c := self.ledger[key]).rung is not Rung.MEASURED]

    def _exported(self, finalists: Sequence[Candidate]) -> dict[str, Artifact]:
        artifacts = {}
        for candidate in finalists:
            path = self.folder.models / f"{candidate.id}.onnx"
            weights = self.folder.path / candidate.weights if candidate.weights is not None else None
            with self._failing(candidate):
                artifacts[candidate.id] = self.evaluator.export(candidate.plan, weights, path)
        return artifacts

    def _certify(self, candidate: Candidate, artifact: Artifact, *, on_test: bool) -> None:
        """The file's own score, parity and card; a candidate that breaks its promise fails, and its file goes."""
        self.tell("measuring", f"verifying plan {candidate.id}")
        with self._failing(candidate, artifact.path):
            score = self.evaluator.score(artifact.path, None, self._runs_on(candidate))
            tested = candidate.test_score is not None or not on_test
            test = candidate.test_score if tested else self.evaluator.test_score(artifact.path)
            verified = replace(
                candidate, rung=Rung.MEASURED, score=score, test_score=test, size_bytes=artifact.size_bytes,
                artifact=str(artifact.path.relative_to(self.folder.path)),
            )  # fmt: skip
            self.evaluator.certify(verified, artifact, self.baseline)
            self.ledger.record(verified)

    def _runs_on(self, candidate: Candidate) -> str | None:
        """Of the runtimes of one machine, the one that the user will take."""
        return candidate.fastest_on if self.settings.objective is Objective.BEST else None

    def _worst(self) -> float:
        """Lowest score seen in any trial."""
        scores = [c.score.value for c in self.ledger.candidates.values() if is_scored(c) and c.score is not None]
        return min(scores, default=0.0)

    @contextmanager
    def _scratch(self, candidate: Candidate) -> Iterator[Path]:
        path = self.folder.scratch / f"{candidate.id}.onnx"
        try:
            yield path
        finally:
            path.unlink(missing_ok=True)

    @contextmanager
    def _failing(self, candidate: Candidate, *leftover: Path, status: Status = Status.FAILED) -> Iterator[None]:
        """An expected failure becomes the candidate's reason, and its files go; a full disk ends the search."""
        try:
            yield
        except StorageError:
            raise
        except Failure as error:
            for path in leftover:
                path.unlink(missing_ok=True)
            self.ledger.record(replace(candidate, status=status, reason=str(error)))


def _mean(values: Sequence[float], otherwise: float) -> float:
    return sum(values) / len(values) if values else otherwise
