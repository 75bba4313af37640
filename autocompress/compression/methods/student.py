"""Student width: a narrower model, either a copy that inherits the most important channels or the task's own."""

from collections.abc import Callable, Mapping, Sequence
from dataclasses import dataclass, replace

import torch
from torch import nn

from autocompress.compression.methods.method import Approach, Label, Method, Scope
from autocompress.compression.plan import WHOLE_MODEL
from autocompress.graph import trace
from autocompress.graph.types import Graph
from autocompress.task.outputs import as_flat
from autocompress.vocabulary.errors import TaskError, TraceError
from autocompress.vocabulary.workload import Capabilities, total_macs

WIDTHS = (0.875, 0.75, 0.625, 0.5)

CHANNEL_STEP = 4
"""A student's widths are multiples of this, the least step that vector units like. It is fixed rather than asked of a
device, because a plan has to mean the same model everywhere."""


@dataclass(frozen=True, slots=True, order=True)
class Student:
    """A narrower copy of the whole model: every free group keeps `width` (0 < width < 1) of its channels."""

    width: float

    def __post_init__(self) -> None:
        if not 0 < self.width < 1:
            raise ValueError(f"student width {self.width} is outside (0, 1)")


class StudentMethod(Method):
    """Options of the whole model: its width as a fraction of the original's.

    Narrowing is about copies; students that the task brings stand in the model's place.
    """

    name = "student"
    config = Student
    stage = 0
    scope = Scope.MODEL
    approach = Approach.MODEL

    def targets(self, graph: Graph) -> tuple[str, ...]:
        return (WHOLE_MODEL,) if graph.students or graph.free_groups else ()

    def options(self, target: str, graph: Graph, capabilities: Capabilities) -> Sequence[Student | None]:
        """Widths that narrow the model differently from one another; the task's own where it brings students."""
        if graph.students:
            return (None, *(Student(width) for width in sorted(graph.students, reverse=True)))
        distinct = {tuple(student_keep(graph, width).items()): Student(width) for width in reversed(WIDTHS)}
        distinct.pop((), None)
        return (None, *sorted(distinct.values(), reverse=True))

    def value(self, target: str, config: Student | None, graph: Graph) -> float:
        return 1.0 if config is None else config.width

    def label(self, config: Student) -> Label:
        return Label(f"x {config.width:g}", "narrowed", "#f4d58d")

    def widths(self, target: str, config: Student, graph: Graph) -> Mapping[str, int]:
        return {} if config.width in graph.students else student_keep(graph, config.width)

    def stand_in(self, config: Student, graph: Graph) -> Graph | None:
        return graph.students.get(config.width)


def with_students(
    graph: Graph, factory: Callable[[float], nn.Module], traced: Callable[[nn.Module], Graph] | None = None
) -> Graph:
    """The graph with the task's own students beside it: `factory(width)` for each of WIDTHS, equal sizes once.

    `traced` makes a graph of a student, with the same flat inputs as the original's; by default it is called with them.
    They keep the weights they come with (drawn from one seed, if the factory draws any) and learn by distillation.
    Raises TaskError for a factory that fails, or whose models don't answer as the original does.
    """
    students: dict[float, Graph] = {}
    for width in WIDTHS:
        student = _traced(factory, width, graph, traced or (lambda model: trace(model, graph.example_inputs)))
        if all(student.kernels != other.kernels for other in (graph, *students.values())):
            students[width] = student
    if not students:
        raise TaskError("Task.student returns the original's own layers whatever the width; make it use the width")
    return replace(graph, students=students)


def _traced(
    factory: Callable[[float], nn.Module], width: float, graph: Graph, traced: Callable[[nn.Module], Graph]
) -> Graph:
    with torch.random.fork_rng(devices=[]):
        torch.manual_seed(0)
        try:
            model = factory(width)
        except Exception as error:
            text = " ".join(str(error).split())
            raise TaskError(f"Task.student({width}) fails: {type(error).__name__}: {text[:240]}") from error
    if not isinstance(model, nn.Module):
        raise TaskError(f"Task.student({width}) returns a {type(model).__name__}; it must be a torch.nn.Module")
    try:
        student = traced(model.eval())
        found, wanted = _answer(student), _answer(graph)
    except (TraceError, RuntimeError) as error:
        text = " ".join(str(error).split())
        raise TaskError(f"Task.student({width}) can't stand in for the model: {text[:240]}") from error
    if found != wanted:
        raise TaskError(
            f"Task.student({width}) answers with shape {found}, the model with {wanted}; a student must give the same"
        )
    if total_macs(student.kernels.values()) > total_macs(graph.kernels.values()):
        raise TaskError(f"Task.student({width}) does more multiplications than the model itself; make it narrower")
    return student


@torch.no_grad()
def _answer(graph: Graph) -> str:
    return " and ".join(str(tuple(tensor.shape)) for tensor in as_flat(graph.model(*graph.example_inputs)))


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
