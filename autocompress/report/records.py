"""A run's files, read back and checked for the report."""

import tomllib
from collections.abc import Mapping
from dataclasses import dataclass
from pathlib import Path
from typing import Any

import pandas as pd

from autocompress.card import Card, card_path
from autocompress.errors import ConfigError, RunError
from autocompress.plan import Plan

COLUMNS = (
    "id", "status", "score", "score_stderr", "test_score", "latency_ms", "latency_low_ms", "latency_high_ms",
    "measured_ms", "baseline_ms", "speedup", "size_bytes", "params", "macs", "artifact",
)  # fmt: skip
"""What front.csv and candidates.csv hold at least."""


@dataclass(frozen=True, slots=True)
class Records:
    """`front` is in order of latency. `plans` and `cards` are by candidate id; a card is there if the model is."""

    run: Path
    settings: Mapping[str, Any]
    front: pd.DataFrame
    candidates: pd.DataFrame
    plans: Mapping[str, Plan]
    cards: Mapping[str, Card]

    @property
    def originals(self) -> pd.DataFrame:
        """Candidates whose plan decides nothing."""
        untouched = {key for key, plan in self.plans.items() if not plan.steps}
        return self.candidates[self.candidates["id"].isin(untouched)]


def read_records(run: Path) -> Records:
    """Raises RunError, saying which file is at fault and what to do."""
    if not run.is_dir():
        raise RunError(f"no run folder {str(run)!r}; `autocompress search TASK --out {run}` makes one")
    candidates = _table(run, "candidates.csv")
    front = _table(run, "front.csv").sort_values("latency_ms", kind="stable")
    plans = {str(key): _plan(run, str(key)) for key in {*front["id"], *_built(candidates)["id"]}}
    cards = {key: card for key in front["id"] if (card := _card(run, str(key))) is not None}
    return Records(run, _settings(run), front, candidates, plans, cards)


def _built(candidates: pd.DataFrame) -> pd.DataFrame:
    return candidates[candidates["status"] == "complete"]


def _settings(run: Path) -> Mapping[str, Any]:
    path = run / "run.toml"
    try:
        return tomllib.loads(path.read_text(encoding="utf-8"))
    except FileNotFoundError as error:
        raise RunError(f"{run} has no run.toml, so it is not a run's folder; name the --out of a search") from error
    except (tomllib.TOMLDecodeError, UnicodeDecodeError) as error:
        raise RunError(f"{path} is damaged ({error}); restore it or search again into a new folder") from error


def _table(run: Path, name: str) -> pd.DataFrame:
    path = run / name
    try:
        table = pd.read_csv(path, dtype={"id": str, "artifact": str, "status": str})
    except FileNotFoundError as error:
        raise RunError(f"{run} has no {name}; run the search again with --out {run}, it resumes") from error
    except (pd.errors.ParserError, pd.errors.EmptyDataError, UnicodeDecodeError, ValueError) as error:
        raise RunError(
            f"{path} is damaged ({_line(error)}); run the search again with --out {run}, it resumes"
        ) from error
    missing = [column for column in COLUMNS if column not in table.columns]
    if missing:
        raise RunError(f"{path} lacks the columns {', '.join(missing)}; run the search again with --out {run}")
    return table


def _plan(run: Path, key: str) -> Plan:
    path = run / "plans" / f"{Path(key).name}.json"
    try:
        return Plan.from_json(path.read_text(encoding="utf-8"))
    except OSError as error:
        raise RunError(f"the plan {path} is missing; run the search again with --out {run}, it resumes") from error
    except ConfigError as error:
        raise RunError(f"the plan {path} is damaged: {error}") from error


def _card(run: Path, key: str) -> Card | None:
    path = card_path(run / "models" / f"{Path(key).name}.onnx")
    return Card.from_json(path.read_text(encoding="utf-8"), path.parent) if path.is_file() else None


def _line(error: Exception) -> str:
    return " ".join(str(error).split())[:200]
