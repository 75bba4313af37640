"""Reading an ONNX file for one sample: the batch is 1, shapes that follow are known, what is constant is computed."""

from pathlib import Path
from typing import Any

import numpy as np

from autocompress.vocabulary.errors import DeviceError, in_one_line


def loaded(path: Path) -> Any:
    """The model with inferred shapes and without nodes that depend on no input, but for dequantised constants.

    Raises DeviceError for a file that is no model.
    """
    import onnx

    try:
        model = onnx.load(str(path))
        _fix_batch(model.graph)
        model = onnx.shape_inference.infer_shapes(model, data_prop=True)
        while _fold(model.graph):
            del model.graph.value_info[:]
            model = onnx.shape_inference.infer_shapes(model, data_prop=True)
    except DeviceError:
        raise
    except Exception as error:  # whatever the parser trips over: protobuf's errors share no base class
        said = in_one_line(error)
        raise DeviceError(f"can't read {path} as an ONNX model: {said}; export it again") from error
    return model


def _fix_batch(graph: Any) -> None:
    constants = {tensor.name for tensor in graph.initializer}
    del graph.value_info[:]
    for value in graph.input:
        sizes = value.type.tensor_type.shape.dim
        if value.name in constants:
            continue
        for axis, size in enumerate(sizes):
            if size.dim_value:
                continue
            if axis:
                raise DeviceError(
                    f"input {value.name} leaves its axis {axis} open ({size.dim_param or 'no name'}), and an "
                    "accelerator takes fixed sizes: give example inputs and batches of one size"
                )
            size.dim_value = 1
    for value in graph.output:
        value.type.tensor_type.ClearField("shape")


def _fold(graph: Any) -> bool:
    """Puts constants in the place of nodes that compute one; returns whether there were any."""
    from onnx import numpy_helper

    constants = {tensor.name: tensor for tensor in graph.initializer}
    shapes = _known_shapes(graph)
    kept = []
    for node in graph.node:
        results = _results(node, constants, shapes)
        if results is None:
            kept.append(node)
            continue
        for name, result in zip(node.output, results, strict=True):
            constants[name] = numpy_helper.from_array(np.asarray(result), name)
            graph.initializer.append(constants[name])
    folded = len(kept) < len(graph.node)
    if folded:
        del graph.node[:]
        graph.node.extend(kept)
    return folded


def _known_shapes(graph: Any) -> dict[str, tuple[int, ...]]:
    shapes = {}
    for value in (*graph.value_info, *graph.input, *graph.output):
        kind = value.type.tensor_type
        sizes = tuple(size.dim_value for size in kind.shape.dim)
        if kind.HasField("shape") and all(sizes):
            shapes[value.name] = sizes
    return shapes


def _results(node: Any, constants: dict[str, Any], shapes: dict[str, tuple[int, ...]]) -> list[Any] | None:
    """What a node computes, None if that depends on an input of the graph."""
    from onnx import helper, numpy_helper
    from onnx.reference import ReferenceEvaluator

    if node.op_type == "Shape" and node.input[0] in shapes:
        settings = {attribute.name: helper.get_attribute_value(attribute) for attribute in node.attribute}
        return [np.array(shapes[node.input[0]][settings.get("start", 0) : settings.get("end")], np.int64)]
    if node.op_type == "DequantizeLinear" or any(tensor and tensor not in constants for tensor in node.input):
        return None
    feed = {tensor: numpy_helper.to_array(constants[tensor]) for tensor in node.input if tensor}
    return list(ReferenceEvaluator(node).run(None, feed))
