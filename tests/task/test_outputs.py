"""Of several outputs the judged one is found or asked for, classes are found where they lie, targets where they fit."""

from collections import namedtuple
from typing import Any

import pytest
import torch
from torch import Tensor
from torch.nn import functional as F

from autocompress.task.outputs import classes_first, cross_entropy, main_output, paired, sole
from autocompress.vocabulary.errors import TaskError
from tests.task.test_structure import Output

logits, hidden, mask = torch.randn(4, 3), torch.randn(4, 7), torch.ones(4, dtype=torch.long)
Named = namedtuple("Named", ["mask", "logits", "hidden"])


@pytest.mark.parametrize(
    "outputs",
    [
        logits,
        (logits,),
        [mask, logits],
        {"scores": {"of classes": logits}, "mask": mask},
        {"hidden": hidden, "logits": logits},
        Output(logits, (hidden, hidden)),
        Named(mask, logits, hidden),
    ],
)
def test_the_judged_output_is_the_logits_or_the_only_floats(outputs: Any) -> None:
    assert main_output(outputs, "Task.score") is logits
    labels = torch.tensor([0, 2, 1, 1])
    assert cross_entropy(outputs, labels).item() == pytest.approx(F.cross_entropy(logits, labels).item())


@pytest.mark.parametrize(("outputs", "found"), [
    ((logits, hidden), r"2 floating tensors \(0, 1\)"),
    ({"a": logits, "b": [hidden]}, r"2 floating tensors \(a, b_0\)"),
    ((mask,), "no floating tensor"),
])  # fmt: skip
def test_what_is_not_clear_is_asked_for(outputs: Any, found: str) -> None:
    with pytest.raises(TaskError, match=f"the model returns {found}.* set Task.loss"):
        main_output(outputs, "Task.loss")


@pytest.mark.parametrize("shape", [(2, 5), (2, 3, 5), (2, 5, 3), (2, 5, 4, 4), (2, 4, 4, 5), (2, 5, 5)])
def test_classes_lie_where_the_targets_have_no_axis(shape: tuple[int, ...]) -> None:
    outputs = torch.randn(shape)
    for axis in {1, len(shape) - 1}:
        targets = torch.zeros(shape[:axis] + shape[axis + 1 :], dtype=torch.long)
        first = classes_first(outputs, targets)
        wanted = 1 if shape[:1] + shape[2:] == tuple(targets.shape) else axis
        assert torch.equal(first, outputs.movedim(wanted, 1))
    assert classes_first(outputs, None) is outputs


def test_targets_are_about_the_outputs_that_they_fit() -> None:
    labels, values, boxes = torch.zeros(4, dtype=torch.long), torch.randn(4, 7), torch.randn(4, 7, 2)
    outputs = (logits, mask, hidden, boxes)
    assert paired(outputs, labels) == [(0, labels), (2, None), (3, None)]
    assert paired(outputs, values) == [(0, None), (2, values), (3, None)]
    assert paired(outputs, None) == [(0, None), (2, None), (3, None)]
    each: list[Tensor] = [labels, values, boxes]
    assert (
        paired(outputs, each)
        == paired(outputs, dict(zip("abc", each, strict=True)))
        == list(zip((0, 2, 3), each, strict=True))
    )
    assert sole((mask, logits)) is logits and sole(outputs) is outputs
