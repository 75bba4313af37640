"""One evaluated plan and all that is known of it; a row of candidates.csv."""

from dataclasses import dataclass
from enum import StrEnum

from autocompress.plan import Plan
from autocompress.task import Score
from autocompress.workload import Latency


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
    """A plan with the best knowledge of it so far.

    `score` is on validation data (the subset's up to rung REPAIRED), `test_score` on the test split, looked at once for
    front candidates. `latency` is the price (predicted); `measured` the measured one, if any. `outside_interval` marks
    a measured latency that lies outside the predicted interval. `artifact` is relative to the run's folder.
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

    @property
    def best_latency(self) -> Latency:
        """Measured if it was, else predicted."""
        return self.measured or self.latency

    @property
    def outside_interval(self) -> bool:
        return self.measured is not None and not self.latency.low <= self.measured.seconds <= self.latency.high
