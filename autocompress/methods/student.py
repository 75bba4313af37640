"""Student width: a uniformly narrower copy of the whole model that inherits the most important channels."""

from dataclasses import dataclass
from typing import TYPE_CHECKING

from autocompress.graph.types import Graph
from autocompress.methods.configs import Config, Student
from autocompress.methods.prune import narrow_kernels
from autocompress.plan import WHOLE_MODEL
from autocompress.workload import Capabilities, Kernel

if TYPE_CHECKING:
    from autocompress.build import Workspace

WIDTHS = (0.875, 0.75, 0.625, 0.5)

CHANNEL_STEP = 4
"""A student's widths are multiples of this, the least step that vector units like. It is fixed rather than asked of a
device, because a plan has to mean the same model everywhere."""


@dataclass(frozen=True, slots=True)
class StudentMethod:
    """Options of the whole model: its width as a fraction of the original's."""

    config: type[Student] = Student

    def targets(self, graph: Graph) -> tuple[str, ...]:
        return (WHOLE_MODEL,) if graph.free_groups else ()

    def options(self, target: str, graph: Graph, capabilities: Capabilities) -> tuple[Config | None, ...]:
        """Widths that narrow the model differently from one another."""
        distinct = {tuple(student_keep(graph, width).items()): Student(width) for width in reversed(WIDTHS)}
        distinct.pop((), None)
        return (None, *sorted(distinct.values(), reverse=True))

    def rewrite(self, kernels: dict[str, Kernel], target: str, config: Student, graph: Graph) -> None:
        narrow_kernels(kernels, graph, student_keep(graph, config.width))

    def apply(self, work: "Workspace", target: str, config: Student) -> None:
        for group, keep in student_keep(work.graph, config.width).items():
            work.narrow(group, keep)


def student_keep(graph: Graph, width: float, channel_step: int = CHANNEL_STEP) -> dict[str, int]:
    """Channels that each free group keeps at a uniform width; groups that stay whole are left out.

    The nearest multiple of the step, at least one step; groups narrower than two steps go by single channels.
    """
    kept = {
        name: _kept(group.channels, width, _step(len(group.members[0].index[0]), channel_step))
        for name, group in graph.free_groups.items()
    }
    return {name: keep for name, keep in kept.items() if keep < graph.groups[name].channels}


def _step(positions: int, channel_step: int) -> int:
    """A channel that fills several positions (a head of attention, a flattened map) fills the step sooner."""
    return max(1, channel_step // positions)


def _kept(channels: int, width: float, step: int) -> int:
    step = step if channels >= 2 * step else 1
    return min(channels, max(step, step * round(channels * width / step)))
