"""A synthetic net for the search: score, latency and training are formulas, models are small JSON files."""

import json
import math
from collections.abc import Callable, Collection, Mapping, Sequence
from dataclasses import dataclass, field
from hashlib import sha256
from itertools import pairwise
from pathlib import Path

from autocompress.compression.methods.method import Void
from autocompress.compression.methods.prune import Prune
from autocompress.compression.methods.quantize import Quantize
from autocompress.compression.methods.student import Student
from autocompress.compression.plan import Plan, Step
from autocompress.search.candidate import Candidate
from autocompress.search.engine import Baseline, Lesson, Price, Start, Timing, Timings, Trained
from autocompress.search.space import Decision, Effect, Space
from autocompress.task.task import Score
from autocompress.vocabulary.errors import BuildError, VerificationError
from autocompress.vocabulary.formats import INT8
from autocompress.vocabulary.workload import Artifact, Kernels, Latency

CHANNELS = 16
WIDTHS = (12, 8, 4, 0)
ORIGINAL_SCORE = 0.92
VALIDATION = 5000


def fake_space(blocks: int = 4, fingerprint: str = "feed") -> Space:
    """A student, `blocks` residual branches of one group and one layer each, and a stem that only changes format."""
    student = Student(0.5)
    int8 = Quantize(INT8)
    decisions = [Decision("student:model", "model", Student, (None, student), (1.0, 0.5))]
    for b in range(blocks):
        options = (None, *(Prune(width) for width in WIDTHS))
        decisions.append(Decision(f"prune:b{b}", f"b{b}", Prune, options, (CHANNELS, *WIDTHS)))
    for layer in ("stem", *(f"b{b}" for b in range(blocks))):
        decisions.append(Decision(f"quantize:{layer}", layer, Quantize, (None, int8), ("fp32", "int8")))
    groups = [f"b{b}" for b in range(blocks)]
    return Space(
        fingerprint,
        tuple(decisions),
        channels=dict.fromkeys(groups, CHANNELS),
        effect=lambda step: _effect(step, groups),
    )


def _effect(step: Step, groups: Sequence[str]) -> Effect:
    if isinstance(step.config, Student):
        return Effect(dict.fromkeys(groups, CHANNELS // 2))
    if isinstance(step.config, Prune):
        return Effect({step.target: step.config.keep}, Void(frozenset({step.target} if step.config.keep == 0 else ())))
    return Effect()


@dataclass
class FakeEvaluator:
    """`log` holds (what, plan key) for everything that was asked of it. `slower` is how much longer a model really
    takes than predicted, by plan key; the device is lost while `lost` ones are timed; `broken` plans fail to build,
    `lying` ones fail verification, `raw` ones know nothing before they are trained."""

    blocks: int = 4
    fingerprint: str = "feed"
    trainable: bool = True
    slower: Mapping[str, float] = field(default_factory=dict)
    lost: Collection[str] = ()
    broken: Callable[[Plan], bool] = lambda plan: False
    lying: Callable[[Plan], bool] = lambda plan: False
    raw: Callable[[Plan], bool] = lambda plan: False
    before: Callable[[str, str], None] = lambda what, key: None
    environment: Mapping[str, str] = field(default_factory=lambda: {"runtime": "fake 1.0"})
    log: list[tuple[str, str]] = field(default_factory=list)

    def asked(self, what: str) -> list[str]:
        return [key for kind, key in self.log if kind == what]

    def space(self) -> Space:
        return fake_space(self.blocks, self.fingerprint)

    def kernels(self, plan: Plan) -> Kernels:
        return {}

    def price(self, plan: Plan) -> Price:
        seconds = self._seconds(plan)
        params = sum(self._widths(plan).values()) * 10 + 100
        return Price(Latency(seconds, 0.9 * seconds, 1.1 * seconds, 1.0), params * 4, params, params * 100)

    def baseline(self) -> Baseline:
        self._note("baseline", "original")
        latency = Latency(1e-3, 0.99e-3, 1.01e-3, 1.0, "measured")
        score = self._score(ORIGINAL_SCORE, VALIDATION)
        return Baseline(score, self._score(ORIGINAL_SCORE, 1000), latency, 4000, 1000, 100_000, rewritten=latency)

    def untaught(self, plan: Plan) -> bool:
        return self.raw(plan)

    def adopt(self, baseline: Baseline) -> None:
        self._note("adopt", "original")

    def share(self, workers: int) -> None:
        self._note("share", str(workers))

    def divergence(self, plan: Plan) -> float:
        self._note("divergence", plan.key)
        return self._error(plan)

    def export(self, plan: Plan, weights: Path | None, path: Path) -> Artifact:
        self._note("export", plan.key)
        if self.broken(plan):
            raise BuildError(f"plan {plan.key} can't be built")
        trained_s = json.loads(weights.read_text())["seconds"] if weights else 0.0
        error = (0.8 if self.raw(plan) else self._error(plan)) * (0.15 + 0.85 * math.exp(-trained_s / 20))
        content = json.dumps({"key": plan.key, "error": error, "seconds": self._seconds(plan)}).encode()
        path.write_bytes(content)
        return Artifact(path, sha256(content).hexdigest(), plan.key, 17, len(content))

    def score(self, path: Path, samples: int | None, profile: str | None = None) -> Score:
        found = json.loads(path.read_text())
        self._note("score" if samples else "full score", found["key"])
        return self._score(ORIGINAL_SCORE - found["error"], samples or VALIDATION)

    def test_score(self, path: Path) -> Score:
        found = json.loads(path.read_text())
        self._note("test", found["key"])
        return self._score(ORIGINAL_SCORE - found["error"], VALIDATION)

    def fine_tune(self, plan: Plan, starts: Sequence[Start], seconds: float, weights: Path) -> Trained:
        self._note("fine_tune", plan.key)
        before = [json.loads(start.weights.read_text())["seconds"] for start in starts]
        weights.write_text(json.dumps({"seconds": max(before, default=0.0) + seconds}))
        return Trained(before.index(max(before)) if before else None, seconds)

    def measure(
        self, paths: Mapping[str, Path], seconds: float, predicted: Mapping[str, Mapping[str, Latency]]
    ) -> Timings:
        self._note("measure", " ".join(paths))
        found = {}
        for key, path in paths.items():
            took = json.loads(path.read_text())["seconds"] * self.slower.get(key, 1.0)
            found[key] = Timing(Latency(took, 0.99 * took, 1.01 * took, 1.0, "measured"))
        return Timings(
            {key: timing for key, timing in found.items() if key not in self.lost}, dict.fromkeys(self.lost, "lost")
        )

    def learn(self, timed: Sequence[Candidate]) -> list[Lesson]:
        self._note("learn", " ".join(c.id for c in timed))
        return []

    def certify(self, candidate: Candidate, artifact: Artifact, baseline: Baseline) -> None:
        self._note("certify", candidate.id)
        if self.lying(candidate.plan):
            raise VerificationError(f"{candidate.id} differs from its torch model")
        artifact.path.with_suffix(".note").write_text("verified")

    def _note(self, what: str, key: str) -> None:
        self.before(what, key)
        self.log.append((what, key))

    def _score(self, value: float, samples: int) -> Score:
        value = min(1.0, max(0.0, value))
        return Score(value, math.sqrt(value * (1 - value) / samples), samples)

    def _widths(self, plan: Plan) -> dict[str, int]:
        student = next(iter(plan.configs(Student).values()), None)
        widths = {f"b{b}": int(CHANNELS * (student.width if student else 1)) for b in range(self.blocks)}
        return widths | {g: min(p.keep, widths[g]) for g, p in plan.configs(Prune).items()}

    def _seconds(self, plan: Plan) -> float:
        """A stem that is slower in int8, blocks that are three times faster in it but have a floor."""
        int8 = plan.configs(Quantize)
        seconds = 0.06e-3 if "stem" in int8 else 0.05e-3
        for group, width in self._widths(plan).items():
            share = width / CHANNELS
            whole = 0.9e-3 / self.blocks
            if width:
                seconds += whole * ((0.22 + 0.1 * share) if group in int8 else (0.1 + 0.9 * share))
        return seconds

    def _error(self, plan: Plan) -> float:
        """Each block matters in its own degree; what is lost in neighbours adds up more than singly."""
        int8 = plan.configs(Quantize)
        lost = [
            (1 - width / CHANNELS) ** 2 * (0.05 + 0.02 * int(group[1:])) for group, width in self._widths(plan).items()
        ]
        neighbours = sum(4 * a * b for a, b in pairwise(lost))
        return min(0.82, sum(lost) + neighbours + 0.0005 * len(int8))
