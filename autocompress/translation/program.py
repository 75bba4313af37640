"""An ONNX file, read and checked: its inputs and outputs, and the torch module that computes it."""

import os
from collections.abc import Sequence
from dataclasses import dataclass
from pathlib import Path, PurePosixPath, PureWindowsPath
from typing import Any

import numpy as np
import torch
from torch import Tensor, fx

from autocompress.translation.operators import DTYPES
from autocompress.translation.values import Unsupported
from autocompress.translation.writer import DEPLOYED, Style, Writer, is_known, tensor_of
from autocompress.vocabulary.errors import first_line

OLDEST_OPSET = 7
"""Broadcasting meant something else before."""

_OURS = ("", "ai.onnx")


class TranslationError(Exception):
    """What of a file can't be translated, in one line; who asked adds for what."""

    def __init__(self, what: str) -> None:
        super().__init__(" ".join(what.split()))  # a file's names may hold anything


@dataclass(frozen=True, slots=True)
class Input:
    """A model's input or output; `shape` has None where the file leaves an axis free, and `axes` their names."""

    name: str
    shape: tuple[int | None, ...]
    dtype: Any
    axes: tuple[str, ...] = ()

    def fits(self, shape: Sequence[int]) -> bool:
        pairs = zip(self.shape, shape, strict=False)
        return len(shape) == len(self.shape) and all(own in (None, given) for own, given in pairs)

    @property
    def identifier(self) -> str:
        """A name for Python: a keyword of forward."""
        cleaned = "".join(c if c.isascii() and (c.isalnum() or c == "_") else "_" for c in self.name)
        return cleaned if cleaned.isidentifier() and not cleaned.startswith("_") else f"input_{cleaned}"


class Program:
    """An ONNX file whose operators are all known here. Raises TranslationError, naming the first that is not."""

    def __init__(self, path: Path) -> None:
        self.path = path
        self.proto, self.external = _loaded(path)
        self.notes: list[str] = []
        try:
            self._read()
        except (
            TypeError,
            ValueError,
            KeyError,
            AttributeError,
        ) as error:  # names that are no text, types that are none
            raise TranslationError(f"it is no valid ONNX file: {first_line(error)}") from error

    def _read(self) -> None:
        self._graph = self.proto.graph
        self.opsets = {entry.domain: entry.version for entry in self.proto.opset_import}
        self._check()
        self._constants = {t.name: _constant(t) for t in self._graph.initializer}
        self.inputs = [_input(value) for value in self._graph.input if value.name not in self._constants]
        self.outputs = [_input(value) for value in self._graph.output]

    @property
    def quantised(self) -> int:
        """Nodes that round to 8 bits."""
        return sum(node.op_type == "QuantizeLinear" for node in self._graph.node)

    def module(
        self, shapes: Sequence[Sequence[int]], style: Style = DEPLOYED
    ) -> fx.GraphModule:  # fmt: skip
        """The model for inputs of these shapes. Raises TranslationError for a form that is not translated."""
        examples = [
            (torch.from_numpy(np.zeros(tuple(shape), entry.dtype)),)
            for entry, shape in zip(self.inputs, shapes, strict=True)
        ]
        return self.written(examples, style)

    def written(self, examples: Sequence[Sequence[Tensor]], style: Style) -> fx.GraphModule:
        """The model for inputs like these: sizes that differ between the examples of an input stay free."""
        writer = Writer(self._constants, style)
        for entry, given in zip(self.inputs, examples, strict=True):
            writer.take(entry.name, entry.identifier, given)
        writer.read(name for node in self._graph.node for name in node.input)
        writer.read(entry.name for entry in self.outputs)
        with torch.no_grad():
            for i, node in enumerate(self._graph.node):
                self._add(writer, node, i)
            module = writer.finish([(entry.name, _dtype(entry.dtype)) for entry in self.outputs])
        self.notes = writer.notes
        return module

    def _add(self, writer: Writer, node: Any, position: int) -> None:
        domain = "" if node.domain in _OURS else node.domain
        place = f"operator {node.op_type} (node {node.name or position})"
        try:
            writer.add(node, position, self._opset(domain))
        except Unsupported as error:
            raise TranslationError(f"{place} {error} has no translation") from error
        except KeyError as error:
            raise TranslationError(f"{place} reads or needs {error}, which the file lacks") from error
        except (RuntimeError, TypeError, ValueError, LookupError, AttributeError, ArithmeticError) as error:
            raise TranslationError(f"{place} does not compute on these inputs: {first_line(error)}") from error

    def _opset(self, domain: str) -> int:
        return self.opset if domain == "" else int(self.opsets.get(domain, 1))

    def _check(self) -> None:
        for node in self._graph.node:
            domain = "" if node.domain in _OURS else node.domain
            if not is_known(domain, node.op_type):
                called = f"{node.domain}.{node.op_type}" if node.domain else node.op_type
                raise TranslationError(f"operator {called} (node {node.name}) has no translation{_why(node.op_type)}")
        if self.opset < OLDEST_OPSET:
            found = f"opset {self.opset}" if self.opset else "no opset"
            raise TranslationError(f"{found}, it takes {OLDEST_OPSET} or newer")

    @property
    def opset(self) -> int:
        """Of ONNX's own operators; 0 if the file has none."""
        return next((int(self.opsets[domain]) for domain in _OURS if domain in self.opsets), 0)


_REASONS = {
    **dict.fromkeys(("Loop", "Scan"), "it repeats as often as the data says"),
    **dict.fromkeys(("NonZero", "NonMaxSuppression", "Unique", "Compress"), "data decide the size of what it makes"),
    **dict.fromkeys(("DFT", "STFT"), "its values are complex"),
    **dict.fromkeys(
        ("RandomNormal", "RandomNormalLike", "RandomUniform", "RandomUniformLike", "Bernoulli", "Multinomial"),
        "it draws random numbers",
    ),
    **dict.fromkeys(
        ("QLinearConv", "QLinearMatMul", "ConvInteger", "MatMulInteger", "DynamicQuantizeLinear"),
        "it computes in integers; take the float model, or one with QuantizeLinear and DequantizeLinear around floats",
    ),
    **dict.fromkeys(
        ("StringNormalizer", "TfIdfVectorizer", "StringSplit", "StringConcat", "RegexFullMatch", "LabelEncoder"),
        "it works on text",
    ),
}  # fmt: skip


def _why(op: str) -> str:
    if op.startswith("Sequence") or op.startswith("Optional") or op in ("SplitToSequence", "ConcatFromSequence"):
        return " (it works on sequences or optional values, not tensors)"
    return f" ({_REASONS[op]})" if op in _REASONS else ""


def _loaded(path: Path) -> tuple[Any, bool]:
    """The file with all its tensors and without functions of its own, and whether tensors lay in other files."""
    import onnx
    from onnx import inliner

    try:
        proto = onnx.load(str(path), load_external_data=False)
    except Exception as error:  # protobuf's and the file system's
        raise TranslationError(f"it is no whole ONNX file: {first_line(error)}") from error
    if not proto.graph.node and not proto.graph.output:
        raise TranslationError("it is no ONNX file: it holds no graph")
    _check_places(proto, path)
    external = bool(external_tensors(proto.graph))
    try:
        onnx.load_external_data_for_model(proto, str(path.parent))
        return inliner.inline_local_functions(proto) if proto.functions else proto, external
    except Exception as error:
        raise TranslationError(f"it is no valid ONNX file: {first_line(error)}") from error


def _check_places(proto: Any, path: Path) -> None:
    """External data lies beside the file or below: nothing else is ever opened."""
    folder = os.path.realpath(path.parent)
    for tensor in external_tensors(proto.graph):
        place = next((entry.value for entry in tensor.external_data if entry.key == "location"), "")
        pure = PurePosixPath(place), PureWindowsPath(place)
        inside = os.path.realpath(os.path.join(folder, place)).startswith(folder + os.sep)
        if not place or not inside or any(p.is_absolute() or p.drive or ".." in p.parts for p in pure):
            raise TranslationError(
                f"tensor {tensor.name!r} keeps its data in {place!r}, which is not beside the file; only relative "
                "places within the file's folder are read"
            )


def external_tensors(graph: Any) -> list[Any]:
    """Every tensor whose data lies in another file, those of branches too."""
    from onnx import TensorProto

    found = [t for t in graph.initializer if t.data_location == TensorProto.EXTERNAL]
    for node in graph.node:
        for entry in node.attribute:
            found += [t for t in (entry.t, *entry.tensors) if t.data_location == TensorProto.EXTERNAL]
            for inner in (entry.g, *entry.graphs):
                found += external_tensors(inner)
    return found


def _constant(tensor: Any) -> Tensor:
    try:
        return tensor_of(tensor)
    except Unsupported as error:
        raise TranslationError(f"a constant {str(error).removeprefix('on constant ')} torch lacks") from error
    except (ValueError, RuntimeError) as error:
        raise TranslationError(f"constant {tensor.name!r} can't be read: {first_line(error)}") from error


def _input(value: Any) -> Input:
    from onnx import TensorProto, helper

    kind = value.type.WhichOneof("value") or "tensor_type"
    if kind != "tensor_type":
        raise TranslationError(f"{value.name!r} is a {kind.removesuffix('_type')}, not a tensor")
    tensor = value.type.tensor_type
    if tensor.elem_type == TensorProto.STRING:
        raise TranslationError(f"{value.name!r} is text, not numbers; keep what reads text outside of the model")
    given = [axis.HasField("dim_value") and axis.dim_value >= 0 for axis in tensor.shape.dim]
    shape = tuple(axis.dim_value if fixed else None for fixed, axis in zip(given, tensor.shape.dim, strict=True))
    dtype = helper.tensor_dtype_to_np_dtype(tensor.elem_type) if tensor.elem_type else None
    names = tuple(axis.dim_param for axis in tensor.shape.dim)
    return Input(value.name, shape, dtype, names)


def _dtype(kind: Any) -> torch.dtype | None:
    from onnx import helper

    return None if kind is None else DTYPES.get(int(helper.np_dtype_to_tensor_dtype(np.dtype(kind))))
