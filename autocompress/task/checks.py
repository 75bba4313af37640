"""Whether a task holds what a search needs, told before any time is spent on it."""

import math
from collections.abc import Iterator
from typing import Any

import torch
from torch import Tensor

from autocompress.task.batches import as_tuple
from autocompress.task.task import Loader, Score, Task
from autocompress.vocabulary.errors import TaskError

SPLITS = ("validation", "calibration", "train", "test")
_UNLABELLED = frozenset({"calibration"})
"""Splits whose targets are never looked at."""


def check_task(task: Task) -> None:
    """Looks at the first batch of every split and scores one; raises TaskError for what can't work."""
    if not isinstance(task.model, torch.nn.Module):
        raise TaskError(f"Task.model is a {type(task.model).__name__}; it must be a trained torch.nn.Module")
    shapes = [tuple(tensor.shape[1:]) for tensor in _example_inputs(task)]
    for split in SPLITS:
        loader = getattr(task, split)
        if loader is not None:
            _check_batch(split, *first_batch(split, loader), shapes)
    if task.validation is None:
        raise TaskError("Task.validation is missing; give (inputs, targets) batches to choose models by")
    _check_score(task)


def first_batch(split: str, loader: Loader) -> tuple[tuple[Tensor, ...], Any]:
    """Inputs (as a tuple) and targets of the first batch; raises TaskError if there is none or it is no such pair."""
    if isinstance(loader, Iterator):
        raise TaskError(f"Task.{split} can be iterated only once; give a list of batches or a DataLoader")
    try:
        batch = next(iter(loader), None)
    except TypeError as error:
        raise TaskError(f"Task.{split} is a {type(loader).__name__}, not an iterable of (inputs, targets)") from error
    if batch is None:
        raise TaskError(f"Task.{split} is empty; give at least one (inputs, targets) batch")
    if not isinstance(batch, (tuple, list)) or len(batch) != 2:
        found = f"{len(batch)} values" if isinstance(batch, (tuple, list)) else type(batch).__name__
        raise TaskError(f"Task.{split} yields {found} instead of an (inputs, targets) pair; labels are needed")
    return as_tuple(batch[0]), batch[1]


def _example_inputs(task: Task) -> tuple[Tensor, ...]:
    inputs = as_tuple(task.example_inputs)
    for tensor in inputs:
        if not isinstance(tensor, Tensor) or tensor.dim() == 0:
            raise TaskError(
                f"Task.example_inputs holds a {type(tensor).__name__} without a batch dimension; give a tensor (or a "
                "tuple of tensors) with the batch first, such as torch.zeros(1, 3, 32, 32)"
            )
    return inputs


def _check_batch(split: str, inputs: tuple[Tensor, ...], targets: Any, shapes: list[tuple[int, ...]]) -> None:
    if targets is None and split not in _UNLABELLED:
        raise TaskError(f"Task.{split} has no labels (targets are None); yield (inputs, targets) batches")
    found = [tuple(tensor.shape[1:]) if isinstance(tensor, Tensor) else type(tensor).__name__ for tensor in inputs]
    if found != shapes:
        raise TaskError(
            f"Task.{split} yields inputs of shape {_shown(found)} per sample but Task.example_inputs has "
            f"{_shown(shapes)}; make both as the model's forward takes them"
        )
    if isinstance(targets, Tensor) and targets.dim() and len(targets) != len(inputs[0]):
        raise TaskError(f"Task.{split} yields {len(inputs[0])} inputs with {len(targets)} targets in one batch")


def _shown(shapes: list[Any]) -> str:
    return " and ".join(str(shape) for shape in shapes)


def _check_score(task: Task) -> None:
    """Scores the original on one batch, so that a score that can't work is known at once."""
    if task.score is None:
        return
    inputs, targets = first_batch("validation", task.validation)
    batch = (inputs if len(inputs) > 1 else inputs[0], targets)
    was_training = task.model.training
    task.model.eval()
    try:
        with torch.no_grad():
            score = task.score(task.model, [batch])
    except Exception as error:
        text = " ".join(str(error).split())
        raise TaskError(f"Task.score fails on a validation batch: {type(error).__name__}: {text[:240]}") from error
    finally:
        task.model.train(was_training)
    if not isinstance(score, Score):
        raise TaskError(
            f"Task.score returns a {type(score).__name__}; return autocompress.Score(value, stderr, samples)"
        )
    if not math.isfinite(score.value):
        raise TaskError(
            f"Task.score of the original model is {score.value} on a validation batch; a score must be a finite "
            "number, larger is better"
        )
