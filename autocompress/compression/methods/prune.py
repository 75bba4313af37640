"""Structured pruning: a channel group keeps its most important channels, or its residual branch goes."""

from collections.abc import Mapping, Sequence
from dataclasses import dataclass, replace
from typing import Self

from autocompress.compression.methods.method import Approach, Kind, Label, Method, Scope, Void
from autocompress.compression.workspace import Workspace
from autocompress.graph.types import Graph
from autocompress.vocabulary.workload import Capabilities

_STEPS = 8
"""A group offers at most this many widths: every eighth of it, snapped to what the device likes."""


@dataclass(frozen=True, slots=True, order=True)
class Prune:
    """A group keeps its `keep` most important channels; 0 drops the residual branch that the group feeds."""

    keep: int
    importance: str = "reconstruction"

    def __post_init__(self) -> None:
        if self.keep < 0:
            raise ValueError(f"a group can't keep {self.keep} channels")


@dataclass(frozen=True)
class PruneMethod(Method):
    """Options of a group: widths in falling order; last, where the group feeds a branch of its own, nothing at all."""

    importance: str = "reconstruction"

    name = "prune"
    config = Prune
    stage = 100
    scope = Scope.GROUP
    approach = Approach.AMOUNT
    kind = Kind.INTEGER

    def targets(self, graph: Graph) -> tuple[str, ...]:
        return tuple(graph.free_groups)

    def options(self, target: str, graph: Graph, capabilities: Capabilities) -> Sequence[Prune | None]:
        group = graph.groups[target]
        positions = len(group.members[0].index[0])
        multiple = min(capabilities.channel_multiple.values(), default=1)
        widths = snapped_widths(group.channels, max(1, multiple // positions))
        cuts = [Prune(width, self.importance) for width in widths]
        drop = [Prune(0, self.importance)] if group.branch else []
        return (None, *cuts, *drop)

    def value(self, target: str, config: Prune | None, graph: Graph) -> int:
        return graph.groups[target].channels if config is None else config.keep

    def label(self, config: Prune) -> Label:
        if config.keep == 0:
            return Label("dropped", "dropped", "#343a40", alone=True)
        return Label(f"keep {config.keep}", "narrowed", "#f4d58d")

    def widths(self, target: str, config: Prune, graph: Graph) -> Mapping[str, int]:
        return {target: config.keep}

    def apply(self, work: Workspace, target: str, config: Prune) -> None:
        work.narrow(target, config.keep, config.importance)

    def void(self, target: str, config: Prune, graph: Graph) -> Void:
        """Everything inside the branch that is dropped."""
        branch = graph.branches.get(graph.groups[target].branch or "")
        if config.keep or branch is None:
            return Void()
        node_of = {str(n.target): n.name for n in graph.model.graph.nodes if n.op == "call_module"}
        inside = {
            name
            for name, group in graph.free_groups.items()
            if name != target and all(node_of.get(member.target) in branch.nodes for member in group.members)
        }
        return Void(frozenset(branch.layers), frozenset(inside))

    def using(self, importance: str) -> Self:
        return replace(self, importance=importance)


def snapped_widths(channels: int, multiple: int) -> list[int]:
    """Widths below `channels`, falling, each a multiple of what the device steps in (or of a half of it that fits)."""
    step = multiple
    while step > 1 and step >= channels:
        step //= 2
    step *= -(-channels // (_STEPS * step))
    return [width for width in range(channels - 1, 0, -1) if width % step == 0]
