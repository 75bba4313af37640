"""int8 in ONNX Runtime on x86 processors without VNNI, where it is exact only if asked to be."""

from collections import Counter
from functools import cache
from pathlib import Path

import numpy as np

from autocompress.devices._ort_providers import CPU

UINT8_WEIGHTS = ("session.x64quantprecision", "1")
"""The option of a session that makes int8 weights uint8 when a model is loaded."""


@cache
def saturates() -> bool:
    """Whether ONNX Runtime adds products of uint8 and int8 in 16 bits on this processor: it does on x86 without VNNI.

    Five int8 nets under an emulated Haswell were off by 5 to 24 % of their outputs' range. With UINT8_WEIGHTS they
    computed, bit for bit, what a processor with VNNI does. Where VNNI is, that option only makes models slower.
    """
    import onnxruntime
    from onnx import TensorProto, helper

    size = 64
    kinds = {"x": TensorProto.UINT8, "w": TensorProto.INT8, "y": TensorProto.INT32}
    x, w, y = (helper.make_tensor_value_info(name, kind, [size, size]) for name, kind in kinds.items())
    graph = helper.make_graph([helper.make_node("MatMulInteger", ["x", "w"], ["y"])], "probe", [x, w], [y])
    model = helper.make_model(graph, opset_imports=[helper.make_opsetid("", 17)], ir_version=8)
    session = onnxruntime.InferenceSession(model.SerializeToString(), providers=[CPU])
    feeds = {"x": np.full((size, size), 255, np.uint8), "w": np.full((size, size), 127, np.int8)}
    return bool((session.run(None, feeds)[0] != size * 255 * 127).any())


def unshared(path: Path) -> str | bytes:
    """The model to load where weights become uint8: its path, or its content with a copy of each weight that several
    layers read, on which ONNX Runtime 1.31 fails ("Attempt to replace the existing tensor")."""
    import onnx

    model = onnx.load(str(path))
    stored = {tensor.name: tensor for tensor in model.graph.initializer}
    read: Counter[str] = Counter()
    for node in model.graph.node:
        if node.op_type == "DequantizeLinear":
            for i, name in enumerate(node.input):
                if name not in stored or stored[name].data_type != onnx.TensorProto.INT8:
                    continue
                if read[name]:
                    copied = model.graph.initializer.add()
                    copied.CopyFrom(stored[name])
                    copied.name = node.input[i] = f"{name}/{read[name]}"
                read[name] += 1
    return model.SerializeToString() if max(read.values(), default=0) > 1 else str(path)
