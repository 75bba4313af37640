"""A task's model as a Graph, with the students that the task brings beside it."""

from autocompress.compression.methods.student import with_students
from autocompress.graph import trace
from autocompress.graph.types import Graph
from autocompress.task.batches import as_tuple
from autocompress.task.task import Task


def trace_task(task: Task) -> Graph:
    """Raises TraceError for a model that can't be followed, TaskError for a student that can't stand in for it."""
    graph = trace(task.model, as_tuple(task.example_inputs), task.frozen)
    return with_students(graph, task.student, task.frozen) if task.student is not None else graph
