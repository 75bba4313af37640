"""From a lifted model to an ONNX graph, operator by operator."""

from collections.abc import Mapping
from typing import Any

import onnx
from onnx import helper
from torch.fx import GraphModule, Node

from autocompress.export.emitter import Emit, Emitter
from autocompress.export.functions import FUNCTIONS
from autocompress.export.islands import leaky_slopes
from autocompress.export.layers import emit_layer
from autocompress.export.types import BATCH, ELEMENT_TYPES, SizeType, TensorType, axes_of, inputs_of, types_of
from autocompress.export.writer import IR_VERSION, OUTPUT
from autocompress.task.calling import NAMES
from autocompress.vocabulary.errors import ExportError


def lower(model: GraphModule, kernel_of: Mapping[str, str], otherwise: Emit) -> onnx.ModelProto:
    """The model as ONNX, with the free axes of its inputs free; `kernel_of` maps nodes to the kernels they belong to.

    `otherwise` writes what has no emitter here, or raises ExportError.
    """
    try:
        types, constants = types_of(model)
    except RuntimeError as error:
        raise ExportError(f"the lifted model does not run for other numbers of samples: {error}") from error
    placeholders, axes = inputs_of(model), axes_of(model)
    emitter, slopes = Emitter(model, types, constants), leaky_slopes(model)
    returned = results(model)
    inputs, outputs = model.meta.get(NAMES) or ([n.name for n in placeholders], output_names(len(returned)))
    emitter.reserve(*outputs)
    names = iter(inputs)
    for node in model.graph.nodes:
        if node.op == "placeholder":
            emitter.claim(node, next(names))
        elif node.op.startswith("call_") and node not in constants and not isinstance(types[node], SizeType):
            emitter.begin(node, kernel_of.get(node.name, node.name))
            emitter.names[node] = _emitted(emitter, node, slopes.get(node), otherwise)
    emitter.begin(returned[0], OUTPUT)
    called: dict[str, str] = {}
    for node, name in zip(returned, outputs, strict=True):
        tensor = emitter.value(node)
        emitter.name_output(called.get(tensor, tensor), name)
        called.setdefault(tensor, name)
    graph = helper.make_graph(
        emitter.nodes, "autocompress",
        [_input_info(emitter.names[node], types[node], axes[node]) for node in placeholders],
        [_output_info(name, emitter.type(node)) for node, name in zip(returned, outputs, strict=True)],
        emitter.initializers,
    )  # fmt: skip
    opsets = [helper.make_opsetid(domain, version) for domain, version in emitter.opsets.items()]
    return helper.make_model(graph, opset_imports=opsets, ir_version=IR_VERSION)


def results(model: GraphModule) -> tuple[Node, ...]:
    """The nodes whose values the model returns."""
    returned: Any = next(node for node in reversed(model.graph.nodes) if node.op == "output").args[0]
    nodes = (returned,) if isinstance(returned, Node) else tuple(returned)
    if not nodes or not all(isinstance(node, Node) for node in nodes):
        raise ExportError(f"the model returns {returned}, where only tensors can be written")
    return nodes


def output_names(count: int) -> list[str]:
    return [OUTPUT] if count == 1 else [f"{OUTPUT}_{i}" for i in range(count)]


def _emitted(emitter: Emitter, node: Node, slope: float | None, otherwise: Emit) -> Any:
    """Writes a node; `slope` as in islands.leaky_slopes."""
    if slope == 0:
        return emitter.add("LeakyRelu", emitter.value(node.args[0]), alpha=slope)
    if node.op == "call_module":
        emit = emit_layer(emitter.model.get_submodule(str(node.target)))
    else:
        emit = FUNCTIONS.get(node.target)
    made = emit(emitter, node) if emit else None
    made = otherwise(emitter, node) if made is None else made
    return made if slope is None else emitter.add("LeakyRelu", made, alpha=slope)


def _input_info(name: str, kind: TensorType, axes: Mapping[int, str]) -> onnx.ValueInfoProto:
    names = {a: n for a, n in axes.items() if n != BATCH or kind.one[a] == 1}
    return helper.make_tensor_value_info(name, ELEMENT_TYPES[kind.dtype], _named(name, kind, names))


def _output_info(name: str, kind: TensorType) -> onnx.ValueInfoProto:
    names = {axis: BATCH for axis in kind.free if kind.one[axis] == 1 and kind.of_batch(axis)}
    return helper.make_tensor_value_info(name, ELEMENT_TYPES[kind.dtype], _named(name, kind, names))


def _named(name: str, kind: TensorType, names: Mapping[int, str]) -> list[int | str]:
    """Sizes, and names of the axes that are free."""
    return [names.get(a, f"axis_{a}_of_{name}") if a in kind.free else size for a, size in enumerate(kind.one)]
