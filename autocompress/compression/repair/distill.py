"""Distillation fine-tuning: a compressed model learns the original's outputs, in a given time or number of steps."""

import copy
import math
import time
from collections.abc import Callable
from contextlib import AbstractContextManager, nullcontext
from dataclasses import dataclass
from itertools import islice
from typing import Any

import torch
from torch import Tensor, nn
from torch.fx import GraphModule

from autocompress.compression.features import outputs_and_features
from autocompress.compression.repair.matching import mismatch, similarity
from autocompress.graph.rewrites import apply_exact
from autocompress.graph.types import Graph
from autocompress.task.batches import Batch, batched, batches, endless, size
from autocompress.task.outputs import Outputs, cross_entropy, in_floats
from autocompress.task.task import Loader, LossFunction
from autocompress.vocabulary.errors import TaskError

_HELD_BATCHES = 2
"""Batches on which the model is compared before and after."""

_WORSE = 1.5
"""Training that leaves the loss on these batches this many times as large is undone. On so few samples a loss is no
finer a judge: of two models the one with 7 % more of it was seen to be 1.6 points the better."""

_DIVERGED = 20.0
"""Training whose smoothed loss exceeds its least by this factor is given up."""

_SNAPSHOTS = 10
"""Times in a training that the weights are put aside, to fall back on."""


@dataclass(frozen=True, slots=True)
class Recipe:
    """How to train.

    `rate` is the peak learning rate of a cosine that ends at 0, after a linear warm-up over the share `warmup` of the
    budget. The temperature of the soft targets goes linearly from `temperature` to `final_temperature`. `label_weight`
    is the share of `loss` (of flat outputs; None: cross-entropy) beside the soft targets. At each of `feature_nodes`
    the samples' similarities are matched (there are none without a batch), with `feature_weight`. `clip` bounds the
    gradient's norm. `precision` is "bf16" (activations; weights stay float) or "fp32".

    The defaults are what did well on ResNets without some of their blocks, top-1 of 5,000: ResNet-20 in 590 steps 87.6
    at rate 0.02, 88.6 at 0.05, 88.8 to 89.3 at 0.1 and 0.2; ResNet-56 in 280 steps 90.8, 91.3 at 0.05, 90.9 to 91.2 at
    0.1. Temperature 4 throughout was never worse than a falling one or than 2. Batch norms learn along, since frozen
    ones end closer to the teacher on the training data but no better on other data.
    """

    rate: float = 0.08
    momentum: float = 0.9
    weight_decay: float = 1e-4
    warmup: float = 0.05
    temperature: float = 4.0
    final_temperature: float = 4.0
    label_weight: float = 0.0
    feature_weight: float = 1.0
    clip: float = 1.0
    precision: str = "bf16"
    loss: LossFunction | None = None
    feature_nodes: tuple[str, ...] = ()

    def __post_init__(self) -> None:
        if self.precision not in ("bf16", "fp32"):
            raise ValueError(f"precision {self.precision!r} is not one of bf16, fp32")
        if not (self.rate > 0 and self.temperature > 0 and self.final_temperature > 0 and 0 <= self.warmup < 1):
            raise ValueError("rate and temperatures must be positive, and the warm-up a share below 1")

    def rate_at(self, progress: float) -> float:
        """The learning rate after this share of the budget."""
        if progress < self.warmup:
            return self.rate * max(progress / self.warmup, 1e-3)
        return self.rate * (1 + math.cos(math.pi * (progress - self.warmup) / (1 - self.warmup))) / 2

    def temperature_at(self, progress: float) -> float:
        return self.temperature + (self.final_temperature - self.temperature) * progress


@dataclass(frozen=True, slots=True)
class Budget:
    """When to end: after `seconds` or `steps`, whichever is first; one of them is needed."""

    seconds: float = math.inf
    steps: float = math.inf

    def __post_init__(self) -> None:
        if not min(self.seconds, self.steps) >= 0 or min(self.seconds, self.steps) == math.inf:
            raise ValueError(f"a budget needs seconds or steps, at least 0; found {self.seconds} s, {self.steps} steps")

    def progress(self, elapsed_s: float, steps: int) -> float:
        """Share of the budget that is used up."""
        return max(_share(elapsed_s, self.seconds), _share(steps, self.steps))


def _share(used: float, available: float) -> float:
    return 1.0 if used >= available else used / available


@dataclass(frozen=True, slots=True)
class FineTuneReport:
    """What a training did.

    `before` and `after` are losses at temperature 1 on the same few batches, in eval mode.
    `rolled_back` says why the trained weights were given up for earlier ones; None if they were not.
    """

    steps: int
    samples: int
    seconds: float
    before: float
    after: float
    rolled_back: str | None = None
    stopped: bool = False

    @property
    def samples_per_s(self) -> float:
        return self.samples / self.seconds if self.seconds else 0.0


class Teacher:
    """The original, made fast: exactly rewritten, channels last, in the recipe's precision, without gradients."""

    def __init__(self, graph: Graph, precision: str = "bf16") -> None:
        self.original = graph.model
        self.precision = precision
        self.fast = copy.deepcopy(graph.model).eval()
        apply_exact(self.fast, graph.example_inputs)
        _lay_out(self.fast, torch.channels_last)

    def __call__(self, inputs: tuple[Tensor, ...]) -> Outputs:
        """Outputs in float32."""
        with torch.no_grad(), arithmetic(self.precision):
            outputs: Outputs = self.fast(*inputs)
        return in_floats(outputs)

    def features(self, inputs: tuple[Tensor, ...], nodes: tuple[str, ...]) -> tuple[Outputs, dict[str, Tensor]]:
        """Outputs in float32, and those of the named nodes."""
        with torch.no_grad(), arithmetic(self.precision):
            outputs, found = outputs_and_features(self.original, inputs, nodes)
        return in_floats(outputs), found


def arithmetic(precision: str) -> AbstractContextManager[Any]:
    return torch.autocast("cpu", torch.bfloat16) if precision == "bf16" else nullcontext()


def fine_tune(
    model: GraphModule,
    teacher: Teacher,
    loader: Loader,
    budget: Budget,
    recipe: Recipe = Recipe(),
    on_step: Callable[[float, float], bool] = lambda progress, loss: True,
) -> FineTuneReport:
    """Trains a model, in place, to give the teacher's outputs; leaves it in eval mode.

    The loader is iterated again and again; targets may be None unless the recipe's label_weight is positive. `on_step`
    is told the share of the budget used and the loss, and ends the training by returning False. A training that
    diverges, or ends much further from the teacher than it began, is rolled back and the report says so. Raises
    TaskError for an empty loader or missing labels.
    """
    training = _Training(model, teacher, loader, recipe)
    try:
        return training.run(budget, on_step)
    finally:
        _lay_out(model.eval(), torch.contiguous_format)


class _Training:
    """One fine-tuning under way."""

    def __init__(self, model: GraphModule, teacher: Teacher, loader: Loader, recipe: Recipe) -> None:
        self.model, self.teacher, self.loader, self.recipe = model, teacher, loader, recipe
        self.held = list(islice(batches(loader), _HELD_BATCHES))
        if recipe.label_weight > 0 and self.held[0][1] is None:
            raise TaskError(
                f"label_weight {recipe.label_weight} asks for labels, but Task.train yields None as targets; "
                "yield (inputs, targets) batches or set label_weight = 0"
            )
        _lay_out(model, torch.channels_last)
        self.parameters = [p for p in model.parameters() if p.requires_grad]
        self.optimizer = self._optimizer()

    def _optimizer(self) -> torch.optim.Optimizer:
        recipe = self.recipe
        groups = [
            {"params": [p for p in self.parameters if p.dim() > 1], "weight_decay": recipe.weight_decay},
            {"params": [p for p in self.parameters if p.dim() <= 1], "weight_decay": 0.0},
        ]
        return torch.optim.SGD(groups, lr=recipe.rate, momentum=recipe.momentum, nesterov=True, foreach=True)

    def run(self, budget: Budget, on_step: Callable[[float, float], bool]) -> FineTuneReport:
        first = fallback = _weights(self.model)
        before = self._held_loss()
        start = time.perf_counter()
        steps = samples = saved = 0
        smooth = least = math.inf
        failure, stopped = None, False
        for batch in endless(self.loader):
            progress = budget.progress(time.perf_counter() - start, steps)
            if progress >= 1 or stopped or failure:
                break
            loss = self._step(batch, progress)
            steps, samples = steps + 1, samples + size(batch)
            smooth = loss if steps == 1 else 0.9 * smooth + 0.1 * loss
            least = min(least, smooth)
            if not math.isfinite(loss) or smooth > _DIVERGED * least:
                failure = f"the loss was {loss:.3g} at step {steps}: a lower rate than {self.recipe.rate:g} may help"
            elif progress * _SNAPSHOTS >= saved + 1:
                fallback, saved = _weights(self.model), int(progress * _SNAPSHOTS)
            stopped = not on_step(progress, loss)
        seconds = time.perf_counter() - start
        if failure:
            self.model.load_state_dict(fallback)
        after = self._held_loss()
        if not after <= _WORSE * before:
            failure = failure or f"the loss went from {before:.3g} to {after:.3g}: a lower rate may help"
            self.model.load_state_dict(first)
            after = before
        return FineTuneReport(steps, samples, seconds, before, after, failure, stopped)

    def _step(self, batch: Batch, progress: float) -> float:
        """One step of the optimiser; returns the loss, whatever it is. A gradient that is not finite is not used."""
        for group in self.optimizer.param_groups:
            group["lr"] = self.recipe.rate_at(progress)
        self.model.train()
        loss = self._loss(batch, self.recipe.temperature_at(progress))
        self.optimizer.zero_grad()
        loss.backward()
        norm = nn.utils.clip_grad_norm_(self.parameters, self.recipe.clip)
        if torch.isfinite(norm):
            self.optimizer.step()
        return loss.item()

    def _loss(self, batch: Batch, temperature: float) -> Tensor:
        inputs, targets = tuple(_channels_last(tensor) for tensor in batch[0]), batch[1]
        recipe = self.recipe
        nodes = recipe.feature_nodes if any(batched(batch)) else ()
        if nodes:
            wanted, wanted_features = self.teacher.features(inputs, nodes)
            with arithmetic(recipe.precision):
                outputs, features = outputs_and_features(self.model, inputs, nodes)
        else:
            wanted, wanted_features, features = self.teacher(inputs), {}, {}
            with arithmetic(recipe.precision):
                outputs = self.model(*inputs)
        loss = (1 - recipe.label_weight) * mismatch(outputs, wanted, targets, temperature)
        if recipe.label_weight:
            loss = loss + recipe.label_weight * (recipe.loss or cross_entropy)(in_floats(outputs), targets)
        for name in features:
            loss = loss + recipe.feature_weight * similarity(features[name], wanted_features[name])
        return loss

    def _held_loss(self) -> float:
        self.model.eval()
        with torch.no_grad():
            return sum(self._loss(batch, 1.0).item() for batch in self.held) / len(self.held)


def _channels_last(tensor: Tensor) -> Tensor:
    return tensor.contiguous(memory_format=torch.channels_last) if tensor.dim() == 4 else tensor


def _lay_out(model: nn.Module, memory_format: torch.memory_format) -> None:
    for parameter in model.parameters():
        if parameter.dim() == 4:
            parameter.data = parameter.data.contiguous(memory_format=memory_format)


def _weights(model: nn.Module) -> dict[str, Tensor]:
    return {name: tensor.clone() for name, tensor in model.state_dict().items()}
