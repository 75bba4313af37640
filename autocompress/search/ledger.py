"""All candidates of a run: in memory, in the journal, and as tables."""

from collections.abc import Sequence
from typing import Any

from autocompress.search.candidate import Candidate, Rung, Status
from autocompress.search.engine import Baseline
from autocompress.search.records import RunFolder
from autocompress.search.rungs import pareto_front

COLUMNS = (
    "id", "status", "score", "score_stderr", "test_score", "latency_ms", "latency_low_ms", "latency_high_ms",
    "measured_ms", "baseline_ms", "speedup", "size_bytes", "params", "macs", "artifact", "rung", "origin",
    "outside_interval", "measured_low_ms", "measured_high_ms", "score_samples", "test_stderr", "trained_s", "seconds",
    "reason",
)  # fmt: skip
"""Columns of candidates.csv and front.csv. `latency_*` are predicted; `speedup` is measured where that was done. A run
with several profiles adds `fastest_on`, and for each `ms on NAME`, `how known on NAME` and `speedup on NAME`."""

ON_ALL_OF_VALIDATION = (Rung.VALIDATED, Rung.FINE_TUNED, Rung.MEASURED)


class Ledger:
    """Candidates by id. What is recorded is on the disk when `record` returns."""

    def __init__(self, folder: RunFolder) -> None:
        self._folder = folder
        self._read = 0
        self.candidates: dict[str, Candidate] = {}
        self.refresh()

    def __contains__(self, key: str) -> bool:
        return key in self.candidates

    def __getitem__(self, key: str) -> Candidate:
        return self.candidates[key]

    def record(self, candidate: Candidate) -> None:
        self._folder.append(candidate)
        self.refresh()

    def refresh(self) -> None:
        """Reads what was recorded since, by this process or another one."""
        states, self._read = self._folder.states(self._read)
        self.candidates |= {candidate.id: candidate for candidate in states}

    def at(self, *rungs: Rung) -> list[Candidate]:
        """Complete candidates with a score at these rungs."""
        return [c for c in self.candidates.values() if c.rung in rungs and is_scored(c)]

    @property
    def built(self) -> int:
        return sum(c.status is not Status.REJECTED for c in self.candidates.values())

    def count(self, status: Status) -> int:
        return sum(c.status is status for c in self.candidates.values())

    def write_tables(self, baseline: Baseline | None) -> None:
        """candidates.csv and front.csv as of now."""
        names = columns(baseline)
        rows = [row(candidate, baseline) for candidate in self.candidates.values()]
        self._folder.write_table("candidates.csv", names, rows)
        self._folder.write_table("front.csv", names, [row(c, baseline) for c in best_front(self.candidates.values())])


def best_front(candidates: Sequence[Candidate] | Any) -> list[Candidate]:
    """The front of those that got furthest: measured ones if there are any, else scored on all of validation, else any
    that were scored. Slowest first."""
    scored = [c for c in candidates if is_scored(c)]
    for rungs in ((Rung.MEASURED,), ON_ALL_OF_VALIDATION, tuple(Rung)):
        found = [c for c in scored if c.rung in rungs]
        if found:
            return pareto_front(found)
    return []


def is_scored(candidate: Candidate) -> bool:
    return candidate.status is Status.COMPLETE and candidate.score is not None


def columns(baseline: Baseline | None) -> tuple[str, ...]:
    """Those of one profile, and those of each where the search has several."""
    return *COLUMNS, *_on_each(baseline)


def row(candidate: Candidate, baseline: Baseline | None) -> dict[str, Any]:
    """A candidate as one line of a table; what is unknown is None, which CSV leaves empty."""
    return _row(candidate, baseline) | _on_each(baseline, candidate)


def _on_each(baseline: Baseline | None, candidate: Candidate | None = None) -> dict[str, Any]:
    """A candidate's time on each of several profiles, measured if it was."""
    if baseline is None or len(baseline.devices) < 2:
        return {}
    cells: dict[str, Any] = {"fastest_on": candidate and candidate.fastest_on}
    for name, original in baseline.devices.items():
        latency = candidate.devices.get(name) if candidate else None
        cells[f"ms on {name}"] = latency and latency.seconds * 1e3
        cells[f"how known on {name}"] = latency and latency.origin
        cells[f"speedup on {name}"] = latency and original.seconds / latency.seconds
    return cells


def _row(candidate: Candidate, baseline: Baseline | None) -> dict[str, Any]:
    score, test, measured, latency = candidate.score, candidate.test_score, candidate.measured, candidate.latency
    return {
        "id": candidate.id,
        "status": candidate.status.value,
        "score": score and score.value,
        "score_stderr": score and score.stderr,
        "test_score": test and test.value,
        "latency_ms": latency.seconds * 1e3,
        "latency_low_ms": latency.low * 1e3,
        "latency_high_ms": latency.high * 1e3,
        "measured_ms": measured and measured.seconds * 1e3,
        "baseline_ms": baseline and baseline.latency.seconds * 1e3,
        "speedup": baseline and baseline.latency.seconds / candidate.best_latency.seconds,
        "size_bytes": candidate.size_bytes,
        "params": candidate.params,
        "macs": candidate.macs,
        "artifact": candidate.artifact,
        "rung": candidate.rung.value,
        "origin": candidate.origin,
        "outside_interval": candidate.outside_interval,
        "measured_low_ms": measured and measured.low * 1e3,
        "measured_high_ms": measured and measured.high * 1e3,
        "score_samples": score and score.samples,
        "test_stderr": test and test.stderr,
        "trained_s": round(candidate.trained_s, 1),
        "seconds": round(candidate.seconds, 3),
        "reason": candidate.reason,
    }
