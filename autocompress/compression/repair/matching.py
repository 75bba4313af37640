"""How far a model's outputs are from those of the model it should stand for."""

from collections.abc import Callable, Sequence
from typing import Any

import torch
from torch import Tensor, nn
from torch.nn import functional as F

from autocompress.task.batches import Batch, size
from autocompress.task.outputs import Outputs, as_flat, classes_first, paired, sole
from autocompress.vocabulary.errors import TaskError

Matching = Callable[[Tensor, Tensor, float], Tensor]
"""(outputs, wanted outputs, temperature) → a mean over samples that is 0 where they agree."""


def soft_targets(outputs: Tensor, wanted: Tensor, temperature: float = 1.0) -> Tensor:
    """KL divergence of the softened class distributions times temperature^2 (Hinton et al., 2015, section 2.1).

    Outputs are logits (N, classes, ...); the mean is over all distributions.
    """
    student = (outputs.float() / temperature).movedim(1, -1).flatten(0, -2).log_softmax(-1)
    teacher = (wanted.float() / temperature).movedim(1, -1).flatten(0, -2).log_softmax(-1)
    return F.kl_div(student, teacher, reduction="batchmean", log_target=True) * temperature**2


def squared_error(outputs: Tensor, wanted: Tensor, temperature: float = 1.0) -> Tensor:
    """Mean squared error relative to the wanted outputs' variance over samples (of a single one: over its values); the
    temperature has no meaning here."""
    centre = wanted.float().mean(0) if wanted.dim() and len(wanted) > 1 else wanted.float().mean()
    variance = (wanted.float() - centre).square().mean()
    return (outputs.float() - wanted.float()).square().mean() / variance.clamp_min(torch.finfo(torch.float32).tiny)


def similarity(features: Tensor, wanted: Tensor) -> Tensor:
    """How differently two models see the samples of a batch as like one another, whatever their widths.

    Squared difference of the row-normalised Gram matrices of the samples (Tung and Mori, ICCV 2019, eq. 1-3), per
    sample, so that its size does not depend on the batch.
    """
    a, b = (F.normalize(rows @ rows.T, dim=1) for rows in (f.float().flatten(1) for f in (features, wanted)))
    return (a - b).square().sum() / len(a)


def matching_for(targets: Any) -> Matching:
    """Class distributions are matched where targets are labels or missing, values where targets are floats."""
    return squared_error if isinstance(targets, Tensor) and targets.is_floating_point() else soft_targets


def mismatch(outputs: Outputs, wanted: Outputs, targets: Any, temperature: float = 1.0) -> Tensor:
    """How far a model's outputs are from the wanted ones, 0 where they agree.

    A single floating tensor is matched as `matching_for` says, as values where it has no axis of classes. Of several
    outputs the floating ones count, all alike: those that targets label are matched as class distributions, all others
    (hidden states, boxes, scores that nobody labelled) by the squared error relative to their variance, so that neither
    width nor scale gives one more say.
    """
    ours, theirs = sole(outputs), sole(wanted)
    if isinstance(ours, Tensor) and isinstance(theirs, Tensor):
        ours, theirs = classes_first(ours, targets), classes_first(theirs, targets)
        matching = matching_for(targets) if ours.dim() > 1 else squared_error
        return matching(ours, theirs, temperature)
    found, reference = as_flat(outputs), as_flat(wanted)
    parts = [_part(found[i], reference[i], about, temperature) for i, about in paired(wanted, targets)]
    if not parts:
        raise TaskError("the model returns no floating tensor: there is nothing to learn from the original")
    return torch.stack(parts).mean()


def _part(outputs: Tensor, wanted: Tensor, targets: Any, temperature: float) -> Tensor:
    if targets is None or (isinstance(targets, Tensor) and targets.is_floating_point()):
        return squared_error(outputs, wanted)
    return soft_targets(classes_first(outputs, targets), classes_first(wanted, targets), temperature)


def divergence(model: nn.Module, batches: Sequence[Batch], wanted: Sequence[Outputs]) -> float:
    """Mean over samples of how far the model's outputs are from the wanted ones, batch by batch."""
    total, samples = 0.0, 0
    with torch.no_grad():
        for batch, reference in zip(batches, wanted, strict=True):
            total += size(batch) * mismatch(model(*batch[0]), reference, batch[1]).item()
            samples += size(batch)
    return total / samples


def outputs_of(model: nn.Module, batches: Sequence[Batch]) -> list[Outputs]:
    with torch.no_grad():
        return [model(*inputs) for inputs, _ in batches]
