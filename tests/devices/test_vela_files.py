"""The TensorFlow Lite files that an NPU's compiler gets: read back by the schema, and run where an interpreter is."""

import numpy as np
import onnx
import pytest
import torch
from onnx import numpy_helper
from torch import Tensor, nn

pytest.importorskip("ethosu.regor", reason="the npu extra is not installed")

from autocompress.devices import open_device
from autocompress.devices.vela.lowering import lowered
from autocompress.devices.vela.operators import HANDLERS
from autocompress.devices.vela.source import Source
from autocompress.devices.vela.tflite import Model, Precision, schema, to_bytes
from tests.devices.vela_nets import FAMILIES, ZOO, Several, Turned, codes, planned, profile, write
from tests.onnx_files import CHANNELS, write_net
from tests.zoo import make


def parsed(model: Model):
    return schema("Model").Model.GetRootAs(to_bytes(model)).Subgraphs(0)


def by_name(graph, name: str):
    found = [graph.Tensors(i) for i in range(graph.TensorsLength()) if graph.Tensors(i).Name() == name.encode()]
    assert len(found) == 1, name
    return found[0]


def test_a_quantised_convolution_is_written_with_the_files_own_numbers(tmp_path):
    model = lowered(write_net(tmp_path / "net.onnx", int8=True), HANDLERS)
    graph = parsed(model)
    image, result = by_name(graph, "x"), by_name(graph, "c")
    assert image.ShapeAsNumpy().tolist() == [1, 8, 8, 3], "channels last, one sample"
    assert image.Type() == schema("TensorType").TensorType.INT8
    for tensor in (image, result):
        assert tensor.Quantization().ScaleAsNumpy().tolist() == pytest.approx([0.05])
        assert tensor.Quantization().ZeroPointAsNumpy().tolist() == [-128], "0 of uint8 is -128 of int8"
    weight, bias = by_name(graph, "weight.dq"), by_name(graph, "bias.dq")
    assert weight.ShapeAsNumpy().tolist() == [CHANNELS, 3, 3, 3]
    assert weight.Quantization().ScaleAsNumpy().tolist() == pytest.approx([0.05])
    content = schema("Model").Model.GetRootAs(to_bytes(model)).Buffers(weight.Buffer()).DataAsNumpy()
    assert content.view(np.int8).tolist() == [1] * CHANNELS * 27
    assert bias.Type() == schema("TensorType").TensorType.INT32
    assert bias.Quantization().ScaleAsNumpy().tolist() == pytest.approx([0.0025])


def test_float_weights_are_rounded_per_channel_and_turned_to_the_schemas_order(tmp_path):
    path = write_net(tmp_path / "net.onnx")
    file = {t.name: numpy_helper.to_array(t) for t in onnx.load(path).graph.initializer}
    model = lowered(path, HANDLERS)
    weight = next(t for t in model.tensors if t.name == "conv.weight")
    assert weight.precision is Precision.INT8 and weight.grid is not None and weight.grid.axis == 0
    real = file["conv.weight"].transpose(0, 2, 3, 1)
    scales = np.array(weight.grid.scales).reshape(-1, 1, 1, 1)
    assert weight.data is not None and np.abs(weight.data).reshape(CHANNELS, -1).max(1).tolist() == [127] * CHANNELS
    assert (np.abs(weight.data * scales - real) <= scales * 0.5001).all()
    bias = next(t for t in model.tensors if t.name == "conv.bias")
    assert bias.data is not None and bias.grid is not None
    np.testing.assert_allclose(bias.data * np.array(bias.grid.scales), file["conv.bias"], atol=max(bias.grid.scales))


def test_padding_that_the_schema_knows_needs_no_operator(tmp_path):
    image = torch.zeros(1, 3, 8, 8)
    assert codes(write(tmp_path / "a.onnx", nn.Conv2d(3, 4, 3, 1, 1), image)) == ["CONV_2D"]
    assert codes(write(tmp_path / "b.onnx", nn.Conv2d(3, 4, 3, 2, 1), image)) == ["PAD", "CONV_2D"]
    assert codes(write(tmp_path / "c.onnx", nn.Conv2d(3, 4, 3, 2, 1), torch.zeros(1, 3, 9, 9))) == ["CONV_2D"]
    assert codes(write(tmp_path / "d.onnx", nn.MaxPool2d(3, 2, 1), image)) == ["PADV2", "MAX_POOL_2D"]


def test_activations_are_folded_into_what_they_follow(tmp_path):
    image = torch.zeros(1, 3, 8, 8)
    for activation, name in ((nn.ReLU(), "RELU"), (nn.ReLU6(), "RELU6")):
        model = lowered(write(tmp_path / "net.onnx", nn.Sequential(nn.Conv2d(3, 4, 3), activation), image), HANDLERS)
        assert [operator.code for operator in model.operators] == ["CONV_2D"]
        wanted = getattr(schema("ActivationFunctionType").ActivationFunctionType, name)
        assert model.operators[0].options["FusedActivationFunction"] == wanted


def test_five_nodes_of_a_gelu_are_one_operator(tmp_path):
    path = write(tmp_path / "net.onnx", nn.Sequential(nn.Linear(8, 16), nn.GELU(), nn.Linear(16, 4)), torch.zeros(1, 8))
    assert codes(path) == ["FULLY_CONNECTED", "GELU", "FULLY_CONNECTED"]


def test_turning_axes_costs_nothing_where_the_reader_wants_them_turned(tmp_path):
    """(1, C, H, W) to tokens (1, HW, C) is how an image is stored already; to a vector of C, H, W it is not."""

    class Tokens(nn.Module):
        def __init__(self) -> None:
            super().__init__()
            self.patches, self.head = nn.Conv2d(3, 8, 2, 2), nn.Linear(8, 4)

        def forward(self, x: Tensor) -> Tensor:
            return self.head(self.patches(x).flatten(2).transpose(1, 2))

    image = torch.zeros(1, 3, 8, 8)
    assert codes(write(tmp_path / "a.onnx", Tokens(), image)) == ["CONV_2D", "RESHAPE", "FULLY_CONNECTED"]
    vector = nn.Sequential(nn.Conv2d(3, 8, 2, 2), nn.Flatten(), nn.Linear(128, 4))
    assert codes(write(tmp_path / "b.onnx", vector, image)) == ["CONV_2D", "TRANSPOSE", "RESHAPE", "FULLY_CONNECTED"]


def test_every_accelerator_takes_what_the_zoo_leaves_out(tmp_path):
    path = write(tmp_path / "net.onnx", Several(), torch.rand(1, 3, 8, 8))
    for accelerator in FAMILIES:
        on_host = {node.op for node in profile(path, accelerator) if node.provider == "host CPU"}
        assert on_host <= {"LOG_SOFTMAX", "ELU"}


def interpreted(model: bytes, sample: np.ndarray, *, image: bool = True) -> np.ndarray:
    """What TensorFlow Lite's own interpreter, if installed, makes of a sample; an image is stored channels-last."""
    interpreters = pytest.importorskip("ai_edge_litert.interpreter", reason="ai-edge-litert is not installed")
    interpreter = interpreters.Interpreter(model_content=model, num_threads=1)
    interpreter.allocate_tensors()
    given, made = interpreter.get_input_details()[0], interpreter.get_output_details()[0]
    stored = sample.transpose(0, 2, 3, 1) if image and sample.ndim == 4 else sample.astype(given["dtype"])
    scale, zero = given["quantization"]
    if scale:
        stored = np.clip(np.round(stored / scale) + zero, -128, 127).astype(np.int8)
    interpreter.set_tensor(given["index"], stored)
    interpreter.invoke()
    result, (scale, zero) = interpreter.get_tensor(made["index"]).astype(np.float32), made["quantization"]
    return (result - zero) * scale if scale else result


@pytest.mark.parametrize(("name", "int8"), [*ZOO, ("resnet", slice(1)), ("mobilenet", slice(2, None))])
def test_the_file_computes_what_the_onnx_file_does(name, int8, tmp_path):
    """Oracle. The result has steps of 1/16 or finer."""
    *_, path = planned(name, tmp_path / "net.onnx", int8)
    sample = make(name)[1][:1].numpy()
    found = interpreted(to_bytes(lowered(path, HANDLERS)), sample)
    np.testing.assert_allclose(found, open_device("ort:cpu").open(path).run(sample), atol=1 / 16)


@pytest.mark.parametrize("name", ["resnet", "mobilenet", "shufflenet", "dense", "transformer", "Several", "Turned"])
def test_written_in_float_the_file_computes_exactly_what_the_onnx_file_does(name, tmp_path, monkeypatch):
    """Oracle for the operators: with every one of them in float no grid stands between."""
    own = {"Several": (Several(), torch.rand(1, 3, 8, 8)), "Turned": (Turned(), torch.rand(1, 5, 5, 5))}
    net, sample = own.get(name) or make(name)
    path = write(tmp_path / "net.onnx", net, sample[:1])
    monkeypatch.setattr(Source, "is_float", False)
    model = lowered(path, HANDLERS)
    assert not any(tensor.precision is Precision.INT8 for tensor in model.tensors)
    found = interpreted(to_bytes(model), sample[:1].numpy(), image=name != "Turned")
    np.testing.assert_allclose(found, open_device("ort:cpu").open(path).run(sample[:1].numpy()), atol=1e-5)
