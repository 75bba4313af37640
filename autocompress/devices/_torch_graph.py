"""An ONNX file as a torch module, for given input shapes: one call of torch per node, everything constant computed."""

import operator
import time
from collections import defaultdict
from collections.abc import Callable, Sequence
from dataclasses import dataclass
from pathlib import Path
from typing import Any

import numpy as np
import torch
from torch import Tensor, fx

from autocompress.devices._refusals import first_line
from autocompress.devices._torch_operators import MOVES, OPERATORS, Call, Operand, Unsupported, cast
from autocompress.vocabulary.errors import DeviceError

OLDEST_OPSET = 13
"""Softmax and the quantised operators meant something else before."""

_ALIASES = frozenset({"Identity", "Dropout"})
_ROUNDING, _VALUES = "QuantizeLinear", "DequantizeLinear"
_OWN = _ALIASES | {"Constant", "Shape", _ROUNDING, _VALUES}
_BOUNDS = {torch.uint8: (0, 255), torch.int8: (-128, 127)}

_SOURCE = "onnx"
"""Key of a graph node's metadata: the Source that it computes."""


@dataclass(frozen=True, slots=True)
class Source:
    """The node of the artifact behind a call."""

    name: str
    op: str
    inputs: tuple[str, ...]
    outputs: tuple[str, ...]


@dataclass(frozen=True, slots=True)
class Input:
    """A model's input; `shape` has None where the file leaves an axis free."""

    name: str
    shape: tuple[int | None, ...]
    dtype: Any

    def fits(self, shape: Sequence[int]) -> bool:
        pairs = zip(self.shape, shape, strict=False)
        return len(shape) == len(self.shape) and all(own in (None, given) for own, given in pairs)


class Program:
    """An ONNX file whose operators are all known here. Raises DeviceError, naming the first that is not."""

    def __init__(self, path: Path) -> None:
        import onnx

        self.path = path
        try:
            model = onnx.load(str(path))
        except Exception as error:  # protobuf's and the file system's
            raise DeviceError(f"torch can't load {path}: {first_line(error)}") from error
        self._graph = model.graph
        self._check([entry.version for entry in model.opset_import if entry.domain in ("", "ai.onnx")])
        self._constants = {t.name: _tensor(t) for t in self._graph.initializer}
        self.inputs = [_input(value) for value in self._graph.input if value.name not in self._constants]

    def _check(self, opsets: Sequence[int]) -> None:
        for node in self._graph.node:
            if node.op_type not in OPERATORS.keys() | _OWN or node.domain not in ("", "ai.onnx"):
                called = f"{node.domain}.{node.op_type}" if node.domain else node.op_type
                raise DeviceError(
                    f"torch can't load {self.path}: operator {called} (node {node.name}) has no translation; time the "
                    "model on another device, such as ort:cpu"
                )
        if not opsets or opsets[0] < OLDEST_OPSET:
            found = f"opset {opsets[0]}" if opsets else "no opset"
            raise DeviceError(f"torch can't load {self.path}: {found}, it takes {OLDEST_OPSET} or newer")

    def module(self, shapes: Sequence[Sequence[int]]) -> fx.GraphModule:
        """The model for inputs of these shapes. Raises DeviceError for a form of an operator that is not translated."""
        writer = _Writer(self._constants)
        for entry, shape in zip(self.inputs, shapes, strict=True):
            writer.take(entry.name, torch.from_numpy(np.zeros(tuple(shape), entry.dtype)))
        with torch.inference_mode():
            for i, node in enumerate(self._graph.node):
                try:
                    writer.add(node, i)
                except Unsupported as error:
                    what = f"operator {node.op_type} (node {node.name}) {error}"
                    raise DeviceError(f"torch can't load {self.path}: {what} has no translation") from error
        return writer.finish(self._graph.output[0].name)


class _Writer:
    """Writes a graph while computing the example through it, so that every shape is known.

    A quantised tensor is held as the values that its codes stand for: rounding makes them, moves move them, and
    DequantizeLinear is nothing. `_scales` keeps what each was rounded with.
    """

    def __init__(self, constants: dict[str, Tensor]) -> None:
        self._graph = fx.Graph()
        self._root = torch.nn.Module()
        self._values = {name: Operand(value) for name, value in constants.items()}
        self._scales: dict[str, tuple[float, int]] = {}
        self._attributes: dict[int, Any] = {}

    def take(self, name: str, example: Tensor) -> None:
        self._values[name] = Operand(example, self._graph.placeholder(_identifier(name)))

    def add(self, node: Any, position: int) -> None:
        attributes = {entry.name: _attribute(entry) for entry in node.attribute}
        operands = [self._values[name] if name else None for name in node.input]
        source = Source(node.name or f"{node.op_type}_{position}", node.op_type, tuple(node.input), tuple(node.output))
        if node.op_type in (_ROUNDING, _VALUES):
            return self._quantisation(node, operands, attributes, source)
        rounded = [self._scales[name] for name in node.input if name in self._scales]
        if rounded and node.op_type not in MOVES:
            raise Unsupported("on a quantised tensor")
        self._scales.update({name: rounded[0] for name in node.output if rounded})
        self._keep(node.output, self._apply(node.op_type, operands, attributes, source))

    def finish(self, output: str) -> fx.GraphModule:
        self._graph.output(self._reference(self._values[output]))
        return fx.GraphModule(self._root, self._graph)

    def _keep(self, names: Sequence[str], results: Sequence[Operand]) -> None:
        self._values.update(zip(names, results, strict=False))

    def _apply(
        self, op: str, operands: list[Any], attributes: dict[str, Any], source: Source
    ) -> Sequence[Operand]:  # fmt: skip
        if op == "Constant":
            return [Operand(torch.as_tensor(next(iter(attributes.values()))))]
        if op == "Shape":
            return [
                Operand(torch.tensor(operands[0].example.shape[attributes.get("start", 0) : attributes.get("end")]))
            ]
        if op in _ALIASES:
            return [operands[0]]
        return self._call(OPERATORS[op](attributes, *operands), source)

    def _quantisation(self, node: Any, operands: list[Any], attributes: dict[str, Any], source: Source) -> None:
        x, scale, zero = operands[0], operands[1].known(), operands[2].known() if len(operands) > 2 else None
        if node.op_type == _VALUES and x.node is None:
            made = Operand(_dequantised(x.example, scale, zero, attributes.get("axis", 1)))
            return self._keep(node.output, [made])
        if scale.numel() != 1:
            raise Unsupported("channel by channel on a tensor that is computed")
        with_scale = float(scale), 0 if zero is None else int(zero)
        if node.op_type == _VALUES:
            if self._scales.get(node.input[0]) != with_scale:
                raise Unsupported("with another scale than its tensor was rounded with")
            return self._keep(node.output, [x])
        bounds = _BOUNDS[torch.uint8 if zero is None else zero.dtype]
        self._scales[node.output[0]] = with_scale
        self._keep(
            node.output, self._call(Call(torch.fake_quantize_per_tensor_affine, (x, *with_scale, *bounds)), source)
        )

    def _call(self, call: Call, source: Source) -> Sequence[Operand]:
        result = call.target(*_mapped(call.args, lambda o: o.example), **call.kwargs)
        results = list(result) if isinstance(result, (tuple, list)) else [result]
        if all(operand.node is None for operand in _operands(call.args)):
            return [Operand(value) for value in results]
        made = self._graph.call_function(call.target, _mapped(call.args, self._reference), dict(call.kwargs))
        made.meta[_SOURCE] = source
        if isinstance(result, Tensor):
            return [Operand(result, made)]
        parts = [self._graph.call_function(operator.getitem, (made, i)) for i in range(len(results))]
        return [Operand(value, part) for value, part in zip(results, parts, strict=True)]

    def _reference(self, operand: Operand) -> Any:
        if operand.node is not None:
            return operand.node
        key = id(operand)
        if key not in self._attributes:
            name = f"constant_{len(self._attributes)}"
            layout = torch.channels_last if operand.rank == 4 else torch.contiguous_format
            self._root.register_buffer(name, operand.example.clone(memory_format=layout))
            self._attributes[key] = self._graph.get_attr(name)
        return self._attributes[key]


def with_floats(module: fx.GraphModule, dtype: torch.dtype) -> fx.GraphModule:
    """The same module computing in another float format, casts to float32 within it too."""
    for node in module.graph.nodes:
        if node.target is cast and node.args[1] is torch.float32:
            node.args = (node.args[0], dtype)
    module.recompile()
    return module.to(dtype)


def sources(module: fx.GraphModule) -> dict[fx.Node, Source]:
    """The calls that stand for a node of the artifact, in order."""
    return {node: node.meta[_SOURCE] for node in module.graph.nodes if _SOURCE in node.meta}


class Clocked(fx.Interpreter):
    """Runs a module call by call and keeps what each took; `settle` waits until the hardware is done."""

    def __init__(self, module: fx.GraphModule, settle: Callable[[], None] | None) -> None:
        super().__init__(module)
        self.seconds: dict[fx.Node, list[float]] = defaultdict(list)
        self._settle = settle

    def run_node(self, n: fx.Node) -> Any:
        args, kwargs = self.fetch_args_kwargs_from_env(n)
        call = getattr(self, n.op)
        start = time.perf_counter()
        result = call(n.target, args, kwargs)
        if self._settle is not None:
            self._settle()
        self.seconds[n].append(time.perf_counter() - start)
        return result


def _mapped(value: Any, change: Callable[[Operand], Any]) -> Any:
    if isinstance(value, Operand):
        return change(value)
    if isinstance(value, (tuple, list)):
        return type(value)(_mapped(entry, change) for entry in value)
    return value


def _operands(value: Any) -> list[Operand]:
    if isinstance(value, Operand):
        return [value]
    return [o for entry in value for o in _operands(entry)] if isinstance(value, (tuple, list)) else []


def _dequantised(codes: Tensor, scale: Tensor, zero: Tensor | None, axis: int) -> Tensor:
    """Per tensor, or per channel along `axis`."""
    view = (
        [-1 if i == axis % codes.dim() else 1 for i in range(codes.dim())] if scale.numel() > 1 else [1] * codes.dim()
    )
    shift = torch.zeros(()) if zero is None else zero.float().reshape(view)
    return (codes.float() - shift) * scale.reshape(view)


def _tensor(proto: Any) -> Tensor:
    from onnx import numpy_helper

    return torch.from_numpy(np.array(numpy_helper.to_array(proto)))


def _attribute(entry: Any) -> Any:
    from onnx import TensorProto, helper

    value = helper.get_attribute_value(entry)
    return _tensor(value) if isinstance(value, TensorProto) else value


def _input(value: Any) -> Input:
    from onnx import helper

    kind = value.type.tensor_type
    shape = tuple(axis.dim_value if axis.HasField("dim_value") else None for axis in kind.shape.dim)
    return Input(value.name, shape, helper.tensor_dtype_to_np_dtype(kind.elem_type))


def _identifier(name: str) -> str:
    return "".join(c if c.isalnum() else "_" for c in f"input_{name}")
