"""A finished or running search as its user sees it: candidates, front, the best at a limit, export."""

import shutil
from collections.abc import Mapping, Sequence
from dataclasses import dataclass, replace
from hashlib import sha256
from pathlib import Path
from typing import TYPE_CHECKING

from autocompress.evidence.card import card_path, read_card, write_card
from autocompress.search.candidate import Candidate, Rung, Status
from autocompress.search.config import Settings, from_document
from autocompress.search.engine import Baseline, Lesson
from autocompress.search.ledger import best_front, columns, is_scored, row
from autocompress.search.records import RunFolder, storage_error
from autocompress.search.rungs import slowest_first
from autocompress.search.space import Slowing
from autocompress.vocabulary.errors import BudgetError, RunError, nearest
from autocompress.vocabulary.workload import Artifact

if TYPE_CHECKING:
    import pandas as pd


ROUNDING = 1e-9
"""Slack on scores: 0.92 - 0.915 is not 0.005 in floating point."""


@dataclass(frozen=True)
class Study:
    """One run. `candidates` are in the order in which they came; `stage_seconds` says where the time went.

    `complete` is False while the search was stopped before its last stage ended: then what was measured so far counts.
    `lessons` are how far the profiles were off on each lot of models that was timed, before they learnt from it.
    `slowing` are the options that were left out because the device would not get faster.
    """

    path: Path
    settings: Settings
    candidates: Sequence[Candidate]
    baseline: Baseline | None
    stage_seconds: Mapping[str, float]
    complete: bool
    lessons: Sequence[Lesson] = ()
    slowing: Sequence[Slowing] = ()

    @property
    def front(self) -> tuple[Candidate, ...]:
        """Candidates that none beats in both validation score and latency, slowest first. Measured ones if there are
        any; else the furthest that any got."""
        return tuple(best_front(self.candidates))

    @property
    def verified(self) -> tuple[Candidate, ...]:
        """Every model that was exported, measured and held against its promises, slowest first; on the front or not."""
        measured = (c for c in self.candidates if c.rung is Rung.MEASURED and c.status is Status.COMPLETE)
        return tuple(slowest_first(measured))

    def __getitem__(self, key: str) -> Candidate:
        """The candidate whose id is, or begins with, `key`. Raises RunError if there is none, or several."""
        found = [c for c in self.candidates if c.id.startswith(key)]
        if len(found) != 1:
            told = nearest(key, [c.id for c in self.front]) if not found else f"{len(found)} begin so; give more digits"
            raise RunError(f"no single candidate {key!r} in {self.path}: {told}")
        return found[0]

    def to_frame(self) -> "pd.DataFrame":
        """All candidates, one row each, columns as in candidates.csv; index is the id."""
        import pandas as pd

        rows = [row(candidate, self.baseline) for candidate in self.candidates]
        return pd.DataFrame(rows, columns=list(columns(self.baseline))).set_index("id")

    def drop(self, candidate: Candidate) -> float:
        """Validation score lost against the original, in the score's unit; negative for a gain."""
        if self.baseline is None or candidate.score is None:
            raise RunError(
                f"the drop of {candidate.id} is unknown: it was not scored, or {self.path} has no baseline yet"
            )
        return self.baseline.score.value - candidate.score.value

    def speedup(self, candidate: Candidate) -> float:
        """Time of the original as plainly exported over the candidate's, measured if it was."""
        if self.baseline is None:
            raise RunError(f"{self.path} has no baseline yet; run the search again, it resumes")
        return self.baseline.latency.seconds / candidate.best_latency.seconds

    def best(self, budget_ms: float | None = None, max_drop: float | None = None) -> Candidate:
        """The best verified model: of highest score within a budget, or the fastest that loses no more than `max_drop`.

        Only measured latencies count, never predicted ones. With both limits it is the highest score within both; with
        none, the limits of the search, and without these the knee of the front. Raises BudgetError, naming the nearest,
        if no model fits.
        """
        if budget_ms is None and max_drop is None:
            budget_ms, max_drop = self._own_budget_ms(), self.settings.max_drop
        verified = self._verified()
        if budget_ms is None and max_drop is None:
            return knee(verified)
        fast = [c for c in verified if budget_ms is None or measured_ms(c) <= budget_ms]
        if not fast and budget_ms is not None:
            raise BudgetError(_too_slow(budget_ms, verified))
        kept = [c for c in fast if max_drop is None or self.drop(c) <= max_drop + ROUNDING]
        if not kept and max_drop is not None:
            nearest_one = min(fast, key=self.drop)
            raise BudgetError(
                f"no verified model loses at most {max_drop:g}"
                + (f" within {budget_ms:g} ms" if budget_ms is not None else "")
                + f"; the nearest is {nearest_one.id}, which loses {self.drop(nearest_one):.4g} at "
                f"{measured_ms(nearest_one):.4g} ms: allow that, or search for longer"
            )
        return min(kept, key=(lambda c: c.cost) if budget_ms is not None else (lambda c: (measured_ms(c), *c.cost)))

    def knee(self) -> Candidate:
        """The front's point of best balance."""
        return knee(self._verified())

    def export(self, candidate: Candidate, path: Path | str) -> Artifact:
        """Copies a candidate's model and card to `path`. Raises RunError if it was never exported, or changed since."""
        target = Path(path)
        if candidate.artifact is None:
            raise RunError(
                f"candidate {candidate.id} got no further than {candidate.rung.value}, so there is no model of it; "
                f"{nearest(candidate.id, [c.id for c in self.front if c.artifact])}"
            )
        source = self.path / candidate.artifact
        if not source.is_file():
            raise RunError(f"{source} is missing; run the search again, it resumes")
        try:
            target.parent.mkdir(parents=True, exist_ok=True)
            shutil.copyfile(source, target)
            return self._card_of(source, target, candidate)
        except OSError as error:
            raise storage_error(target, error) from error

    def _card_of(self, source: Path, target: Path, candidate: Candidate) -> Artifact:
        content = target.read_bytes()
        digest = sha256(content).hexdigest()
        if not card_path(source).is_file():
            return Artifact(target, digest, candidate.id, 0, len(content))
        card = read_card(source)
        if card.artifact.sha256 != digest:
            raise RunError(f"{source} is not the file that was verified; run the search again, it resumes")
        artifact = replace(card.artifact, path=target)
        write_card(replace(card, artifact=artifact))
        return artifact

    def _own_budget_ms(self) -> float | None:
        if self.settings.speedup is not None and self.baseline is not None:
            return self.baseline.latency.seconds * 1e3 / self.settings.speedup
        return self.settings.budget_ms

    def _verified(self) -> list[Candidate]:
        found = [c for c in self.candidates if is_scored(c) and c.rung is Rung.MEASURED and c.measured is not None]
        if not found:
            raise BudgetError(f"no model in {self.path} was measured yet; run the search again, it resumes")
        return found


def load(run: Path | str) -> Study:
    """The study in a run's folder, finished or not. Raises RunError if there is none, or it is damaged."""
    folder = RunFolder(Path(run))
    document = folder.read_run()
    state = folder.read_state()
    baseline = state.get("baseline")
    return Study(
        path=folder.path,
        settings=from_document(document.get("settings", {}), f"{folder.path}/run.toml"),
        candidates=tuple(folder.candidates().values()),
        baseline=Baseline.from_document(baseline) if baseline else None,
        stage_seconds=state.get("stage_seconds", {}),
        complete=bool(state.get("complete", False)),
        lessons=tuple(Lesson(**lesson) for lesson in state.get("lessons", [])),
        slowing=tuple(Slowing(**option) for option in state.get("slowing", [])),
    )


def knee(candidates: Sequence[Candidate]) -> Candidate:
    """The front's point farthest above the line between its ends, both axes scaled to [0, 1] (Das 1999)."""
    front = best_front(candidates)
    slow, fast = front[0].cost, front[-1].cost
    spans = [abs(a - b) or 1.0 for a, b in zip(slow, fast, strict=True)]

    def below(candidate: Candidate) -> float:
        return -sum((x - min(a, b)) / s for x, a, b, s in zip(candidate.cost, slow, fast, spans, strict=True))

    return max(front, key=below)


def measured_ms(candidate: Candidate) -> float:
    assert candidate.measured is not None, "only measured candidates are compared with a budget"
    return candidate.measured.seconds * 1e3


def _too_slow(budget_ms: float, verified: Sequence[Candidate]) -> str:
    fastest = min(verified, key=measured_ms)
    return (
        f"no verified model takes at most {budget_ms:g} ms; the nearest is {fastest.id} at "
        f"{measured_ms(fastest):.4g} ms: allow that, or search again with this budget"
    )
