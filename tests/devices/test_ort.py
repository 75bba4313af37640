"""ONNX Runtime: optimised nodes are traced back to the artifact's, and its absence is told plainly."""

import sys
from pathlib import Path

import numpy as np
import pytest

from autocompress.devices import list_devices, open_device
from autocompress.devices import ort as ort_file
from autocompress.devices._timing import middle_mean
from autocompress.errors import DeviceError
from tests.onnx_files import write_net

SAMPLE = [np.zeros((1, 3, 8, 8), np.float32)]


def test_a_fused_node_in_the_blocked_layout_is_traced_back(tmp_path: Path) -> None:
    nodes = open_device("ort:cpu").profile(write_net(tmp_path / "net.onnx"), SAMPLE, 3)
    conv = next(node for node in nodes if node.op == "Conv")
    assert conv.source == "conv/Relu", "the convolution took the activation in, and is named after the tensor it makes"
    assert all(node.source == "" for node in nodes if node.op in ort_file.LAYOUT_OPS)
    assert {node.provider for node in nodes} == {"CPUExecutionProvider"}


def test_a_quantised_convolution_is_one_node(tmp_path: Path) -> None:
    nodes = open_device("ort:cpu").profile(write_net(tmp_path / "net.onnx", int8=True), SAMPLE, 3)
    by_op = {node.op: node.source for node in nodes}
    assert by_op["QLinearConv"] == "conv"
    assert by_op["QuantizeLinear"] == "x>q"
    assert by_op["DequantizeLinear"] == "conv>dq"


def test_the_middle_half_decides() -> None:
    assert middle_mean([3, 1, 1000, 2, 2, 3, 2, 3]) == 2.5
    assert middle_mean([4.0]) == 4.0


def test_without_the_package_the_device_says_what_to_install(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setitem(sys.modules, "onnxruntime", None)
    monkeypatch.setattr(ort_file, "find_spec", lambda name: None)
    row = next(row for row in list_devices() if row.name == "ort:cpu")
    assert (row.usable, row.install) == (False, "pip install onnxruntime")
    with pytest.raises(DeviceError, match="pip install onnxruntime"):
        open_device("ort:cpu").open(Path("net.onnx"))
