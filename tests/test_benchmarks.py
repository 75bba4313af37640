"""The benchmarks on published tables run as a user would run them, on tiny tables of the same form."""

import json
import os
import subprocess
import sys
from pathlib import Path

import numpy as np
import pandas as pd
import pytest

ROOT = Path(__file__).parents[1]
OPS = ("none", "skip_connect", "nor_conv_1x1", "nor_conv_3x3", "avg_pool_3x3")
COSTS = np.array([0.1, 0.2, 1.0, 2.0, 0.7])


def run(script: str, *arguments: object) -> subprocess.CompletedProcess[str]:
    command = [sys.executable, str(ROOT / "benchmarks" / script), *map(str, arguments)]
    environment = {**os.environ, "PYTHONPATH": str(ROOT), "COLUMNS": "200"}
    return subprocess.run(command, cwd=ROOT, env=environment, capture_output=True, text=True, check=False)


def cells(count: int, seed: int = 0) -> tuple[np.ndarray, pd.DataFrame]:
    generator = np.random.default_rng(seed)
    edges = generator.integers(0, len(OPS), size=(count, 6))
    words = [[OPS[i] for i in row] for row in edges]
    form = "|{}~0|+|{}~0|{}~1|+|{}~0|{}~1|{}~2|"
    return edges, pd.DataFrame({"index": range(count), "arch_str": [form.format(*row) for row in words]})


def with_devices(edges: np.ndarray, frame: pd.DataFrame, *names: str) -> pd.DataFrame:
    generator = np.random.default_rng(1)
    for name in names:
        costs = COSTS * np.exp(0.2 * generator.normal(size=len(COSTS)))
        frame[name] = (1 + costs[edges].sum(1)) * np.exp(0.02 * generator.normal(size=len(edges)))
    return frame


def means(out: Path) -> dict[str, dict[str, float]]:
    (table,) = json.loads(out.read_text())["tables"].values()
    return {row["system"]: row for row in table["mean"]}


@pytest.mark.slow
def test_few_shot_takes_a_table_of_the_published_form(tmp_path: Path) -> None:
    """The new device in a file of its own, with some models not measured."""
    edges, frame = cells(120)
    with_devices(edges, frame, "a", "b", "c").to_csv(tmp_path / "known.csv.gz", index=False)
    mine = with_devices(edges, frame[["index", "arch_str"]].copy(), "mine")
    mine.loc[:9, "mine"] = np.nan
    mine.loc[10, "mine"] = 0
    mine.to_csv(tmp_path / "mine.csv", index=False)
    found = run(
        "few_shot.py", "--data", tmp_path, "--csv", tmp_path / "known.csv.gz", "--csv", tmp_path / "mine.csv",
        "--train", "a,b,c", "--new", "mine", "--draws", 2, "--counts", "8", "--out", tmp_path / "out.json",
    )  # fmt: skip
    assert found.returncode == 0, found.stderr
    systems = means(tmp_path / "out.json")
    assert systems["autocompress"]["spearman"] > 0.9
    assert systems["autocompress"]["spearman_stderr"] is not None
    assert {"ridge, FLOPs", "ridge, operator counts", "nearest device, rescaled"} < systems.keys()


@pytest.mark.slow
def test_few_shot_takes_any_description_of_models(tmp_path: Path) -> None:
    edges, frame = cells(90)
    with_devices(edges, frame[["index"]].copy(), "a", "mine").to_csv(tmp_path / "table.csv", index=False)
    (tmp_path / "archs.json").write_text(json.dumps(edges.tolist()))
    common = "--data", tmp_path, "--csv", tmp_path / "table.csv", "--new", "mine", "--draws", 1, "--counts", "5"
    out = tmp_path / "out.json"
    for train in ("a", "-"):
        found = run("few_shot.py", *common, "--archs", tmp_path / "archs.json", "--train", train, "--out", out)
        assert found.returncode == 0, found.stderr
        assert means(out)["autocompress"]["spearman"] > 0.3
        assert ("nearest device, rescaled" in means(out)) == (train == "a")
    refused = run("few_shot.py", *common, "--train", "b")
    assert refused.returncode == 2
    assert "no column b" in refused.stderr and "Traceback" not in refused.stderr
    assert "--archs FILE" in run("few_shot.py", *common, "--train", "a").stderr.replace("\n", " ")


@pytest.mark.slow
def test_slowdown_learns_what_other_models_show(tmp_path: Path) -> None:
    """Models with much memory per layer are slower in int8 here."""
    generator = np.random.default_rng(0)
    rows = []
    for i in range(24):
        layers, memory = int(generator.integers(20, 300)), float(generator.choice([20, 400]))
        for device in ("x", "y"):
            for runtime in ("onnx", "tflite"):
                latency = layers * float(np.exp(0.1 * generator.normal()))
                common = {
                    "model": f"m{i}", "component": f"m{i}", "device": device, "runtime": runtime, "primary_unit": "NPU",
                    "layers_total": layers, "layers_npu": layers, "peak_mem_max_mb": memory, "status": "Passed",
                }  # fmt: skip
                ratio = 2.0 if memory > 100 else 0.5
                rows += [{**common, "precision": "float", "latency_ms": latency}]
                rows += [{**common, "precision": "w8a8", "latency_ms": ratio * latency}]
    frame = pd.DataFrame(rows).assign(layers_gpu=np.nan, layers_cpu=np.nan)
    frame.to_csv(tmp_path / "qualcomm_ai_hub.csv.gz", index=False)
    found = run("slowdown.py", "--data", tmp_path, "--draws", 20, "--out", tmp_path / "out.json")
    assert found.returncode == 0, found.stderr
    conditions = json.loads((tmp_path / "out.json").read_text())["conditions"]
    assert conditions["w8a8"]["pairs"] == 96
    assert conditions["w4a16"]["pairs"] == 0
    assert conditions["w8a8"]["ways"]["float model here"]["auc"] > 0.95
    assert conditions["w8a8"]["ways"]["size only: float latency, layers"]["auc"] < 0.8
