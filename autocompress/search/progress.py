"""What a running search tells whoever watches it."""

from collections.abc import Sequence
from dataclasses import dataclass
from typing import Protocol

from autocompress.search.candidate import Candidate
from autocompress.search.engine import Baseline


@dataclass(frozen=True, slots=True)
class Snapshot:
    """The state of a search at one moment.

    `stage` is setup, warm start, trials, validation, fine-tuning, measuring or done; `detail` what is being worked on.
    `trials` counts finished ones, `trials_limit` is None where time ends the search, `time_left_s` None where nothing
    but trials does. `best` is the best at the budget so far (predicted until it is measured), `front` is slowest first.
    """

    stage: str
    detail: str
    trials: int
    trials_limit: int | None
    rejected: int
    failed: int
    elapsed_s: float
    time_left_s: float | None
    baseline: Baseline | None
    front: Sequence[Candidate]
    best: Candidate | None


class Progress(Protocol):
    """A watcher: called often, from the searching thread, so it must return at once."""

    def __call__(self, snapshot: Snapshot) -> None: ...


def silent(snapshot: Snapshot) -> None:
    """Watches nothing."""
