"""Comparing devices: closed forms for ranks, fronts and regret."""

from collections.abc import Mapping
from pathlib import Path

import pandas as pd
import pytest
import torch
from hypothesis import given
from hypothesis import strategies as st

from autocompress.compression.build import plan_kernels
from autocompress.compression.tracing import trace_task
from autocompress.profiles import load as load_profile
from autocompress.report import write_report
from autocompress.report.compare import Choice, Comparison, Priced, compare, compare_prices, read_comparison
from autocompress.search import kernel_records, search
from autocompress.search import load as load_run
from autocompress.task.task import Task
from autocompress.vocabulary.errors import RunError, UserError
from autocompress.vocabulary.workload import Latency
from tests.search.test_evaluator import SETTINGS, tiny_task

SCORES = {"slow": 0.9, "middle": 0.8, "fast": 0.7, "useless": 0.1}


def prices(**seconds: float) -> Mapping[str, Priced]:
    return {name: priced(name, SCORES[name], s) for name, s in seconds.items()}


def priced(name: str, score: float, seconds: float) -> Priced:
    return Priced(name, score, Latency(seconds, 0.9 * seconds, 1.1 * seconds, 0.5))


def compared(
    prices: Mapping[str, Mapping[str, Priced]], least: float = 0.0, budget_s: float | None = None
) -> Comparison:
    originals = {name: Latency(4.0, 4.0, 4.0, 1.0) for name in prices}
    return compare_prices(prices, originals, Choice(least, budget_s))


SAME = prices(slow=4.0, middle=3.0, fast=2.0, useless=5.0)
REVERSED = prices(slow=1.0, middle=2.0, fast=3.0, useless=0.5)


def test_a_device_agrees_with_itself() -> None:
    found = compared({"a": SAME, "b": SAME})
    assert found.spearman["a"]["b"] == pytest.approx(1.0)
    assert found.regret["a"]["b"] == pytest.approx(0.0)
    assert [row.id for row in found.fronts["a"]] == ["fast", "middle", "slow"]


def test_opposite_devices_disagree_and_cost() -> None:
    found = compared({"a": prices(slow=4.0, middle=3.0, fast=2.0), "b": prices(slow=1.0, middle=2.0, fast=3.0)})
    assert found.spearman["a"]["b"] == pytest.approx(-1.0)
    assert [row.id for row in found.fronts["b"]] == ["slow"]
    assert found.regret["a"]["b"] == pytest.approx(0.0), "a's front holds all models, so nothing is lost on b"
    assert 0 < found.regret["b"]["a"] < 1, "b's front holds one model, which is the slowest on a"


@given(st.lists(st.tuples(st.floats(0.1, 9), st.floats(0.1, 9), st.floats(0, 1)), min_size=2, max_size=12))
def test_regret_is_a_share_and_zero_for_its_own_front(rows: list[tuple[float, float, float]]) -> None:
    a = {str(i): priced(str(i), score, x) for i, (x, _, score) in enumerate(rows)}
    b = {str(i): priced(str(i), score, y) for i, (_, y, score) in enumerate(rows)}
    found = compared({"a": a, "b": b})
    assert found.regret["a"]["a"] == pytest.approx(0.0, abs=1e-9)
    assert -1e-9 <= found.regret["a"]["b"] <= 1
    assert found.spearman["a"]["b"] == pytest.approx(found.spearman["b"]["a"])


def test_times_that_do_not_differ_have_no_ranks() -> None:
    flat = prices(slow=1.0, middle=1.0, fast=1.0)
    assert compared({"a": flat, "b": flat}).spearman["a"]["b"] == 1.0
    assert compared({"a": flat, "b": prices(slow=1.0, middle=2.0, fast=3.0)}).spearman["a"]["b"] == 0.0


def test_one_profile_is_refused(tmp_path: Path) -> None:
    with pytest.raises(UserError, match="two profiles or more"):
        compare(tmp_path, {})


def test_each_device_chooses_its_fastest_that_is_good_enough() -> None:
    found = compared({"a": SAME, "b": REVERSED}, least=0.75)
    assert {name: row and row.id for name, row in found.chosen.items()} == {"a": "middle", "b": "slow"}
    assert found.time_lost["a"]["a"] == 0
    assert found.time_lost["a"]["b"] == pytest.approx(1.0), "middle takes 2 s there, where slow takes 1"
    assert found.time_lost["b"]["a"] == pytest.approx(1 / 3)


def test_a_budget_chooses_the_best_within_it_on_that_device() -> None:
    found = compared({"a": SAME, "b": REVERSED}, budget_s=2.5)
    assert {name: row and row.id for name, row in found.chosen.items()} == {"a": "fast", "b": "slow"}
    assert compared({"a": SAME, "b": REVERSED}, budget_s=0.1).chosen == {"a": None, "b": None}
    assert compared({"a": SAME, "b": REVERSED}, least=0.95).time_lost["a"]["b"] is None


PROFILES = {name: load_profile(name) for name in ("arm-cortex-a76-roofline", "nvidia-h200-roofline")}


@pytest.fixture(scope="module")
def run(tmp_path_factory: pytest.TempPathFactory) -> Path:
    out = tmp_path_factory.mktemp("run")
    search(
        tiny_task(), out=out, settings=SETTINGS, profile="arm-cortex-a76-roofline", trials=6,
        fine_tuning={"enabled": False},
    )  # fmt: skip
    return out


def test_a_run_is_priced_on_further_devices_and_reported(run: Path) -> None:
    found = compare(run, PROFILES, max_drop=0.5)
    assert compare(run, PROFILES, max_drop=0.5, task=tiny_task()) == found
    assert found.profiles == tuple(PROFILES)
    table = pd.read_csv(run / "compare.csv")
    assert len(table) == found.models >= 6
    for name in PROFILES:
        assert set(table[table[f"front on {name}"]]["id"]) == {row.id for row in found.fronts[name]}
        assert set(table[f"how known on {name}"]) == {"estimate"}
    assert read_comparison(run) == found
    page = write_report(run).read_text()
    assert "On other devices" in page and "nvidia-h200-roofline" in page


def test_a_device_without_fp32_is_told(run: Path) -> None:
    npu = load_profile("ethos-u55-128")
    found = compare(run, {**PROFILES, npu.name: npu})
    assert found.notes == tuple(note for note in found.notes if note.startswith("ethos-u55-128 computes in int8 only"))
    assert found.notes and read_comparison(run) == found
    assert all(row.seconds > 0 for row in found.fronts[npu.name])
    assert not compare(run, PROFILES).notes


def test_what_a_run_s_models_execute_is_kept_with_it(run: Path, tmp_path: Path) -> None:
    graph = trace_task(tiny_task())
    kept = kernel_records.read(run)
    assert kept is not None
    for candidate in load_run(run).candidates:
        assert kept[candidate.id] == plan_kernels(candidate.plan, graph)
    (tmp_path / "kernels.json").write_text('{"kernels": [[1]], "plans": {}}')
    with pytest.raises(RunError, match=r"kernels.json is damaged: .* give --task"):
        kernel_records.read(tmp_path)


def test_a_run_that_was_cut_off_asks_for_its_task(run: Path) -> None:
    path = run / "kernels.json"
    text = path.read_text()
    path.unlink()
    with pytest.raises(RunError, match=r"does not say what its models execute: .* or give --task"):
        compare(run, PROFILES)
    path.write_text(text)


def test_a_run_of_another_model_is_refused(run: Path) -> None:
    batch = torch.zeros(2, 4), torch.zeros(2, dtype=torch.long)
    another = Task(torch.nn.Linear(4, 2), torch.zeros(1, 4), validation=[batch])
    with pytest.raises(RunError, match=r"is of model \w+, the task's model is \w+; give the task it was searched with"):
        compare(run, PROFILES, task=another)


def test_a_damaged_comparison_is_told(run: Path) -> None:
    (run / "compare.json").write_text("{")
    with pytest.raises(RunError, match=r"compare.json is damaged: .* run `autocompress compare` again"):
        read_comparison(run)
    (run / "compare.json").unlink()
    assert read_comparison(run) is None
