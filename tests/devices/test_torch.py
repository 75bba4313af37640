"""PyTorch as a runtime: each translated operator against ONNX Runtime, whole nets, the GPU's ways with stand-ins."""

import shutil
import time
from collections.abc import Callable, Iterator
from contextlib import nullcontext
from pathlib import Path
from types import SimpleNamespace
from typing import Any

import numpy as np
import onnx
import onnxruntime
import pytest
import torch
from onnx import numpy_helper
from torch.utils._python_dispatch import TorchDispatchMode

from autocompress.devices import list_devices, open_device
from autocompress.devices import torch as torch_file
from autocompress.devices.base import as_arrays
from autocompress.export.onnx import plain_onnx
from autocompress.translation.program import Program
from autocompress.vocabulary.errors import DeviceError
from tests.devices.exported import export, rms, sample
from tests.onnx_files import write_net
from tests.translation.cases import CASES, MAP, Case, floats, whole
from tests.zoo import MODELS, make

SAMPLE = np.random.default_rng(1).normal(size=(4, 3, 8, 8)).astype(np.float32)
FLOAT32 = 1e-5
"""Other orders of summation, relative to the largest output."""


def on(device: str, path: Path, *inputs: np.ndarray) -> np.ndarray:
    return open_device(device).open(path).run(*inputs)


def agree(found: np.ndarray, expected: np.ndarray) -> None:
    assert found.shape == expected.shape and found.dtype == expected.dtype
    np.testing.assert_allclose(found, expected, rtol=FLOAT32, atol=FLOAT32 * max(np.abs(expected).max(), 1e-3))


@pytest.mark.parametrize("name", ["linear", "lopsided", "enlarged by default", "old softmax", "lstm both ways"])
def test_operators_compute_what_onnx_runtime_does(name: str, tmp_path: Path) -> None:
    """What the translation's own tests hold of each operator."""
    path, x = CASES[name].write(tmp_path / "one.onnx"), CASES[name].inputs[0]
    outputs = as_arrays(open_device("torch:cpu").open(path).run(x))
    for found, expected in zip(outputs, onnxruntime.InferenceSession(path).run(None, {"x": x}), strict=True):
        agree(found, expected)


@pytest.mark.parametrize("net", MODELS)
def test_exported_float_nets_agree_with_onnx_runtime(net: str, tmp_path: Path) -> None:
    path, x = export(net, "fp32", tmp_path), sample(net)
    agree(on("torch:cpu", path, x), on("ort:cpu", path, x))


@pytest.mark.parametrize("net", MODELS)
def test_the_original_agrees_with_the_model_it_is_of(net: str, tmp_path: Path) -> None:
    """As torch.onnx writes it: every measurement stands beside it."""
    model, x = make(net)
    plain_onnx(model, (x,), tmp_path / "plain.onnx")
    with torch.no_grad():
        agree(on("torch:cpu", tmp_path / "plain.onnx", x.numpy()), model(x).numpy())


def test_an_int8_layer_differs_by_one_step_at_most(tmp_path: Path) -> None:
    """What lies between two steps may be rounded either way; the linear layer adds that up by its weights."""
    path = write_net(tmp_path / "net.onnx", int8=True)
    constants = {t.name: numpy_helper.to_array(t) for t in onnx.load(path).graph.initializer}
    step = constants["scale"] * np.abs(constants["linear.weight"]).sum(1).max()
    assert np.abs(on("torch:cpu", path, SAMPLE) - on("ort:cpu", path, SAMPLE)).max() <= step


@pytest.mark.parametrize("net", MODELS)
@pytest.mark.parametrize("share", ["int8", "every other"])
def test_runtimes_differ_by_less_than_int8_costs(net: str, share: str, tmp_path: Path) -> None:
    x = sample(net)
    exact, rounded = (on("ort:cpu", export(net, s, tmp_path), x) for s in ("fp32", share))
    assert rms(on("torch:cpu", export(net, share, tmp_path), x) - rounded) <= rms(rounded - exact)


@pytest.mark.slow
@pytest.mark.skipif(shutil.which("g++") is None, reason="no C++ compiler")
@pytest.mark.parametrize("share", ["fp32", "int8"])
def test_compiled_models_compute_the_same(share: str, tmp_path: Path) -> None:
    path, x = export("resnet", share, tmp_path), sample("resnet")
    found, expected = on("torch:cpu-compile", path, x), on("torch:cpu", path, x)
    if share == "fp32":
        agree(found, expected)
    else:
        exact = on("torch:cpu", export("resnet", "fp32", tmp_path), x)
        assert rms(found - expected) <= rms(expected - exact)


def test_nodes_are_those_of_the_artifact(tmp_path: Path) -> None:
    path = write_net(tmp_path / "net.onnx", int8=True)
    nodes = open_device("torch:cpu").profile(path, [SAMPLE[:1]], 5)
    assert [node.source for node in nodes] == ["x>q", "conv", "conv/quantize", "conv/Relu", "pool", "flatten", "linear"]
    assert all(node.seconds > 0 and node.provider == "torch cpu" for node in nodes)
    assert nodes[1].inputs == ("x.dq", "weight.dq", "bias.dq") and nodes[1].outputs == ("c",)


def test_the_number_of_threads_is_put_back(tmp_path: Path) -> None:
    before = torch.get_num_threads()
    session = open_device("torch:cpu").open(write_net(tmp_path / "net.onnx"), threads=before + 1)
    session.run(SAMPLE)
    assert torch.get_num_threads() == before


def test_an_operator_without_translation_is_named(tmp_path: Path) -> None:
    path = Case("NonZero", [floats(3, 3)]).write(tmp_path / "odd.onnx")
    with pytest.raises(DeviceError, match=r"can't load .*odd.onnx: operator NonZero \(node n\) has no translation"):
        open_device("torch:cpu").open(path)


@pytest.mark.parametrize(
    ("op", "inputs", "attributes", "clue"),
    [
        ("LRN", [MAP], {"size": 2}, "over an even number of channels"),
        ("AveragePool", [MAP], {"kernel_shape": [3, 3], "dilations": [2, 2]}, "with dilation, or padding that meets"),
        ("Resize", [MAP, None, None, whole(2, 4, 9, 9)], {"antialias": 1, "mode": "linear"}, "with antialias"),
    ],
)  # fmt: skip
def test_a_form_without_translation_is_named(
    op: str, inputs: list[Any], attributes: dict[str, Any], clue: str, tmp_path: Path
) -> None:
    path = Case(op, inputs, attributes, opset=19).write(tmp_path / "odd.onnx")
    with pytest.raises(DeviceError, match=rf"odd.onnx: operator {op} \(node n\) {clue}.* has no translation"):
        open_device("torch:cpu").open(path).run(inputs[0])


def test_an_older_opset_is_refused(tmp_path: Path) -> None:
    path = Case("Relu", [MAP], opset=6).write(tmp_path / "old.onnx")
    with pytest.raises(DeviceError, match="opset 6, it takes 7 or newer"):
        open_device("torch:cpu").open(path)


@pytest.mark.parametrize("wrong", [SAMPLE.astype(np.float64), SAMPLE[..., :4], SAMPLE[0]])
def test_what_would_have_to_be_converted_is_refused(wrong: np.ndarray, tmp_path: Path) -> None:
    session = open_device("torch:cpu").open(write_net(tmp_path / "net.onnx"))
    with pytest.raises(DeviceError, match=r"can't run .*net.onnx: input x is .*float32, got"):
        session.run(wrong)


def test_running_out_of_memory_is_told(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    session = open_device("torch:cpu").open(write_net(tmp_path / "net.onnx"))

    def fail(self: Program, shapes: Any) -> Any:
        raise torch.cuda.OutOfMemoryError("CUDA out of memory. Tried to allocate 9 GiB")

    monkeypatch.setattr(Program, "module", fail)
    with pytest.raises(DeviceError, match=r"can't run .*: out of memory; take a smaller batch or model"):
        session.run(SAMPLE)


def test_without_the_package_every_device_says_what_to_install(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(torch_file, "find_spec", lambda name: None)
    rows = [row for row in list_devices() if row.name.startswith("torch:")]
    assert [row.name for row in rows] == [
        f"torch:{v}" for v in ("cpu", "cpu-compile", "cuda", "cuda-compile", "cuda-graph")
    ]
    assert {(row.usable, row.install) for row in rows} == {(False, "pip install torch")}
    with pytest.raises(DeviceError, match="torch is not installed; it takes pip install torch"):
        open_device("torch:cpu").open(write_net(tmp_path / "net.onnx"))


def test_without_a_compiler_or_a_gpu_the_devices_say_so(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(torch_file, "_compiler", lambda: None)
    monkeypatch.setattr(torch_file, "nvidia_gpu", lambda: "")
    rows = {row.name: row for row in list_devices()}
    assert not rows["torch:cpu-compile"].usable and "C++ compiler" in rows["torch:cpu-compile"].detail
    assert not rows["torch:cuda"].usable and "never run on hardware" in rows["torch:cuda"].detail
    assert rows["torch:cpu"].usable
    with pytest.raises(DeviceError, match=r"torch:cpu-compile can't be opened: torch.compile needs a C\+\+ compiler"):
        open_device("torch:cpu-compile").open(write_net(tmp_path / "net.onnx"))
    with pytest.raises(DeviceError, match="no NVIDIA GPU is found"):
        open_device("torch:cuda-graph-fp16").open(write_net(tmp_path / "net.onnx"))


@pytest.mark.parametrize(
    ("asked", "clue"), [("cuda-fp61", "torch:cuda-fp16"), ("cpu-graph", "torch:"), ("", "torch:cpu")]
)
def test_an_unknown_variant_names_the_nearest(asked: str, clue: str) -> None:
    with pytest.raises(DeviceError, match=f"unknown device 'torch:{asked}': .*{clue}"):
        open_device(f"torch:{asked}")


class Recorded(TorchDispatchMode):
    """Stands in for a CUDA graph: keeps every operation while entered, and does them again into the same tensors."""

    def __init__(self) -> None:
        super().__init__()
        self.calls: list[tuple[Any, ...]] = []

    def __torch_dispatch__(self, func: Any, types: Any, args: Any = (), kwargs: Any = None) -> Any:
        made = func(*args, **(kwargs or {}))
        self.calls.append((func, args, kwargs or {}, made))
        return made

    def replay(self) -> None:
        for func, args, kwargs, made in self.calls:
            again = func(*args, **kwargs)
            if isinstance(again, torch.Tensor) and again.data_ptr() != made.data_ptr():
                made.copy_(again)


class Event:
    def __init__(self, enable_timing: bool) -> None:
        assert enable_timing

    def record(self) -> None:
        self.at = time.perf_counter()

    def elapsed_time(self, later: "Event") -> float:
        return 1e3 * (later.at - self.at)


@pytest.fixture
def gpu(monkeypatch: pytest.MonkeyPatch) -> Iterator[None]:
    """A GPU that computes on the CPU."""
    stream = SimpleNamespace(wait_stream=lambda other: None)
    stand_ins: dict[str, Callable[..., Any]] = {
        "is_available": lambda: True, "Event": Event, "synchronize": lambda: None, "Stream": lambda: stream,
        "current_stream": lambda: stream, "stream": lambda s: nullcontext(), "CUDAGraph": Recorded,
        "graph": lambda recorded: recorded,
    }  # fmt: skip
    for name, stand_in in stand_ins.items():
        monkeypatch.setattr(torch.cuda, name, stand_in)
    monkeypatch.setattr(torch_file, "nvidia_gpu", lambda: "some GPU")
    monkeypatch.setattr(torch_file, "_place", lambda variant: torch.device("cpu"))
    yield


@pytest.mark.parametrize("variant", ["cuda", "cuda-tf32", "cuda-graph", "cuda-fp16", "cuda-graph-bf16"])
@pytest.mark.parametrize("net", ["resnet", "transformer"])
def test_a_gpu_computes_the_same_in_its_precision(variant: str, net: str, gpu: None, tmp_path: Path) -> None:
    """fp16 and bf16 round to 11 and 8 bits; a value passes through some ten layers."""
    path, x = export(net, "fp32", tmp_path), sample(net)
    session, expected = open_device(f"torch:{variant}").open(path), on("torch:cpu", path, x)
    rounding = {"fp16": 10 * 2**-11, "bf16": 10 * 2**-8}.get(variant.rpartition("-")[2], FLOAT32)
    for given in (x, x[::-1].copy(), x):
        found = session.run(given)
        wanted = expected if given is x else expected[::-1]
        np.testing.assert_allclose(found, wanted, atol=rounding * np.abs(expected).max())
    assert found.dtype == np.float32
    samples = session.time([x], 5)
    assert len(samples) == 5 and min(samples) > 0


def test_a_gpu_says_what_its_times_depend_on(gpu: None, tmp_path: Path) -> None:
    rows = {row.name: row for row in list_devices()}
    assert rows["torch:cuda-graph"].usable and "never run on hardware" in rows["torch:cuda-graph"].detail
    device = open_device("torch:cuda-graph-bf16")
    assert device.environment() == {
        "device": "torch:cuda-graph-bf16", "runtime": device.runtime, "processor": "some GPU", "precision": "bf16",
    }  # fmt: skip
    nodes = device.profile(write_net(tmp_path / "net.onnx"), [SAMPLE[:1]], 3)
    assert {node.provider for node in nodes} == {"torch cuda"}


def test_how_floats_are_multiplied_is_put_back(gpu: None, tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    seen, before = [], torch.backends.cuda.matmul.fp32_precision

    made = Program.module
    monkeypatch.setattr(
        Program, "module", lambda *given: (seen.append(torch.backends.cuda.matmul.fp32_precision), made(*given))[1]
    )
    for variant in ("cuda-tf32", "cuda"):
        on(f"torch:{variant}", write_net(tmp_path / "net.onnx"), SAMPLE)
    assert seen == ["tf32", "ieee"]
    assert torch.backends.cuda.matmul.fp32_precision == before
