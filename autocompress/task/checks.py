"""Whether a task holds what a search needs, told before any time is spent on it."""

import math
from typing import Any

from torch import Tensor

from autocompress.task.batches import batched, first_batches, size
from autocompress.task.calling import SPLITS, Calling, calling_of, evaluating
from autocompress.task.task import Score, Task
from autocompress.vocabulary.errors import TaskError, in_one_line

_UNLABELLED = frozenset({"calibration"})
"""Splits whose targets are never looked at."""


def check_task(task: Task) -> Calling:
    """How the model is called, learnt from the first batches of every split, one of which is scored.

    Raises TaskError for what can't work.
    """
    calling = calling_of(task)
    for split in SPLITS:
        loader = getattr(task, split)
        if loader is not None:
            _check_targets(split, calling, *first_batches(split, loader, 1)[0])
    if task.validation is None:
        raise TaskError("Task.validation is missing; give (inputs, targets) batches to choose models by")
    _check_score(task, calling)
    return calling


def _check_targets(split: str, calling: Calling, inputs: Any, targets: Any) -> None:
    if targets is None and split not in _UNLABELLED:
        raise TaskError(f"Task.{split} has no labels (targets are None); yield (inputs, targets) batches")
    batch = calling.batch(inputs, targets)
    samples = size(batch)
    if isinstance(targets, Tensor) and targets.dim() and any(batched(batch)) and len(targets) != samples:
        raise TaskError(f"Task.{split} yields {samples} inputs with {len(targets)} targets in one batch")


def _check_score(task: Task, calling: Calling) -> None:
    """Scores the original on one batch, so that a score that can't work is known at once."""
    if task.score is None:
        return
    batch = first_batches("validation", task.validation, 1)[0]
    try:
        with evaluating(task.model):
            score = task.score(task.model, [batch])
    except Exception as error:
        shapes = calling.shown(batch[0])
        raise TaskError(
            f"Task.score fails on a validation batch of {shapes}: {type(error).__name__}: {in_one_line(error)}; "
            "it gets a callable that takes and returns what the model does, and batches as Task.validation yields them"
        ) from error
    if not isinstance(score, Score):
        raise TaskError(
            f"Task.score returns a {type(score).__name__}; return autocompress.Score(value, stderr, samples)"
        )
    if not math.isfinite(score.value):
        raise TaskError(
            f"Task.score of the original model is {score.value} on a validation batch; a score must be a finite "
            "number, larger is better"
        )
