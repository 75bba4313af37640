"""Comparing devices: closed forms for ranks, fronts and regret."""

from collections.abc import Mapping
from pathlib import Path
from types import SimpleNamespace
from typing import Any

import pytest
import torch
from hypothesis import given
from hypothesis import strategies as st

from autocompress import compare as comparing
from autocompress.compare import Priced, compare, compare_prices
from autocompress.errors import RunError, UserError
from autocompress.task import Task

SCORES = {"slow": 0.9, "middle": 0.8, "fast": 0.7, "useless": 0.1}


def prices(**seconds: float) -> Mapping[str, Priced]:
    return {name: Priced(name, SCORES[name], s) for name, s in seconds.items()}


SAME = prices(slow=4.0, middle=3.0, fast=2.0, useless=5.0)
REVERSED = prices(slow=1.0, middle=2.0, fast=3.0, useless=0.5)


def test_a_device_agrees_with_itself() -> None:
    found = compare_prices({"a": SAME, "b": SAME})
    assert found.spearman["a"]["b"] == pytest.approx(1.0)
    assert found.regret["a"]["b"] == pytest.approx(0.0)
    assert [row.id for row in found.fronts["a"]] == ["fast", "middle", "slow"]


def test_opposite_devices_disagree_and_cost() -> None:
    found = compare_prices({"a": prices(slow=4.0, middle=3.0, fast=2.0), "b": prices(slow=1.0, middle=2.0, fast=3.0)})
    assert found.spearman["a"]["b"] == pytest.approx(-1.0)
    assert [row.id for row in found.fronts["b"]] == ["slow"]
    assert found.regret["a"]["b"] == pytest.approx(0.0), "a's front holds all models, so nothing is lost on b"
    assert 0 < found.regret["b"]["a"] < 1, "b's front holds one model, which is the slowest on a"


@given(st.lists(st.tuples(st.floats(0.1, 9), st.floats(0.1, 9), st.floats(0, 1)), min_size=2, max_size=12))
def test_regret_is_a_share_and_zero_for_its_own_front(rows: list[tuple[float, float, float]]) -> None:
    a = {str(i): Priced(str(i), score, x) for i, (x, _, score) in enumerate(rows)}
    b = {str(i): Priced(str(i), score, y) for i, (_, y, score) in enumerate(rows)}
    found = compare_prices({"a": a, "b": b})
    assert found.regret["a"]["a"] == pytest.approx(0.0, abs=1e-9)
    assert -1e-9 <= found.regret["a"]["b"] <= 1
    assert found.spearman["a"]["b"] == pytest.approx(found.spearman["b"]["a"])


def test_times_that_do_not_differ_have_no_ranks() -> None:
    flat = prices(slow=1.0, middle=1.0, fast=1.0)
    assert compare_prices({"a": flat, "b": flat}).spearman["a"]["b"] == 1.0
    assert compare_prices({"a": flat, "b": prices(slow=1.0, middle=2.0, fast=3.0)}).spearman["a"]["b"] == 0.0


def test_one_profile_is_refused(tmp_path: Path) -> None:
    with pytest.raises(UserError, match="two profiles or more"):
        compare(tmp_path, _task(), {})


def test_a_run_of_another_model_is_refused(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    plan = SimpleNamespace(fingerprint="another")
    candidate = SimpleNamespace(score=1, status=comparing.Status.COMPLETE, plan=plan)
    monkeypatch.setattr(comparing, "load", lambda run: SimpleNamespace(candidates=[candidate, candidate]))
    profile: Any = SimpleNamespace()
    with pytest.raises(RunError, match="is of model another, the task's model is"):
        compare(tmp_path, _task(), {"a": profile, "b": profile})


def _task() -> Task:
    return Task(torch.nn.Linear(4, 2), torch.zeros(1, 4), validation=[])
