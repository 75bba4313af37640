"""From a user's model to the lifted graph that everything else works on.

The lifted form is a `torch.fx.GraphModule` with one `call_module` node for every operation that owns parameters (so
that it trains, and normalisation keeps its two modes), ATen overloads for the rest, and `get_attr` for free tensors.
Shapes are free of the batch size, and of every other axis that the task's batches vary. It takes the model's inputs as
a flat row of tensors and returns one tensor, or several as a tuple.
"""

from collections.abc import Collection
from hashlib import sha256
from logging import getLogger
from typing import Any

import torch
from torch import Tensor, nn
from torch.fx import GraphModule, Node

from autocompress.graph.agreement import require_agreement_at_any_batch
from autocompress.graph.calls import getitem
from autocompress.graph.capture import Axes, batch_axes, export, one_sample
from autocompress.graph.lift import ASSERTIONS, IDENTITIES, RESHAPES, lift, sweep
from autocompress.graph.lifts import LIFTS
from autocompress.graph.operators import TABLE
from autocompress.graph.spread import sink_expansions

aten = torch.ops.aten
_log = getLogger(__name__)

_WHOLE = frozenset({
    aten.bilinear.default, aten.embedding_bag.default, aten.embedding_bag.padding_idx, aten._embedding_bag.default,
})  # fmt: skip
"""Operators without a row that cost less whole than decomposed."""


def capture(model: nn.Module, example_inputs: tuple[Tensor, ...], axes: Axes | None = None) -> GraphModule:
    """The model in lifted form, in eval mode, checked against the user's module at batch sizes 1 to 3.

    Raises TraceError naming the user's line if it can't be captured, and the first layer that differs.

    `axes` are the free axes of every input (the batch, if None). Every node's meta holds its outputs as tensors without
    storage: `val` as captured (with two samples at least), `one` for one sample.
    """
    free = batch_axes(example_inputs) if axes is None else axes
    _log.info("capturing the model with torch.export")
    program, inputs = export(model, example_inputs, free, _known())
    lifted = lift(program, LIFTS)
    lifted.meta["user_weights"] = _digest(model).hexdigest()
    _record(lifted, inputs, "val")
    lifted.meta["free_axes"] = tuple(frozenset(axes) for axes in free)
    _record(lifted, one_sample(lifted, inputs), "one")
    sink_expansions(lifted)
    sweep(lifted)
    _log.info("comparing what was captured with the model")
    require_agreement_at_any_batch(model, lifted, example_inputs, free)
    return lifted


def _known() -> Collection[Any]:
    return {*TABLE, *LIFTS, *IDENTITIES, *RESHAPES, *ASSERTIONS, *_WHOLE, getitem}


def fingerprint(model: GraphModule) -> str:
    """First 16 hex digits of the SHA-256 over the graph, every weight, and every weight of the user's own module."""
    digest = _digest(model)
    for node in model.graph.nodes:
        digest.update(f"{node.op} {node.target} {node.args} {node.kwargs}\n".encode())
    digest.update(model.meta.get("user_weights", "").encode())
    text: str = digest.hexdigest()
    return text[:16]


def _digest(model: nn.Module) -> Any:
    digest = sha256()
    for name, tensor in model.state_dict().items():
        if not isinstance(tensor, Tensor):  # what a module calls its extra state
            continue
        digest.update(f"{name} {tuple(tensor.shape)}".encode())
        digest.update(tensor.detach().contiguous().view(-1).view(torch.uint8).numpy().tobytes())
    return digest


class _ShapeRecorder(torch.fx.Interpreter):
    """Runs the model and notes every node's output as a tensor without storage under `key` of its meta."""

    def __init__(self, model: GraphModule, key: str) -> None:
        super().__init__(model)
        self.key = key

    def run_node(self, n: Node) -> Any:
        value = super().run_node(n)
        n.meta[self.key] = torch.utils._pytree.tree_map(
            lambda v: torch.empty_like(v, device="meta") if isinstance(v, Tensor) else v, value
        )
        return value


def _record(model: GraphModule, inputs: tuple[Tensor, ...], key: str) -> None:
    with torch.no_grad():
        _ShapeRecorder(model, key).run(*inputs)


def is_call(node: Node, *targets: Any) -> bool:
    return node.op == "call_function" and node.target in targets


def output_nodes(model: GraphModule) -> tuple[Node, ...]:
    """The nodes whose values the model returns."""
    last: Any = next(node for node in reversed(model.graph.nodes) if node.op == "output").args[0]
    return (last,) if isinstance(last, Node) else tuple(last)


def output_node(model: GraphModule) -> Node:
    """The node whose value the model returns; the first of several."""
    return output_nodes(model)[0]
