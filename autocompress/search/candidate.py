"""One evaluated plan and all that is known of it; a row of candidates.csv."""

import json
from collections.abc import Mapping
from dataclasses import asdict, dataclass, field
from enum import StrEnum
from typing import Any

from autocompress.compression.plan import Plan
from autocompress.task.task import Score
from autocompress.vocabulary.errors import ConfigError, RunError
from autocompress.vocabulary.workload import Latency


class Rung(StrEnum):
    """How far a candidate was taken, cheapest first."""

    PRICED = "priced"
    REPAIRED = "repaired"
    VALIDATED = "validated"
    FINE_TUNED = "fine_tuned"
    MEASURED = "measured"


class Status(StrEnum):
    """`REJECTED` plans broke a limit by their price and were never built; `FAILED` ones carry the reason."""

    COMPLETE = "complete"
    REJECTED = "rejected"
    FAILED = "failed"


@dataclass(frozen=True, slots=True)
class Candidate:
    """A plan with the best knowledge of it so far; `id` is the plan's key.

    `score` is on validation data (the subset's up to rung REPAIRED), `test_score` on the test split, looked at once for
    front candidates. `latency` is the price (predicted); `measured` the measured one, if any. `outside_interval` marks
    a measured latency that lies outside the predicted interval. `artifact` and `weights` are relative to the run's
    folder; `weights` are there once it was fine-tuned, for `trained_s` seconds in all. `origin` says what proposed it,
    `seconds` what it took to build and score it. `devices` is the best known latency on each profile of the search;
    where `each` of them is an objective, `latency` and `measured` are the first's.
    """

    id: str
    plan: Plan
    rung: Rung
    status: Status
    latency: Latency
    score: Score | None = None
    test_score: Score | None = None
    measured: Latency | None = None
    size_bytes: int | None = None
    params: int | None = None
    macs: int | None = None
    artifact: str | None = None
    reason: str = ""
    seconds: float = 0.0
    origin: str = ""
    weights: str | None = None
    trained_s: float = 0.0
    devices: Mapping[str, Latency] = field(default_factory=dict)
    each: bool = False

    @property
    def best_latency(self) -> Latency:
        """Measured if it was, else predicted."""
        return self.measured or self.latency

    @property
    def outside_interval(self) -> bool:
        return self.measured is not None and not self.latency.low <= self.measured.seconds <= self.latency.high

    @property
    def fastest_on(self) -> str | None:
        """The profile on which it takes the least time; None where the search knew no profiles by name."""
        return min(self.devices, key=lambda name: self.devices[name].seconds, default=None)

    @property
    def minimised_s(self) -> tuple[float, ...]:
        """Best known seconds that the search minimises: one number, or one per profile."""
        return tuple(d.seconds for d in self.devices.values()) if self.each else (self.best_latency.seconds,)

    @property
    def cost(self) -> tuple[float, ...]:
        """(-score, best latency, ...): what dominance compares. Only for candidates with a score."""
        assert self.score is not None, "only scored candidates are compared"
        return -self.score.value, *self.minimised_s

    def to_json(self) -> str:
        """One line."""
        return json.dumps({**asdict(self), "plan": json.loads(self.plan.to_json())}, separators=(",", ":"))

    @staticmethod
    def from_json(text: str) -> "Candidate":
        """Raises RunError for what `to_json` would not write."""
        try:
            return _decode(json.loads(text))
        except (ConfigError, KeyError, TypeError, ValueError, AttributeError) as error:
            raise RunError(f"not a candidate: {error}; candidates are the lines of RUN/candidates.jsonl") from error


def decode_score(values: Mapping[str, Any] | None) -> Score | None:
    return Score(**values) if values else None


def decode_latency(values: Mapping[str, Any] | None) -> Latency | None:
    return Latency(**values) if values else None


def decode_latencies(values: Mapping[str, Any]) -> dict[str, Latency]:
    return {name: Latency(**latency) for name, latency in values.items()}


def _decode(values: dict[str, Any]) -> Candidate:
    return Candidate(
        **{
            **values,
            "plan": Plan.from_json(json.dumps(values["plan"])),
            "rung": Rung(values["rung"]),
            "status": Status(values["status"]),
            "latency": Latency(**values["latency"]),
            "score": decode_score(values["score"]),
            "test_score": decode_score(values["test_score"]),
            "measured": decode_latency(values["measured"]),
            "devices": decode_latencies(values.get("devices", {})),
        }
    )
