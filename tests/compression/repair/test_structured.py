"""Statistics, importances and fine-tuning of a model with keyword inputs, several outputs and a loss of its own."""

import copy
from typing import Any

import pytest
import torch
from torch import Tensor
from torch.nn import functional as F

from autocompress.compression.repair.distill import Budget, Recipe, Teacher, fine_tune
from autocompress.compression.repair.matching import divergence, outputs_of
from autocompress.compression.repair.statistics import collect
from autocompress.compression.tracing import trace_task
from autocompress.graph.cut import cut
from autocompress.task.calling import calling_of
from autocompress.task.task import Task
from tests.compression.test_tracing import GIVEN, TwoHeads, tokens

Targets = dict[str, Tensor]


def labelled(lengths: tuple[int, ...]) -> list[tuple[dict[str, Tensor], Targets]]:
    torch.manual_seed(1)
    return [
        (tokens(16, length), {"kind": torch.randint(0, 3, (16,)), "size": torch.randn(16, 1)}) for length in lengths
    ]


def a_task(give: str, lengths: tuple[int, ...] = (9, 9, 9, 9)) -> Task:
    split = labelled(lengths)
    return Task(TwoHeads(GIVEN[give]).eval(), tokens(1, 9), split, train=split)


@pytest.mark.parametrize("lengths", [(9, 9, 9, 9), (9, 7, 12, 7)])
def test_every_importance_tells_channels_apart(lengths: tuple[int, ...]) -> None:
    task = a_task("dict", lengths)
    graph, calling = trace_task(task), calling_of(task)
    assert task.train is not None
    statistics = collect(graph, calling.split(task.train), 48)
    (group,) = graph.free_groups
    for name in ("l1", "l2", "taylor", "fisher", "reconstruction"):
        scores = statistics.importance(group, name)
        assert torch.isfinite(scores).all() and scores.std() > 0, name


@pytest.mark.parametrize("give", ["dict", "output", "tuple"])
@pytest.mark.parametrize("label_weight", [0.0, 0.5])
def test_a_loss_gets_what_the_model_returns_and_training_comes_closer(give: str, label_weight: float) -> None:
    task = a_task(give)
    seen: list[Any] = []

    def loss(outputs: Any, targets: Targets) -> Tensor:
        seen.append(outputs)
        kind, size = (outputs["logits"], 0) if isinstance(outputs, dict) else (outputs[0], 1)
        return F.cross_entropy(kind, targets["kind"]) + size * 0

    assert task.train is not None
    calling, graph = calling_of(task), trace_task(task)
    model = copy.deepcopy(graph.model)
    (group,) = graph.free_groups
    cut(model, graph, {group: list(range(8))})
    batches = list(calling.split(task.train))
    wanted = outputs_of(graph.model, batches)
    before = divergence(model.eval(), batches, wanted)
    recipe = Recipe(rate=0.02, label_weight=label_weight, loss=calling.loss(loss), precision="fp32", feature_weight=0)
    report = fine_tune(model, Teacher(graph, "fp32"), calling.split(task.train), Budget(steps=40), recipe)
    assert report.steps == 40 and report.samples == 40 * 16 and report.rolled_back is None
    assert bool(seen) == (label_weight > 0)
    assert {type(outputs) for outputs in seen} <= {type(task.model(**task.example_inputs))}
    if not label_weight:
        assert divergence(model.eval(), batches, wanted) < before / 2
