"""The loop with a synthetic evaluator: what it asks for, what it never asks for, and what it leaves on the disk."""

import csv
import itertools
import json
import math
import tomllib
from pathlib import Path

import optuna
import pytest

from autocompress.compression.methods.student import Student
from autocompress.search.candidate import Rung, Status
from autocompress.search.config import load_settings
from autocompress.search.loop import run
from autocompress.search.space import Space
from autocompress.search.study import load
from autocompress.task.task import Score
from autocompress.vocabulary.errors import BudgetError, ConfigError, RunError, TaskError
from autocompress.vocabulary.pareto import hypervolume
from tests.search.fake import ORIGINAL_SCORE, FakeEvaluator, fake_space

QUICK = {"fine_tuning": {"time_s": 60.0}}


def searched(out: Path, evaluator: FakeEvaluator | None = None, trials: int = 40, **given):
    settings = load_settings(None, trials=trials, **{**QUICK, **given})
    return run(lambda _: evaluator or FakeEvaluator(), settings, out)


def test_a_run_leaves_everything_that_is_promised(tmp_path):
    study = searched(tmp_path / "run")
    names = {path.name for path in (tmp_path / "run").iterdir()}
    assert {"run.toml", "study.journal", "candidates.csv", "front.csv", "plans", "models", "weights"} <= names
    assert "scratch" not in names
    assert study.complete and study.baseline is not None
    assert len(study.front) >= 3
    for candidate in study.front:
        assert candidate.rung is Rung.MEASURED and candidate.measured is not None and candidate.test_score is not None
        assert (tmp_path / "run" / candidate.artifact).is_file()
        assert (tmp_path / "run" / "plans" / f"{candidate.id}.json").read_text() == candidate.plan.to_json()


def test_the_front_found_is_close_to_the_true_one(tmp_path):
    """Of a space small enough to enumerate, without training, over 95 % of the true hypervolume is found."""
    evaluator = FakeEvaluator(blocks=2, trainable=False)
    study = searched(tmp_path / "run", evaluator, trials=60)
    space = fake_space(2)
    ranges = [range(len(decision.options)) for decision in space.decisions]
    plans = [space.plan(dict(zip(space.by_name, pick, strict=True))) for pick in itertools.product(*ranges)]
    truth = [(-(ORIGINAL_SCORE - evaluator._error(plan)), evaluator._seconds(plan)) for plan in plans]
    reference = (-0.5, 1e-3)
    found = hypervolume([c.cost for c in study.candidates if c.score is not None], reference)
    assert found >= 0.95 * hypervolume(truth, reference)


def test_no_plan_is_built_for_a_trial_twice(tmp_path):
    evaluator = FakeEvaluator(blocks=2, trainable=False)
    searched(tmp_path / "run", evaluator, trials=70)
    scored = evaluator.asked("score")
    assert len(scored) == len(set(scored))


def test_a_plan_over_the_budget_is_never_built(tmp_path):
    evaluator = FakeEvaluator()
    study = searched(tmp_path / "run", evaluator, budget_ms=0.32)
    built = {c.id for c in study.candidates if c.status is not Status.REJECTED}
    assert set(evaluator.asked("export")) <= built
    assert all(c.latency.seconds <= 0.32e-3 for c in study.candidates if c.id in built)
    rejected = [c for c in study.candidates if c.status is Status.REJECTED]
    assert rejected and all("> budget 0.32 ms" in c.reason and c.score is None for c in rejected)
    stored = optuna.load_study(study_name=None, storage=journal(tmp_path / "run"))
    told = {t.user_attrs["plan"]: t for t in stored.trials if t.user_attrs.get("status") == "rejected"}
    assert told.keys() == {c.id for c in rejected}
    assert all(trial.constraints["latency"] > 0 for trial in told.values())
    assert {t.user_attrs["plan"] for t in stored.best_trials}.isdisjoint(told)


def journal(run_folder: Path):
    from optuna.storages import JournalStorage
    from optuna.storages.journal import JournalFileBackend

    return JournalStorage(JournalFileBackend(str(run_folder / "study.journal")))


def test_the_parameters_stored_are_the_decisions_themselves(tmp_path):
    searched(tmp_path / "run", trials=12)
    (first, *_) = optuna.load_study(study_name=None, storage=journal(tmp_path / "run")).trials
    assert first.params["prune:b0"] == 16 and first.params["quantize:stem"] == "fp32"
    assert first.params["student:model"] == 1.0
    assert isinstance(first.distributions["prune:b0"], optuna.distributions.IntDistribution)


def test_same_seed_same_plans(tmp_path):
    runs = [[c.id for c in searched(tmp_path / name, trials=60, seed=3).candidates] for name in ("a", "b")]
    assert runs[0] == runs[1]
    assert runs[0] != [c.id for c in searched(tmp_path / "c", trials=60, seed=4).candidates]


@pytest.mark.parametrize("sampler", ["tpe", "random", "nsga2"])
def test_every_sampler_runs(tmp_path, sampler):
    assert searched(tmp_path / "run", trials=30, sampler=sampler).front


def test_time_ends_the_search_and_every_stage_has_its_share(tmp_path):
    evaluator = FakeEvaluator()
    study = run(lambda _: evaluator, load_settings(None, time_s=2.0), tmp_path / "run")
    assert study.complete and study.front
    assert study.stage_seconds.keys() == {"setup", "trials", "fine_tuning", "measuring"}
    assert evaluator.asked("full score") and evaluator.asked("measure")


def test_time_that_training_does_not_take_goes_to_more_trials(tmp_path):
    """Without anything to train a single round of trials would end at 70 % of the time."""
    told = []
    evaluator = FakeEvaluator(blocks=8, trainable=False)
    run(lambda _: evaluator, load_settings(None, time_s=2.0), tmp_path / "run", told.append)
    stages = [stage for stage, _ in itertools.groupby(told, key=lambda snapshot: snapshot.stage)]
    assert stages.count("trials") > 1 and stages[-1] == "done"


def test_another_storage_is_used_if_given(tmp_path):
    url = f"sqlite:///{tmp_path / 'study.db'}"
    searched(tmp_path / "run", trials=5, storage=url)
    assert not (tmp_path / "run" / "study.journal").exists()
    (summary,) = optuna.get_all_study_summaries(url)
    assert summary.study_name == "autocompress-feed" and summary.n_trials >= 5


@pytest.mark.parametrize("url", ["nonsense", "nodb://host/name", "sqlite:////nowhere/at/all.db"])
def test_a_storage_that_cannot_be_used_is_told(tmp_path, url):
    with pytest.raises(ConfigError, match=f"can't use the storage '{url}'"):
        searched(tmp_path / "run", trials=5, storage=url)


def test_any_optuna_sampler_is_taken(tmp_path):
    class Counting(optuna.samplers.RandomSampler):
        asked = 0

        def sample_independent(self, *arguments):
            Counting.asked += 1
            return super().sample_independent(*arguments)

    settings = load_settings(None, trials=30, warm_start={"enabled": False}, **QUICK)
    run(lambda _: FakeEvaluator(), settings, tmp_path / "run", sampler=Counting(seed=0))
    assert Counting.asked > 30


def test_the_warm_start_holds_the_uniform_plans_and_the_dropped_branches(tmp_path):
    study = searched(tmp_path / "run", trials=40)
    origins = [c.origin for c in study.candidates]
    assert origins[0] == "original"
    assert "int8" in origins and "int8 where it pays" in origins
    assert "int8 where it pays, 1 branches dropped" in origins
    assert any("student" in origin for origin in origins)
    assert any("knapsack" in origin for origin in origins)
    pays = next(c for c in study.candidates if c.origin == "int8 where it pays")
    assert "stem" not in {step.target for step in pays.plan.steps}


def test_a_budget_that_no_plan_reaches_is_refused_before_anything_is_built(tmp_path):
    evaluator = FakeEvaluator()
    with pytest.raises(BudgetError, match=r"budget 0.01 ms is below what any plan can reach; the nearest is 0.05"):
        searched(tmp_path / "run", evaluator, budget_ms=0.01)
    assert not evaluator.asked("export")


def test_a_speed_up_is_a_budget(tmp_path):
    study = searched(tmp_path / "run", speedup=3)
    assert all(study.speedup(c) >= 3 for c in study.front)


def test_a_plan_that_fails_to_build_is_a_value_with_its_reason(tmp_path):
    evaluator = FakeEvaluator(broken=lambda plan: any(step.target == "b1" for step in plan.steps))
    study = searched(tmp_path / "run", evaluator)
    failed = [c for c in study.candidates if c.status is Status.FAILED]
    assert failed and all("can't be built" in c.reason for c in failed)
    assert study.front


def test_a_model_that_breaks_its_promise_leaves_the_front_and_the_disk(tmp_path):
    evaluator = FakeEvaluator(lying=lambda plan: any(step.target == "b1" for step in plan.steps))
    study = searched(tmp_path / "run", evaluator)
    liars = [c for c in study.candidates if "differs from its torch model" in c.reason]
    assert liars and not {c.id for c in liars} & {c.id for c in study.front}
    assert not any((tmp_path / "run" / "models" / f"{c.id}.onnx").exists() for c in liars)
    assert all(c.test_score is not None for c in study.front)


def test_the_test_split_is_looked_at_once_and_for_the_front_alone(tmp_path):
    evaluator = FakeEvaluator()
    study = searched(tmp_path / "run", evaluator)
    tested = evaluator.asked("test")
    assert len(tested) == len(set(tested))
    assert {c.id for c in study.front} <= set(tested)


def test_fine_tuning_goes_from_mild_to_fast_and_starts_from_neighbours(tmp_path):
    evaluator = FakeEvaluator()
    study = searched(tmp_path / "run", evaluator)
    latency = {c.id: c.best_latency.seconds for c in study.candidates}
    tuned = evaluator.asked("fine_tune")
    long = next(i for i, key in enumerate(tuned) if key in tuned[:i])
    gaps = next(i for i, key in enumerate(tuned) if i > long and key not in tuned[:i])
    for tranche in (tuned[:long], tuned[long:gaps], tuned[gaps:]):
        slowest_first = sorted(tranche, key=lambda key: -latency[key])
        assert tranche == slowest_first and len(set(tranche)) == len(tranche)
    assert set(tuned[long:gaps]) <= set(tuned[:long]), "the best get a second tranche"
    fastest = min(latency[key] for key in tuned[:gaps])
    assert all(latency[key] > fastest for key in tuned[gaps:]), "the last lie between"
    trained = [c for c in study.candidates if c.weights]
    assert trained and all((tmp_path / "run" / c.weights).is_file() for c in trained)


def test_a_student_that_knows_nothing_yet_is_trained_all_the_same(tmp_path):
    evaluator = FakeEvaluator(raw=lambda plan: bool(plan.configs(Student)))
    study = searched(tmp_path / "run", evaluator)
    students = [c for c in study.candidates if c.plan.configs(Student)]
    trained = {c.id for c in students if c.trained_s > 0}
    assert len(trained) == 1 and evaluator.asked("fine_tune").count(*trained) == 2, "a short tranche and a long one"
    untrained = max(c.score.value for c in students if c.id not in trained)
    assert max(c.score.value for c in students) > untrained


def test_a_score_that_is_no_number_ends_the_search(tmp_path):
    class Broken(FakeEvaluator):
        def score(self, path, samples):
            return Score(math.nan, 0.0, 10)

    with pytest.raises(TaskError, match="finite number"):
        searched(tmp_path / "run", Broken())


def test_a_model_without_decisions_is_refused(tmp_path):
    class Frozen(FakeEvaluator):
        def space(self):
            return Space("feed", ())

    with pytest.raises(ConfigError, match="nothing to decide"):
        searched(tmp_path / "run", Frozen())


def test_everything_resolved_is_written_down(tmp_path):
    searched(tmp_path / "run", seed=7)
    document = tomllib.loads((tmp_path / "run" / "run.toml").read_text())
    assert document["fingerprint"] == "feed" and document["settings"]["seed"] == 7
    assert document["settings"]["fine_tuning"]["learning_rate"] > 0
    assert document["versions"]["optuna"] == optuna.__version__
    assert document["environment"] == {"runtime": "fake 1.0"}


def test_the_tables_hold_the_columns_of_the_contract(tmp_path):
    study = searched(tmp_path / "run")
    with (tmp_path / "run" / "front.csv").open() as file:
        rows = list(csv.DictReader(file))
    assert [row["id"] for row in rows] == [c.id for c in study.front]
    for row, candidate in zip(rows, study.front, strict=True):
        assert float(row["measured_ms"]) == pytest.approx(candidate.measured.seconds * 1e3)
        assert float(row["speedup"]) == pytest.approx(float(row["baseline_ms"]) / float(row["measured_ms"]))
    frame = study.to_frame()
    assert len(frame) == len(study.candidates) and frame.loc[study.front[0].id, "status"] == "complete"


def test_another_model_is_refused(tmp_path):
    searched(tmp_path / "run", trials=5)
    with pytest.raises(RunError, match="run of model feed, the task's model is beef"):
        searched(tmp_path / "run", FakeEvaluator(fingerprint="beef"))


def test_another_space_is_refused(tmp_path):
    searched(tmp_path / "run", trials=5)
    with pytest.raises(RunError, match="searched other decisions"):
        searched(tmp_path / "run", FakeEvaluator(blocks=3))


def test_a_finished_run_searched_again_builds_nothing_twice(tmp_path):
    searched(tmp_path / "run", trials=20)
    again = FakeEvaluator()
    study = searched(tmp_path / "run", again, trials=20)
    assert not again.asked("score") and not again.asked("baseline") and not again.asked("test")
    assert study.front == load(tmp_path / "run").front


def test_what_the_watcher_is_told(tmp_path):
    told = []
    run(
        lambda _: FakeEvaluator(), load_settings(None, trials=15, budget_ms=0.5, **QUICK), tmp_path / "run", told.append
    )
    stages = list(dict.fromkeys(snapshot.stage for snapshot in told))
    assert stages == ["setup", "warm start", "trials", "validation", "fine-tuning", "measuring", "done"]
    last = told[-1]
    assert last.trials == 15 and last.trials_limit == 15 and last.time_left_s is None
    assert last.best is not None and last.best.measured.seconds <= 0.5e-3
    assert [c.best_latency.seconds for c in last.front] == sorted(
        (c.best_latency.seconds for c in last.front), reverse=True
    )


def test_plans_rejected_by_a_narrow_budget_are_looked_at_under_a_wider_one(tmp_path):
    narrow = searched(tmp_path / "run", budget_ms=0.3, trials=20)
    assert any(c.status is Status.REJECTED for c in narrow.candidates)
    wide = searched(tmp_path / "run", budget_ms=0.9, trials=60)
    original = next(c for c in wide.candidates if c.origin == "int8")
    assert original.status is Status.COMPLETE


def test_state_is_json(tmp_path):
    searched(tmp_path / "run", trials=5)
    state = json.loads((tmp_path / "run" / "state.json").read_text())
    assert state["complete"] is True and state["stage_seconds"].keys() >= {"trials", "fine_tuning", "measuring"}
