"""An ONNX file as a model: what comes out computes what the file does, trains, is traced, and stays that file."""

import warnings
from collections.abc import Callable
from pathlib import Path
from typing import Any

import numpy as np
import onnx
import onnxruntime
import pytest
import torch
from onnx import TensorProto, helper
from torch import Tensor, nn

from autocompress.export.onnx import plain_onnx
from autocompress.export.torch_exporter import export_by_capture, export_by_tracing
from autocompress.graph import trace
from autocompress.task.onnx_file import ORIGINAL, model_of, original_of
from autocompress.translation import operators
from autocompress.translation.values import Call
from autocompress.vocabulary.errors import TaskError
from tests.onnx_files import write_net
from tests.task.onnx_nets import Bert, Recurrent, channels_last, floats, make, switching, write
from tests.zoo import MODELS
from tests.zoo import make as make_net

EXPORTERS = {"tracing": export_by_tracing, "capture": export_by_capture}


def exported(path: Path, by: str, model: nn.Module, x: Tensor) -> Path:
    onnx.save(EXPORTERS[by](model, (x,), ["x"], ["y"], [{0: "batch"}]), str(path))
    return path


def on_runtime(path: Path, *inputs: Tensor) -> list[Tensor]:
    session = onnxruntime.InferenceSession(path)
    given = {entry.name: x.numpy() for entry, x in zip(session.get_inputs(), inputs, strict=True)}
    return [torch.from_numpy(y) for y in session.run(None, given)]


def close(found: Tensor, wanted: Tensor) -> None:
    torch.testing.assert_close(found, wanted, atol=2e-5 * max(float(wanted.abs().max()), 1e-3), rtol=1e-4)


@pytest.mark.parametrize("by", EXPORTERS)
@pytest.mark.parametrize("net", sorted(MODELS))
def test_a_net_comes_back_from_its_file(net: str, by: str, tmp_path: Path) -> None:
    if (net, by) == ("shufflenet", "tracing"):
        pytest.skip("the older exporter lacks channel_shuffle")
    original, x = make_net(net)
    model = model_of(exported(tmp_path / "net.onnx", by, original, x), x)
    with torch.no_grad():
        for batch in (x[:1], x, torch.cat([x, x[:1]])):
            close(model(batch), original(batch))
    kinds = (nn.Conv2d, nn.ConvTranspose2d, nn.Linear)
    named = [{name for name, module in m.named_modules() if isinstance(module, kinds)} for m in (model, original)]
    assert len(named[0]) == len(named[1]) + (net == "transformer"), "torch's attention keeps its weights itself"
    assert len(named[1] - named[0]) <= (net == "transformer")


def test_what_comes_back_trains(tmp_path: Path) -> None:
    original, x = make_net("dense")
    model = model_of(exported(tmp_path / "net.onnx", "tracing", original, x), x).train()
    optimiser = torch.optim.Adam(model.parameters(), 0.02)
    targets = torch.tensor([0, 3])
    losses = []
    for _ in range(20):
        loss = nn.functional.cross_entropy(model(x), targets)
        optimiser.zero_grad()
        loss.backward()
        assert all(p.grad is not None for p in model.parameters())
        optimiser.step()
        losses.append(loss.item())
    assert losses[-1] < losses[0] / 2


@pytest.mark.parametrize("by", EXPORTERS)
def test_a_text_encoder_with_a_mask_keeps_its_names_and_its_free_length(by: str, tmp_path: Path) -> None:
    torch.manual_seed(0)
    original = Bert().eval()
    ids, mask = torch.randint(0, 30, (2, 5)), torch.tensor([[1, 1, 1, 0, 0], [1, 1, 1, 1, 1]])
    path = tmp_path / "bert.onnx"
    free = {0: "batch", 1: "length"}
    onnx.save(EXPORTERS[by](original, (ids, mask), ["input_ids", "mask"], ["x", "pooled"], [free, free]), str(path))
    model = model_of(path, {"mask": mask, "input_ids": ids})
    longer = torch.cat([ids, ids], 1)
    with torch.no_grad():
        for batch in (ids[:1], ids, torch.cat([ids, ids[:1]]), longer):
            given = torch.ones_like(batch)
            found, wanted = model(input_ids=batch, mask=given), original(batch, given)
            assert list(found) == ["x", "pooled"]
            close(found["x"], wanted[0])
            close(found["pooled"], wanted[1])
    kinds = [type(module) for module in model.modules()]
    assert [kinds.count(kind) for kind in (nn.Linear, nn.Embedding, nn.LayerNorm)] == [6, 2, 3]
    assert all(module.bias is not None for module in model.modules() if isinstance(module, nn.Linear))
    program = torch.export.export(
        model, (ids, mask), dynamic_shapes=({0: torch.export.Dim.AUTO}, {0: torch.export.Dim.AUTO})
    )
    assert len(program.graph_signature.user_outputs) == 2


@pytest.mark.parametrize("by", EXPORTERS)
def test_recurrent_layers_come_back(by: str, tmp_path: Path) -> None:
    torch.manual_seed(0)
    original, x = Recurrent().eval(), torch.randn(2, 4, 7)
    with warnings.catch_warnings():
        warnings.simplefilter("ignore")
        path = exported(tmp_path / "net.onnx", by, original, x)
    model = model_of(path, x)
    with torch.no_grad():
        close(model(x[:1]), original(x[:1]))
        close(model(torch.cat([x, x])), original(torch.cat([x, x])))
    assert {nn.LSTM, nn.GRU} <= {type(module) for module in model.modules()}


def test_channels_last_from_tensorflow(tmp_path: Path) -> None:
    path, x = channels_last(tmp_path / "tf.onnx"), torch.from_numpy(floats(2, 8, 8, 3))
    model = model_of(path, x)
    with torch.no_grad():
        for batch in (x[:1], x, torch.cat([x, x, x])):
            close(model(batch), on_runtime(path, batch)[0])
    graph = trace(model, (x,))
    assert [layer.kind for layer in graph.layers.values()] == ["conv", "conv", "linear"]
    assert next(iter(graph.layers)) == "model.conv.Conv2D"


@pytest.mark.parametrize(("rate", "branch"), [(16000, "then"), (8000, "else")])
def test_a_branch_is_the_one_that_example_inputs_select(rate: int, branch: str, tmp_path: Path) -> None:
    path = switching(tmp_path / "vad.onnx")
    x, sr = torch.from_numpy(floats(2, 6)), torch.tensor(rate)
    model = model_of(path, (x, sr))
    close(model(x, sr).detach(), on_runtime(path, x, sr)[0])
    (note,) = model.meta[ORIGINAL].notes
    assert note == f"If (node choice) always takes the branch that example_inputs select ({branch})"


def test_a_state_whose_batch_has_no_name_is_followed(tmp_path: Path) -> None:
    """(batch, width) beside (layers, batch, width), all free axes unnamed."""
    nodes = [make("ReduceSum", ["state", "zero"], ["sum"], keepdims=0), make("Add", ["x", "sum"], ["y"])]
    inputs = {"x": [None, 6], "state": [2, None, 6]}
    path = write(tmp_path / "net.onnx", nodes, inputs, ["y"], {"zero": np.array([0])})
    x, state = torch.from_numpy(floats(2, 6)), torch.from_numpy(floats(2, 2, 6))
    model = model_of(path, (x, state))
    close(model(x[:1], state[:, :1]), on_runtime(path, x[:1], state[:, :1])[0])


def test_a_file_of_8_bit_tensors_is_taken_with_the_floats_behind_them(tmp_path: Path) -> None:
    x = torch.from_numpy(floats(2, 3, 8, 8)).abs() * 0.5
    model = model_of(write_net(tmp_path / "net.onnx", int8=True), x)
    assert model.meta[ORIGINAL].notes == (
        "2 tensors are 8-bit in the file: the module computes with the values behind them",
    )
    assert isinstance(model.conv, nn.Conv2d) and model.conv.weight[0, 0, 0, 0].item() == pytest.approx(0.05)


def test_a_batch_of_one_that_nothing_needs_is_freed(tmp_path: Path) -> None:
    nodes = [make("Relu", ["x"], ["r"]), make("Flatten", ["r"], ["f"]), make("MatMul", ["f", "w"], ["y"])]
    path = write(tmp_path / "one.onnx", nodes, {"x": [1, 2, 3]}, ["y"], {"w": floats(6, 4)})
    x = torch.from_numpy(floats(1, 2, 3))
    model = model_of(path, x)
    assert original_of(model).freed
    assert model(torch.cat([x, x, x])).shape == (3, 4)
    plain_onnx(model, (x,), tmp_path / "plain.onnx")
    close(on_runtime(tmp_path / "plain.onnx", torch.cat([x, 2 * x]))[0], model(torch.cat([x, 2 * x])).detach())


def test_half_precision_is_computed_in_single(tmp_path: Path) -> None:
    nodes = [make("MatMul", ["x", "w"], ["p"]), make("Relu", ["p"], ["y"])]
    path = write(
        tmp_path / "half.onnx",
        nodes,
        {"x": (TensorProto.FLOAT16, ["batch", 6])},
        ["y"],
        {"w": floats(6, 4).astype(np.float16)},
    )
    proto = onnx.load(path)
    proto.graph.output[0].CopyFrom(helper.make_tensor_value_info("y", TensorProto.FLOAT16, ["batch", 4]))
    onnx.save(proto, path)
    model = model_of(path, torch.from_numpy(floats(2, 6)).half())
    assert {p.dtype for p in model.parameters()} == {torch.float32}
    assert model(torch.zeros(2, 6).half()).dtype == torch.float16


def test_the_original_is_the_file_until_the_module_is_trained(tmp_path: Path) -> None:
    path, x = write_net(tmp_path / "net.onnx"), torch.from_numpy(floats(2, 3, 8, 8))
    model = model_of(path, x)
    artifact = plain_onnx(model, (x,), tmp_path / "plain.onnx")
    assert artifact.path.read_bytes() == path.read_bytes() and artifact.plan_key == "original" and artifact.opset == 17
    with torch.no_grad():
        model.conv.weight.mul_(2)
    assert original_of(model) is None
    plain_onnx(model, (x,), tmp_path / "changed.onnx")
    close(on_runtime(tmp_path / "changed.onnx", x)[0], model(x).detach())


def test_a_file_that_changed_since_is_not_taken_for_the_original(tmp_path: Path) -> None:
    path, x = write_net(tmp_path / "net.onnx"), torch.from_numpy(floats(2, 3, 8, 8))
    model = model_of(path, x)
    path.write_bytes(path.read_bytes() + b"\0")
    with pytest.raises(TaskError, match="was changed since it was loaded"):
        plain_onnx(model, (x,), tmp_path / "plain.onnx")


def test_external_data_beside_the_file_come_along(tmp_path: Path) -> None:
    path, x = write_net(tmp_path / "net.onnx"), torch.from_numpy(floats(2, 3, 8, 8))
    wanted = on_runtime(path, x)[0]
    proto = onnx.load(path)
    (tmp_path / "far").mkdir()
    moved = tmp_path / "far" / "net.onnx"
    onnx.save(proto, moved, save_as_external_data=True, location="weights.bin", size_threshold=16)
    model = model_of(moved, x)
    close(model(x).detach(), wanted)
    plain_onnx(model, (x,), tmp_path / "plain.onnx")
    close(on_runtime(tmp_path / "plain.onnx", x)[0], wanted)


def test_one_weight_used_twice_is_one_parameter(tmp_path: Path) -> None:
    nodes = [
        make("MatMul", ["x", "w"], ["a"]), make("Relu", ["a"], ["b"]), make("MatMul", ["b", "w"], ["c"]),
        make("Transpose", ["w"], ["wt"], perm=[1, 0]), make("MatMul", ["c", "wt"], ["y"]),
    ]  # fmt: skip
    x = torch.from_numpy(floats(2, 40))
    model = model_of(write(tmp_path / "tied.onnx", nodes, {"x": ["batch", 40]}, ["y"], {"w": floats(40, 40)}), x)
    layers = [module for module in model.modules() if isinstance(module, nn.Linear)]
    assert len(layers) == 3 and layers[0].weight is layers[1].weight
    assert sum(p.numel() for p in model.parameters()) == 2 * 1600, "a transposed use has a weight of its own"


def test_a_wrong_translation_is_found_and_its_first_node_named(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    nodes = [
        make("MatMul", ["x", "w"], ["a"], name="first"), make("Sinh", ["a"], ["b"], name="second"),
        make("Neg", ["b"], ["y"], name="third"),
    ]  # fmt: skip
    path = write(tmp_path / "net.onnx", nodes, {"x": ["batch", 6]}, ["y"], {"w": floats(6, 6)})
    wrong: Callable[..., Any] = lambda a, x: Call(torch.sin, (x,))  # noqa: E731
    monkeypatch.setitem(operators.OPERATORS, ("", "Sinh"), wrong)  # type: ignore[arg-type]
    with pytest.raises(
        TaskError, match=r"differs from ONNX Runtime's: .* first node whose value differs is 'second' \(Sinh\)"
    ):
        model_of(path, torch.from_numpy(floats(2, 6)))


X = {"x": ["batch", 6]}
GIVEN = torch.from_numpy(floats(2, 6))


def one(op: str, domain: str = "", **attributes: Any) -> list[Any]:
    return [make(op, ["x"], ["y"], name="n", domain=domain, **attributes)]


REFUSED: dict[str, tuple[list[Any], dict[str, Any], str]] = {
    "unknown operator": (one("Wonder"), X, r"operator Wonder \(node n\) has no translation"),
    "a name of two lines": (one("Won\nder"), X, r"operator Won der \(node n\) has no translation"),
    "unknown domain": (one("Relu", "acme.ai"), X, r"operator acme.ai.Relu \(node n\) has no translation"),
    "sizes that depend on data": (one("NonZero"), X, r"operator NonZero .* \(data decide the size of what it makes\)"),
    "complex values": (one("DFT"), X, r"operator DFT .* \(its values are complex\)"),
    "randomness": (one("RandomNormalLike"), X, r"operator RandomNormalLike .* \(it draws random numbers\)"),
    "sequences": (one("SplitToSequence"), X, r"operator SplitToSequence .* \(it works on sequences"),
    "integers": (one("DynamicQuantizeLinear"), X, r"it computes in integers; take the float model"),
    "a form": (
        [make("MaxPool", ["x"], ["m", "i"], name="n", kernel_shape=[2]), make("Cast", ["i"], ["y"], to=1)],
        {"x": ["batch", 6, 3]},
        r"operator MaxPool \(node n\) with its second output, the indices, has no translation",
    ),
    "text": (one("Identity"), {"x": (TensorProto.STRING, ["batch"])}, r"'x' is text, not numbers"),
}


@pytest.mark.parametrize("name", REFUSED)
def test_what_cannot_be_translated_is_told_in_one_line(name: str, tmp_path: Path) -> None:
    nodes, inputs, line = REFUSED[name]
    path = write(tmp_path / "net.onnx", nodes, inputs, ["y"], {}, domains=["acme.ai"])
    with pytest.raises(TaskError, match=f"can't take .*net.onnx as a model: .*{line}") as caught:
        model_of(path, torch.zeros(2, *[n for n in next(iter(inputs.values()))[1:] if isinstance(n, int)]))
    assert "\n" not in str(caught.value)


def test_an_old_opset_is_refused(tmp_path: Path) -> None:
    path = write(tmp_path / "net.onnx", one("Relu"), X, ["y"], {}, opset=6)
    with pytest.raises(TaskError, match="opset 6, it takes 7 or newer"):
        model_of(path, GIVEN)


@pytest.mark.parametrize("content", [b"", b"no model at all", b"\x08\x08", None])
def test_a_damaged_file_is_told_in_one_line(content: bytes | None, tmp_path: Path) -> None:
    path = tmp_path / "net.onnx"
    whole = write_net(tmp_path / "whole.onnx").read_bytes()
    path.write_bytes(whole[: len(whole) // 2] if content is None else content)
    with pytest.raises(TaskError, match=r"can't take .*net.onnx as a model: .*ONNX file") as caught:
        model_of(path, GIVEN)
    assert "\n" not in str(caught.value)


def test_a_file_with_wrong_bytes_is_a_model_or_told_in_one_line(tmp_path: Path) -> None:
    """Whatever lies in a file that somebody sent: no error but ours."""
    draw = np.random.default_rng(0)
    whole = channels_last(tmp_path / "whole.onnx").read_bytes()
    names = np.frombuffer(whole, np.uint8)
    places = np.flatnonzero((names >= 8) & (names < 128))
    refused = 0
    for _ in range(40):
        content = bytearray(whole)
        for place in draw.choice(places, 3):
            content[place] = draw.integers(256)
        (tmp_path / "net.onnx").write_bytes(content)
        try:
            model_of(tmp_path / "net.onnx", torch.from_numpy(floats(2, 8, 8, 3)))
        except TaskError as error:
            refused += 1
            assert "\n" not in str(error)
    assert refused


@pytest.mark.parametrize("place", ["../secret.bin", "/etc/hostname", "a/../../secret.bin", "C:\\secret.bin", ""])
def test_external_data_elsewhere_is_never_read(place: str, tmp_path: Path) -> None:
    path = write_net(tmp_path / "net.onnx")
    proto = onnx.load(path)
    tensor = proto.graph.initializer[0]
    onnx.external_data_helper.set_external_data(tensor, place)
    tensor.ClearField("raw_data")
    path.write_bytes(proto.SerializeToString())
    with pytest.raises(TaskError, match=r"keeps its data in .*, which is not beside the file"):
        model_of(path, GIVEN)


def test_a_link_out_of_the_folder_is_not_followed(tmp_path: Path) -> None:
    (tmp_path / "far").mkdir()
    (tmp_path / "secret.bin").write_bytes(b"\0" * 1000)
    (tmp_path / "far" / "w.bin").symlink_to(tmp_path / "secret.bin")
    path = write_net(tmp_path / "far" / "net.onnx")
    proto = onnx.load(path)
    onnx.external_data_helper.set_external_data(proto.graph.initializer[0], "w.bin")
    proto.graph.initializer[0].ClearField("raw_data")
    path.write_bytes(proto.SerializeToString())
    with pytest.raises(TaskError, match="which is not beside the file"):
        model_of(path, GIVEN)


@pytest.mark.parametrize(
    ("given", "found"),
    [
        (torch.zeros(2, 5), r"0 \(2, 5\) of float32"),
        (torch.zeros(2, 6, dtype=torch.float64), r"0 \(2, 6\) of float64"),
        ((GIVEN, GIVEN), r"0 \(2, 6\) of float32, 1 \(2, 6\) of float32"),
        ({"y": GIVEN}, r"y \(2, 6\) of float32"),
        ("x", "0 a str"),
    ],
)
def test_inputs_that_do_not_fit_are_told_what_does(given: Any, found: str, tmp_path: Path) -> None:
    path = write(tmp_path / "net.onnx", one("Relu"), X, ["y"], {})
    with pytest.raises(TaskError, match=rf"takes x \(\?, 6\) of float32; Task.example_inputs is {found}"):
        model_of(path, given)


def test_names_that_python_lacks_are_made_so(tmp_path: Path) -> None:
    nodes = [make("Add", ["in:0", "class/1"], ["y"])]
    path = write(tmp_path / "net.onnx", nodes, {"in:0": ["b", 6], "class/1": ["b", 6]}, ["y"], {})
    model = model_of(path, {"in_0": GIVEN, "class_1": GIVEN})
    torch.testing.assert_close(model(in_0=GIVEN, class_1=GIVEN), 2 * GIVEN)
