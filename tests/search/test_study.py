"""What a study promises: only measured models within the limits, files that are what was verified."""

from dataclasses import replace

import pytest

from autocompress.compression.methods.prune import Prune
from autocompress.compression.plan import Plan, Step
from autocompress.search.candidate import Candidate, Rung, Status
from autocompress.search.config import Settings
from autocompress.search.engine import Baseline
from autocompress.search.study import Study
from autocompress.task.task import Score
from autocompress.vocabulary.errors import BudgetError, RunError
from autocompress.vocabulary.workload import Latency

ORIGINAL = Score(0.92, 0.004, 5000)
BASELINE = Baseline(ORIGINAL, ORIGINAL, Latency(1e-3, 0.99e-3, 1.01e-3, 1.0, "measured"), 4000, 1000, 10)


def candidate(keep: int, score: float, predicted_ms: float, measured_ms: float | None, **changes) -> Candidate:
    plan = Plan("feed", (Step("g", Prune(keep)),))
    s = predicted_ms / 1e3
    made = Candidate(
        plan.key, plan, Rung.MEASURED if measured_ms else Rung.FINE_TUNED, Status.COMPLETE,
        Latency(s, 0.95 * s, 1.05 * s, 1.0), Score(score, 0.004, 5000),
        measured=Latency(*[measured_ms / 1e3] * 3, 1.0, "measured") if measured_ms else None,
    )  # fmt: skip
    return replace(made, **changes)


SLOW = candidate(9, 0.92, 0.5, 0.5)
MIDDLE = candidate(8, 0.915, 0.4, 0.41)
LIAR = candidate(7, 0.918, 0.29, 0.45)
FAST = candidate(6, 0.90, 0.3, 0.3)
UNMEASURED = candidate(5, 0.919, 0.2, None)
FAILED = candidate(4, 0.92, 0.1, 0.1, status=Status.FAILED)


def study(tmp_path, *candidates: Candidate, **settings) -> Study:
    return Study(tmp_path, Settings(**settings), candidates, BASELINE, {}, complete=True)


@pytest.fixture
def full(tmp_path) -> Study:
    return study(tmp_path, SLOW, MIDDLE, LIAR, FAST, UNMEASURED, FAILED)


def test_the_verified_are_all_that_were_measured_and_kept_their_promises(full, tmp_path):
    assert full.verified == (SLOW, LIAR, MIDDLE, FAST)
    beaten = study(tmp_path, MIDDLE, LIAR, candidate(3, 0.92, 0.38, 0.38))
    assert len(beaten.front) == 1 and len(beaten.verified) == 3


def test_the_best_within_a_budget_has_the_highest_score(full):
    assert full.best(budget_ms=0.5) == SLOW
    assert full.best(budget_ms=0.42) == MIDDLE
    assert full.best(budget_ms=0.3) == FAST


def test_a_model_predicted_within_the_budget_but_measured_over_it_is_refused(full, tmp_path):
    """Mutation: whoever looks at the prediction would return LIAR, or the unmeasured or failed one."""
    assert full.best(budget_ms=0.35) == FAST
    assert LIAR.outside_interval
    only_liar = study(tmp_path, LIAR, UNMEASURED, FAILED)
    with pytest.raises(BudgetError, match=rf"takes at most 0.3 ms; the nearest is {LIAR.id} at 0.45 ms"):
        only_liar.best(budget_ms=0.3)


def test_the_best_within_a_drop_is_the_fastest(full):
    assert full.best(max_drop=0.005) == MIDDLE
    assert full.best(max_drop=0.02) == FAST
    assert full.best(budget_ms=0.45, max_drop=0.02) == LIAR


def test_a_drop_that_nothing_keeps_names_the_nearest(tmp_path):
    with pytest.raises(
        BudgetError, match=rf"loses at most 0.001; the nearest is {MIDDLE.id}, which loses 0.005 at 0.41"
    ):
        study(tmp_path, MIDDLE, FAST).best(max_drop=0.001)
    with pytest.raises(BudgetError, match=r"loses at most 0.001 within 0.35 ms"):
        study(tmp_path, MIDDLE, FAST).best(max_drop=0.001, budget_ms=0.35)


def test_without_limits_those_of_the_search_count(tmp_path):
    assert study(tmp_path, SLOW, MIDDLE, FAST, budget_ms=0.42).best() == MIDDLE
    assert study(tmp_path, SLOW, MIDDLE, FAST, speedup=3.3).best() == FAST
    assert study(tmp_path, SLOW, MIDDLE, FAST, max_drop=0.01).best() == MIDDLE


def test_without_any_limit_it_is_the_knee(tmp_path):
    corner = candidate(3, 0.919, 0.31, 0.31)
    assert study(tmp_path, SLOW, corner, FAST).best() == corner
    assert study(tmp_path, FAST).knee() == FAST


def test_nothing_measured_yet(tmp_path):
    with pytest.raises(BudgetError, match=r"no model in .* was measured yet"):
        study(tmp_path, UNMEASURED).best(budget_ms=1)


def test_the_front_is_of_measured_models_where_there_are_any(full, tmp_path):
    assert full.front == (SLOW, LIAR, MIDDLE, FAST)
    assert study(tmp_path, UNMEASURED).front == (UNMEASURED,)
    repaired = candidate(2, 0.99, 0.1, None, rung=Rung.REPAIRED)
    assert study(tmp_path, UNMEASURED, repaired).front == (UNMEASURED,)
    assert study(tmp_path, repaired, FAILED).front == (repaired,)


def test_candidates_are_found_by_the_beginning_of_their_id(full):
    assert full[FAST.id[:8]] == FAST
    with pytest.raises(RunError, match="no single candidate 'nothing'"):
        full["nothing"]
    with pytest.raises(RunError, match="give more digits"):
        full[""]


def test_an_export_is_the_verified_file(tmp_path):
    (tmp_path / "models").mkdir()
    (tmp_path / "models" / "x.onnx").write_bytes(b"model")
    exported = replace(FAST, artifact="models/x.onnx")
    artifact = study(tmp_path, exported).export(exported, tmp_path / "new" / "model.onnx")
    assert artifact.path.read_bytes() == b"model" and artifact.size_bytes == 5
    with pytest.raises(RunError, match="got no further than fine_tuned"):
        study(tmp_path, exported).export(UNMEASURED, tmp_path / "m.onnx")
    with pytest.raises(RunError, match="is missing; run the search again"):
        study(tmp_path, exported).export(replace(FAST, artifact="models/y.onnx"), tmp_path / "m.onnx")


def test_a_candidate_survives_json():
    for one in (FAST, UNMEASURED, FAILED, replace(LIAR, test_score=ORIGINAL, reason='a "reason"\nin two lines')):
        assert Candidate.from_json(one.to_json()) == one
        assert "\n" not in one.to_json()


@pytest.mark.parametrize("text", ["", "{}", "[]", "null", '{"id": 3}', FAST.to_json().replace("prune", "prnue")])
def test_what_is_no_candidate_is_refused(text):
    with pytest.raises(RunError, match="not a candidate"):
        Candidate.from_json(text)


def test_a_baseline_survives_json():
    full = replace(BASELINE, test_score=ORIGINAL, rewritten=BASELINE.latency)
    for one in (BASELINE, full):
        assert Baseline.from_document(one.to_document()) == one
