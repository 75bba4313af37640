"""A task's model as a Graph, with the students that the task brings beside it."""

from logging import getLogger

from torch import nn
from torch.fx import GraphModule

from autocompress.compression.methods.student import with_students
from autocompress.graph import trace
from autocompress.graph.agreement import require_agreement
from autocompress.graph.trace import capture, fingerprint
from autocompress.graph.types import Graph
from autocompress.task.batches import first_batches, first_samples
from autocompress.task.calling import NAMES, Calling, calling_of, flat_model
from autocompress.task.task import Task
from autocompress.vocabulary.errors import TaskError

_log = getLogger(__name__)

COMPARED_SAMPLES = 32
"""Samples of the validation split on which the lifted model has to be the user's, if they are no larger than these:"""

COMPARED_VALUES = 2**20
"""Numbers in all inputs of the compared samples. So many images of 224 pixels are six, each run by both models."""


def trace_task(task: Task, calling: Calling | None = None) -> Graph:
    """Raises TraceError for a model that can't be followed, or is not the user's own on the first validation batch,
    TaskError for a student that can't stand in for it."""
    _log.info("running the model on its example inputs")
    calling = calling or calling_of(task)
    graph = _traced(task.model, calling, task)
    _compare(task, calling, graph.model)
    if task.student is None:
        return graph
    return with_students(graph, task.student, lambda model: _traced(model, calling, task))


def fingerprint_of(task: Task, calling: Calling) -> str:
    """That of the graph of the task's own model."""
    lifted = capture(flat_model(task.model, calling), calling.examples, _free(calling))
    _compare(task, calling, lifted)
    return fingerprint(lifted)


def _traced(model: nn.Module, calling: Calling, task: Task) -> Graph:
    graph = trace(flat_model(model, calling), calling.examples, task.frozen, _free(calling))
    if not calling.plain:
        graph.model.meta[NAMES] = (calling.names, calling.results)
        placeholders = (node for node in graph.model.graph.nodes if node.op == "placeholder")
        for node, axes in zip(placeholders, calling.axes.named(), strict=True):
            node.meta["axes"] = axes
    return graph


def _free(calling: Calling) -> tuple[frozenset[int], ...]:
    """The free axes of the inputs; raises TaskError where axis 0 varies and is no batch."""
    for name, batched, axes in zip(calling.names, calling.axes.batched, calling.axes.varying, strict=True):
        if 0 in axes and not batched:
            raise TaskError(
                f"axis 0 of input {name} differs between batches and is no batch of samples (the model does not take "
                "two samples of it): give samples of one size, or write forward for a batch along axis 0"
            )
    return calling.axes.free()


def _compare(task: Task, calling: Calling, lifted: GraphModule) -> None:
    if task.validation is not None:
        batch = calling.batch(*first_batches("validation", task.validation, 1)[0])
        values = sum(tensor.numel() for tensor in first_samples(batch, 1)[0])
        _log.info("comparing what was captured with the model on validation samples")
        count = max(1, min(COMPARED_SAMPLES, COMPARED_VALUES // max(1, values)))
        require_agreement(flat_model(task.model, calling), lifted, first_samples(batch, count)[0])
