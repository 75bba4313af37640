"""Arm Ethos-U through Vela: the devices, the cycles of Vela's own command line, and what runs elsewhere."""

import csv
import subprocess
import sys
from dataclasses import replace
from importlib import metadata
from pathlib import Path

import numpy as np
import onnx
import pytest
import torch
from onnx import TensorProto, helper
from torch import Tensor, nn

pytest.importorskip("ethosu.regor", reason="the npu extra is not installed")

from autocompress.compression.build import build, plan_kernels
from autocompress.compression.plan import Plan
from autocompress.devices import list_devices, open_device
from autocompress.devices.vela import compiler, device, lowering, pointwise, weighted
from autocompress.devices.vela.compiler import REQUIRED, compiled
from autocompress.devices.vela.lowering import lowered
from autocompress.devices.vela.operators import HANDLERS
from autocompress.devices.vela.platforms import PLATFORMS
from autocompress.devices.vela.tflite import Grid, to_bytes
from autocompress.export.onnx import to_onnx
from autocompress.graph import trace
from autocompress.profiles.calibration import attribute
from autocompress.vocabulary.errors import DeviceError
from autocompress.vocabulary.precision import lower
from tests.devices.vela_nets import FAMILIES, ZOO, Several, planned, profile, write
from tests.onnx_files import write_net

# The devices


def test_every_accelerator_of_vela_is_a_device_in_the_system_that_vela_takes_by_default(capsys):
    from ethosu.vela.architecture_features import Accelerator, create_default_arch

    assert set(PLATFORMS) == set(Accelerator.member_list())
    for accelerator in Accelerator:
        default, platform = create_default_arch(accelerator), PLATFORMS[accelerator.value]
        assert (platform.system_config, platform.memory_mode) == (default.system_config, default.memory_mode)
        assert platform.clock_hz == default.core_clock
    assert "Warning" in capsys.readouterr().out, "it is Vela that chose"


def test_an_estimate_says_so():
    found = open_device("vela:ethos-u65-512")
    environment = found.environment()
    assert found.estimate and found.runtime == f"ethos-u-vela {REQUIRED}"
    assert environment["clock"] == "1000 MHz" and environment["memory_mode"] == "Dedicated_Sram_384KB"
    assert environment["system_config"].startswith("Ethos_U65_Client_Server (Arm/vela.ini")
    assert "vendor" in environment["estimate"] and "Cortex-A55" in environment["host"]
    assert all("estimate" in row.detail for row in list_devices() if row.name.startswith("vela:"))


@pytest.mark.parametrize(
    ("asked", "clue"),
    [
        ("vela:ethos-u55-129", "'vela:ethos-u55-128'"),
        ("vela:u85-256", "'vela:ethos-u85-256'"),
        ("vela", "vela:ethos-u55-128"),
    ],
)
def test_an_unknown_accelerator_names_the_nearest(asked, clue):
    with pytest.raises(DeviceError, match=f"unknown device .*{asked}.*{clue}"):
        open_device(asked)


def test_without_vela_the_device_says_what_to_install(monkeypatch):
    monkeypatch.setattr(compiler, "find_spec", lambda name: None)
    rows = [row for row in list_devices() if row.name.startswith("vela:")]
    assert len(rows) == len(PLATFORMS)
    assert all(not row.usable and "not installed" in row.detail for row in rows)
    assert {row.install for row in rows} == {'pip install "autocompress[npu]"'}
    with pytest.raises(DeviceError, match=r"ethos-u-vela is not installed; pip install \"autocompress\[npu\]\""):
        open_device("vela:ethos-u55-128")


def test_another_version_is_refused_by_name(monkeypatch):
    monkeypatch.setattr(compiler, "version", lambda name: "6.0.0")
    with pytest.raises(DeviceError, match=f"6.0.0 is installed.*{REQUIRED}.*pip install"):
        open_device("vela:ethos-u55-128")
    assert not any(row.usable for row in list_devices() if row.name.startswith("vela:"))


def test_a_package_without_a_version_is_refused(monkeypatch):
    def missing(name: str) -> str:
        raise metadata.PackageNotFoundError(name)

    monkeypatch.setattr(compiler, "version", missing)
    with pytest.raises(DeviceError, match="its version is unknown"):
        open_device("vela:ethos-u55-128")


# Cycles


def by_hand(model: Path, accelerator: str, folder: Path) -> dict[str, str]:
    """What `vela` itself says of a file, without any other option."""
    command = [sys.executable, "-m", "ethosu.vela", str(model), "--accelerator-config", accelerator]
    subprocess.run([*command, "--output-dir", str(folder)], check=True, capture_output=True)
    with next(folder.glob("*_summary_*.csv")).open() as file:
        return next(csv.DictReader(file))


@pytest.mark.parametrize(
    ("accelerator", "int8"), [*zip(FAMILIES, [slice(None), slice(2), slice(None)], strict=True)], ids=FAMILIES
)
def test_cycles_are_those_of_velas_command_line(accelerator, int8, tmp_path):
    *_, path = planned("resnet", tmp_path / "net.onnx", int8)
    tflite = tmp_path / "net.tflite"
    tflite.write_bytes(to_bytes(lowered(path, HANDLERS)))
    summary = by_hand(tflite, accelerator, tmp_path / "out")
    npu = [node for node in profile(path, accelerator) if node.provider == "Ethos-U"]
    platform = PLATFORMS[accelerator]
    assert sum(node.seconds for node in npu) * platform.clock_hz == pytest.approx(float(summary["cycles_total"]))
    assert float(summary["core_clock"]) == platform.clock_hz
    assert (summary["system_config"], summary["memory_mode"]) == (platform.system_config, platform.memory_mode)


@pytest.mark.parametrize("accelerator", FAMILIES)
def test_cycles_do_not_depend_on_the_grid_that_is_assumed(accelerator, tmp_path, monkeypatch):
    """Why a float file can be priced: the scales of its conversion are made up."""
    path = write(tmp_path / "net.onnx", Several(), torch.rand(1, 3, 8, 8))
    model = to_bytes(lowered(path, HANDLERS))
    for module in (lowering, pointwise, weighted):
        monkeypatch.setattr(module, "ASSUMED", Grid((0.3,), -7))
    other = to_bytes(lowered(path, HANDLERS))
    assert other != model
    assert compiled(other, PLATFORMS[accelerator]) == compiled(model, PLATFORMS[accelerator])


@pytest.mark.parametrize("name", ["resnet", "mobilenet", "shufflenet"])
def test_a_float_file_stands_for_its_int8_conversion(name, tmp_path):
    """The same operators, but for changes of grid that only a quantised file has; in nets as small as these, what the
    compiler makes of the others beside one moves by a few hundred cycles."""
    *_, float_path = planned(name, tmp_path / "fp32.onnx")
    *_, int8_path = planned(name, tmp_path / "int8.onnx", slice(None))
    for accelerator in FAMILIES:
        float_nodes, int8_nodes = profile(float_path, accelerator), profile(int8_path, accelerator)
        assert {node.provider for node in (*float_nodes, *int8_nodes)} == {"Ethos-U"}
        rest = [node for node in int8_nodes if node.op != "QUANTIZE"]
        assert [(n.op, n.source) for n in float_nodes] == [(n.op, n.source) for n in rest]
        assert sum(n.seconds for n in rest) == pytest.approx(sum(n.seconds for n in float_nodes), rel=0.05)


@pytest.mark.slow
def test_resnet_20_takes_what_it_took_when_written_by_hand(tmp_path):
    """Figures of a file written by hand with other weights, at Vela 5.2.0 and (U65) in another system.

    There the add reads the branch before the shortcut: that alone moves the fetching of one layer's weights and with
    it 1.1 % (U55) and 1.7 % (U65) of the whole.
    """
    from tests.zoo import OptionAResNet

    net, image = OptionAResNet(3, 16, 10), torch.rand(2, 3, 32, 32)
    graph = trace(net.eval(), image)
    plan = Plan(graph.fingerprint, ())
    to_onnx(build(plan, graph, None), tmp_path / "net.onnx", plan.key)
    model = to_bytes(lowered(tmp_path / "net.onnx", HANDLERS))
    other = replace(PLATFORMS["ethos-u65-512"], system_config="Ethos_U65_High_End", memory_mode="Dedicated_Sram")
    for platform, cycles in (
        (PLATFORMS["ethos-u55-128"], 629_538), (other, 191_464), (PLATFORMS["ethos-u85-256"], 265_012)
    ):  # fmt: skip
        assert compiled(model, platform).total_cycles == pytest.approx(cycles, rel=0.02)


# What runs where, and whose time it is


def test_what_is_float_runs_on_the_host_and_is_priced_there(tmp_path):
    *_, path = planned("resnet", tmp_path / "net.onnx", slice(1))
    nodes = profile(path)
    first = [node for node in nodes if node.source.split(">")[0].split("/")[0] == "conv1"]
    assert {(n.op, n.provider) for n in first} == {("CONV_2D", "Ethos-U"), ("DEQUANTIZE", "host CPU")}
    assert {node.provider for node in nodes if node not in first} == {"host CPU"}
    platform = PLATFORMS["ethos-u55-128"]
    conv = next(node for node in nodes if node.name == "layer1.0.conv1")
    cycles = platform.host.launch_cycles + 8 * 8 * 8 * 8 * 9 / platform.host.fp32_macs
    assert conv.seconds == pytest.approx(cycles / platform.clock_hz), "8 channels to 8, 3x3, at 8x8 positions"


def test_what_vela_itself_leaves_to_the_cpu_is_reported(tmp_path, capfd):
    """An int8 operator that the accelerator lacks. Vela's warnings about it do not reach the terminal."""

    class Looked(nn.Module):
        def __init__(self) -> None:
            super().__init__()
            self.table, self.head = nn.Embedding(50, 16), nn.Linear(16, 4)

        def forward(self, x: Tensor) -> Tensor:
            return self.head(self.table(x))

    path = write(tmp_path / "net.onnx", Looked(), torch.zeros(1, 7, dtype=torch.int64))
    assert {n.op: n.provider for n in profile(path)} == {"GATHER": "host CPU", "FULLY_CONNECTED": "Ethos-U"}
    assert {n.op: n.provider for n in profile(path, "ethos-u85-256")}["GATHER"] == "Ethos-U"
    assert capfd.readouterr() == ("", "")


@pytest.mark.parametrize(("name", "int8"), [*ZOO, ("resnet", slice(2))])
def test_nodes_add_up_to_the_whole_and_belong_to_kernels(name, int8, tmp_path):
    graph, plan, path = planned(name, tmp_path / "net.onnx", int8)
    nodes = profile(path)
    assert len({node.name for node in nodes}) == len(nodes)
    total = open_device("vela:ethos-u55-128").open(path).time([], 3)
    assert total == [pytest.approx(sum(node.seconds for node in nodes))] * 3
    kernels = {kernel.name: kernel.workload for kernel in lower(plan_kernels(plan, graph))}
    seconds = attribute(nodes, kernels)
    assert sum(seconds.values()) == pytest.approx(total[0])
    assert all(seconds.get(kernel, 0) > 0 for kernel, w in kernels.items() if w.op in ("conv", "linear"))


def test_a_session_computes_what_onnx_runtime_does(tmp_path):
    path = write_net(tmp_path / "net.onnx", int8=True)
    sample = np.random.default_rng(0).normal(size=(2, 3, 8, 8)).astype(np.float32)
    found = open_device("vela:ethos-u85-256").open(path).run(sample)
    np.testing.assert_array_equal(found, open_device("ort:cpu").open(path).run(sample))


def test_a_file_is_compiled_once_until_it_changes(tmp_path, monkeypatch):
    calls = []
    monkeypatch.setattr(device, "compiled", lambda *args: calls.append(args) or compiled(*args))
    npu, path = open_device("vela:ethos-u55-256"), write_net(tmp_path / "net.onnx")
    session = npu.open(path)
    assert npu.open(path).time([], 1) == session.time([], 1)
    assert {node.name: node.provider for node in npu.profile(path, [], 1)} == session.providers()
    assert len(calls) == 1
    write(path, nn.Conv2d(3, 64, 3), torch.zeros(1, 3, 8, 8))
    assert npu.open(path).time([], 1) != session.time([], 1)
    assert len(calls) == 2
    assert to_bytes(lowered(path, HANDLERS)) == to_bytes(lowered(path, HANDLERS))


# What can't be taken


def graph_of(path: Path, nodes: list[onnx.NodeProto], shape: list[int | str], *constants: onnx.TensorProto) -> Path:
    ends = [helper.make_tensor_value_info(n, TensorProto.FLOAT, s) for n, s in (("x", shape), ("y", None))]
    graph = helper.make_graph(nodes, "net", ends[:1], ends[1:], constants)
    onnx.save(helper.make_model(graph, opset_imports=[helper.make_opsetid("", 17)], ir_version=8), str(path))
    return path


@pytest.mark.parametrize(
    ("node", "shape", "said"),
    [
        (helper.make_node("Erf", ["x"], ["y"], "act"), [1, 8], r"operator Erf \(node act\) can't be converted"),
        (helper.make_node("Relu", ["x"], ["y"], "act"), [1, "length"], r"input x leaves its axis 1 open \(length\)"),
        (helper.make_node("Gemm", ["x", "x"], ["y"], "fc", alpha=2.0), [1, 1], r"Gemm \(node fc\).*alpha"),
        (helper.make_node("Conv", ["x", "x"], ["y"], "conv"), [1, 2, 8, 8], r"Conv \(node conv\).*not constant"),
    ],
)
def test_what_can_not_be_converted_is_named_in_one_line(node, shape, said, tmp_path):
    path = graph_of(tmp_path / "net.onnx", [node], shape)
    with pytest.raises(DeviceError, match=f"vela:ethos-u55-128 can't take .*net.onnx: .*{said}") as caught:
        open_device("vela:ethos-u55-128").open(path)
    assert "\n" not in str(caught.value)


def test_an_accelerators_clock_is_checked_against_velas_own(tmp_path):
    """Mutation: a platform that disagrees with the configuration that Vela ships is refused."""
    wrong = replace(PLATFORMS["ethos-u55-128"], clock_hz=1.0)
    model = to_bytes(lowered(write_net(tmp_path / "net.onnx"), HANDLERS))
    with pytest.raises(DeviceError, match=r"clock of 5e\+08 Hz, expected 1"):
        compiled(model, wrong)
