"""A task that can't work is refused before any time is spent, with a line that says why."""

from dataclasses import replace
from typing import Any

import pytest
import torch

from autocompress.task.checks import check_task
from autocompress.task.task import Loader, Predict, Score, Task
from autocompress.vocabulary.errors import TaskError

BATCH = (torch.zeros(2, 4), torch.zeros(2, dtype=torch.long))


def a_task(**changes: Any) -> Task:
    return replace(Task(torch.nn.Linear(4, 3), torch.zeros(1, 4), validation=[BATCH]), **changes)


def score_of(value: float) -> Any:
    def score(predict: Predict, loader: Loader) -> Score:
        assert [len(predict(inputs)) for inputs, _ in loader] == [2]
        return Score(value, 0.1, 2)

    return score


def test_a_good_task_passes_and_keeps_its_mode() -> None:
    task = a_task(calibration=[(BATCH[0], None)], train=[BATCH], test=[BATCH], score=score_of(0.5))
    task.model.train()
    check_task(task)
    assert task.model.training


def test_two_inputs_are_understood() -> None:
    check_task(
        a_task(
            model=torch.nn.Bilinear(4, 2, 3),
            example_inputs=(torch.zeros(1, 4), torch.zeros(1, 2)),
            validation=[((BATCH[0], torch.zeros(2, 2)), BATCH[1])],
        )
    )


@pytest.mark.parametrize(
    ("changes", "line"),
    [
        ({"model": "resnet"}, "Task.model is .resnet., which is no model file"),
        ({"example_inputs": [1, 2]}, r"can't be given to the model: too many .* forward takes \(input"),
        ({"example_inputs": [1]}, "Task.example_inputs holds no tensor"),
        ({"example_inputs": torch.tensor(1.0)}, r"does not run on Task.example_inputs \(a batch of \(\) float32\): "),
        ({"example_inputs": {"x": torch.zeros(1, 4)}}, "missing a required argument: 'input'"),
        ({"validation": [({"x": BATCH[0]}, BATCH[1])]}, "Task.validation yields other inputs .*: missing a required"),
        ({"test": [(BATCH[0].double(), BATCH[1])]}, r"yields input as \(2, 4\) float64 but .* has \(1, 4\) float32"),
        ({"validation": None}, "Task.validation is missing"),
        ({"validation": []}, "Task.validation is empty"),
        ({"test": []}, "Task.test is empty"),
        ({"train": 3}, "Task.train is a int, not an iterable"),
        ({"validation": iter([BATCH])}, "can be iterated only once"),
        ({"validation": [BATCH[0]]}, r"yields Tensor instead of an \(inputs, targets\) pair; labels"),
        ({"validation": [(*BATCH, 1)]}, "yields 3 values"),
        ({"validation": [(BATCH[0], None)]}, "Task.validation has no labels"),
        ({"train": [(torch.zeros(2, 5), BATCH[1])]}, r"shape \(5,\) per sample but Task.example_inputs has \(4,\)"),
        ({"validation": [(BATCH[0], torch.zeros(3))]}, "yields 2 inputs with 3 targets"),
        ({"score": score_of(float("nan"))}, "score of the original model is nan"),
        ({"score": lambda predict, loader: 0.5}, r"Task.score returns a float; return autocompress.Score"),
        (
            {"score": lambda predict, loader: 1 / 0},
            "Task.score fails on a validation batch of .* float32: ZeroDivisionError",
        ),
    ],
)
def test_each_mistake_has_its_line(changes: dict[str, Any], line: str) -> None:
    with pytest.raises(TaskError, match=line) as caught:
        check_task(a_task(**changes))
    assert "\n" not in str(caught.value)
