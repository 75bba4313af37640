"""What calibration data says about a model, collected once: Gram matrices, importances, targets of a refit."""

import math
from collections.abc import Iterator
from dataclasses import dataclass, field
from typing import Any

import torch
from torch import Tensor, nn
from torch.fx import GraphModule

from autocompress.compression.importance import GateGradients, gate_gradients, score_channels
from autocompress.compression.matrices import draw_positions, input_patches, second_moments
from autocompress.compression.repair.sequential import Targets, record
from autocompress.graph.types import Graph
from autocompress.task.batches import Batch, size, subset
from autocompress.task.task import Loader

REFIT_SAMPLES = 256
"""Samples that a changed model is refitted on: on a ResNet-20 about a second; four times as many gain another point."""


@dataclass(slots=True)
class Statistics:
    """Calibration batches of one model, and what they say; iterates over its batches as (inputs, targets).

    Inputs are tuples of tensors, targets whatever the loader gave (perhaps None). `grams` are those of `gram`.
    """

    graph: Graph
    batches: list[Batch]
    grams: dict[str, Tensor]
    _scores: dict[tuple[str, str], Tensor] = field(default_factory=dict)
    _targets: dict[int, Targets] = field(default_factory=dict)
    _gates: GateGradients | None = None

    def __iter__(self) -> Iterator[Batch]:
        return iter(self.batches)

    def gram(self, layer: str) -> Tensor | None:
        """Second moments of the layer's input patches with a constant 1 appended: float64 [d+1, d+1], per position.

        d = in_channels * prod(window), in the column order of weight.reshape(out, -1). None for a layer that is
        grouped, transposed, shared with another call, or too wide.
        """
        return self.grams.get(layer)

    def importance(self, group: str, name: str) -> Tensor:
        """Scores [channels] of a group's channels, larger = keep, by the importance of that name; computed once."""
        key = (group, name)
        if key not in self._scores:
            self._scores[key] = score_channels(name, self.graph.model, self.graph.groups[group], self)
        return self._scores[key]

    def targets(self, samples: int = REFIT_SAMPLES) -> Targets:
        """What the original's layers make of the first samples, to refit a changed model to; computed once."""
        if samples not in self._targets:
            self._targets[samples] = record(self.graph.model, tuple(self.grams), subset(self.batches, samples))
        return self._targets[samples]

    def gate_gradients(self) -> GateGradients:
        """Gradients with respect to gates on the channels that enter each layer, per sample; computed once."""
        if self._gates is None:
            self._gates = gate_gradients(self.graph.model, tuple(self.graph.layers), self.batches)
        return self._gates


def collect(graph: Graph, loader: Loader, samples: int = 512, max_dim: int = 2400, seed: int = 0) -> Statistics:
    """One pass of the original model over the first `samples` samples; raises TaskError for an empty loader.

    Layers with more than `max_dim` columns get no Gram matrix.
    """
    batches = subset(loader, samples)
    return Statistics(graph, batches, gram_matrices(graph.model, _gram_layers(graph, max_dim), batches, seed))


def _gram_layers(graph: Graph, max_dim: int) -> tuple[str, ...]:
    """Layers that multiply each patch of their input by one matrix, with at most `max_dim` columns."""
    return tuple(
        name
        for name, layer in graph.layers.items()
        if layer.kind in ("conv", "linear")
        and math.prod(layer.weight_shape[1:]) <= max_dim
        and getattr(graph.model.get_submodule(name), "groups", 1) == 1
        and not layer.shared
    )


def gram_matrices(
    model: GraphModule, layers: tuple[str, ...], batches: list[Batch], seed: int = 0
) -> dict[str, Tensor]:
    """Gram matrices of the layers' inputs (see Statistics.gram) from one pass of the model in its present mode.

    Products are formed in the input's precision per batch and summed in float64.
    """
    generator = torch.Generator().manual_seed(seed)
    samples = sum(size(batch) for batch in batches)
    sums: dict[str, Tensor] = {}

    def accumulate(name: str, module: nn.Module, x: Tensor) -> None:
        product = second_moments(input_patches(module, x, draw_positions(module, x, samples, generator)))
        sums[name] = sums[name] + product if name in sums else product

    def hook(name: str) -> Any:
        return lambda module, args: accumulate(name, module, args[0])

    handles = [model.get_submodule(name).register_forward_pre_hook(hook(name)) for name in layers]
    try:
        with torch.no_grad():
            for inputs, _ in batches:
                model(*inputs)
    finally:
        for handle in handles:
            handle.remove()
    return {name: product / product[-1, -1] for name, product in sums.items()}
