"""Models as ONNX files: the compressed ones node by node, the user's original as torch exports it."""

import copy
import hashlib
import os
from collections import Counter
from collections.abc import Mapping
from importlib.metadata import version
from pathlib import Path
from typing import Any

import onnx
import torch
from onnx import helper
from torch import Tensor, nn
from torch.fx import GraphModule, Node

from autocompress.export.emitter import BATCH, ELEMENT_TYPES, IR_VERSION, OPSET, OUTPUT, Emitter, TensorType
from autocompress.export.fallback import emit_with_torch, first_line
from autocompress.export.functions import FUNCTIONS
from autocompress.export.islands import leaky_slopes
from autocompress.export.layers import emit_layer
from autocompress.export.torch_exporter import export_by_capture, export_by_tracing
from autocompress.graph.kernels import fuse
from autocompress.graph.trace import output_node
from autocompress.vocabulary.errors import ExportError, StorageError
from autocompress.vocabulary.workload import Artifact

VERSION = version("autocompress")
ORIGINAL = "original"
"""The plan key of the user's model as it came."""


def to_onnx(model: GraphModule, path: str | Path, plan_key: str) -> Artifact:
    """Writes a finished model (exactly rewritten, perhaps with simulated quantisation) with a free batch axis.

    The file's metadata holds the plan's key, this package's version and the exact rewrites that were made. Raises
    ExportError naming the operator that can't be written, StorageError if the file can't be.
    """
    with torch.no_grad():
        graph = _graph(model)
    metadata = {"plan": plan_key, "autocompress": VERSION, "exact_rewrites": _rewrites(model)}
    return _save(graph, path, plan_key, metadata)


def plain_onnx(model: nn.Module, example_inputs: tuple[Tensor, ...], path: str | Path) -> Artifact:
    """Writes the user's untouched model as torch.onnx exports it: the baseline of every speed-up.

    The older exporter is tried first (it is fast and needs no other package), then the newer; each with a free batch
    axis, then with the example's. Raises ExportError with what the last one said.
    """
    original = copy.deepcopy(model).eval()
    names = [f"input_{i}" for i in range(len(example_inputs))]
    failure: Exception | None = None
    for export in (export_by_tracing, export_by_capture):
        for free_batch in (True, False):
            try:
                proto = export(original, example_inputs, names, free_batch=free_batch)
            except Exception as error:  # whatever an exporter trips over, the next one may manage
                failure = error
            else:
                return _write(proto, path, ORIGINAL, {"plan": ORIGINAL})
    raise ExportError(
        f"neither exporter of torch.onnx can write the original model: {first_line(failure)}; "
        "replace that operator in the model by ones that ONNX has"
    ) from failure


def _graph(model: GraphModule) -> onnx.GraphProto:
    types, constants = _types(model)
    placeholders = [node for node in model.graph.nodes if node.op == "placeholder"]
    kernel_of = fuse(model, _examples(placeholders, 1)).holder
    emitter, slopes = Emitter(model, types, constants), leaky_slopes(model)
    for node in model.graph.nodes:
        if node.op == "placeholder":
            emitter.claim(node)
        elif node.op in ("call_module", "call_function") and node not in constants and not _is_size(types[node]):
            emitter.begin(node, kernel_of.get(node.name, node.name))
            emitter.names[node] = _emitted(emitter, node, slopes.get(node))
    result = output_node(model)
    emitter.name_output(emitter.value(result))
    inputs = [_value_info(emitter.names[node], types[node]) for node in placeholders]
    outputs = [_value_info(OUTPUT, types[result])]
    return helper.make_graph(emitter.nodes, "autocompress", inputs, outputs, emitter.initializers)


def _emitted(emitter: Emitter, node: Node, slope: float | None) -> Any:
    """Writes a node; `slope` as in islands.leaky_slopes."""
    if slope == 0:
        return emitter.add("LeakyRelu", emitter.value(node.args[0]), alpha=slope)
    if node.op == "call_module":
        emit = emit_layer(emitter.model.get_submodule(str(node.target)))
    else:
        emit = FUNCTIONS.get(node.target)
    made = emit(emitter, node) if emit else None
    made = emit_with_torch(emitter, node) if made is None else made
    return made if slope is None else emitter.add("LeakyRelu", made, alpha=slope)


class _Recorder(torch.fx.Interpreter):
    def __init__(self, model: GraphModule) -> None:
        super().__init__(model, garbage_collect_values=False)


def _types(model: GraphModule) -> tuple[dict[Node, Any], dict[Node, Tensor]]:
    """The type of every node's value, from runs with one sample and with two, and the values that no input changes."""
    placeholders = [node for node in model.graph.nodes if node.op == "placeholder"]
    one, two = (_values(model, _examples(placeholders, batch)) for batch in (1, 2))
    types = {node: _type(one[node], two[node]) for node in one}
    varying = set(placeholders)
    constants: dict[Node, Tensor] = {}
    for node in one:
        if node.op == "placeholder" or not varying.isdisjoint(node.all_input_nodes):
            varying.add(node)
        elif isinstance(one[node], Tensor):
            constants[node] = one[node]
    return types, constants


def _values(model: GraphModule, inputs: tuple[Tensor, ...]) -> dict[Node, Any]:
    recorder = _Recorder(model)
    recorder.run(*inputs)
    return {node: value for node, value in recorder.env.items() if node.op != "output"}


def _type(one: Any, two: Any) -> Any:
    if isinstance(one, Tensor):
        return TensorType(tuple(one.shape), tuple(two.shape), one.dtype)
    if isinstance(one, (tuple, list)):
        return tuple(_type(a, b) for a, b in zip(one, two, strict=True))
    return one


def _is_size(kind: Any) -> bool:
    return not isinstance(kind, (TensorType, tuple))


def _examples(placeholders: list[Node], batch: int) -> tuple[Tensor, ...]:
    """Zeros of the inputs' shapes; what the trace saw (meta["val"]) stays right, as inputs are never cut."""
    found = []
    for node in placeholders:
        seen = node.meta["val"]
        found.append(torch.zeros((batch, *seen.shape[1:]) if seen.dim() else (), dtype=seen.dtype))
    return tuple(found)


def _value_info(name: str, kind: TensorType) -> onnx.ValueInfoProto:
    sizes = [one if one == two else BATCH if one == 1 else None for one, two in zip(kind.one, kind.two, strict=True)]
    return helper.make_tensor_value_info(name, ELEMENT_TYPES[kind.dtype], sizes)


def _rewrites(model: GraphModule) -> str:
    counts = Counter(rewrite.kind for rewrite in model.meta.get("rewrites", ()))
    return ", ".join(f"{kind} x{count}" for kind, count in counts.items())


def _save(graph: onnx.GraphProto, path: str | Path, plan_key: str, metadata: Mapping[str, str]) -> Artifact:
    proto = helper.make_model(graph, opset_imports=[helper.make_opsetid("", OPSET)], ir_version=IR_VERSION)
    proto.producer_name, proto.producer_version = "autocompress", VERSION
    return _write(proto, path, plan_key, metadata)


def _write(proto: onnx.ModelProto, path: str | Path, plan_key: str, metadata: Mapping[str, str]) -> Artifact:
    """Writes beside the target and renames, so that a file by this name is always whole."""
    helper.set_model_props(proto, dict(metadata))
    content = proto.SerializeToString()
    target = Path(path)
    partial = target.with_name(target.name + ".partial")
    try:
        partial.write_bytes(content)
        os.replace(partial, target)
    except OSError as error:
        raise StorageError(f"can't write {target}: {error.strerror}; free space or choose another folder") from error
    opset = next(entry.version for entry in proto.opset_import if entry.domain in ("", "ai.onnx"))
    return Artifact(target, hashlib.sha256(content).hexdigest(), plan_key, opset, len(content))
