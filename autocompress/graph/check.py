"""The dead-channel check: what is silenced in the original and cut from a copy must give the same outputs."""

import copy
from collections.abc import Mapping, Sequence
from dataclasses import replace

import torch
from torch import Tensor
from torch.fx import GraphModule

from autocompress.graph.cut import cut
from autocompress.graph.double import in_double, made_in_double
from autocompress.graph.silence import silence
from autocompress.graph.types import Graph, Group
from autocompress.vocabulary.errors import AutocompressError, first_line

TOLERANCE = 1e-6
"""Of the largest output, in float64. Only the order of summation differs (about 1e-13 of it for a thousand terms, grown
by depth); a mis-wired channel differs by 1e-3 and more."""


def check_groups(graph: Graph, groups: Sequence[Group], seed: int = 0) -> dict[str, str]:
    """The groups that may not be cut, each with the reason; cutting all the others is proven right.

    About half of the channels of all groups are silenced at once, never the first alone: a wrong pairing can coincide
    on channel 0. Where the outputs differ, halves of the groups are checked until each culprit is known.
    """
    if not groups:
        return {}
    generator = torch.Generator().manual_seed(seed)
    inputs = probe(graph.example_inputs, generator)
    proof = _Proof(graph, in_double(graph.model), inputs, {g.id: _kept(g, generator) for g in groups})
    return proof.culprits(list(groups))


def check_group(graph: Graph, group: Group, seed: int = 0) -> str | None:
    """None if cutting the group is proven right, else the reason why it is not."""
    return check_groups(graph, [group], seed).get(group.id)


class _Proof:
    def __init__(
        self, graph: Graph, double: GraphModule, inputs: tuple[Tensor, ...], keep: Mapping[str, list[int]]
    ) -> None:
        self.graph, self.double, self.inputs, self.keep = graph, double, inputs, keep

    def culprits(self, groups: list[Group]) -> dict[str, str]:
        reason = self._reason(groups)
        if reason is None:
            return {}
        if len(groups) == 1:
            return {groups[0].id: reason}
        half = len(groups) // 2
        return self.culprits(groups[:half]) | self.culprits(groups[half:])

    def _reason(self, groups: list[Group]) -> str | None:
        claimed = replace(self.graph, groups={**self.graph.groups, **{group.id: group for group in groups}})
        keep = {group.id: self.keep[group.id] for group in groups}
        try:
            silenced = copy.deepcopy(self.double)
            silence(silenced, claimed, keep)
            with torch.no_grad(), made_in_double():
                expected = _outputs(silenced(*self.inputs))
        except (AutocompressError, RuntimeError, IndexError, ValueError, TypeError) as error:
            return f"can't be proven: the original with dead channels does not run: {first_line(error)}"
        try:
            shorter = copy.deepcopy(self.double)
            cut(shorter, claimed, keep)
            with torch.no_grad(), made_in_double():
                found = _outputs(shorter(*self.inputs))
        except (AutocompressError, RuntimeError, IndexError, ValueError, TypeError) as error:
            return f"the cut model does not run: {first_line(error)}"
        return next((r for e, f in zip(expected, found, strict=True) if (r := _difference(e, f)) is not None), None)


def _kept(group: Group, generator: torch.Generator) -> list[int]:
    order = torch.randperm(group.channels, generator=generator).tolist()
    gone = set(order[: max(1, group.channels // 2)])
    if gone == {0} and group.channels > 1:
        gone = {1}
    return sorted(set(range(group.channels)) - gone)


def probe(example_inputs: tuple[Tensor, ...], generator: torch.Generator) -> tuple[Tensor, ...]:
    """Inputs of the examples' shapes that excite every channel: noise for float inputs, the examples for indices."""
    return tuple(
        torch.randn(t.shape, generator=generator, dtype=torch.float64) if t.dtype.is_floating_point else t
        for t in example_inputs
    )


def _outputs(value: Tensor | tuple[Tensor, ...]) -> tuple[Tensor, ...]:
    return (value,) if isinstance(value, Tensor) else tuple(value)


def _difference(expected: Tensor, found: Tensor) -> str | None:
    if expected.shape != found.shape:
        return f"the cut model returns {tuple(found.shape)} instead of {tuple(expected.shape)}"
    scale = max(float(expected.abs().max()), 1e-12) if expected.numel() else 1.0
    worst = float((expected.double() - found.double()).abs().max()) / scale if expected.numel() else 0.0
    if not torch.isfinite(expected).all():
        return "can't be proven: the model's outputs are not finite for random inputs"
    if not worst <= TOLERANCE:
        return f"dead-channel check: outputs differ by {worst:.1e} of their range"
    return None
