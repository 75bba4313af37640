"""A small run's folder, written by hand as the contract says."""

from collections.abc import Callable
from pathlib import Path

import pytest

from autocompress.methods.configs import LowRank, Prune, Quantize
from autocompress.plan import Plan, Step
from autocompress.report.records import COLUMNS
from autocompress.workload import DType

PLANS = {
    "aaa": Plan("f00d"),
    "bbb": Plan("f00d", (Step("conv1", Quantize(DType.INT8)), Step("g1", Prune(0)), Step("g2", Prune(12)))),
    "ccc": Plan("f00d", (Step("fc", LowRank("svd", 4)), Step("fc", Quantize(DType.INT8)))),
}
ROWS = {
    "aaa": "aaa,complete,0.95,0.01,0.94,1.0,0.97,1.03,1.0,1.0,1.0,40000,10000,500000,models/aaa.onnx,0.99,1.01",
    "bbb": "bbb,complete,0.94,0.01,0.93,0.5,0.48,0.52,0.60,1.0,1.67,12000,9000,250000,models/bbb.onnx,0.59,0.61",
    "ccc": "ccc,complete,0.90,0.01,,0.4,0.38,0.42,,1.0,2.5,11000,8000,200000,,,",
    "ddd": "ddd,rejected,,,,2.0,1.9,2.1,,1.0,,,,,,,",
}


@pytest.fixture
def make_run(tmp_path: Path) -> Callable[..., Path]:
    def make(front: str = "ccc bbb aaa", candidates: str = "aaa bbb ccc ddd") -> Path:
        run = tmp_path / "run"
        (run / "plans").mkdir(parents=True)
        (run / "models").mkdir()
        (run / "run.toml").write_text('fingerprint = "f00d"\nseed = 0\n[versions]\ntorch = "2.13.0"\n')
        head = ",".join((*COLUMNS, "measured_low_ms", "measured_high_ms"))
        for name, ids in (("front.csv", front), ("candidates.csv", candidates)):
            (run / name).write_text("\n".join([head, *(ROWS[key] for key in ids.split())]) + "\n")
        for key, plan in PLANS.items():
            (run / "plans" / f"{key}.json").write_text(plan.to_json())
        return run

    return make
