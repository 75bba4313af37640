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
import pytest
import torch
from onnx import TensorProto, helper, numpy_helper
from torch.utils._python_dispatch import TorchDispatchMode

from autocompress.devices import list_devices, open_device
from autocompress.devices import torch as torch_file
from autocompress.devices._torch_graph import Program
from autocompress.export.onnx import plain_onnx
from autocompress.vocabulary.errors import DeviceError
from tests.devices.exported import export, rms, sample
from tests.onnx_files import write_net
from tests.zoo import MODELS, make

SAMPLE = np.random.default_rng(1).normal(size=(4, 3, 8, 8)).astype(np.float32)
FLOAT32 = 1e-5
"""Other orders of summation, relative to the largest output."""


def on(device: str, path: Path, *inputs: np.ndarray) -> np.ndarray:
    return open_device(device).open(path).run(*inputs)


def agree(found: np.ndarray, expected: np.ndarray) -> None:
    assert found.shape == expected.shape and found.dtype == expected.dtype
    np.testing.assert_allclose(found, expected, rtol=FLOAT32, atol=FLOAT32 * max(np.abs(expected).max(), 1e-3))


def one_operator(path: Path, op: str, inputs: list[Any], attributes: dict[str, Any], opset: int = 17) -> Path:
    """A model of one operator: the first input is the model's, the others are constants, None is left out."""
    x = inputs[0]
    names = ["x", *(f"c{i}" if value is not None else "" for i, value in enumerate(inputs[1:]))]
    constants = [
        numpy_helper.from_array(value, name)
        for name, value in zip(names[1:], inputs[1:], strict=True)
        if value is not None
    ]
    made = helper.make_node(op, names, ["y", "z"][: 1 + (op == "Split")], name="n", **attributes)
    kinds = {np.dtype(np.float32): TensorProto.FLOAT, np.dtype(np.int64): TensorProto.INT64}
    graph = helper.make_graph(
        [made], "g", [helper.make_tensor_value_info("x", kinds[x.dtype], x.shape)],
        [helper.make_tensor_value_info("y", TensorProto.UNDEFINED, None)], constants,
    )  # fmt: skip
    graph.output[0].type.tensor_type.elem_type = TensorProto.FLOAT
    onnx.save(helper.make_model(graph, opset_imports=[helper.make_opsetid("", opset)], ir_version=8), str(path))
    return path


draw = np.random.default_rng(0)


def floats(*shape: int) -> np.ndarray:
    return draw.normal(size=shape).astype(np.float32)


def whole(*values: int) -> np.ndarray:
    return np.array(values, np.int64)


MAP, POSITIVE = floats(2, 4, 6, 6), np.abs(floats(2, 4, 6, 6)) + 0.1
CASES: dict[str, tuple[str, list[Any], dict[str, Any]]] = {
    **{op: (op, [MAP], {}) for op in (
        "Relu", "Sigmoid", "Tanh", "Exp", "Erf", "Neg", "Abs", "Reciprocal", "Floor", "Ceil", "Round", "Sin", "Cos",
        "Sign", "Softplus", "HardSwish", "HardSigmoid", "LeakyRelu", "Elu", "GlobalAveragePool", "GlobalMaxPool",
        "Softmax", "LogSoftmax", "Identity", "Flatten", "Transpose",
    )},
    **{op: (op, [POSITIVE], {}) for op in ("Log", "Sqrt")},
    **{op: (op, [MAP, floats(4, 1, 1)], {}) for op in ("Add", "Sub", "Mul", "Div", "Max", "Min")},
    "hard sigmoid of torch": ("HardSigmoid", [MAP], {"alpha": 1 / 6, "beta": 0.5}),
    "leaky": ("LeakyRelu", [MAP], {"alpha": 0.3}),
    "power": ("Pow", [POSITIVE, np.float32(1.5)], {}),
    "clip": ("Clip", [MAP, np.float32(-0.5), np.float32(1)], {}),
    "clip below": ("Clip", [MAP, np.float32(0)], {}),
    "matrices": ("MatMul", [floats(2, 3, 4), floats(4, 5)], {}),
    "gemm": ("Gemm", [floats(3, 4), floats(4, 5), floats(5)], {}),
    "scaled gemm": ("Gemm", [floats(3, 4), floats(4, 5), floats(5)], {"alpha": 0.5, "beta": 2.0}),
    "linear": ("Gemm", [floats(3, 4), floats(5, 4), floats(5)], {"transB": 1}),
    "convolution": ("Conv", [MAP, floats(6, 4, 3, 3), floats(6)], {"pads": [1, 1, 1, 1], "strides": [2, 2]}),
    "grouped": ("Conv", [MAP, floats(8, 2, 3, 3)], {"group": 2, "dilations": [2, 2]}),
    "lopsided": ("Conv", [MAP, floats(6, 4, 2, 3), floats(6)], {"pads": [0, 1, 1, 1]}),
    "one-dimensional": ("Conv", [floats(2, 4, 9), floats(6, 4, 3)], {"pads": [1, 1]}),
    "transposed": (
        "ConvTranspose", [MAP, floats(4, 3, 3, 3), floats(3)],
        {"strides": [2, 2], "pads": [1, 1, 1, 1], "output_padding": [1, 1]},
    ),
    "batch norm": ("BatchNormalization", [MAP, floats(4), floats(4), floats(4), np.abs(floats(4)) + 0.5], {}),
    "layer norm": ("LayerNormalization", [MAP, floats(6, 6), floats(6, 6)], {"axis": -2, "epsilon": 1e-3}),
    "instance norm": ("InstanceNormalization", [MAP, floats(4), floats(4)], {}),
    "max pool": ("MaxPool", [MAP], {"kernel_shape": [3, 3], "strides": [2, 2], "pads": [1, 1, 1, 1]}),
    "max pool beyond": ("MaxPool", [MAP], {"kernel_shape": [4, 4], "strides": [3, 3], "ceil_mode": 1}),
    "lopsided max pool": ("MaxPool", [MAP], {"kernel_shape": [2, 2], "pads": [0, 0, 1, 1]}),
    "average pool": ("AveragePool", [MAP], {"kernel_shape": [3, 3], "pads": [1, 1, 1, 1]}),
    "counted": ("AveragePool", [MAP], {"kernel_shape": [3, 3], "pads": [1, 1, 1, 1], "count_include_pad": 1}),
    "mean": ("ReduceMean", [MAP], {"axes": [2, -1], "keepdims": 0}),
    "mean of all": ("ReduceMean", [MAP], {}),
    "sum": ("ReduceSum", [MAP, whole(1)], {"keepdims": 0}),
    "largest": ("ReduceMax", [MAP], {"axes": [1]}),
    "softmax of channels": ("Softmax", [MAP], {"axis": 1}),
    "reshape": ("Reshape", [MAP, whole(0, -1, 3)], {}),
    "flatten": ("Flatten", [MAP], {"axis": 2}),
    "transpose": ("Transpose", [MAP], {"perm": [0, 2, 3, 1]}),
    "squeeze": ("Squeeze", [floats(2, 1, 3, 1), whole(1)], {}),
    "squeeze all": ("Squeeze", [floats(2, 1, 3, 1)], {}),
    "unsqueeze": ("Unsqueeze", [floats(2, 3), whole(0, -1)], {}),
    "concat": ("Concat", [MAP, floats(2, 3, 6, 6)], {"axis": 1}),
    "split": ("Split", [MAP, whole(1, 3)], {"axis": 1}),
    "slice": ("Slice", [MAP, whole(0, 1), whole(2**62, -1), whole(1, -1), whole(2, 2)], {}),
    "backwards": ("Slice", [MAP, whole(-1, 4), whole(-(2**62), 0), whole(2, 3), whole(-1, -2)], {}),
    "select": ("Gather", [MAP, np.int64(-2)], {"axis": 1}),
    "gather": ("Gather", [MAP, np.array([[0, 3], [1, 1]])], {"axis": 1}),
    "expand": ("Expand", [floats(4, 1, 6), whole(2, 1, 3, 1)], {}),
    "tile": ("Tile", [floats(2, 3), whole(2, 3)], {}),
    "pad": ("Pad", [MAP, whole(0, 1, 0, 2, 0, 1, 3, 0), np.float32(7)], {}),
    "reflect": ("Pad", [MAP, whole(0, 0, 1, 2, 0, 0, 2, 1)], {"mode": "reflect"}),
    "edge": ("Pad", [MAP, whole(0, 0, 1, 2, 0, 0, 2, 1)], {"mode": "edge"}),
    "columns first": ("DepthToSpace", [MAP], {"blocksize": 2, "mode": "CRD"}),
    "depth first": ("DepthToSpace", [MAP], {"blocksize": 2}),
    "enlarged": (
        "Resize", [MAP, None, np.array([1, 1, 2, 2], np.float32)],
        {"mode": "nearest", "coordinate_transformation_mode": "asymmetric", "nearest_mode": "floor"},
    ),
    "smoothly enlarged": ("Resize", [MAP, None, None, whole(2, 4, 9, 8)], {"mode": "linear"}),
    "remainder": ("Mod", [MAP, np.float32(0.7)], {"fmod": 1}),
    "products": ("Einsum", [floats(2, 3, 4), floats(2, 4, 5)], {"equation": "bij,bjk->bik"}),
    "cast": ("Cast", [whole(1, 2)], {"to": TensorProto.FLOAT}),
}  # fmt: skip


@pytest.mark.parametrize("case", CASES)
def test_every_operator_computes_what_onnx_runtime_does(case: str, tmp_path: Path) -> None:
    op, inputs, attributes = CASES[case]
    path = one_operator(tmp_path / "one.onnx", op, inputs, attributes)
    agree(on("torch:cpu", path, inputs[0]), on("ort:cpu", path, inputs[0]))


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
    path = one_operator(tmp_path / "odd.onnx", "Det", [floats(3, 3)], {})
    with pytest.raises(DeviceError, match=r"can't load .*odd.onnx: operator Det \(node n\) has no translation"):
        open_device("torch:cpu").open(path)


@pytest.mark.parametrize(
    ("op", "inputs", "attributes", "clue"),
    [
        ("Conv", [MAP, floats(6, 4, 3, 3)], {"auto_pad": "SAME_UPPER"}, "with auto_pad SAME_UPPER"),
        ("Pad", [MAP, whole(0, 0, 1, 1, 0, 0, 1, 1)], {"mode": "wrap"}, "in mode wrap"),
        ("Resize", [MAP, None, None, whole(2, 4, 9, 9)], {"mode": "cubic"}, "in mode cubic with half_pixel"),
    ],
)  # fmt: skip
def test_a_form_without_translation_is_named(
    op: str, inputs: list[Any], attributes: dict[str, Any], clue: str, tmp_path: Path
) -> None:
    path = one_operator(tmp_path / "odd.onnx", op, inputs, attributes, opset=19)
    with pytest.raises(DeviceError, match=rf"odd.onnx: operator {op} \(node n\) {clue} has no translation"):
        open_device("torch:cpu").open(path).run(inputs[0])


def test_an_older_opset_is_refused(tmp_path: Path) -> None:
    path = one_operator(tmp_path / "old.onnx", "Relu", [MAP], {}, opset=9)
    with pytest.raises(DeviceError, match="opset 9, it takes 13 or newer"):
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
