"""Which of a model's outputs is judged where the task does not say, and where its classes lie."""

from collections.abc import Mapping
from typing import Any

from torch import Tensor
from torch.nn import functional as F

from autocompress.task.structure import parts, returned, tensors_of
from autocompress.vocabulary.errors import TaskError

Outputs = Tensor | tuple[Tensor, ...]
"""What a model of flat tensors returns."""

LOGITS = "logits"
"""What models that return several tensors call the scores of their classes."""

IGNORED = -100
"""The label of positions that do not count, as in torch's cross-entropy."""


def as_flat(outputs: Outputs) -> tuple[Tensor, ...]:
    return (outputs,) if isinstance(outputs, Tensor) else tuple(outputs)


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
    """(N, classes, ...) from outputs with the classes along axis 1 or, where the shape of targets tells so, last.

    The scores of one sample without a batch are a batch of one.
    """
    if outputs.dim() == 1 and isinstance(targets, Tensor) and targets.dim() == 0 and not targets.is_floating_point():
        return outputs[None]
    if not isinstance(targets, Tensor) or outputs.dim() < 3 or targets.dim() != outputs.dim() - 1:
        return outputs
    first = targets.shape == outputs.shape[:1] + outputs.shape[2:]
    return outputs.movedim(-1, 1) if targets.shape == outputs.shape[:-1] and not first else outputs


def sole(outputs: Outputs) -> Outputs:
    """The only floating output by itself."""
    floats = [output for output in as_flat(outputs) if output.is_floating_point()]
    return floats[0] if len(floats) == 1 else outputs


def paired(outputs: Outputs, targets: Any) -> list[tuple[int, Any]]:
    """The floating outputs by number, each with the targets that are about it, or None.

    A tuple, list or dict of targets with as many entries as there are floating outputs has one for each; a tensor is
    about the first output whose shape it fits: that of one without its classes, or its own.
    """
    floats = [i for i, output in enumerate(as_flat(outputs)) if output.is_floating_point()]
    entries = list(targets.values()) if isinstance(targets, Mapping) else targets
    if isinstance(entries, (tuple, list)) and len(entries) == len(floats):
        return list(zip(floats, entries, strict=True))
    found: dict[int, Any] = dict.fromkeys(floats)
    fitting = [i for i in floats if fits(as_flat(outputs)[i], targets)]
    return list({**found, **{i: targets for i in fitting[:1]}}.items())


def fits(output: Tensor, targets: Any) -> bool:
    """Whether targets can be labels of an output's classes, or values that it should have."""
    if not isinstance(targets, Tensor):
        return False
    if targets.is_floating_point():
        return targets.shape == output.shape
    without_classes = (output.shape[:1] + output.shape[2:], output.shape[:-1])
    return output.dim() > 1 and targets.shape in without_classes


def in_floats(outputs: Outputs) -> Outputs:
    """In float32, integers left alone."""
    if isinstance(outputs, Tensor):
        return outputs.float() if outputs.is_floating_point() else outputs
    return tuple(t.float() if t.is_floating_point() else t for t in outputs)


def cross_entropy(outputs: Any, targets: Any) -> Tensor:
    """The loss of tasks that bring none: of the main output, classes along axis 1 or last."""
    found = main_output(outputs, "Task.loss")
    return F.cross_entropy(classes_first(found, targets).float(), targets)
