"""Another ONNX model's nodes as part of a graph: renamed, its functions spelled out, in our operator set."""

from collections.abc import Mapping

import onnx
from onnx import defs, inliner, numpy_helper, version_converter

from autocompress.export.writer import OPSET, Writer
from autocompress.vocabulary.errors import ExportError


def portable(proto: onnx.ModelProto) -> onnx.ModelProto:
    """The same model without functions, in operator set OPSET; raises ExportError where that has no such operator."""
    proto = inliner.inline_local_functions(proto) if proto.functions else proto
    version = next((entry.version for entry in proto.opset_import if entry.domain in ("", "ai.onnx")), OPSET)
    if version == OPSET:
        return proto
    if not all(_unchanged(node, version) for node in _nodes(proto.graph)):
        try:
            proto = version_converter.convert_version(proto, OPSET)
        except Exception as error:  # onnx raises what its C++ core throws
            raise ExportError(f"it needs operator set {version}, and {OPSET} can't say the same: {error}") from error
    for entry in proto.opset_import:
        if entry.domain in ("", "ai.onnx"):
            entry.version = OPSET
    return proto


def inline(w: Writer, proto: onnx.ModelProto, inputs: Mapping[str, str]) -> tuple[str, ...]:
    """Adds a portable model's nodes; `inputs` are the tensors that feed its inputs, by their names there (those that it
    doesn't have are not needed). Returns the names of its outputs."""
    names = {"": "", **inputs}
    for tensor in proto.graph.initializer:
        names[tensor.name] = w.constant(numpy_helper.to_array(tensor))
    missing = [i.name for i in proto.graph.input if i.name not in names]
    if missing or proto.graph.sparse_initializer:
        raise ExportError(f"nothing feeds {missing} of an exported operator")
    for node in proto.graph.node:
        copied = _renamed(w, node, names)
        copied.name = w.node_name(node.op_type)
        w.nodes.append(copied)
    for entry in proto.opset_import:
        if entry.domain not in ("", "ai.onnx"):
            w.opsets[entry.domain] = max(entry.version, w.opsets.get(entry.domain, 0))
    return tuple(names[output.name] for output in proto.graph.output)


def _renamed(w: Writer, node: onnx.NodeProto, names: dict[str, str]) -> onnx.NodeProto:
    """A copy that reads and makes tensors under the new names; what it makes is added to `names`."""
    copied = onnx.NodeProto()
    copied.CopyFrom(node)
    copied.input[:] = [names[name] for name in node.input]
    for attribute in copied.attribute:
        for graph in (attribute.g, *attribute.graphs) if attribute.type in _GRAPHS else ():
            _rename_body(w, graph, dict(names))
    for name in node.output:
        if name:
            names[name] = w.unique(f"{w.result}/{name}")
    copied.output[:] = [names[name] for name in node.output]
    return copied


_GRAPHS = (onnx.AttributeProto.GRAPH, onnx.AttributeProto.GRAPHS)


def _rename_body(w: Writer, graph: onnx.GraphProto, names: dict[str, str]) -> None:
    """Renames a branch or a loop's body in place; `names` are those of the scopes around it."""
    for info in (*graph.input, *graph.initializer):
        names[info.name] = w.unique(f"{w.result}/{info.name}")
        info.name = names[info.name]
    nodes = [_renamed(w, node, names) for node in graph.node]
    del graph.node[:]
    graph.node.extend(nodes)
    for node in graph.node:
        node.name = ""
    del graph.value_info[:]
    for info in graph.output:
        info.name = names[info.name]


def _nodes(graph: onnx.GraphProto) -> list[onnx.NodeProto]:
    found = list(graph.node)
    for node in graph.node:
        for attribute in node.attribute:
            for body in (attribute.g, *attribute.graphs) if attribute.type in _GRAPHS else ():
                found += _nodes(body)
    return found


def _unchanged(node: onnx.NodeProto, version: int) -> bool:
    """Whether an operator means the same in OPSET as in `version`."""
    if node.domain not in ("", "ai.onnx"):
        return True
    now = defs.get_schema(node.op_type, version, "").since_version
    return bool(now <= OPSET)
