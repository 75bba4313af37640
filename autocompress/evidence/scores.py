"""Scores: what a model is worth on a split, larger is better, each with its standard error.

Every function has the form `(predict, split) -> Score` and takes any callable, so that a torch model and a deployed
session are judged by the same code.
"""

import math
from collections.abc import Callable
from typing import Any

import torch
from torch import Tensor
from torch.nn import functional as F

from autocompress.task.batches import as_call, pairs
from autocompress.task.outputs import IGNORED, classes_first, main_output
from autocompress.task.task import Loader, Predict, Score, ScoreFunction
from autocompress.vocabulary.errors import TaskError

Pair = tuple[Any, Any]
"""(inputs, targets) as the user's loaders give them."""


def top1(predict: Predict, split: Loader) -> Score:
    """Share of samples whose largest output is the labelled class; stderr sqrt(p(1-p)/n).

    Outputs are (N, classes, ...) or (N, ..., classes), targets (N, ...) of integers; positions count as samples, those
    labelled -100 do not. Of several outputs, those called `logits` or the only floats are judged. The first of equal
    outputs wins. Raises TaskError for outputs that are not finite and for targets of another shape.
    """
    hits = _collect(predict, split, _hits)
    p = hits.mean().item()
    return Score(p, math.sqrt(p * (1 - p) / len(hits)), len(hits))


def negative_mean_squared_error(predict: Predict, split: Loader) -> Score:
    """Minus the squared error, averaged over a sample's outputs and then over samples."""
    return _mean(-_collect(predict, split, _squared_errors))


def r2(predict: Predict, split: Loader) -> Score:
    """Share of the targets' variance that is explained (1 = all of it); the stderr takes that variance as known."""
    held = list(split)
    errors = _collect(predict, held, _squared_errors)
    targets = torch.cat([_values(targets) for _, targets in pairs(held)])
    variance = (targets - targets.mean(0)).square().mean().item()
    if variance == 0:
        raise TaskError("r2 of constant targets is undefined; use negative_mean_squared_error as Task.score")
    error = _mean(errors)
    return Score(1 - error.value / variance, error.stderr / variance, error.samples)


def kl_to(reference: Predict) -> ScoreFunction:
    """A score that needs no labels: minus KL(reference || model) of the softmax outputs (N, classes, ...), in nats."""

    def negative_kl(predict: Predict, split: Loader) -> Score:
        def divergence(outputs: Tensor, batch: Pair) -> Tensor:
            target = _rows(_judged(reference, batch[0])).log_softmax(-1)
            return -F.kl_div(_rows(outputs).log_softmax(-1), target, reduction="none", log_target=True).sum(-1)

        return _mean(_collect(predict, split, divergence))

    return negative_kl


def _collect(predict: Predict, split: Loader, judge: Callable[[Tensor, Pair], Tensor]) -> Tensor:
    """One value per sample, float64; raises TaskError where a value is not finite."""
    values: list[Tensor] = []
    with torch.no_grad():
        for batch in pairs(split):
            outputs = _judged(predict, batch[0])
            if not torch.isfinite(outputs).all():
                raise TaskError(
                    f"the model's outputs are not finite in batch {len(values) + 1} of a split, so it has no score; "
                    "check the model's weights and the inputs' scaling"
                )
            values.append(judge(outputs.float(), batch).double().flatten())
    return torch.cat(values)


def _judged(predict: Predict, inputs: Any) -> Tensor:
    """The output that is judged, of the batch as its loader gives it."""
    args, kwargs = as_call(inputs)
    return main_output(predict(*args, **kwargs), "Task.score")


def _mean(values: Tensor) -> Score:
    n = len(values)
    value = values.mean().item()
    if not math.isfinite(value):
        raise TaskError(f"the score is {value}; a score must be a finite number, larger is better: check the targets")
    return Score(value, values.std().item() / math.sqrt(n) if n > 1 else math.inf, n)


def _hits(outputs: Tensor, batch: Pair) -> Tensor:
    targets = batch[1]
    outputs = classes_first(outputs, targets)
    targets = targets[None] if isinstance(targets, Tensor) and not targets.dim() else targets
    predicted = outputs.argmax(1) if outputs.dim() > 1 else outputs
    if not isinstance(targets, Tensor) or targets.shape != predicted.shape or targets.is_floating_point():
        found = f"{tuple(targets.shape)} {targets.dtype}" if isinstance(targets, Tensor) else type(targets).__name__
        raise TaskError(
            f"top-1 needs integer targets of shape {tuple(predicted.shape)} for outputs of shape "
            f"{tuple(outputs.shape)}, found {found}; give labels, or set Task.score"
        )
    return (predicted == targets)[targets != IGNORED]


def _squared_errors(outputs: Tensor, batch: Pair) -> Tensor:
    targets = _values(batch[1])
    if targets.shape != outputs.flatten(1).shape:
        raise TaskError(
            f"outputs of shape {tuple(outputs.shape)} can't be compared with targets {tuple(targets.shape)}"
        )
    return (outputs.flatten(1) - targets).square().mean(1)


def _values(targets: object) -> Tensor:
    """Targets as (N, values per sample)."""
    if not isinstance(targets, Tensor):
        raise TaskError(
            f"the score needs target tensors, found {type(targets).__name__}; yield (inputs, targets) batches"
        )
    return targets.float().reshape(len(targets), -1)


def _rows(outputs: Tensor) -> Tensor:
    """(N, classes, ...) as one row per distribution, grouped by sample and position."""
    return outputs.float().movedim(1, -1).reshape(-1, outputs.shape[1])
