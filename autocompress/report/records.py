"""What a report is made of: a run's candidates as tables, its plans, cards and settings."""

from collections.abc import Mapping, Sequence
from dataclasses import dataclass
from pathlib import Path
from typing import Any

import pandas as pd

from autocompress.compression.plan import Plan
from autocompress.evidence.card import Card, card_path
from autocompress.report.compare import Comparison, read_comparison
from autocompress.search.candidate import Candidate
from autocompress.search.engine import Baseline, Lesson
from autocompress.search.records import RunFolder
from autocompress.search.space import Slowing
from autocompress.search.study import Study, load

_TEXT = ("id", "status", "artifact", "rung", "origin", "reason", "fastest_on")
"""Columns that are not numbers."""


@dataclass(frozen=True, slots=True)
class Records:
    """`front` and `candidates` have the columns of front.csv, the front in order of latency. `settings` is run.toml."""

    run: Path
    settings: Mapping[str, Any]
    front: pd.DataFrame
    candidates: pd.DataFrame
    plans: Mapping[str, Plan]
    cards: Mapping[str, Card]
    baseline: Baseline | None
    stage_seconds: Mapping[str, float]
    complete: bool
    comparison: Comparison | None = None
    lessons: Sequence[Lesson] = ()
    slowing: Sequence[Slowing] = ()


def read_records(run: Path) -> Records:
    """Raises RunError, saying which file is at fault and what to do, if the folder holds no whole run."""
    folder = RunFolder(run)
    settings = folder.read_run()
    study = load(run)
    candidates = _table(study)
    front = [candidate.id for candidate in reversed(study.front)]
    return Records(
        run,
        settings,
        candidates.set_index("id", drop=False).loc[front],
        candidates,
        {candidate.id: candidate.plan for candidate in study.candidates},
        {candidate.id: card for candidate in study.front if (card := _card(run, candidate)) is not None},
        study.baseline,
        study.stage_seconds,
        study.complete,
        read_comparison(run),
        study.lessons,
        study.slowing,
    )


def _table(study: Study) -> pd.DataFrame:
    frame = study.to_frame().reset_index()
    numbers = [column for column in frame.columns if column not in _TEXT and not column.startswith("how known on ")]
    return frame.assign(**{column: pd.to_numeric(frame[column]) for column in numbers})


def _card(run: Path, candidate: Candidate) -> Card | None:
    if candidate.artifact is None:
        return None
    path = card_path(run / "models" / Path(candidate.artifact).name)
    return Card.from_json(path.read_text(encoding="utf-8"), path.parent) if path.is_file() else None
