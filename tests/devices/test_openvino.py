"""OpenVINO: what runs agrees with ONNX Runtime, in the precision that is said, and is traced back to the artifact."""

import subprocess
import sys
import time
from dataclasses import replace
from datetime import timedelta
from importlib.util import find_spec
from pathlib import Path
from types import SimpleNamespace
from typing import Any

import numpy as np
import onnx
import pytest
from onnx import numpy_helper

from autocompress.devices import _openvino_probe, list_devices, open_device
from autocompress.devices import openvino as openvino_file
from autocompress.devices._openvino_nodes import WARMUP, seconds_by_counter
from autocompress.profiles.calibration import attribute
from autocompress.vocabulary.errors import DeviceError
from autocompress.vocabulary.formats import FP32, INT8
from autocompress.vocabulary.workload import WEIGHTED_OPS
from tests.devices.exported import export, kernels, rms, sample
from tests.onnx_files import write_net

installed = pytest.mark.skipif(find_spec("openvino") is None, reason="openvino is not installed")

SAMPLE = np.random.default_rng(1).normal(size=(4, 3, 8, 8)).astype(np.float32)
BF16 = 2**-8
"""Relative rounding of bfloat16 (8 bits); a value passes through inputs, weights and outputs of a few layers."""


def on(device: str, path: Path, *inputs: np.ndarray) -> np.ndarray:
    return open_device(device).open(path).run(*inputs)


@installed
def test_float_nets_agree_with_onnx_runtime(tmp_path: Path) -> None:
    path = write_net(tmp_path / "net.onnx")
    expected, scale = on("ort:cpu", path, SAMPLE), np.abs(on("ort:cpu", path, SAMPLE)).max()
    np.testing.assert_allclose(on("openvino:cpu-f32", path, SAMPLE), expected, rtol=1e-5, atol=1e-6 * scale)
    np.testing.assert_allclose(on("openvino:cpu", path, SAMPLE), expected, atol=4 * BF16 * scale)


@installed
@pytest.mark.parametrize("net", ["resnet", "mobilenet", "transformer"])
def test_exported_float_nets_agree_with_onnx_runtime(net: str, tmp_path: Path) -> None:
    path, x = export(net, "fp32", tmp_path), sample(net)
    expected = on("ort:cpu", path, x)
    np.testing.assert_allclose(on("openvino:cpu-f32", path, x), expected, rtol=1e-5, atol=1e-5)


@installed
def test_an_int8_layer_differs_by_one_step_at_most(tmp_path: Path) -> None:
    """Runtimes may round what lies between two steps either way; the linear layer adds that up by its weights."""
    path = write_net(tmp_path / "net.onnx", int8=True)
    constants = {t.name: numpy_helper.to_array(t) for t in onnx.load(path).graph.initializer}
    step = constants["scale"] * np.abs(constants["linear.weight"]).sum(1).max()
    expected = on("ort:cpu", path, SAMPLE)
    assert np.abs(on("openvino:cpu-f32", path, SAMPLE) - expected).max() <= step
    assert np.abs(on("openvino:cpu", path, SAMPLE) - expected).max() <= step + 4 * BF16 * np.abs(expected).max()


@installed
@pytest.mark.parametrize(
    ("device", "net"),
    [
        ("cpu", "resnet"),
        ("cpu", "mobilenet"),
        ("cpu-f32", "resnet"),
        ("cpu-f32", "mobilenet"),
        ("cpu-f32", "transformer"),
    ],
)
def test_runtimes_differ_by_less_than_int8_costs(device: str, net: str, tmp_path: Path) -> None:
    """What stays in float between int8 layers must be computed as exactly as ONNX Runtime does for that: in bfloat16
    the transformer's sums fall on other steps."""
    x = sample(net)
    exact, rounded = (on("ort:cpu", export(net, share, tmp_path), x) for share in ("fp32", "int8"))
    found = on(f"openvino:{device}", export(net, "int8", tmp_path), x)
    assert rms(found - rounded) < rms(rounded - exact)


@installed
@pytest.mark.parametrize("device", ["openvino:cpu", "openvino:cpu-f32"])
@pytest.mark.parametrize("net", ["resnet", "mobilenet"])
def test_layers_run_in_the_format_that_the_plan_says(device: str, net: str, tmp_path: Path) -> None:
    planned = {k.name: k.workload.dtype for k in kernels(net, "every other") if k.workload.op in WEIGHTED_OPS}
    nodes = open_device(device).profile(export(net, "every other", tmp_path), [sample(net)], 5)
    found = {n.source: INT8 if n.provider.endswith("I8") else FP32 for n in nodes if n.source in planned}
    assert found == planned


@installed
@pytest.mark.parametrize("share", ["fp32", "int8", "every other"])
@pytest.mark.parametrize("net", ["resnet", "mobilenet", "transformer"])
def test_every_node_belongs_to_a_kernel(net: str, share: str, tmp_path: Path) -> None:
    names = [kernel.name for kernel in kernels(net, share)]
    nodes = open_device("openvino:cpu").profile(export(net, share, tmp_path), [sample(net)], 5)
    counted = attribute([replace(node, seconds=1.0) for node in nodes], names)
    assert sum(counted.values()) == len(nodes)
    weighted = {kernel.name for kernel in kernels(net, share) if kernel.workload.op in WEIGHTED_OPS}
    assert weighted <= counted.keys()
    assert len({node.name for node in nodes}) == len(nodes)


@installed
def test_nodes_have_the_same_names_in_every_copy(tmp_path: Path) -> None:
    """The runtime numbers what it makes (here the core of a normalisation) through its life."""
    device, path = open_device("openvino:cpu"), export("transformer", "fp32", tmp_path)
    nodes = device.profile(path, [sample("transformer")], 5)
    assert any(node.op == "MVN" for node in nodes)
    assert [node.name for node in nodes] == [node.name for node in device.profile(path, [sample("transformer")], 5)]


@installed
def test_a_normalisation_is_traced_back_to_its_layer(tmp_path: Path) -> None:
    nodes = open_device("openvino:cpu").profile(export("transformer", "fp32", tmp_path), [sample("transformer")], 5)
    assert {node.source for node in nodes if node.op == "MVN"} == {"norm", "encoder.norm1", "encoder.norm2"}


@installed
def test_one_thread_computes_in_the_caller(tmp_path: Path) -> None:
    """So that a process pinned to a core by whoever measures is pinned as a whole."""
    session = open_device("openvino:cpu").open(write_net(tmp_path / "net.onnx"))
    session.time([SAMPLE], 50)
    process, thread = time.process_time(), time.thread_time()
    session.time([SAMPLE], 500)
    assert time.thread_time() - thread > 0.8 * (time.process_time() - process)


@installed
def test_the_precision_that_was_asked_for_is_the_one_reported(tmp_path: Path) -> None:
    assert "precision" not in open_device("openvino:cpu-f32").environment()
    assert all(isinstance(entry, str) for entry in open_device("openvino:cpu").environment().values())
    nodes = open_device("openvino:cpu-f32").profile(write_net(tmp_path / "net.onnx"), [SAMPLE[:1]], 5)
    assert all(node.provider.startswith("CPU ") and "bf16" not in node.provider for node in nodes)


@installed
@pytest.mark.parametrize(
    ("wrong", "found"),
    [
        (SAMPLE.astype(np.float64), "float64"), (SAMPLE[..., :4], r"\(4, 3, 8, 4\)"), (SAMPLE[0], r"\(3, 8, 8\)"),
    ],
)  # fmt: skip
def test_what_would_have_to_be_converted_is_refused(wrong: np.ndarray, found: str, tmp_path: Path) -> None:
    session = open_device("openvino:cpu").open(write_net(tmp_path / "net.onnx"))
    with pytest.raises(DeviceError, match=rf"can't run .*net.onnx: input x is .*float32, got .*{found}"):
        session.run(wrong)


@installed
def test_an_operator_that_it_lacks_is_named(tmp_path: Path) -> None:
    model = onnx.load(write_net(tmp_path / "net.onnx"))
    model.graph.node[1].op_type, model.graph.node[1].domain = "Frobnicate", "elsewhere"
    model.opset_import.append(onnx.helper.make_opsetid("elsewhere", 1))
    onnx.save(model, str(tmp_path / "odd.onnx"))
    with pytest.raises(DeviceError, match=r"can't load .*odd.onnx: .*elsewhere\.Frobnicate") as caught:
        open_device("openvino:cpu").open(tmp_path / "odd.onnx")
    assert "\n" not in str(caught.value)


class Counters:
    """A request whose counters show what each run took, given in microseconds: running means, or the last run."""

    def __init__(self, durations: list[float], running: bool) -> None:
        self.durations, self.running, self.done = durations, running, 0

    def infer(self) -> None:
        self.done += 1

    def get_profiling_info(self) -> list[Any]:
        past = self.durations[: self.done]
        shown = int(sum(past) / len(past)) if self.running else past[-1]
        return [SimpleNamespace(node_name="n", real_time=timedelta(microseconds=shown))]


def test_a_running_mean_is_undone() -> None:
    """The first run of a new model takes thousands of times longer; the mean is cut to whole microseconds."""
    request = Counters([8000.0, 30.0, 20.0, *[12.0] * 10], running=True)
    resolution = (WARMUP + 10) / 10 * 0.5 + WARMUP / 10 * 0.5
    assert seconds_by_counter(request, 10, "CPU")["n"] == pytest.approx(12e-6, abs=1e-6 * resolution)


def test_other_plugins_show_the_last_run() -> None:
    request = Counters([8000.0, 30.0, 20.0, 12.0, 900.0, 12.0, 11.0], running=False)
    assert seconds_by_counter(request, 4, "GPU")["n"] == pytest.approx(12e-6)


def test_without_the_package_every_device_says_what_to_install(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setitem(sys.modules, "openvino", None)
    monkeypatch.setattr(openvino_file, "find_spec", lambda name: None)
    rows = [row for row in list_devices() if row.name.startswith("openvino:")]
    assert [row.name for row in rows] == [f"openvino:{v}" for v in ("cpu", "cpu-f32", "gpu", "npu")]
    assert {(row.usable, row.install) for row in rows} == {(False, 'pip install "autocompress[openvino]"')}
    with pytest.raises(DeviceError, match=r'openvino is not installed; pip install "autocompress\[openvino\]"'):
        open_device("openvino:cpu").open(Path("net.onnx"))


@installed
def test_hardware_that_is_absent_is_told_before_anything_is_timed(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setattr(openvino_file, "_plugins", lambda: ("CPU",))
    row = next(row for row in list_devices() if row.name == "openvino:npu")
    assert not row.usable and "finds no NPU" in row.detail and "driver" in row.install
    with pytest.raises(DeviceError, match=r"openvino:gpu asks for a GPU, openvino \d.* finds CPU: it takes an Intel"):
        open_device("openvino:gpu").open(write_net(tmp_path / "net.onnx"))


@installed
def test_what_was_never_tried_says_so(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(openvino_file, "_plugins", lambda: ("CPU", "GPU"))
    monkeypatch.setattr(openvino_file, "_full_name", lambda plugin: f"some {plugin}")
    monkeypatch.setattr(openvino_file, "_precision", lambda target: "fp16")
    rows = {row.name: row for row in list_devices()}
    assert rows["openvino:gpu"].usable and "never run on hardware" in rows["openvino:gpu"].detail
    assert "never" not in rows["openvino:cpu"].detail
    assert open_device("openvino:gpu").environment()["precision"] == "fp16"


@pytest.mark.parametrize(
    ("asked", "clue"), [("cpu-f23", "openvino:cpu-f32"), ("gpuu", "openvino:gpu"), ("", "valid: openvino:cpu")]
)
def test_an_unknown_variant_names_the_nearest(asked: str, clue: str) -> None:
    with pytest.raises(DeviceError, match=f"unknown device 'openvino:{asked}': .*{clue}"):
        open_device(f"openvino:{asked}")


@installed
@pytest.mark.parametrize(
    ("code", "clue"), [(-11, r"can't compile .*net.onnx: it crashes \(signal 11\); leave this model out"), (0, "")]
)
def test_a_model_that_takes_openvino_down_does_not_take_us(
    code: int, clue: str, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    """Some quantised nets crash its compiler: another process tries them first, once per file."""
    tried: list[list[str]] = []

    def run(command: list[str], **options: object) -> subprocess.CompletedProcess[bytes]:
        tried.append(command)
        return subprocess.CompletedProcess(command, code)

    monkeypatch.setattr(_openvino_probe.subprocess, "run", run)
    _openvino_probe._end_of.cache_clear()
    path = write_net(tmp_path / "net.onnx", int8=True)
    device = open_device("openvino:cpu")
    for _ in range(2):
        if clue:
            with pytest.raises(DeviceError, match=clue):
                device.open(path)
        else:
            device.open(path)
    assert len(tried) == 1 and tried[0][-2] == str(path)
    device.open(write_net(tmp_path / "float.onnx"))
    assert len(tried) == 1, "what is not quantised was never seen to crash"
    _openvino_probe._end_of.cache_clear()
