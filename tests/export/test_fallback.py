"""What the emitters lack is written by torch only if it computes the same; the next way is tried where it doesn't."""

from collections.abc import Callable
from pathlib import Path
from typing import Any

import onnx
import pytest
import torch
from onnx import TensorProto, helper
from torch import Tensor, nn
from torch.fx import GraphModule

import autocompress.export.fallback as fallback
from autocompress.compression.fake_quant import FakeQuantize, quantize_weight
from autocompress.export.checking import difference
from autocompress.export.functions import FUNCTIONS
from autocompress.export.inlining import inline, portable
from autocompress.export.lowering import lower
from autocompress.export.onnx import to_onnx
from autocompress.export.writer import OPSET, Writer
from autocompress.vocabulary.errors import ExportError
from tests.export.exported import Functions, assert_same, batch_of, graph_of, run, session
from tests.export.test_layers import graph_of_layers

aten = torch.ops.aten
X = torch.randn(3, 4, 6, generator=torch.Generator().manual_seed(0))


def _graph(*functions: Callable[..., Any], inputs: tuple[Tensor, ...] = (X,)) -> GraphModule:
    return graph_of(Functions(functions), inputs, [{0: "batch"}] * len(inputs))


def _check(graph: GraphModule, *functions: Callable[..., Any]) -> onnx.ModelProto:
    with torch.no_grad():
        proto = lower(graph, {}, fallback.emit_with_torch)
    onnx.checker.check_model(proto, full_check=True)
    for batch in (1, 2, 3, 5):
        (x,) = batch_of((X,), batch)
        for found, expected in zip(run(proto, x), Functions(functions)(x), strict=True):
            assert_same(found, expected)
    return proto


COMPOSED: dict[str, Callable[[Tensor], Any]] = {
    "rot90": lambda x: torch.rot90(x, 1, (1, 2)),
    "diff": lambda x: [x.diff(dim=1), x.diff(n=2)],
    "tensordot": lambda x: torch.tensordot(x, torch.ones(6, 2), 1),
    "logit": lambda x: torch.logit(x.sigmoid(), 1e-6),
    "hypot": lambda x: torch.hypot(x, x + 1),
    "xlogy": lambda x: torch.xlogy(x.abs(), x.abs() + 1),
    "logaddexp": lambda x: torch.logaddexp(x, x * 2),
    "cross_entropy-like": lambda x: nn.functional.smooth_l1_loss(x, x * 2, reduction="none"),
    "addr": lambda x: torch.addr(torch.zeros(4, 4), x[0, :, 0] * 1, torch.ones(4)) + x.mean(),
    "heaviside": lambda x: torch.heaviside(x, torch.ones(())),
    "pixel_shuffle 5d": lambda x: nn.functional.pixel_shuffle(x.reshape(-1, 1, 4, 2, 3), 2),
    "narrow_copy": lambda x: aten.narrow_copy(x, 1, 1, 2),
    "atleast": lambda x: torch.atleast_3d(x) * torch.deg2rad(x),
    "pixel_unshuffle 5d": lambda x: nn.functional.pixel_unshuffle(x.reshape(-1, 2, 1, 2, 6), 2),
}


def test_operators_that_torch_can_decompose() -> None:
    _check(_graph(*COMPOSED.values()), *COMPOSED.values())


def test_decomposition_needs_no_exporter(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(torch.onnx, "export", None)
    rotated = COMPOSED["rot90"]
    _check(_graph(rotated), rotated)


def test_an_operator_without_any_way_is_named_with_what_each_said() -> None:
    with pytest.raises(ExportError, match=r"aten\.erfinv.*node.*decomposed.*older.*newer.*replace"):
        lower(_graph(lambda x: torch.erfinv(x.tanh())), {}, fallback.emit_with_torch)


def test_a_complex_transform_is_refused() -> None:
    with pytest.raises(ExportError, match=r"fft"):
        lower(_graph(lambda x: torch.fft.rfft(x).abs()), {}, fallback.emit_with_torch)


def _without(monkeypatch: pytest.MonkeyPatch, *targets: Any) -> None:
    for target in targets:
        monkeypatch.delitem(FUNCTIONS, target)


def test_unfold_of_the_older_exporter_is_not_taken(monkeypatch: pytest.MonkeyPatch) -> None:
    """It writes windows that start elsewhere; another way is found, or none, but never that one."""
    _without(monkeypatch, aten.unfold.default)
    tried: list[str] = []
    monkeypatch.setattr(fallback, "_WAYS", {name: _noted(way, tried) for name, way in fallback._WAYS.items()})
    windows = lambda x: x.unfold(2, 4, 2)  # noqa: E731
    try:
        _check(_graph(windows), windows)
    except ExportError as error:
        assert "unfold" in str(error)
    assert tried


def _noted(way: Callable[..., Any], tried: list[str]) -> Callable[..., Any]:
    def noted(*args: Any) -> Any:
        tried.append(way.__name__)
        return way(*args)

    return noted


def test_a_wrong_file_is_refused_and_the_next_way_taken(monkeypatch: pytest.MonkeyPatch) -> None:
    """Mutation: a way that writes sin for cos, one that is right for one sample only, then a right one."""
    _without(monkeypatch, aten.cos.default)
    ways = {"wrong": _written("Sin"), "fixed": _written("Cos", batch=1), "right": _written("Cos")}
    monkeypatch.setattr(fallback, "_WAYS", ways)
    _check(_graph(torch.cos), torch.cos)
    monkeypatch.setattr(fallback, "_WAYS", {"wrong": ways["wrong"], "fixed": ways["fixed"]})
    with pytest.raises(ExportError, match=r"wrong: it differs by.*fixed: "):
        lower(_graph(torch.cos), {}, fallback.emit_with_torch)


def _written(op: str, batch: int | str = "batch") -> Callable[..., onnx.ModelProto]:
    info = [helper.make_tensor_value_info(n, TensorProto.FLOAT, [batch, 4, 6]) for n in ("input_0", "y")]
    graph = helper.make_graph([helper.make_node(op, ["input_0"], ["y"])], "g", info[:1], info[1:])
    proto = helper.make_model(graph, opset_imports=[helper.make_opsetid("", OPSET)], ir_version=8)
    return lambda *_: proto


def test_difference_sees_shapes_types_places_and_values() -> None:
    samples = [(X,)]
    proto = _written("Cos")()
    assert difference(proto, torch.cos, samples, ["input_0"]) is None
    for other in (torch.sin, lambda x: x.cos().double(), lambda x: x.cos()[:, 1:], lambda x: x.cos().log(),
                  lambda x: x.cos() * 1.001, lambda x: (x.cos(), x)):  # fmt: skip
        assert difference(proto, other, samples, ["input_0"]) is not None


def _inlined(proto: onnx.ModelProto, **inputs: str) -> onnx.ModelProto:
    """The model as part of another graph, whose names it collides with."""
    writer = Writer()
    writer.kernel = writer.result = "y"
    for name in inputs.values():
        writer.unique(name)
    outputs = inline(writer, portable(proto), inputs)
    info = helper.make_tensor_value_info
    graph = helper.make_graph(
        writer.nodes, "outer", [info(n, TensorProto.FLOAT, ["n", 4]) for n in inputs.values()],
        [info(n, TensorProto.FLOAT, ["n", 4]) for n in outputs], writer.initializers,
    )  # fmt: skip
    made = helper.make_model(
        graph, opset_imports=[helper.make_opsetid(d, v) for d, v in writer.opsets.items()], ir_version=8
    )
    onnx.checker.check_model(made)
    return made


def _model(text: str) -> onnx.ModelProto:
    return onnx.parser.parse_model(text)


def test_branches_and_loops_keep_what_they_read_from_outside() -> None:
    proto = _model("""<ir_version: 8, opset_import: ["" : 17]>
        g (float[n, 4] x) => (float[n, 4] y) {
            zero = Constant <value = float {0.0}> ()
            total = ReduceSum <keepdims = 0> (x)
            positive = Greater (total, zero)
            shifted = Add (x, x)
            y = If (positive) <
                then_branch = t () => (float[n, 4] a) { two = Constant <value = float {2.0}> ()
                                                        a = Mul (shifted, two) },
                else_branch = f () => (float[n, 4] a) { a = Neg (shifted) }>
        }""")
    made = _inlined(proto, x="y")
    for value in (torch.ones(2, 4), -torch.ones(3, 4)):
        assert_same(run(made, value)[0], value * 4 if value.sum() > 0 else -2 * value)
    twice = Writer()
    twice.result = twice.kernel = "k"
    first = inline(twice, proto, {"x": "in"})
    assert first != inline(twice, proto, {"x": "in"})
    names = [name for node in twice.nodes for name in node.output]
    assert len(set(names)) == len(names)


def test_functions_and_other_operator_sets_are_spelled_out() -> None:
    proto = _model("""<ir_version: 8, opset_import: ["" : 17, "own" : 1]>
        g (float[n, 4] x) => (float[n, 4] y) { y = own.double (x) }
        <opset_import: ["" : 17], domain: "own">
        double (a) => (b) { b = Add (a, a) }""")
    made = _inlined(proto, x="other")
    assert {node.domain for node in made.graph.node} == {""}
    assert_same(run(made, X[:, 0, :4].contiguous())[0], X[:, 0, :4] * 2)


def test_a_newer_operator_set_is_taken_where_it_says_the_same() -> None:
    same = _model('<ir_version: 10, opset_import: ["" : 20]> g (float[n, 4] x) => (float[n, 4] y) { y = Sin (x) }')
    assert portable(same).opset_import[0].version == OPSET
    newer = _model('<ir_version: 10, opset_import: ["" : 20]> g (float[n, 4] x) => (float[n, 4] y) { y = Gelu (x) }')
    with pytest.raises(ExportError, match="operator set 20"):
        _ = portable(newer)


def test_inputs_that_an_exporter_dropped_are_not_missed() -> None:
    proto = _model("""<ir_version: 8, opset_import: ["" : 17]>
        g (float[n, 4] second) => (float[n, 4] y) { y = Neg (second) }""")
    made = _inlined(proto, first="a", second="b")
    assert_same(session(made).run(None, {"a": X[:, 0, :4].numpy(), "b": X[:, 1, :4].numpy()})[0], -X[:, 1, :4])
    with pytest.raises(ExportError, match="feeds"):
        inline(Writer(), proto, {"first": "a"})


@pytest.mark.parametrize("int8", [False, True])
def test_the_whole_model_is_exported_where_an_operator_is_not(
    int8: bool, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    """In float and with simulated int8, whose integers are in the file."""
    graph = graph_of_layers(nn.Sequential(nn.Linear(6, 5), nn.ReLU(), nn.Linear(5, 3)), {0: "batch"}, X[:, 0])
    if int8:
        _quantize_first(graph)
    _without_layers(monkeypatch)
    path = to_onnx(graph, tmp_path / "model.onnx", "plan").path
    proto = onnx.load(path)
    stored = {tensor.data_type for tensor in proto.graph.initializer}
    assert (TensorProto.INT8 in stored) is int8
    assert ("QuantizeLinear" in {node.op_type for node in proto.graph.node}) is int8
    for batch in (1, 4):
        x = batch_of((X[:, 0],), batch)[0].contiguous()
        with torch.no_grad():
            assert_same(run(proto, x)[0], graph(x), 1e-2 if int8 else 1e-5)


def _quantize_first(graph: GraphModule) -> None:
    source = next(node for node in graph.graph.nodes if node.op == "placeholder")
    layer: Any = graph.get_submodule("0")
    rounding = FakeQuantize.over(-3.0, 3.0)
    graph.add_submodule("rounding", rounding)
    with graph.graph.inserting_after(source):
        rounded = graph.graph.call_module("rounding", (source,))
    next(node for node in graph.graph.nodes if node.target == "0").replace_input_with(source, rounded)
    quantize_weight(layer, rounding.scale)
    graph.recompile()


def _without_layers(monkeypatch: pytest.MonkeyPatch) -> None:
    """No emitter for layers, and none of torch's ways for one operator."""
    monkeypatch.setattr("autocompress.export.lowering.emit_layer", lambda layer: None)
    monkeypatch.setattr(fallback, "_WAYS", {})


def test_a_whole_model_that_comes_out_wrong_is_refused(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    graph = graph_of_layers(nn.Sequential(nn.Linear(6, 4)), {0: "batch"}, X[:, 0])
    _without_layers(monkeypatch)
    wrong = lambda *_: _written("Sin")()  # noqa: E731
    monkeypatch.setattr("autocompress.export.whole.export_by_tracing", wrong)
    monkeypatch.setattr("autocompress.export.whole.export_by_capture", wrong)
    with pytest.raises(ExportError, match=r"can't be written.*whole model either"):
        to_onnx(graph, tmp_path / "model.onnx", "plan")
    assert not list(tmp_path.iterdir())
