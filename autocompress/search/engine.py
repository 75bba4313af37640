"""The seam between the search and the work it orders: what an evaluator can do, and what it answers."""

from collections.abc import Callable, Mapping, Sequence
from dataclasses import asdict, dataclass, field
from pathlib import Path
from typing import Any, Protocol

from autocompress.compression.plan import Plan
from autocompress.search.candidate import Candidate, decode_latencies, decode_latency, decode_score
from autocompress.search.space import Space
from autocompress.task.task import Score
from autocompress.vocabulary.workload import Artifact, Kernels, Latency


@dataclass(frozen=True, slots=True)
class Price:
    """What is known of a plan from shapes alone. `latency` is what the search minimises, made of those on each profile
    in `devices`; where `each` of these is an objective of its own, it is the first's."""

    latency: Latency
    size_bytes: int
    params: int
    macs: int
    devices: Mapping[str, Latency] = field(default_factory=dict)
    each: bool = False


@dataclass(frozen=True, slots=True)
class Timing:
    """A file's time as the search minimises it, and on each profile; there, what could not be timed is predicted."""

    latency: Latency
    devices: Mapping[str, Latency] = field(default_factory=dict)


@dataclass(frozen=True, slots=True)
class Timings:
    """Files by key: `found` was timed, `refused` was not, with the reason."""

    found: Mapping[str, Timing]
    refused: Mapping[str, str] = field(default_factory=dict)


@dataclass(frozen=True, slots=True)
class Lesson:
    """How far a profile was off on `models` that were timed, before it learnt from them: the mean relative error, and
    the share of them inside the stated interval."""

    profile: str
    models: int
    error: float
    covered: float


@dataclass(frozen=True, slots=True)
class Baseline:
    """The original as plainly exported. `score` is on all of validation, `subset_score` on the trials' subset.

    `latency` is measured. `rewritten` is the measured latency after the exact rewrites alone: the share of every
    speed-up that is not compression's. `devices` and `rewritten_on` are the same two on each profile. `doubts` tell of
    profiles that did not predict them.
    """

    score: Score
    subset_score: Score
    latency: Latency
    size_bytes: int
    params: int
    macs: int
    test_score: Score | None = None
    rewritten: Latency | None = None
    devices: Mapping[str, Latency] = field(default_factory=dict)
    rewritten_on: Mapping[str, Latency] = field(default_factory=dict)
    doubts: tuple[str, ...] = ()

    def to_document(self) -> dict[str, Any]:
        return asdict(self)

    @staticmethod
    def from_document(document: Mapping[str, Any]) -> "Baseline":
        scores = {name: decode_score(document[name]) for name in ("score", "subset_score", "test_score")}
        times = {name: decode_latency(document[name]) for name in ("latency", "rewritten")}
        by_device = {name: decode_latencies(document.get(name, {})) for name in ("devices", "rewritten_on")}
        doubts = tuple(document.get("doubts", ()))
        return Baseline(**{**document, **scores, **times, **by_device, "doubts": doubts})


@dataclass(frozen=True, slots=True)
class Start:
    """Weights to begin training from: those of a plan that was fine-tuned before."""

    plan: Plan
    weights: Path


@dataclass(frozen=True, slots=True)
class Trained:
    """`start` is the position of the weights that were begun from, None for the repaired original's."""

    start: int | None
    seconds: float


@dataclass(frozen=True, slots=True)
class Setup:
    """What an evaluator is opened with: the run's folder, how to tell the watcher (stage, detail), and how many seconds
    are left for setting up (None: no limit)."""

    folder: Path
    tell: Callable[[str, str], None]
    seconds: Callable[[], float | None]


class Evaluator(Protocol):
    """Everything that costs more than arithmetic. Expected failures are raised as errors.Failure.

    `trainable` is False where the task has no training data. `environment` holds versions and hardware.
    """

    @property
    def fingerprint(self) -> str: ...

    @property
    def trainable(self) -> bool: ...

    @property
    def environment(self) -> Mapping[str, str]: ...

    def space(self) -> Space:
        """Every decision that can be made about the model."""
        ...

    def kernels(self, plan: Plan) -> Kernels:
        """What the plan's model executes."""
        ...

    def price(self, plan: Plan) -> Price:
        """From shapes alone; at most a millisecond."""
        ...

    def baseline(self) -> Baseline:
        """Scores and times the original as plainly exported."""
        ...

    def adopt(self, baseline: Baseline) -> None:
        """From now on prices and times are relative to this baseline's, which may be of an earlier process."""
        ...

    def share(self, workers: int) -> None:
        """From now on as many processes work at once, this one among them."""
        ...

    def divergence(self, plan: Plan) -> float:
        """How far the repaired model's outputs are from the original's on a few samples; 0 = not at all."""
        ...

    def export(self, plan: Plan, weights: Path | None, path: Path) -> Artifact:
        """Builds the plan, with these trained weights if given, and writes it to `path`."""
        ...

    def score(self, path: Path, samples: int | None, profile: str | None = None) -> Score:
        """The exported file's score on the first `samples` of validation, on all of it if None; as run by the device of
        this profile, by default the first's."""
        ...

    def test_score(self, path: Path) -> Score | None:
        """The exported file's score on the test split, None where there is none."""
        ...

    def fine_tune(self, plan: Plan, starts: Sequence[Start], seconds: float, weights: Path) -> Trained:
        """Trains for `seconds` and writes the weights; begins from whichever start is closest to the original, or, if
        none of them is the plan's own, perhaps from the repaired original."""
        ...

    def untaught(self, plan: Plan) -> bool:
        """Whether the plan's model owes nothing to the original before it is trained: a student of the task's own."""
        ...

    def measure(
        self, paths: Mapping[str, Path], seconds: float, predicted: Mapping[str, Mapping[str, Latency]]
    ) -> Timings:
        """Times the files in turn with the original, within about `seconds`: on the first profile's device, and on
        those of the others as far as they are here; for the rest the `predicted` latencies stand."""
        ...

    def learn(self, timed: Sequence[Candidate]) -> Sequence[Lesson]:
        """Corrects the profiles by candidates that were timed for the first time; from now on prices are better."""
        ...

    def certify(self, candidate: Candidate, artifact: Artifact, baseline: Baseline) -> None:
        """Holds the file against the torch model and writes its card. Raises VerificationError."""
        ...
