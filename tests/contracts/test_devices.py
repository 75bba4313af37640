"""What every device promises, whichever runtime it is: run over all that are usable here."""

import math
import re
from pathlib import Path

import numpy as np
import pytest

from autocompress.devices import Device, list_devices, open_device
from autocompress.vocabulary.errors import DeviceError, UntimedError
from autocompress.vocabulary.formats import formats
from tests.onnx_files import CHANNELS, CLASSES, write_net

USABLE = [row.name for row in list_devices() if row.usable]
ROUNDING = {"fp32": 1e-5, "tf32": 2**-8, "fp16": 2**-8, "bf16": 2**-5}
"""By the precision a device computes fp32 layers in: a few units in the last place (mantissas of 23, 10, 10 and 7
bits), since other threads sum in another order."""

pytestmark = pytest.mark.filterwarnings("ignore:ort.qnn left:autocompress.devices.base.DeviceWarning")
"""It leaves a conversion of the input to the CPU, and says so."""

SAMPLE = np.random.default_rng(1).normal(size=(1, 3, 8, 8)).astype(np.float32)


@pytest.fixture(params=[pytest.param(name, marks=[pytest.mark.slow] * name.endswith("-compile")) for name in USABLE])
def device(request: pytest.FixtureRequest) -> Device:
    return open_device(request.param)


@pytest.fixture(params=[False, True], ids=["fp32", "int8"])
def net(request: pytest.FixtureRequest, tmp_path: Path) -> Path:
    return write_net(tmp_path / "net.onnx", int8=request.param)


def is_emulated(device: Device) -> bool:
    return bool(getattr(device, "emulated", False))


def test_the_devices_of_the_core_are_usable() -> None:
    assert {"ort:cpu", "fake"} <= set(USABLE)


def test_every_listed_device_says_how_it_stands() -> None:
    for row in list_devices():
        assert row.detail
        assert row.usable or row.install


def test_a_device_has_the_name_it_is_opened_by(device: Device) -> None:
    assert device.name in USABLE
    assert open_device(device.name) == device
    assert re.search(r"\d", device.runtime), "a runtime carries its version"
    assert {"device", "runtime", "processor"} <= device.environment().keys()


def test_capabilities_name_a_channel_multiple_for_each_format(device: Device) -> None:
    capabilities = device.capabilities()
    assert capabilities.dtypes <= {row.name for row in formats()} and capabilities.dtypes
    assert set(capabilities.channel_multiple) == capabilities.dtypes
    assert all(multiple >= 1 for multiple in capabilities.channel_multiple.values())


def test_runs_any_batch_with_any_number_of_threads(device: Device, net: Path) -> None:
    batch = np.concatenate([SAMPLE, -SAMPLE, SAMPLE])
    one, many = device.open(net).run(batch), device.open(net, threads=2).run(batch)
    assert one.shape == (3, CLASSES)
    rounding = ROUNDING[device.environment().get("precision", "fp32")]
    np.testing.assert_allclose(one, many, rtol=rounding, atol=rounding * np.abs(one).max())
    np.testing.assert_allclose(one[0], one[2], rtol=rounding, atol=rounding * np.abs(one).max())


def test_several_outputs_come_as_a_tuple_in_the_file_s_order(device: Device, tmp_path: Path) -> None:
    batch = np.concatenate([SAMPLE, -SAMPLE])
    alone = device.open(write_net(tmp_path / "one.onnx")).run(batch)
    found = device.open(write_net(tmp_path / "two.onnx", pooled=True)).run(batch)
    assert isinstance(found, tuple) and [array.shape for array in found] == [(2, CHANNELS), (2, CLASSES)]
    rounding = ROUNDING[device.environment().get("precision", "fp32")]
    np.testing.assert_allclose(found[1], alone, rtol=rounding, atol=rounding * np.abs(alone).max())


def test_times_every_run(device: Device, net: Path) -> None:
    session = device.open(net)
    if is_emulated(device):
        with pytest.raises(UntimedError, match=f"{device.name} is emulated"):
            session.time([SAMPLE], 7)
        return
    samples = session.time([SAMPLE], 7)
    assert len(samples) == 7
    assert all(math.isfinite(seconds) and seconds > 0 for seconds in samples)


def test_profiles_the_nodes_that_it_ran(device: Device, net: Path) -> None:
    if is_emulated(device):
        with pytest.raises(UntimedError, match=f"{device.name} is emulated"):
            device.profile(net, [SAMPLE], 5)
        return
    nodes = device.profile(net, [SAMPLE], 5)
    assert all(node.seconds >= 0 for node in nodes)
    sources = {node.source.split("/")[0] for node in nodes}
    assert {"conv", "pool", "linear"} <= sources
    assert {node.name: node.provider for node in nodes} == device.open(net).providers()


def test_a_file_that_is_no_model_is_refused(device: Device, tmp_path: Path) -> None:
    damaged = tmp_path / "damaged.onnx"
    damaged.write_bytes(b"not a model")
    for path in (damaged, tmp_path / "missing.onnx"):
        with pytest.raises(DeviceError, match=path.name) as caught:
            device.open(path)
        assert "\n" not in str(caught.value)


def test_inputs_that_do_not_fit_are_refused(device: Device, net: Path) -> None:
    session = device.open(net)
    with pytest.raises(DeviceError, match=r"takes 1 inputs \(x\), got 2"):
        session.run(SAMPLE, SAMPLE)
    with pytest.raises(DeviceError, match="can't run"):
        session.run(SAMPLE[:, :2])


@pytest.mark.parametrize(
    ("asked", "clue"),
    [("ort:cpuu", "ort:cpu"), ("orrt:cpu", "ort:cpu"), ("fakee", "fake"), ("fake:fast", "fake"), ("ort", "cpu")],
)
def test_an_unknown_device_names_the_nearest(asked: str, clue: str) -> None:
    with pytest.raises(DeviceError, match=f"unknown device .*{asked}.*{clue}"):
        open_device(asked)
