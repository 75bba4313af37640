"""The roofline: closed forms, determinism, and that a file holds the kernels that were priced."""

import random
from pathlib import Path

import numpy as np
import onnx
import pytest
from onnx import TensorProto, helper, numpy_helper

from autocompress.compression.build import build, plan_kernels
from autocompress.compression.methods.prune import Prune
from autocompress.compression.methods.quantize import Quantize
from autocompress.compression.plan import Plan, Step
from autocompress.devices import open_device
from autocompress.devices.fake import FakeDevice, workloads
from autocompress.devices.roofline import Rates, roofline
from autocompress.export.onnx import to_onnx
from autocompress.graph import trace
from autocompress.vocabulary.errors import DeviceError
from autocompress.vocabulary.formats import FP32, INT8
from autocompress.vocabulary.precision import lower
from autocompress.vocabulary.workload import Workload
from tests.onnx_files import write_net
from tests.zoo import make

RATES = Rates(
    macs_per_s={FP32: 1e9, INT8: 4e9}, bytes_per_s=1e9, launch_s=1e-6,
    channel_multiple={FP32: 16, INT8: 4},
)  # fmt: skip


def conv(channels: int, dtype: str, positions: int = 32) -> Workload:
    size = (positions, positions)
    return Workload("conv", channels, channels, size, size, (3, 3), (1, 1), dtype=dtype)


def test_a_compute_bound_kernel_takes_its_multiplications() -> None:
    assert roofline(conv(16, FP32), RATES) == pytest.approx(1e-6 + 32 * 32 * 16 * 16 * 9 / 1e9)
    assert roofline(conv(16, INT8), RATES) == pytest.approx(1e-6 + 32 * 32 * 16 * 16 * 9 / 4e9)


def test_a_memory_bound_kernel_takes_its_bytes() -> None:
    add = Workload("add", 16, 16, (8, 8), (8, 8))
    assert roofline(add, RATES) == pytest.approx(1e-6 + 2 * 16 * 64 * 4 / 1e9)


def test_time_is_a_staircase_in_channels() -> None:
    assert roofline(conv(17, FP32), RATES) == pytest.approx(roofline(conv(32, FP32), RATES))
    assert roofline(conv(17, INT8), RATES) < roofline(conv(32, INT8), RATES)


def test_one_file_always_takes_the_same_time(tmp_path: Path) -> None:
    device, sample = FakeDevice(RATES), [np.zeros((1, 3, 8, 8), np.float32)]
    path = write_net(tmp_path / "net.onnx")
    assert device.open(path).time(sample, 3) == device.open(path).time(sample, 3)
    nodes = device.profile(path, sample, 1)
    assert sum(node.seconds for node in nodes) == pytest.approx(device.open(path).time(sample, 1)[0])


@pytest.mark.parametrize("name", ["resnet", "mobilenet"])
def test_a_built_file_holds_the_kernels_that_were_priced(name: str, tmp_path: Path) -> None:
    """Names, number formats and times: the file is read without any knowledge of the plan."""
    model, inputs = make(name)
    graph = trace(model, inputs)
    draw = random.Random(0)
    for _ in range(3):
        steps = [Step(layer, Quantize(INT8)) for layer in graph.layers if draw.random() < 0.6]
        group = draw.choice(list(graph.free_groups.values()))
        plan = Plan(graph.fingerprint, (*steps, Step(group.id, Prune(group.channels // 2))))
        to_onnx(build(plan, graph, None), tmp_path / "model.onnx", plan.key)
        found = {node.name: node.workload for node in workloads(tmp_path / "model.onnx")}
        priced = {kernel.name: kernel.workload for kernel in lower(plan_kernels(plan, graph))}
        weighted = {k for k, w in priced.items() if w.op in ("conv", "linear", "quantize", "dequantize")}
        assert weighted <= found.keys()
        for kernel in weighted:
            assert roofline(found[kernel], RATES) == pytest.approx(roofline(priced[kernel], RATES)), kernel


TOML = """
[rates]
macs_per_s = { fp32 = 1e9, int8 = 4e9 }
bytes_per_s = 1e9
launch_s = 1e-6
channel_multiple = { fp32 = 16, int8 = 4 }
"""


def test_reads_hardware_that_need_not_exist(tmp_path: Path) -> None:
    path = tmp_path / "board.toml"
    path.write_text(TOML)
    device = open_device(f"fake:{path}")
    assert device == FakeDevice(RATES, f"fake:{path}", "board")
    assert device.environment()["processor"] == "board"
    assert device.estimate


@pytest.mark.parametrize(
    ("text", "clue"),
    [
        ("", "has no table \\[rates\\]; it needs macs_per_s"),
        ("[rates", "is not TOML"),
        (TOML.replace("launch_s", "lunch_s"), "unknown key 'rates.lunch_s': did you mean 'launch_s'"),
        (TOML.replace("bytes_per_s = 1e9", "bytes_per_s = 0"), "rates.bytes_per_s = 0: input should be greater than 0"),
        (TOML.replace("{ fp32 = 16, int8 = 4 }", "{ fp32 = 16 }"), "must name the same number formats"),
    ],
)
def test_rates_that_cannot_be_are_refused(text: str, clue: str, tmp_path: Path) -> None:
    path = tmp_path / "board.toml"
    path.write_text(text)
    with pytest.raises(DeviceError, match=clue) as caught:
        open_device(f"fake:{path}")
    assert "\n" not in str(caught.value)


def test_a_missing_file_of_rates_is_refused(tmp_path: Path) -> None:
    with pytest.raises(DeviceError, match=r"can't read the rates in .*gone.toml"):
        open_device(f"fake:{tmp_path / 'gone.toml'}")


def test_lengths_that_a_file_leaves_open_are_those_of_the_inputs(tmp_path: Path) -> None:
    conv = helper.make_node("Conv", ["x", "w"], ["y"], name="conv", kernel_shape=[3], pads=[1, 1])
    weight = numpy_helper.from_array(np.ones((8, 4, 3), np.float32), "w")
    graph = helper.make_graph(
        [conv], "net", [helper.make_tensor_value_info("x", TensorProto.FLOAT, ["batch", 4, "length"])],
        [helper.make_tensor_value_info("y", TensorProto.FLOAT, ["batch", 8, "length"])], [weight],
    )  # fmt: skip
    path = tmp_path / "net.onnx"
    onnx.save(helper.make_model(graph, opset_imports=[helper.make_opsetid("", 17)], ir_version=8), str(path))
    session = FakeDevice().open(path)
    inputs = {n: np.zeros((1, 4, n), np.float32) for n in (1000, 4000)}
    short, long = (session.time([x], 1)[0] for x in inputs.values())
    assert long > 2 * short
    (node,) = FakeDevice().profile(path, [inputs[4000]], 1)
    assert node.seconds == long
    assert workloads(path, [(1, 4, 4000)])[0].workload.out_size == (4000,)
