"""A small run's folder, written by hand."""

from collections.abc import Callable
from dataclasses import replace
from pathlib import Path

import pytest

from autocompress.compression.methods.lowrank import LowRank
from autocompress.compression.methods.method import Config
from autocompress.compression.methods.prune import Prune
from autocompress.compression.methods.quantize import Quantize
from autocompress.compression.plan import Plan, Step
from autocompress.search.candidate import Candidate, Rung, Status
from autocompress.search.config import Settings, to_document
from autocompress.search.engine import Baseline
from autocompress.search.records import RunFolder
from autocompress.task.task import Score
from autocompress.vocabulary.formats import INT8
from autocompress.vocabulary.workload import Latency


def _candidate(
    rung: Rung, score: float | None, predicted_ms: float, measured_ms: float | None, **decided: Config
) -> Candidate:
    plan = Plan("f00d", tuple(Step(target.rstrip("_"), config) for target, config in decided.items()))
    return Candidate(
        plan.key, plan, rung, Status.REJECTED if score is None else Status.COMPLETE, _ms(predicted_ms),
        score=None if score is None else Score(score, 0.01, 500), measured=_ms(measured_ms, "measured"),
        test_score=None if measured_ms is None else Score(score - 0.01, 0.01, 500),
        size_bytes=12000, params=9000, macs=250000,
        artifact=None if measured_ms is None else f"models/{plan.key}.onnx",
    )  # fmt: skip


def _ms(value: float | None, origin: str = "predicted") -> Latency | None:
    return None if value is None else Latency(value / 1e3, 0.95 * value / 1e3, 1.05 * value / 1e3, 1.0, origin)


CANDIDATES = {
    "original": _candidate(Rung.MEASURED, 0.95, 1.0, 1.0),
    "outside": _candidate(
        Rung.MEASURED, 0.94, 0.5, 0.6, conv1=Quantize(INT8), g1=Prune(0), g2=Prune(12)
    ),
    "low_rank": _candidate(Rung.MEASURED, 0.9, 0.4, 0.41, fc=LowRank("svd", 4), fc_=Quantize(INT8)),
    "scored": _candidate(Rung.VALIDATED, 0.93, 0.55, None, g2=Prune(8)),
    "rejected": _candidate(Rung.PRICED, None, 2.0, None, g2=Prune(4)),
}  # fmt: skip
BASELINE = Baseline(
    Score(0.95, 0.01, 500), Score(0.95, 0.02, 250), _ms(1.0, "measured"), 40000, 10000, 500000,
    Score(0.94, 0.01, 500), _ms(0.92, "measured"),
)  # fmt: skip


@pytest.fixture
def make_run(tmp_path: Path) -> Callable[..., Path]:
    def make(names: str = " ".join(CANDIDATES), tested: bool = True) -> Path:
        folder = RunFolder(tmp_path / "run")
        folder.path.mkdir()
        folder.write_run({"fingerprint": "f00d", "settings": to_document(Settings(seed=7))})
        folder.write_state(
            {"baseline": BASELINE.to_document(), "stage_seconds": {"setup": 3.0, "fine_tuning": 9.0}, "complete": True}
        )
        for name in names.split():
            candidate = CANDIDATES[name]
            folder.append(candidate if tested else replace(candidate, test_score=None))
        return folder.path

    return make
