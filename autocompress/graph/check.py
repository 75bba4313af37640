"""The dead-channel check: what is silenced in the original and cut from a copy must give the same outputs."""

import copy
from dataclasses import replace

import torch
from torch import Tensor
from torch.fx import GraphModule

from autocompress.graph.cut import cut, silence
from autocompress.graph.types import Graph, Group
from autocompress.vocabulary.errors import AutocompressError

TOLERANCE = 1e-6
"""Of the largest output, in float64. Only the order of summation differs (about 1e-13 of it for a thousand terms, grown
by depth); a mis-wired channel differs by 1e-3 and more."""


def check_group(graph: Graph, group: Group, seed: int = 0) -> str | None:
    """None if cutting the group is proven right, else the reason why it is not.

    Silences about half of the channels, never the first alone: a wrong pairing can coincide on channel 0.
    """
    generator = torch.Generator().manual_seed(seed)
    order = torch.randperm(group.channels, generator=generator).tolist()
    gone = sorted(order[: max(1, group.channels // 2)])
    if gone == [0] and group.channels > 1:
        gone = [1]
    keep = [c for c in range(group.channels) if c not in gone]
    inputs = probe(graph.example_inputs, generator)
    claimed = replace(graph, groups={**graph.groups, group.id: group})
    try:
        silenced = copy.deepcopy(graph.model).double()
        silence(silenced, group, gone)
        shorter = copy.deepcopy(graph.model).double()
        cut(shorter, claimed, {group.id: keep})
        return _difference(silenced, shorter, inputs)
    except (AutocompressError, RuntimeError) as error:
        return f"the cut model does not run: {str(error).strip().splitlines()[0][:160]}"


def probe(example_inputs: tuple[Tensor, ...], generator: torch.Generator) -> tuple[Tensor, ...]:
    """Inputs of the examples' shapes that excite every channel: noise for float inputs, the examples for indices."""
    return tuple(
        torch.randn(t.shape, generator=generator, dtype=torch.float64) if t.dtype.is_floating_point else t
        for t in example_inputs
    )


def _difference(silenced: GraphModule, shorter: GraphModule, inputs: tuple[Tensor, ...]) -> str | None:
    with torch.no_grad():
        expected, found = silenced(*inputs), shorter(*inputs)
    if expected.shape != found.shape:
        return f"the cut model returns {tuple(found.shape)} instead of {tuple(expected.shape)}"
    scale = max(float(expected.abs().max()), 1e-12)
    worst = float((expected - found).abs().max()) / scale
    if not worst <= TOLERANCE:
        return f"dead-channel check: outputs differ by {worst:.1e} of their range"
    return None
