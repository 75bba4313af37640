"""Fine-tuning: comes closer to the teacher within its budget, and never leaves a wreck."""

import copy
import math
from dataclasses import replace

import pytest
import torch
from hypothesis import given
from hypothesis import strategies as st
from torch import Tensor, nn
from torch.fx import GraphModule

from autocompress.compression.repair.distill import Budget, Recipe, Teacher, fine_tune
from autocompress.compression.repair.matching import divergence, outputs_of
from autocompress.compression.repair.statistics import Statistics
from autocompress.graph.cut import cut
from autocompress.vocabulary.errors import TaskError
from tests.compression.repair.nets import chain, known

FAST = Recipe(rate=0.05, temperature=2.0, final_temperature=1.0)


def cut_chain() -> tuple[Statistics, GraphModule]:
    """A confident original with batches that it labelled, and a copy of half the inner width."""
    original = chain()
    original.last.weight.data *= 30  # type: ignore[union-attr, operator]
    statistics = known(original, samples=64)
    wanted = outputs_of(statistics.graph.model, statistics.batches)
    statistics.batches = [(inputs, z.argmax(1)) for (inputs, _), z in zip(statistics.batches, wanted, strict=True)]
    model = copy.deepcopy(statistics.graph.model)
    cut(model, statistics.graph, {"first": [0, 1, 2]})
    return statistics, model


def distance(model: nn.Module, statistics: Statistics) -> float:
    return divergence(model.eval(), statistics.batches, outputs_of(statistics.graph.model, statistics.batches))


@pytest.mark.parametrize(
    "recipe",
    [
        FAST,
        replace(FAST, precision="fp32"),
        replace(FAST, label_weight=0.1),
        replace(FAST, feature_nodes=("mean",), feature_weight=0.1),
    ],
    ids=["bf16", "fp32", "labels", "features"],
)
def test_distillation_comes_closer_to_the_teacher(recipe: Recipe) -> None:
    statistics, model = cut_chain()
    before = distance(model, statistics)
    report = fine_tune(model, Teacher(statistics.graph), statistics.batches, Budget(steps=40), recipe)
    assert distance(model, statistics) < 0.7 * before
    assert report.after < report.before and report.rolled_back is None
    assert (report.steps, report.samples) == (40, 40 * 32)
    assert not model.training


def test_labels_are_not_needed_unless_they_weigh() -> None:
    statistics, model = cut_chain()
    unlabelled = [(inputs, None) for inputs, _ in statistics.batches]
    teacher = Teacher(statistics.graph)
    assert fine_tune(model, teacher, unlabelled, Budget(steps=3), FAST).steps == 3
    with pytest.raises(TaskError, match="label_weight"):
        fine_tune(model, teacher, unlabelled, Budget(steps=3), replace(FAST, label_weight=0.5))


def test_float_targets_match_values() -> None:
    statistics, model = cut_chain()
    regression = [(inputs, torch.zeros(len(inputs[0]), 4)) for inputs, _ in statistics.batches]
    report = fine_tune(model, Teacher(statistics.graph), regression, Budget(steps=40), replace(FAST, rate=0.02))
    assert report.after < report.before


def test_an_empty_loader_is_refused() -> None:
    statistics, model = cut_chain()
    with pytest.raises(TaskError, match="empty"):
        fine_tune(model, Teacher(statistics.graph), [], Budget(steps=1))


def test_no_budget_leaves_the_model_as_it_is() -> None:
    statistics, model = cut_chain()
    before = copy.deepcopy(model.state_dict())
    report = fine_tune(model, Teacher(statistics.graph), statistics.batches, Budget(steps=0))
    assert report.steps == 0 and report.samples_per_s == 0
    assert all(torch.equal(value, before[name]) for name, value in model.state_dict().items())


def test_seconds_end_it_too() -> None:
    statistics, model = cut_chain()
    report = fine_tune(model, Teacher(statistics.graph), statistics.batches, Budget(seconds=0.2, steps=10**6))
    assert 0 < report.steps < 10**6 and report.seconds >= 0.2


def test_it_stops_when_told_to() -> None:
    statistics, model = cut_chain()
    seen: list[float] = []

    def on_step(progress: float, loss: float) -> bool:
        seen.append(progress)
        return len(seen) < 3

    report = fine_tune(model, Teacher(statistics.graph), statistics.batches, Budget(steps=10), FAST, on_step)
    assert report.stopped and report.steps == 3
    assert seen == pytest.approx([0, 0.1, 0.2])


def test_a_diverging_training_is_rolled_back_and_reported() -> None:
    statistics, model = cut_chain()
    before = copy.deepcopy(model.state_dict())
    wild = Recipe(rate=1e6, warmup=0.0, clip=1e6, precision="fp32")
    report = fine_tune(model, Teacher(statistics.graph), statistics.batches, Budget(steps=30), wild)
    assert report.rolled_back is not None and "lower rate" in report.rolled_back
    assert all(torch.equal(value, before[name]) for name, value in model.state_dict().items())
    assert report.after == report.before


def test_a_batch_that_is_not_finite_costs_a_rollback_not_the_model() -> None:
    statistics, model = cut_chain()
    broken = [*statistics.batches, *statistics.batches, ((torch.full((4, 3, 8, 8), math.nan),), torch.zeros(4).long())]
    report = fine_tune(model, Teacher(statistics.graph), broken, Budget(steps=10), FAST)
    assert report.rolled_back is not None and "nan" in report.rolled_back and report.steps == 5
    assert all(torch.isfinite(value).all() for value in model.state_dict().values())


def test_the_same_batches_train_the_same_model() -> None:
    results = []
    for _ in range(2):
        statistics, model = cut_chain()
        fine_tune(model, Teacher(statistics.graph), statistics.batches, Budget(steps=5), FAST)
        results.append(model.state_dict())
    assert all(torch.equal(results[0][name], results[1][name]) for name in results[0])


def test_the_teacher_is_the_original_made_fast() -> None:
    statistics = known(chain())
    graph = statistics.graph
    (inputs, _), *_ = statistics.batches
    with torch.no_grad():
        expected: Tensor = graph.model(*inputs)
    torch.testing.assert_close(Teacher(graph, "fp32")(inputs), expected, atol=1e-5, rtol=1e-4)
    torch.testing.assert_close(Teacher(graph)(inputs), expected, atol=0.05, rtol=0.05)
    assert not Teacher(graph)(inputs).requires_grad


@given(st.floats(0, 1), st.floats(0, 0.9))
def test_the_rate_rises_then_falls_to_nothing(progress: float, warmup: float) -> None:
    recipe = Recipe(rate=0.1, warmup=warmup)
    assert 0 <= recipe.rate_at(progress) <= 0.1 + 1e-12
    assert recipe.rate_at(1.0) == pytest.approx(0, abs=1e-12)
    assert recipe.rate_at(warmup) == pytest.approx(0.1)
    assert recipe.temperature_at(0) == recipe.temperature and recipe.temperature_at(1) == recipe.final_temperature


def test_impossible_budgets_and_recipes_are_refused() -> None:
    with pytest.raises(ValueError, match="seconds or steps"):
        Budget()
    with pytest.raises(ValueError, match="at least 0"):
        Budget(seconds=-1)
    with pytest.raises(ValueError, match="precision"):
        Recipe(precision="fp8")
    with pytest.raises(ValueError, match="positive"):
        Recipe(rate=0)
