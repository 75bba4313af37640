"""The original with dead channels: what a cut model must be equal to.

Whatever makes the channels is zeroed, and so is what layers read of them. Norms and means over such channels are taken
over the others alone: that is what the cut model will do, and what its score is about.
"""

from collections.abc import Mapping, Sequence
from typing import Any

import torch
from torch import Tensor, nn
from torch.fx import GraphModule, Node

from autocompress.graph.labels import reduced_axes
from autocompress.graph.operators import TABLE, Passage
from autocompress.graph.types import Graph, Group

aten = torch.ops.aten


def silence(model: GraphModule, graph: Graph, keep: Mapping[str, Sequence[int]]) -> None:
    """Makes every channel that `keep` does not name dead, in place; `model` is a copy of `graph.model`."""
    removed: set[int] = set()
    for name, channels in keep.items():
        group = graph.groups[name]
        gone = sorted(set(range(group.channels)).difference(channels))
        removed |= {group.classes[c] for c in gone}
        _zero(model, group, gone)
    for node in list(model.graph.nodes):
        classes = graph.classes.get(node.all_input_nodes[0].name, {}) if node.all_input_nodes else {}
        if node.op == "call_module":
            _normalise_the_rest(model, node, classes, removed)
        elif node.op == "call_function" and node.target in TABLE and TABLE[node.target].passage is Passage.REDUCE:
            _reduce_the_rest(model, node, classes, removed)
    model.recompile()


def _zero(model: GraphModule, group: Group, gone: Sequence[int]) -> None:
    for member in group.members:
        reads = member.tensor.startswith("weight") and not member.produces
        if not member.produces and not reads:
            continue
        path, _, leaf = f"{member.target}.{member.tensor}".rstrip(".").rpartition(".")
        owner: Any = model.get_submodule(path)
        positions = torch.tensor([p for c in gone for p in member.index[c]], dtype=torch.long)
        with torch.no_grad():
            getattr(owner, leaf).index_fill_(member.axis, positions, 0)


def _rest(classes: Mapping[int, tuple[int, ...]], axis: int, removed: set[int]) -> Tensor | None:
    """Positions along an axis that stay, None if all do."""
    kept = [place for place, number in enumerate(classes.get(axis, ())) if number not in removed]
    return torch.tensor(kept, dtype=torch.long) if len(kept) < len(classes.get(axis, ())) else None


def _normalise_the_rest(
    model: GraphModule, node: Node, classes: Mapping[int, tuple[int, ...]], removed: set[int]
) -> None:
    module: Any = model.get_submodule(str(node.target))
    axis = 1 if isinstance(module, nn.GroupNorm) else node.args[0].meta["one"].dim() - 1  # type: ignore[union-attr]
    over_all = isinstance(module, (nn.LayerNorm, nn.RMSNorm)) or getattr(module, "num_groups", 0) == 1
    rest = _rest(classes, axis, removed) if over_all else None
    if rest is not None:
        parent, _, leaf = str(node.target).rpartition(".")
        setattr(model.get_submodule(parent), leaf, _NormOfTheRest(module, rest, axis))


class _NormOfTheRest(nn.Module):
    """A norm over some positions of an axis; the others are zero."""

    rest: Tensor

    def __init__(self, norm: Any, rest: Tensor, axis: int) -> None:
        super().__init__()
        self.norm, self.axis = norm, axis
        self.register_buffer("rest", rest)
        for name in ("weight", "bias"):
            value = getattr(norm, name, None)
            if value is not None:
                setattr(norm, name, nn.Parameter(value.detach()[rest]))
        if isinstance(norm, nn.GroupNorm):
            norm.num_channels = len(rest)
        else:
            norm.normalized_shape = (len(rest),)

    def forward(self, x: Tensor) -> Tensor:
        normal = self.norm(x.index_select(self.axis, self.rest))
        return torch.zeros_like(x).index_copy(self.axis, self.rest, normal)


def _reduce_the_rest(model: GraphModule, node: Node, classes: Mapping[int, tuple[int, ...]], removed: set[int]) -> None:
    source: Any = node.args[0]
    for axis in reduced_axes(node, source.meta["one"].dim()):
        rest = _rest(classes, axis, removed)
        if rest is not None:
            name = f"{node.name}_rest_{axis}"
            model.register_buffer(name, rest)
            with model.graph.inserting_before(node):
                places = model.graph.get_attr(name)
                source = model.graph.call_function(aten.index_select.default, (source, axis, places))
    node.args = (source, *node.args[1:])
