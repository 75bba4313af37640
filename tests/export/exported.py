"""Functions written by the emitters alone, many in one file, and run in ONNX Runtime beside torch."""

import warnings
from collections.abc import Callable, Sequence
from typing import Any

import numpy as np
import onnx
import onnxruntime
import torch
from torch import Tensor, nn
from torch.fx import GraphModule, Node

from autocompress.export.lowering import lower
from autocompress.vocabulary.errors import ExportError

TOLERANCE = 2e-5


class Functions(nn.Module):
    """All results of several functions of the same inputs, side by side."""

    def __init__(self, functions: Sequence[Callable[..., Any]]) -> None:
        super().__init__()
        self.functions = functions
        self.layers = nn.ModuleList(f for f in functions if isinstance(f, nn.Module))

    def forward(self, *inputs: Tensor) -> tuple[Tensor, ...]:
        return tuple(t for function in self.functions for t in flat(function(*inputs)))


def flat(value: Any) -> list[Tensor]:
    return [value] if isinstance(value, Tensor) else [t for part in value for t in flat(part)]


def graph_of(model: nn.Module, inputs: tuple[Tensor, ...], free: Sequence[dict[int, str]]) -> GraphModule:
    """The functional graph that torch.export makes, its operators left as they are."""
    shapes = tuple({axis: torch.export.Dim.AUTO for axis in axes} for axes in free)
    with warnings.catch_warnings():
        warnings.simplefilter("ignore", FutureWarning)  # torch's own, about its tree utilities
        program = torch.export.export(model.eval(), inputs, dynamic_shapes=(shapes,)).run_decompositions({})
        graph: Any = program.module(check_guards=False)
    for name, axes in zip(program.graph_signature.user_inputs, free, strict=True):
        traced = next(node for node in program.graph.nodes if node.name == name).meta["val"].shape
        assert not any(isinstance(traced[a], int) or traced[a].node.maybe_as_int() for a in axes), f"{name} is fixed"
    placeholders = [node for node in graph.graph.nodes if node.op == "placeholder"]
    for node, value, axes in zip(placeholders, inputs, free, strict=True):
        node.meta["val"] = torch.empty_like(value, device="meta")
        node.meta["axes"] = dict(axes)
    for node in reversed(list(graph.graph.nodes)):
        if not node.users and "assert" in str(node.target):
            graph.graph.erase_node(node)
    graph.graph.eliminate_dead_code()
    graph.recompile()
    return graph  # type: ignore[no-any-return]


def refuse(_: Any, node: Node) -> Any:
    raise ExportError(f"{node.target} has no emitter")


def run(proto: onnx.ModelProto, *inputs: Tensor) -> list[np.ndarray]:
    """What ONNX Runtime makes of a model, on one thread."""
    names = [i.name for i in proto.graph.input]
    return session(proto).run(None, {n: x.numpy() for n, x in zip(names, inputs, strict=True)})  # type: ignore


def session(proto: onnx.ModelProto) -> onnxruntime.InferenceSession:
    options = onnxruntime.SessionOptions()
    options.intra_op_num_threads, options.log_severity_level = 1, 3
    return onnxruntime.InferenceSession(proto.SerializeToString(), options, providers=["CPUExecutionProvider"])


class Written:
    """A model of functions as a file."""

    def __init__(self, model: nn.Module, inputs: tuple[Tensor, ...], free: Sequence[dict[int, str]] = ()) -> None:
        self.model = model
        with torch.no_grad():
            self.proto = lower(graph_of(model, inputs, free or [{0: "batch"}] * len(inputs)), {}, refuse)
        onnx.checker.check_model(self.proto, full_check=True)
        self.session = session(self.proto)

    def run(self, *inputs: Tensor) -> list[np.ndarray]:
        names = [i.name for i in self.proto.graph.input]
        return self.session.run(None, {n: x.numpy() for n, x in zip(names, inputs, strict=True)})  # type: ignore

    def expected(self, *inputs: Tensor) -> list[Tensor]:
        with torch.no_grad():
            return flat(self.model(*inputs))


def assert_same(found: np.ndarray, expected: Tensor, tolerance: float = TOLERANCE) -> None:
    """Equal shapes and types; floats up to rounding, everything else exactly."""
    wanted = expected.numpy()
    assert found.shape == wanted.shape
    assert found.dtype == wanted.dtype
    if not np.issubdtype(wanted.dtype, np.floating):
        np.testing.assert_array_equal(found, wanted)
        return
    finite = np.isfinite(wanted)
    np.testing.assert_array_equal(found[~finite], wanted[~finite])
    largest = max(1.0, float(np.abs(wanted[finite]).max(initial=0)))
    np.testing.assert_allclose(found[finite], wanted[finite], rtol=0, atol=tolerance * largest)


def batch_of(inputs: Sequence[Tensor], count: int, axis: int = 0) -> tuple[Tensor, ...]:
    """The first samples, as many times as it takes."""
    return tuple(torch.cat([x] * count, axis).narrow(axis, 0, count) for x in inputs)
