"""Which of a model's outputs is judged where the task does not say, and where its classes lie."""

from typing import Any

from torch import Tensor
from torch.nn import functional as F

from autocompress.task.structure import parts, returned, tensors_of
from autocompress.vocabulary.errors import TaskError

LOGITS = "logits"
"""What models that return several tensors call the scores of their classes."""

IGNORED = -100
"""The label of positions that do not count, as in torch's cross-entropy."""


def main_output(outputs: Any, instead: str) -> Tensor:
    """The tensor itself, what is called `logits`, or else the only floating tensor.

    Raises TaskError that tells to set `instead` ("Task.score") where there are none or several.
    """
    if isinstance(outputs, Tensor):
        return outputs
    logits = (parts(outputs) or {}).get(LOGITS)
    if isinstance(logits, Tensor):
        return logits
    structure = returned(outputs)
    named = zip(structure.paths(), tensors_of(structure, outputs), strict=True)
    floats = {name: tensor for name, tensor in named if tensor.is_floating_point()}
    if len(floats) != 1:
        what = f"{len(floats)} floating tensors ({', '.join(floats)})" if floats else "no floating tensor"
        raise TaskError(
            f"the model returns {what}, none of them called {LOGITS}: which to judge is not known; set {instead}, a "
            "function that gets what the model returns"
        )
    return next(iter(floats.values()))


def classes_first(outputs: Tensor, targets: Any) -> Tensor:
    """(N, classes, ...) from outputs with the classes along axis 1 or, where the shape of targets tells so, last."""
    if not isinstance(targets, Tensor) or outputs.dim() < 3 or targets.dim() != outputs.dim() - 1:
        return outputs
    first = targets.shape == outputs.shape[:1] + outputs.shape[2:]
    return outputs.movedim(-1, 1) if targets.shape == outputs.shape[:-1] and not first else outputs


def floats_of(outputs: Any) -> Any:
    """The same structure in float32, integers left alone."""
    structure = returned(outputs)
    tensors = tensors_of(structure, outputs)
    return structure.restored(t.float() if t.is_floating_point() else t for t in tensors)


def cross_entropy(outputs: Any, targets: Any) -> Tensor:
    """The loss of tasks that bring none: of the main output, classes along axis 1 or last."""
    found = main_output(outputs, "Task.loss")
    return F.cross_entropy(classes_first(found, targets).float(), targets)
