"""The real evaluator on a tiny residual net: what is promised of the seam holds for torch, ONNX and the runtime."""

import json
import math
from dataclasses import replace

import numpy as np
import pytest
import torch
from safetensors.torch import load_file, save_file

from autocompress.compression.methods.prune import Prune
from autocompress.compression.methods.quantize import Quantize
from autocompress.compression.methods.student import Student
from autocompress.compression.plan import Plan, Step
from autocompress.devices import open_device
from autocompress.evidence.card import read_card
from autocompress.search.candidate import Candidate, Rung, Status
from autocompress.search.config import load_settings
from autocompress.search.engine import Setup, Start
from autocompress.search.evaluator import TorchEvaluator
from autocompress.search.loop import search
from autocompress.search.profiling import onboard_task, profile_task
from autocompress.task.task import Score, Task
from autocompress.vocabulary.errors import BuildError, ConfigError, ExportError, RunError, TaskError, VerificationError
from autocompress.vocabulary.formats import INT8
from tests.zoo import OptionAResNet, make

SETTINGS = load_settings(samples={"calibration": 32, "sensitivity": 16, "subset": 24}, measuring={"rounds": 16})


def tiny_task(**changes) -> Task:
    """Labels are the net's own answers, so that the original scores 1."""
    model, inputs = make("resnet")
    generator = torch.Generator().manual_seed(0)
    images = torch.randn(48, *inputs.shape[1:], generator=generator)
    with torch.no_grad():
        labels = model(images).argmax(1)
    batches = list(zip(images.split(16), labels.split(16), strict=True))
    return Task(
        **{"model": model, "example_inputs": inputs, "validation": batches, "train": batches, "test": batches} | changes
    )


def opened(folder, settings=SETTINGS, task=None) -> TorchEvaluator:
    return TorchEvaluator(task or tiny_task(), settings, Setup(folder, lambda stage, detail: None, lambda: 0.0))


@pytest.fixture(scope="module", autouse=True)
def one_thread():
    """Threads only wait for one another on layers this small."""
    before = torch.get_num_threads()
    torch.set_num_threads(1)
    yield
    torch.set_num_threads(before)


@pytest.fixture(scope="module")
def evaluator(tmp_path_factory):
    made = opened(tmp_path_factory.mktemp("run"))
    made.adopt(made.baseline())
    return made


@pytest.fixture(scope="module")
def plans(evaluator) -> dict[str, Plan]:
    groups = [g for g in evaluator.graph.free_groups.values() if g.branch]
    int8 = tuple(Step(layer, Quantize(INT8)) for layer in evaluator.graph.layers)
    drop, cut = Step(groups[0].id, Prune(0)), Step(groups[1].id, Prune(groups[1].channels // 2))
    made = {"original": (), "int8": int8, "cut": (cut,), "drop": (drop,), "both": (cut, drop)}
    return {name: Plan(evaluator.fingerprint, steps) for name, steps in made.items()}


def run_file(path, images):
    return open_device("ort:cpu").open(path).run(images.numpy())


def test_the_empty_plan_is_the_original(evaluator, plans, tmp_path):
    artifact = evaluator.export(plans["original"], None, tmp_path / "m.onnx")
    images = tiny_task().validation[0][0]
    with torch.no_grad():
        expected = tiny_task().model(images).numpy()
    np.testing.assert_allclose(run_file(artifact.path, images), expected, rtol=1e-4, atol=1e-4)
    assert evaluator.divergence(plans["original"]) == pytest.approx(0, abs=1e-6)


def test_the_score_is_that_of_the_file(evaluator, plans, tmp_path):
    path = evaluator.export(plans["cut"], None, tmp_path / "m.onnx").path
    task = tiny_task()
    hits = sum(int((run_file(path, x).argmax(1) == y.numpy()).sum()) for x, y in task.validation)
    assert evaluator.score(path, None).value == pytest.approx(hits / 48)
    assert evaluator.score(path, 24).samples == 24
    assert evaluator.test_score(path) == evaluator.score(path, None)


def test_predicted_parameters_and_size_are_close_to_the_files(evaluator, plans, tmp_path):
    for name, plan in plans.items():
        price = evaluator.price(plan)
        artifact = evaluator.export(plan, None, tmp_path / "m.onnx")
        assert price.size_bytes == pytest.approx(artifact.size_bytes, rel=0.35), name
    whole, less = (evaluator.price(plans[name]) for name in ("original", "both"))
    assert less.params < whole.params and less.macs < whole.macs and less.latency.seconds < whole.latency.seconds


def test_divergence_grows_with_what_is_taken_away(evaluator, plans):
    assert 0 < evaluator.divergence(plans["cut"]) < evaluator.divergence(plans["both"])


def test_trained_weights_are_those_exported(evaluator, plans, tmp_path):
    weights, images = tmp_path / "w.safetensors", tiny_task().validation[0][0]
    state = evaluator._structured(plans["both"], None).state_dict()
    save_file({**state, "linear.bias": state["linear.bias"] + 1}, weights)
    before = run_file(evaluator.export(plans["both"], None, tmp_path / "a.onnx").path, images)
    after = run_file(evaluator.export(plans["both"], weights, tmp_path / "b.onnx").path, images)
    np.testing.assert_allclose(after - before, 1, rtol=1e-4)


def test_fine_tuning_ends_in_time_and_never_further_from_the_original(evaluator, plans, tmp_path):
    weights = tmp_path / "w.safetensors"
    trained = evaluator.fine_tune(plans["both"], [], 0.3, weights)
    assert trained.start is None and trained.seconds > 0
    repaired, tuned = (evaluator._structured(plans["both"], w) for w in (None, weights))
    assert evaluator._distance(tuned) <= evaluator._distance(repaired)


def test_a_plan_may_start_where_a_milder_one_ended(evaluator, plans, tmp_path):
    """The milder plan's trained layers arrive in the stronger one unchanged, whether both cut them or neither."""
    weights = tmp_path / "w.safetensors"
    evaluator.fine_tune(plans["cut"], [], 0.2, weights)
    source = evaluator._structured(plans["cut"], weights).state_dict()
    heir = evaluator._begun(plans["both"], Start(plans["cut"], weights)).state_dict()
    cut = plans["cut"].steps[0].target
    assert torch.equal(heir[f"{cut}.weight"], source[f"{cut}.weight"])
    trained = evaluator.fine_tune(plans["both"], [Start(plans["cut"], weights)], 0.2, tmp_path / "v.safetensors")
    assert trained.start in (None, 0)
    assert evaluator.export(plans["both"], tmp_path / "v.safetensors", tmp_path / "m.onnx").size_bytes > 0


def test_a_student_of_the_tasks_own_is_searched_trained_and_exported(tmp_path):
    def student(width: float) -> OptionAResNet:
        return OptionAResNet(width=4 * round(2 * width)).eval()

    own = opened(tmp_path, task=tiny_task(student=student))
    own.adopt(own.baseline())
    assert [d.values for d in own.space().of(Student)] == [(1.0, 0.625)]
    steps = (Step("model", Student(0.625)), *(Step(layer, Quantize(INT8)) for layer in own.graph.layers))
    plan, alone = Plan(own.fingerprint, steps), Plan(own.fingerprint, steps[:1])
    assert own.untaught(plan) and not own.untaught(Plan(own.fingerprint))
    assert own.price(plan).params == own.price(alone).params < own.price(Plan(own.fingerprint)).params
    weights = tmp_path / "w.safetensors"
    trained = own.fine_tune(plan, [], 0.2, weights)
    assert trained.start is None
    resumed = own._begun(alone, Start(plan, weights)).state_dict()
    assert all(torch.equal(tensor, resumed[name]) for name, tensor in load_file(weights).items())
    images = tiny_task().validation[0][0]
    assert run_file(own.export(plan, weights, tmp_path / "m.onnx").path, images).shape == (len(images), 5)


def candidate(evaluator, plan, **changes) -> Candidate:
    price = evaluator.price(plan)
    made = Candidate(plan.key, plan, Rung.MEASURED, Status.COMPLETE, price.latency, Score(0.9, 0.01, 48))
    return replace(made, **changes)


def test_a_certificate_holds_what_was_found(evaluator, plans, tmp_path):
    artifact = evaluator.export(plans["int8"], None, tmp_path / "m.onnx")
    baseline = evaluator.baseline()
    evaluator.certify(candidate(evaluator, plans["int8"]), artifact, baseline)
    card = read_card(artifact.path)
    assert card.parity.agrees and card.plan == plans["int8"] and card.artifact.sha256 == artifact.sha256
    assert sum(card.providers.values()) > 0


def test_a_file_of_other_weights_is_not_certified(evaluator, plans, tmp_path):
    """Mutation: the model exported is not the one that the candidate describes."""
    promised = evaluator.export(plans["original"], None, tmp_path / "m.onnx")
    evaluator.export(plans["drop"], None, tmp_path / "m.onnx")
    with pytest.raises(VerificationError, match="differs from its torch model"):
        evaluator.certify(candidate(evaluator, plans["original"]), promised, evaluator.baseline())
    assert not list(tmp_path.glob("*.card.json"))


def test_times_are_relative_to_the_baseline_that_was_adopted(evaluator, plans, tmp_path):
    baseline = evaluator.baseline()
    before = evaluator.price(plans["cut"]).latency.seconds
    doubled = replace(baseline.latency, seconds=2 * baseline.latency.seconds)
    evaluator.adopt(replace(baseline, latency=doubled, devices={}))
    twice = evaluator.price(plans["cut"]).latency.seconds
    evaluator.adopt(baseline)
    assert twice / evaluator.price(plans["cut"]).latency.seconds == pytest.approx(2)
    assert before > 0


def test_a_model_that_the_device_refuses_is_left_out(evaluator, plans, tmp_path):
    good = evaluator.export(plans["cut"], None, tmp_path / "good.onnx").path
    bad = tmp_path / "bad.onnx"
    bad.write_bytes(b"no model")
    timings = evaluator.measure({"good": good, "bad": bad}, 0.1, {"good": {}, "bad": {}})
    assert timings.found.keys() == {"good"} and timings.found["good"].latency.origin.startswith("measured")
    assert timings.refused.keys() == {"bad"} and "can't load" in timings.refused["bad"]
    assert not evaluator.measure({"bad": bad}, 0.1, {"bad": {}}).found


def test_outputs_that_are_no_numbers_fail_the_candidate_alone(evaluator, plans, tmp_path):
    state = evaluator._structured(plans["cut"], None).state_dict()
    broken = {name: torch.full_like(t, math.nan) if t.is_floating_point() else t for name, t in state.items()}
    save_file(broken, tmp_path / "w.safetensors")
    with pytest.raises(BuildError, match="outputs that are not finite"):
        evaluator.export(plans["cut"], tmp_path / "w.safetensors", tmp_path / "m.onnx")
    with pytest.raises(ExportError, match="has no score"):
        evaluator.score(tmp_path / "m.onnx", None)


def test_mistakes_in_settings_and_task_are_told(tmp_path):
    with pytest.raises(ConfigError, match="unknown importance 'l3': valid: fisher"):
        opened(tmp_path, load_settings(importance="l3"))
    with pytest.raises(TaskError, match=r"calibration and Task.train are both missing"):
        opened(tmp_path, task=tiny_task(train=None))
    twice = load_settings(profile=["nvidia-h200-roofline", "nvidia-h200-roofline"])
    with pytest.raises(ConfigError, match="several of the profiles are called 'nvidia-h200-roofline'"):
        opened(tmp_path, twice)


def test_the_profile_measured_for_a_run_is_kept_and_used_again(evaluator):
    folder = evaluator._original.parents[1]
    assert (folder / "profile" / "profile.toml").exists()
    again = opened(folder)
    again.adopt(evaluator.baseline())
    (before,), (after,) = evaluator.targets.profiles, again.targets.profiles
    assert [row.id for row in after.models] == [row.id for row in before.models]


def test_the_whole_search_on_a_real_net(evaluator, tmp_path):
    profile = str(evaluator._original.parents[1] / "profile")
    study = search(
        tiny_task(),
        out=tmp_path / "run",
        trials=6,
        seed=1,
        settings=SETTINGS,
        profile=profile,
        fine_tuning={"time_s": 1.0, "candidates": 1},
    )
    assert study.complete and study.front
    for found in study.front:
        card = json.loads((tmp_path / "run" / "models" / f"{found.id}.card.json").read_text())
        assert card["validation"]["value"] == found.score.value and found.measured is not None
    exported = study.export(found, tmp_path / "best.onnx")
    assert read_card(exported.path).artifact.sha256 == exported.sha256 and read_card(exported.path).id == found.id
    with (tmp_path / "run" / found.artifact).open("ab") as file:
        file.write(b"tampered")
    with pytest.raises(RunError, match="is not the file that was verified"):
        study.export(found, tmp_path / "again.onnx")


def test_an_interrupted_calibration_goes_on_where_it_was(tmp_path):
    """What was measured is neither built nor measured again; another device begins anew."""
    steps: list[tuple[int, int]] = []

    def interrupted(done: int, whole: int) -> None:
        steps.append((done, whole))
        if done > whole // 2:
            raise KeyboardInterrupt

    with pytest.raises(KeyboardInterrupt):
        profile_task(tiny_task(), "fake", plans=30, progress=interrupted, resume_dir=tmp_path)
    assert steps[0] == (0, 60)
    (log,) = tmp_path.glob("*/turns.jsonl")
    before = log.read_text().splitlines()
    assert 0 < len(before) < 30
    whole = profile_task(tiny_task(), "fake", plans=30, resume_dir=tmp_path)
    after = log.read_text().splitlines()
    assert after[: len(before)] == before and len(after) == 30 == len(whole.models)
    profile_task(tiny_task(), f"fake:{write_rates(tmp_path)}", plans=3, resume_dir=tmp_path)
    assert len(list(tmp_path.glob("*/turns.jsonl"))) == 2


def write_rates(folder):
    path = folder / "board.toml"
    path.write_text(
        "[rates]\nmacs_per_s = { fp32 = 1e9, int8 = 4e9 }\nbytes_per_s = 1e9\nlaunch_s = 1e-6\n"
        "channel_multiple = { fp32 = 16, int8 = 4 }\n"
    )
    return path


def test_a_device_is_learnt_from_few_models_and_another_ones_profile(tmp_path):
    known = profile_task(tiny_task(), "fake", plans=24)
    device = f"fake:{write_rates(tmp_path)}"
    learnt = onboard_task(tiny_task(), device, [known], models=10)
    assert learnt.device == device
    assert learnt.description.learnt_from == (known.name,)
    truth = profile_task(tiny_task(), device, plans=24)
    rows = [(row.sites, row.ratio * truth.reference_s) for row in truth.models]
    off = [abs(learnt.ratio(where) * learnt.reference_s / seconds - 1) for where, seconds in rows]
    unadapted = [abs(known.ratio(where) * known.reference_s / seconds - 1) for where, seconds in rows]
    assert np.mean(off) < 0.6 * np.mean(unadapted), "from one device that is little like it"
    assert learnt.typical_interval() > 0
