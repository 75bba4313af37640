"""Traced models with calibration data, small enough to repair in milliseconds."""

import copy
from dataclasses import replace
from functools import cache

import torch
from torch import Tensor, nn

from autocompress.compression.repair.statistics import Statistics, collect
from autocompress.graph import Graph, trace
from tests.zoo import make


class Chain(nn.Module):
    """Two convolutions and a linear layer; `inner` channels between the first two."""

    def __init__(self, inner: int = 6, norm: bool = True) -> None:
        super().__init__()
        self.first = nn.Conv2d(3, inner, 3, padding=1, bias=not norm)
        self.norm = nn.BatchNorm2d(inner) if norm else nn.Identity()
        self.second = nn.Conv2d(inner, 5, 3, padding=1, stride=2)
        self.last = nn.Linear(5, 4)

    def forward(self, x: Tensor) -> Tensor:
        x = torch.relu(self.norm(self.first(x)))
        return self.last(torch.relu(self.second(x)).mean((2, 3)))


def images(samples: int, seed: int = 1, size: int = 8) -> list[tuple[Tensor, Tensor]]:
    """Two batches of noise with labels."""
    generator = torch.Generator().manual_seed(seed)
    x = torch.randn(samples, 3, size, size, generator=generator)
    y = torch.randint(0, 4, (samples,), generator=generator)
    half = samples // 2
    return [(x[:half], y[:half]), (x[half:], y[half:])]


def chain(inner: int = 6, norm: bool = True, seed: int = 0) -> nn.Module:
    torch.manual_seed(seed)
    return Chain(inner, norm).eval()


@cache
def _traced(inner: int, norm: bool) -> Graph:
    return trace(chain(inner, norm), torch.randn(1, 3, 8, 8))


def traced(model: nn.Module) -> Graph:
    """The graph of a Chain with its own weights; the tracing itself is shared, it takes the longest."""
    assert isinstance(model, Chain)
    graph = _traced(model.first.out_channels, isinstance(model.norm, nn.BatchNorm2d))
    lifted = copy.deepcopy(graph.model)
    lifted.load_state_dict(model.state_dict())
    return replace(graph, model=lifted)


def known(model: nn.Module, samples: int = 32) -> Statistics:
    return collect(traced(model), images(samples), samples)


@cache
def zoo(name: str) -> Statistics:
    """Statistics of one of the zoo's models; shared, so never edit its graph."""
    model, inputs = make(name)
    graph: Graph = trace(model, inputs)
    generator = torch.Generator().manual_seed(0)
    if inputs.is_floating_point():
        x = torch.randn(48, *inputs.shape[1:], generator=generator)
    else:
        x = torch.randint(0, 50, (48, *inputs.shape[1:]), generator=generator)
    return collect(graph, [(x, torch.randint(0, 5, (48,), generator=generator))], 48)
