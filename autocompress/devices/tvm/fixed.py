"""ONNX graphs with fixed shapes, whatever they say of constants alone computed beforehand."""

from collections.abc import Sequence
from typing import Any

import numpy as np

from autocompress.devices.base import Array


def fixed(proto: Any, shapes: Sequence[tuple[int, ...]]) -> Any:
    """A copy of the model for inputs of these shapes, in which no node reads constants only.

    TVM's importer refuses sizes and paddings that are computed, if only from constants and shapes that are known.
    """
    import onnx

    made = onnx.ModelProto()
    made.CopyFrom(proto)
    constants = {tensor.name: onnx.numpy_helper.to_array(tensor) for tensor in made.graph.initializer}
    inputs = [value for value in made.graph.input if value.name not in constants]
    for value, shape in zip(inputs, shapes, strict=True):
        for axis, size in zip(value.type.tensor_type.shape.dim, shape, strict=True):
            axis.dim_value = size
    kept = _kept(onnx.shape_inference.infer_shapes(made, data_prop=True), constants)
    results = {value.name for value in made.graph.output}
    read = {tensor for node in kept for tensor in node.input} | results
    for part, items in (
        (made.graph.input, inputs),
        (made.graph.node, kept),
        (made.graph.initializer, [onnx.numpy_helper.from_array(v, n) for n, v in constants.items() if n in read]),
    ):
        copies = [type(item).FromString(item.SerializeToString()) for item in items]
        del part[:]
        part.extend(copies)
    del made.graph.value_info[:]
    return made


def _kept(inferred: Any, constants: dict[str, Array]) -> list[Any]:
    """Nodes that depend on the inputs' values; what the others make is added to the constants."""
    shapes = {value.name: _shape(value) for value in (*inferred.graph.value_info, *inferred.graph.input)}
    versions = {entry.domain: entry.version for entry in inferred.opset_import}
    kept = []
    for node in inferred.graph.node:
        made = _values(node, constants, shapes, versions)
        if made is None:
            kept.append(node)
        else:
            constants.update(zip(node.output, made, strict=True))
    return kept


def _values(
    node: Any, constants: dict[str, Array], shapes: dict[str, tuple[int, ...] | None], versions: dict[str, int]
) -> list[Array] | None:
    """What a node makes, where that is known already."""
    from onnx.reference import ReferenceEvaluator

    if node.op_type == "Shape" and not node.attribute and shapes.get(node.input[0]) is not None:
        return [np.array(shapes[node.input[0]], np.int64)]
    if any(attribute.HasField("g") for attribute in node.attribute) or not (node.input or node.op_type == "Constant"):
        return None
    if not all(tensor in constants for tensor in node.input if tensor):
        return None
    feeds = {tensor: constants[tensor] for tensor in node.input if tensor}
    return list(ReferenceEvaluator(node, opsets=versions).run(None, feeds))


def _shape(value: Any) -> tuple[int, ...] | None:
    tensor = value.type.tensor_type
    sizes = tuple(axis.dim_value for axis in tensor.shape.dim)
    return sizes if tensor.HasField("shape") and all(sizes) else None
