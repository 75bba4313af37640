"""Which range of a tensor to spend its 256 levels on, from samples of its values."""

from collections.abc import Mapping, Sequence
from dataclasses import dataclass, field
from typing import Any

import torch
from torch import Tensor
from torch.fx import GraphModule, Node

from autocompress.vocabulary.errors import ConfigError, nearest

_SAMPLES_PER_BATCH = 16_384
_BINS = 1024
_LEVELS = 255
_SHRINKS = 24
_LEAST_SHRINK = 0.3
_PERCENTILE = 99.99


@dataclass(slots=True)
class Observation:
    """What was seen of one tensor: its extremes, and an even sample of its values per batch."""

    low: float = 0.0
    high: float = 0.0
    samples: list[Tensor] = field(default_factory=list)

    def add(self, value: Tensor) -> None:
        low, high = value.aminmax()
        self.low, self.high = float(low.minimum(torch.tensor(self.low))), float(high.maximum(torch.tensor(self.high)))
        flat = value.reshape(-1)
        step = max(1, flat.numel() // _SAMPLES_PER_BATCH) | 1
        self.samples.append(flat[::step].float())


def observe(model: GraphModule, nodes: Sequence[Node], batches: Sequence[Any]) -> dict[Node, Observation]:
    """Runs batches (a tensor or a tuple of inputs each) through the model and watches what `nodes` yield."""
    observer = _Observer(model, {node: Observation() for node in nodes})
    with torch.no_grad():
        for batch in batches:
            observer.run(*(batch if isinstance(batch, (tuple, list)) else (batch,)))
    return dict(observer.watched)


class _Observer(torch.fx.Interpreter):
    def __init__(self, model: GraphModule, watched: Mapping[Node, Observation]) -> None:
        super().__init__(model)
        self.watched = watched

    def run_node(self, n: Node) -> Any:
        value = super().run_node(n)
        if n in self.watched:
            self.watched[n].add(value)
        return value


def choose(observation: Observation, method: str) -> tuple[float, float]:
    """(low, high) by "mse" (least squared error), "percentile" (all but 1 in 10,000) or "minmax"; holds zero."""
    if method not in _METHODS:
        raise ConfigError(f"unknown choice of ranges {method!r}: {nearest(method, _METHODS)}")
    return _METHODS[method](observation)


def _extremes(observation: Observation) -> tuple[float, float]:
    return observation.low, observation.high


def _percentile(observation: Observation) -> tuple[float, float]:
    ordered = torch.cat(observation.samples).sort().values
    beyond = int(ordered.numel() * (1 - _PERCENTILE / 100))
    return min(0.0, float(ordered[beyond])), max(0.0, float(ordered[-1 - beyond]))


def _least_error(observation: Observation) -> tuple[float, float]:
    """The best of a grid of shrunken ranges, the error taken over a histogram of the samples.

    Rounding errs by step^2 / 12 inside the range (a uniform error), clipping by the squared distance to it outside.
    """
    low, high = observation.low, observation.high
    if not high > low:
        return low, high
    counts, edges = torch.histogram(torch.cat(observation.samples), _BINS, range=(low, high))
    centres = (edges[1:] + edges[:-1]) / 2
    shrinks = torch.linspace(1, _LEAST_SHRINK, _SHRINKS)
    lows = low * shrinks if low < 0 else torch.zeros(1)
    highs = high * shrinks if high > 0 else torch.zeros(1)
    below = ((lows[:, None] - centres).clamp_min(0).square() * counts).sum(1)
    above = ((centres - highs[:, None]).clamp_min(0).square() * counts).sum(1)
    step = (highs[None] - lows[:, None]) / _LEVELS
    error = below[:, None] + above[None] + step.square() / 12 * counts.sum()
    i, j = divmod(int(error.argmin()), highs.numel())
    return float(lows[i]), float(highs[j])


_METHODS = {"mse": _least_error, "percentile": _percentile, "minmax": _extremes}
