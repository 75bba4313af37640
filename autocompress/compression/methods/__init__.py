"""Compression methods, in the order in which a plan's stages are applied. Adding one is a file and a line here."""

from typing import TYPE_CHECKING, Any, Protocol

from autocompress.compression.methods.configs import Config
from autocompress.graph.types import Graph
from autocompress.vocabulary.workload import Capabilities, Kernel

if TYPE_CHECKING:
    from autocompress.compression.build import Workspace


class Method(Protocol):
    """What every method can do with its own kind of decision."""

    @property
    def config(self) -> type[Config]: ...

    def targets(self, graph: Graph) -> tuple[str, ...]:
        """Groups, layers or WHOLE_MODEL that the method can decide about."""

    def options(self, target: str, graph: Graph, capabilities: Capabilities) -> tuple[Config | None, ...]:
        """Decisions from mildest to strongest; None, always first, leaves the target alone."""

    def rewrite(self, kernels: dict[str, Kernel], target: str, config: Any, graph: Graph) -> None:
        """Edits the kernels' shapes in place, as if the decision were applied: no weights, microseconds."""

    def apply(self, work: "Workspace", target: str, config: Any) -> None:
        """Edits the workspace's model in place."""


def methods() -> tuple[Method, ...]:
    """All methods in stage order."""
    from autocompress.compression.methods.lowrank import LowRankMethod
    from autocompress.compression.methods.prune import PruneMethod
    from autocompress.compression.methods.quantize import QuantizeMethod
    from autocompress.compression.methods.student import StudentMethod

    return (StudentMethod(), PruneMethod(), LowRankMethod(), QuantizeMethod())
