"""Running exported files in ONNX Runtime, and seeing what it made of them."""

from collections import Counter
from pathlib import Path
from typing import Any

import numpy as np
import onnx
import onnxruntime
import pytest
from torch import Tensor

from autocompress.devices._ort_saturation import UINT8_WEIGHTS, saturates, unshared


class Runner:
    """ONNX Runtime on one thread."""

    def __init__(self, folder: Path) -> None:
        self.folder = folder

    def _session(self, path: Path, **options: Any) -> onnxruntime.InferenceSession:
        settings = onnxruntime.SessionOptions()
        settings.intra_op_num_threads = 1
        settings.log_severity_level = 3
        if saturates():
            settings.add_session_config_entry(*UINT8_WEIGHTS)
        for name, value in options.items():
            setattr(settings, name, value)
        source = unshared(path) if saturates() else str(path)
        return onnxruntime.InferenceSession(source, settings, providers=["CPUExecutionProvider"])

    def run(self, path: Path, *inputs: Tensor) -> np.ndarray:
        session = self._session(path)
        feed = {info.name: x.numpy() for info, x in zip(session.get_inputs(), inputs, strict=True)}
        result: np.ndarray = session.run(None, feed)[0]
        return result

    def executed(self, path: Path) -> Counter[str]:
        """How often each operator occurs in the graph as ONNX Runtime optimises it."""
        return Counter(node.op_type for node in self._optimised(path).graph.node)

    def tensors(self, path: Path, *inputs: Tensor) -> dict[str, np.ndarray]:
        """Every tensor of the graph as ONNX Runtime optimises it."""
        proto = self._optimised(path)
        outside = {info.name for info in proto.graph.output}
        inner = [name for node in proto.graph.node for name in node.output if name and name not in outside]
        proto.graph.output.extend(onnx.ValueInfoProto(name=name) for name in inner)
        watched = self.folder / "watched.onnx"
        onnx.save(proto, watched)
        level = onnxruntime.GraphOptimizationLevel.ORT_DISABLE_ALL
        session = self._session(watched, graph_optimization_level=level)
        feed = {info.name: x.numpy() for info, x in zip(session.get_inputs(), inputs, strict=True)}
        names = [info.name for info in session.get_outputs()]
        return dict(zip(names, session.run(names, feed), strict=True))

    def _optimised(self, path: Path) -> onnx.ModelProto:
        optimised = self.folder / "optimised.onnx"
        self._session(path, optimized_model_filepath=str(optimised))
        return onnx.load(optimised)


@pytest.fixture
def runtime(tmp_path: Path) -> Runner:
    return Runner(tmp_path)
