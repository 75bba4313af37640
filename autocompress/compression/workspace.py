"""A model under construction, which methods edit in the order of their stages."""

from dataclasses import dataclass, field

import torch
from torch.fx import GraphModule

from autocompress.compression.repair.least_squares import repair
from autocompress.compression.repair.statistics import Statistics
from autocompress.graph.cut import cut, drop_branch
from autocompress.graph.types import Graph
from autocompress.vocabulary.errors import BuildError


@dataclass(slots=True)
class Workspace:
    """A model under construction; methods edit it in stage order.

    `statistics` may be None: then channels are kept by position and nothing is repaired, which is enough to time it.
    `repaired` is False where other weights will be loaded anyway: the same channels are kept, as they are. `changed`
    says whether there is something to refit.
    """

    model: GraphModule
    graph: Graph
    statistics: Statistics | None
    repaired: bool = True
    changed: bool = False
    widths: dict[str, int] = field(default_factory=dict)
    importances: dict[str, str] = field(default_factory=dict)
    kept: dict[str, list[int]] = field(default_factory=dict)

    def narrow(self, group: str, keep: int, importance: str = "reconstruction") -> None:
        """The group shall keep at most this many channels; several calls keep the least."""
        self.widths[group] = min(keep, self.widths.get(group, keep))
        self.importances[group] = importance
        self.changed = True

    def settle(self) -> None:
        """Cuts once for all narrowings, then repairs what reads the cut channels."""
        for group, width in self.widths.items():
            branch = self.graph.groups[group].branch
            if width == 0 and branch is None:
                raise BuildError(f"group {group} can't go to zero: no residual branch vanishes with it")
            if width == 0 and branch is not None:
                drop_branch(self.model, self.graph.branches[branch])
        narrowed = {g: w for g, w in self.widths.items() if 0 < w < self.graph.groups[g].channels}
        self.kept = {group: self._most_important(group, width) for group, width in narrowed.items()}
        cut(self.model, self.graph, self.kept)
        if self.statistics is not None and self.kept and self.repaired:
            repair(self.model, self.graph, self.kept, self.statistics)

    def _most_important(self, group: str, width: int) -> list[int]:
        if self.statistics is None:
            return list(range(width))
        scores = self.statistics.importance(group, self.importances[group])
        return sorted(torch.topk(scores, width).indices.tolist())
