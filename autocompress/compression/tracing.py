"""A task's model as a Graph, with the students that the task brings beside it."""

from torch import nn

from autocompress.compression.methods.student import with_students
from autocompress.graph import trace
from autocompress.graph.trace import capture, fingerprint
from autocompress.graph.types import Graph
from autocompress.task.calling import NAMES, Calling, calling_of, flat_model
from autocompress.task.task import Task


def trace_task(task: Task, calling: Calling | None = None) -> Graph:
    """Raises TraceError for a model that can't be followed, TaskError for a student that can't stand in for it."""
    calling = calling or calling_of(task)
    graph = _traced(task.model, calling, task)
    if task.student is None:
        return graph
    return with_students(graph, task.student, lambda model: _traced(model, calling, task))


def fingerprint_of(task: Task, calling: Calling) -> str:
    """That of the graph of the task's own model."""
    return fingerprint(capture(flat_model(task.model, calling), calling.examples))


def _traced(model: nn.Module, calling: Calling, task: Task) -> Graph:
    graph = trace(flat_model(model, calling), calling.examples, task.frozen)
    if not calling.plain:
        graph.model.meta[NAMES] = (calling.names, calling.results)
    return graph
