"""What the user hands over: a trained model, data, and how to judge it."""

from collections.abc import Callable, Iterable, Sequence
from dataclasses import dataclass, field
from typing import Any

import torch

Loader = Iterable[tuple[Any, Any]]
"""Any iterable of (inputs, targets) batches that can be iterated again; a DataLoader or a list will do."""

Predict = Callable[..., Any]
"""Takes and returns what the user's model does; stands for a torch model or a deployed session alike."""


@dataclass(frozen=True, slots=True)
class Score:
    """Larger is better. `stderr` is the standard error over `samples` samples."""

    value: float
    stderr: float
    samples: int


ScoreFunction = Callable[[Predict, Loader], Score]
LossFunction = Callable[[Any, Any], torch.Tensor]
"""(what the model returns, in float32; targets) → a scalar."""


@dataclass(slots=True)
class Task:
    """A trained model with its data.

    `model` is a torch.nn.Module, or the path (relative to the task file) of an ONNX file or of a torch.export program:
    it becomes a module when the task is first used, and verdicts are about the file.

    `example_inputs` is what the model is called with, as the loaders give it: a tensor, a tuple of positional arguments
    or a dict of keyword arguments, which may be tuples, dicts and dataclasses themselves. Samples lie along axis 0 of
    the tensors that have a batch; other axes may vary between batches. What is no tensor is a constant of the call.

    `score(predict, split)` and `loss(outputs, targets)` get what the model itself takes and returns; they default to
    top-1 accuracy and cross-entropy, of what is called `logits` or of the only floating tensor where the model returns
    several. `train` may be missing (nothing is fine-tuned), `test` may be missing (the report says that the front was
    chosen and scored on one split), `calibration` defaults to the training data without labels being used.

    `frozen` holds fnmatch patterns of layer names to leave alone. `student(width)` may return a narrower model of your
    own (0 < width < 1) with the same inputs and outputs; the search then tries these instead of narrower copies of
    `model`. They learn from the weights they come with, by distillation; layers named as the model's share its
    decisions about number formats.
    """

    model: Any
    example_inputs: Any
    validation: Loader
    calibration: Loader | None = None
    train: Loader | None = None
    test: Loader | None = None
    score: ScoreFunction | None = None
    loss: LossFunction | None = None
    frozen: Sequence[str] = field(default_factory=tuple)
    student: Callable[[float], torch.nn.Module] | None = None
