"""Running exported files in ONNX Runtime, and seeing what it made of them."""

from collections import Counter
from pathlib import Path
from typing import Any

import numpy as np
import onnx
import onnxruntime
import pytest
from torch import Tensor


class Runner:
    """ONNX Runtime on one thread."""

    def __init__(self, folder: Path) -> None:
        self.folder = folder

    def _session(self, path: Path, **options: Any) -> onnxruntime.InferenceSession:
        settings = onnxruntime.SessionOptions()
        settings.intra_op_num_threads = 1
        settings.log_severity_level = 3
        for name, value in options.items():
            setattr(settings, name, value)
        return onnxruntime.InferenceSession(str(path), settings, providers=["CPUExecutionProvider"])

    def run(self, path: Path, *inputs: Tensor) -> np.ndarray:
        session = self._session(path)
        feed = {info.name: x.numpy() for info, x in zip(session.get_inputs(), inputs, strict=True)}
        result: np.ndarray = session.run(None, feed)[0]
        return result

    def executed(self, path: Path) -> Counter[str]:
        """How often each operator occurs in the graph as ONNX Runtime optimises it."""
        optimised = self.folder / "optimised.onnx"
        self._session(path, optimized_model_filepath=str(optimised))
        return Counter(node.op_type for node in onnx.load(optimised).graph.node)


@pytest.fixture
def runtime(tmp_path: Path) -> Runner:
    return Runner(tmp_path)
