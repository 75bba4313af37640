"""What the user hands over: a trained model, data, and how to judge it."""

from collections.abc import Callable, Iterable, Sequence
from dataclasses import dataclass, field
from typing import Any

import torch

Loader = Iterable[tuple[Any, Any]]
"""Any iterable of (inputs, targets) batches that can be iterated again; a DataLoader or a list will do."""

Predict = Callable[..., torch.Tensor]
"""inputs → outputs; stands for a torch model or a deployed session alike."""


@dataclass(frozen=True, slots=True)
class Score:
    """Larger is better. `stderr` is the standard error over `samples` samples."""

    value: float
    stderr: float
    samples: int


ScoreFunction = Callable[[Predict, Loader], Score]
LossFunction = Callable[[torch.Tensor, torch.Tensor], torch.Tensor]


@dataclass(slots=True)
class Task:
    """A trained model with its data.

    `example_inputs` is a tensor or a tuple of tensors with a batch dimension first; `train` may be missing (nothing is
    fine-tuned), `test` may be missing (the report says that the front was chosen and scored on one split),
    `calibration` defaults to the training data without labels being used. `score` defaults to top-1 accuracy, `loss` to
    cross-entropy. `frozen` holds fnmatch patterns of layer names to leave alone. `student(width)` may return a
    narrower model of your own (0 < width < 1) with the same inputs and outputs; the search then tries these instead of
    narrower copies of `model`. They learn from the weights they come with, by distillation; layers named as the model's
    share its decisions about number formats.
    """

    model: torch.nn.Module
    example_inputs: torch.Tensor | tuple[torch.Tensor, ...]
    validation: Loader
    calibration: Loader | None = None
    train: Loader | None = None
    test: Loader | None = None
    score: ScoreFunction | None = None
    loss: LossFunction | None = None
    frozen: Sequence[str] = field(default_factory=tuple)
    student: Callable[[float], torch.nn.Module] | None = None
