"""Scores against their closed forms, and what has no score."""

import math
from collections.abc import Callable

import pytest
import torch
from hypothesis import given
from hypothesis import strategies as st
from torch import Tensor

from autocompress.evidence.scores import kl_to, negative_mean_squared_error, r2, top1
from autocompress.task.task import ScoreFunction
from autocompress.vocabulary.errors import TaskError


def identity(x: Tensor) -> Tensor:
    return x


@given(st.integers(1, 60), st.integers(0, 10**6))
def test_top1_is_the_share_of_hits(n: int, seed: int) -> None:
    generator = torch.Generator().manual_seed(seed)
    outputs, targets = torch.randn(n, 4, generator=generator), torch.randint(0, 4, (n,), generator=generator)
    p = sum(int(row.argmax()) == int(t) for row, t in zip(outputs, targets, strict=True)) / n
    score = top1(identity, [(outputs[:3], targets[:3]), (outputs[3:], targets[3:])] if n > 3 else [(outputs, targets)])
    assert score.value == pytest.approx(p) and score.samples == n
    assert score.stderr == pytest.approx(math.sqrt(p * (1 - p) / n))


def test_top1_counts_positions_as_samples() -> None:
    outputs = torch.tensor([[[1.0, 0.0, 1.0], [0.0, 1.0, 0.0]]])
    assert top1(identity, [(outputs, torch.tensor([[0, 1, 1]]))]).value == pytest.approx(2 / 3)


def test_a_model_of_several_inputs_is_called_with_all() -> None:
    x, y = torch.eye(2), torch.zeros(2, 2)
    assert top1(torch.add, [((x, y), torch.tensor([0, 1]))]).value == 1


def test_squared_error_and_its_stderr() -> None:
    outputs, targets = torch.tensor([[1.0], [2.0], [6.0]]), torch.tensor([1.0, 1.0, 4.0])
    score = negative_mean_squared_error(identity, [(outputs, targets)])
    assert score.value == pytest.approx(-5 / 3)
    assert score.stderr == pytest.approx(torch.tensor([0.0, 1.0, 4.0]).std().item() / math.sqrt(3))


def test_r2_of_the_mean_is_zero_and_of_the_truth_one() -> None:
    targets = torch.tensor([[1.0], [2.0], [6.0]])
    assert r2(identity, [(targets, targets)]).value == 1
    assert r2(lambda x: torch.full_like(x, 3.0), [(targets, targets)]).value == pytest.approx(0, abs=1e-6)


def test_kl_is_zero_only_for_the_same_distribution() -> None:
    logits, other = torch.tensor([[0.0, 0.0], [1.0, 3.0]]), torch.tensor([[1.0, 0.0], [1.0, 3.0]])
    score = kl_to(identity)
    assert score(lambda x: x + 5, [(logits, None)]).value == pytest.approx(0, abs=1e-6)
    expected = torch.tensor([0.5, 0.5]) @ (torch.tensor([0.5, 0.5]).log() - other[0].log_softmax(0))
    assert score(lambda x: other, [(logits, None)]).value == pytest.approx(-expected.item() / 2)


@pytest.mark.parametrize(
    ("score", "targets"),
    [(top1, torch.tensor([0])), (negative_mean_squared_error, torch.ones(1, 2)), (kl_to(identity), None)],
)
def test_outputs_that_are_not_finite_have_no_score(score: ScoreFunction, targets: Tensor | None) -> None:
    with pytest.raises(TaskError, match="not finite in batch 2"):
        score(lambda x: x / x, [(torch.ones(1, 2), targets), (torch.zeros(1, 2), targets)])


def test_a_nan_target_is_named() -> None:
    with pytest.raises(TaskError, match="the score is nan"):
        negative_mean_squared_error(identity, [(torch.zeros(2, 1), torch.tensor([0.0, math.nan]))])


@pytest.mark.parametrize(
    ("targets", "found"),
    [(None, "NoneType"), (torch.zeros(2), "float32"), (torch.zeros(2, 3, dtype=torch.long), r"\(2, 3\)")],
)
def test_top1_names_targets_that_do_not_fit(targets: object, found: str) -> None:
    with pytest.raises(TaskError, match=found):
        top1(identity, [(torch.zeros(2, 3), targets)])


def test_targets_of_another_size_are_refused() -> None:
    with pytest.raises(TaskError, match=r"\(2, 3\)"):
        negative_mean_squared_error(identity, [(torch.zeros(2, 3), torch.zeros(2))])


def test_r2_of_constant_targets_is_refused() -> None:
    with pytest.raises(TaskError, match="constant"):
        r2(identity, [(torch.zeros(2, 1), torch.ones(2, 1))])


@pytest.mark.parametrize(
    "given",
    [
        lambda x: x,
        lambda x: (x, None),
        lambda x: {"x": x},
        lambda x: {"x": x, "scale": torch.tensor(1.0)},
    ],
)
def test_a_score_calls_the_model_as_its_loader_gives_the_inputs(given: Callable[[Tensor], object]) -> None:
    def model(x: Tensor, scale: Tensor | None = None) -> dict[str, Tensor]:
        return {"hidden": -x, "logits": x}

    x, labels = torch.eye(3)[[0, 1, 2, 2]], torch.tensor([0, 1, 2, 0])
    assert top1(model, [(given(x), labels)]).value == 0.75
    assert kl_to(model)(model, [(given(x), None)]).value == pytest.approx(0, abs=1e-6)


def test_positions_labelled_to_be_ignored_do_not_count_and_classes_may_lie_last() -> None:
    outputs = torch.eye(5)[torch.tensor([[0, 1, 2], [3, 4, 4]])]
    labels = torch.tensor([[0, 1, -100], [3, 0, -100]])
    found = top1(lambda x: outputs, [(torch.zeros(2), labels)])
    assert found.value == 0.75 and found.samples == 4


def test_several_floats_ask_for_a_score_of_the_task_s_own() -> None:
    with pytest.raises(TaskError, match=r"set Task\.score"):
        top1(lambda x: (x, x), [(torch.zeros(2, 2), torch.zeros(2, dtype=torch.long))])
