"""ONNX Runtime: optimised nodes are traced back to the artifact's, and its absence is told plainly."""

import json
import sys
from collections.abc import Iterator
from pathlib import Path
from types import SimpleNamespace
from typing import Any

import numpy as np
import onnxruntime
import pytest

from autocompress.devices import DeviceWarning, _ort_qnn, list_devices, open_device
from autocompress.devices import ort as ort_file
from autocompress.devices._timing import middle_mean
from autocompress.vocabulary.errors import DeviceError, UntimedError
from autocompress.vocabulary.formats import FP32
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
    assert next(row for row in list_devices() if row.name == "ort:cuda").install.count("onnxruntime-gpu") == 1
    with pytest.raises(DeviceError, match="pip install onnxruntime"):
        open_device("ort:cpu").open(Path("net.onnx"))


class Elsewhere:
    """ONNX Runtime as built with CUDA: what it runs on the CPU here, it says that it ran there, but for some nodes."""

    def __init__(self, taken: list[str], left: set[str]) -> None:
        self.taken, self.left, self.sessions = taken, left, 0

    def __call__(self, path: str, options: Any, *, providers: list[str], enable_fallback: int) -> "Elsewhere":
        assert providers == ["CUDAExecutionProvider"] and not enable_fallback
        self.sessions += 1
        self.real = onnxruntime.InferenceSession(path, options, providers=["CPUExecutionProvider"])
        return self

    def __getattr__(self, name: str) -> Any:
        return getattr(self.real, name)

    def get_providers(self) -> list[str]:
        return self.taken

    def end_profiling(self) -> str:
        path = Path(self.real.end_profiling())
        events = json.loads(path.read_text())
        for event in events:
            if event.get("cat") == "Node" and event["args"].get("op_name") not in self.left:
                event["args"]["provider"] = "CUDAExecutionProvider"
        path.write_text(json.dumps(events))
        return str(path)


@pytest.fixture
def cuda(monkeypatch: pytest.MonkeyPatch) -> Iterator[Elsewhere]:
    made = Elsewhere(["CUDAExecutionProvider", "CPUExecutionProvider"], set())
    module = SimpleNamespace(
        __version__=onnxruntime.__version__, SessionOptions=onnxruntime.SessionOptions, InferenceSession=made,
        GraphOptimizationLevel=onnxruntime.GraphOptimizationLevel, get_available_providers=lambda: list(made.taken),
    )  # fmt: skip
    monkeypatch.setattr(ort_file, "_onnxruntime", lambda: module)
    ort_file._starts.cache_clear()
    yield made
    ort_file._starts.cache_clear()
    ort_file._audit_once.cache_clear()


def test_a_model_that_runs_where_it_was_asked_to_is_audited_once(cuda: Elsewhere, tmp_path: Path) -> None:
    device, path = open_device("ort:cuda"), write_net(tmp_path / "net.onnx")
    expected = onnxruntime.InferenceSession(str(path)).run(None, {"x": SAMPLE[0]})[0]
    np.testing.assert_allclose(device.open(path).run(*SAMPLE), expected, rtol=1e-5, atol=1e-6)
    before = cuda.sessions
    device.open(path)
    assert cuda.sessions == before + 1
    assert set(device.open(path).providers().values()) == {"CUDAExecutionProvider"}
    assert device.environment()["provider"] == "CUDAExecutionProvider"


def test_nodes_left_to_the_cpu_are_told(cuda: Elsewhere, tmp_path: Path) -> None:
    cuda.left = {"GlobalAveragePool", "ReorderInput", "ReorderOutput"}
    told = r"ort:cuda left \d of \d nodes of .*net.onnx to the CPU, \d+% of the profiled time: .*GlobalAveragePool pool"
    with pytest.warns(DeviceWarning, match=told):
        open_device("ort:cuda").open(write_net(tmp_path / "net.onnx"))


def test_a_model_that_fell_back_is_refused(cuda: Elsewhere, tmp_path: Path) -> None:
    cuda.left = {"Conv", "FusedConv", "Gemm"}
    with pytest.raises(DeviceError, match=r"ort:cuda was asked for, but 2 of 2 layers with weights .* ran on the CPU"):
        open_device("ort:cuda").open(write_net(tmp_path / "net.onnx"))


def test_one_layer_of_two_is_told_and_not_refused(cuda: Elsewhere, tmp_path: Path) -> None:
    cuda.left = {"Gemm"}
    with pytest.warns(DeviceWarning, match="Gemm linear"):
        open_device("ort:cuda").open(write_net(tmp_path / "net.onnx"))


def test_a_provider_that_did_not_start_is_refused(cuda: Elsewhere, tmp_path: Path) -> None:
    """ONNX Runtime drops it without an error where its libraries are missing."""
    path, silent = write_net(tmp_path / "net.onnx"), Elsewhere(["CPUExecutionProvider"], set())
    cuda.get_providers = silent.get_providers  # type: ignore[method-assign]
    with pytest.raises(DeviceError, match=r"could not start CUDAExecutionProvider and took CPUEx.*: an NVIDIA GPU"):
        open_device("ort:cuda").open(path)
    row = next(row for row in list_devices() if row.name == "ort:cuda")
    assert not row.usable and "does not start" in row.detail and "onnxruntime-gpu" in row.install


def test_a_provider_that_starts_is_listed_as_untried(cuda: Elsewhere) -> None:
    rows = {row.name: row for row in list_devices()}
    assert rows["ort:cuda"].usable and "never run on hardware" in rows["ort:cuda"].detail
    assert rows["ort:coreml"].detail.startswith("CoreMLExecutionProvider is not in this onnxruntime")


def test_a_provider_that_is_not_built_in_says_what_is(tmp_path: Path) -> None:
    device, path = open_device("ort:dml"), write_net(tmp_path / "net.onnx")
    with pytest.raises(
        DeviceError, match=r"asks for Dml\w+, this onnxruntime \d.* has .*CPU.*pip install onnxruntime-directml"
    ):
        device.open(path)


def test_without_its_package_qualcomms_provider_is_not_there(monkeypatch: pytest.MonkeyPatch, tmp_path: Path) -> None:
    monkeypatch.setattr(_ort_qnn, "find_spec", lambda name: None)
    row = next(row for row in list_devices() if row.name == "ort:qnn")
    assert not row.usable and "autocompress[qnn]" in row.install
    with pytest.raises(DeviceError, match=r"ort:qnn asks for QNN\w+, .*autocompress\[qnn\]"):
        open_device("ort:qnn").open(write_net(tmp_path / "net.onnx"))


@pytest.mark.skipif(not _ort_qnn.installed(), reason="needs onnxruntime-qnn")
@pytest.mark.filterwarnings("ignore::autocompress.devices.base.DeviceWarning")
def test_qualcomms_compiler_takes_a_model_whose_emulation_agrees(tmp_path: Path, capfd: Any) -> None:
    """In fp16, as its environment says; batches are run sample by sample."""
    device, path = open_device("ort:qnn"), write_net(tmp_path / "net.onnx")
    session = device.open(path)
    samples = np.random.default_rng(0).standard_normal((3, *SAMPLE[0].shape[1:])).astype(np.float32)
    expected = onnxruntime.InferenceSession(str(path)).run(None, {"x": samples})[0]
    found = session.run(samples)
    assert found.shape == expected.shape and not np.array_equal(found, expected), "the CPU did it"
    np.testing.assert_allclose(found, expected, atol=2.0**-8 * np.abs(expected).max())
    assert "QNNExecutionProvider" in session.providers().values()
    with pytest.raises(UntimedError, match=r"ort:qnn is emulated here.*autocompress verify"):
        session.time(SAMPLE, 1)
    assert capfd.readouterr().out == "", "programs read JSON there"
    row = next(row for row in list_devices() if row.name == "ort:qnn")
    assert row.usable and "is not timed" in row.detail


def test_a_provider_of_which_nothing_is_known_has_its_own_name(cuda: Elsewhere) -> None:
    cuda.taken.append("FastChipExecutionProvider")
    assert open_device("ort:fastchip").capabilities().dtypes == {FP32}
    with pytest.raises(DeviceError, match="did you mean 'ort:fastchip'"):
        open_device("ort:fastchp")


def test_the_device_running_out_of_memory_is_told(cuda: Elsewhere, tmp_path: Path) -> None:
    session = open_device("ort:cuda").open(write_net(tmp_path / "net.onnx"))

    def fail(*_: object) -> None:
        raise RuntimeError("[ONNXRuntimeError] : 6 : bfc_arena.cc Failed to allocate memory for 9 GB")

    cuda.run = fail  # type: ignore[attr-defined]
    for attempt in (lambda: session.run(*SAMPLE), lambda: session.time(SAMPLE, 3)):
        with pytest.raises(DeviceError, match=r"can't run .*net.onnx: out of memory; take a smaller batch") as caught:
            attempt()
        assert "\n" not in str(caught.value)
