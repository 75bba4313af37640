"""Operators without an emitter: torch.onnx exports a module of that one operator, and its graph is inlined."""

from typing import Any

import torch
from torch import Tensor, nn
from torch.fx import Node

from autocompress.export.emitter import OPSET, Emitter, TensorType
from autocompress.export.torch_exporter import export_by_tracing
from autocompress.vocabulary.errors import ExportError


class _OneOperator(nn.Module):
    """Calls `target` with its tensor arguments taken from forward's, the others as they are."""

    def __init__(self, target: Any, node: Node, tensors: list[Node]) -> None:
        super().__init__()
        self.target, self.node, self.tensors = target, node, tensors

    def forward(self, *values: Tensor) -> Any:
        given = dict(zip(self.tensors, values, strict=True))
        args, kwargs = torch.fx.map_arg((self.node.args, self.node.kwargs), lambda n: given[n])
        return self.target(*args, **kwargs)


def emit_with_torch(e: Emitter, node: Node) -> Any:
    """Adds what torch.onnx makes of one node; raises ExportError naming the operator and its layer if it can't."""
    place = f"operator {node.target} (node {node.name})"
    tensors = node.all_input_nodes
    if not all(isinstance(e.types.get(source), TensorType) for source in tensors):
        raise ExportError(f"{place} takes a size that depends on the batch, which has no ONNX emitter here: {_ADVICE}")
    target: Any = e.model.get_submodule(str(node.target)) if node.op == "call_module" else node.target
    try:
        examples = [_example(e.type(source)) for source in tensors]
        names = [f"input_{i}" for i in range(len(tensors))]
        proto = export_by_tracing(_OneOperator(target, node, tensors).eval(), examples, names)
    except Exception as error:
        raise ExportError(
            f"{place} can't be written as ONNX (opset {OPSET}): {first_line(error)}; {_ADVICE}"
        ) from error
    outputs = e.inline(proto.graph, [e.value(source) for source in tensors])
    return outputs[0] if isinstance(e.types[node], TensorType) else outputs


_ADVICE = "replace it in the model by operators that ONNX has"


def _example(kind: TensorType) -> Tensor:
    if kind.dtype.is_floating_point:
        return torch.rand(kind.two, dtype=kind.dtype)
    return torch.zeros(kind.two, dtype=kind.dtype)


def first_line(error: BaseException | None) -> str:
    """The first line of an error that says something."""
    return next((line.strip()[:240] for line in str(error).splitlines() if line.strip()), type(error).__name__)
