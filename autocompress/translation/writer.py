"""Writes the graph of an ONNX file as a torch module while computing examples through it."""

import operator
from collections import Counter
from collections.abc import Callable, Iterable, Mapping, Sequence
from dataclasses import dataclass
from typing import Any

import torch
from torch import Tensor, fx, nn

from autocompress.translation.layers import LAYERS, Weights
from autocompress.translation.operators import DTYPES, MOVES, OPERATORS, cast
from autocompress.translation.operators.sizes import ON_SIZES, computable, shape_of, size_of
from autocompress.translation.recurrent import RECURRENT
from autocompress.translation.values import Attributes, Call, Operand, Size, Sizes, Unsupported, Value, at

SOURCE = "onnx"
"""Key of a graph node's metadata: the Source that it computes."""

SHAPE = "shape"
"""Key of a graph node's metadata: the shape of its value for the first examples."""

_ROUNDING, _VALUES = "QuantizeLinear", "DequantizeLinear"
_ALIASES = frozenset({"Identity", "Dropout"})
_OWN = frozenset({"Constant", "Shape", "Size", "If", "Identity", _ROUNDING, _VALUES})
_BOUNDS = {torch.uint8: (0, 255), torch.int8: (-128, 127)}
_HALVES = frozenset({torch.float16, torch.bfloat16})


@dataclass(frozen=True, slots=True)
class Source:
    """The node of the file behind a call."""

    name: str
    op: str
    inputs: tuple[str, ...]
    outputs: tuple[str, ...]


@dataclass(frozen=True, slots=True)
class Style:
    """What the module is for: to run at given shapes, or to be trained and compressed."""

    layers: bool
    """Constant weights are parameters of torch's layers, half precision is computed in single."""
    rounds: bool
    """8-bit tensors are rounded; else the values that stand behind them go on."""


DEPLOYED = Style(layers=False, rounds=True)
TRAINABLE = Style(layers=True, rounds=False)
FAITHFUL = Style(layers=True, rounds=True)
"""As trainable, but rounded as the file says."""


def is_known(domain: str, op: str) -> bool:
    """Whether some form of the operator can be translated."""
    return (domain, op) in OPERATORS or (domain, op) in RECURRENT or (domain == "" and op in _OWN)


class Writer:
    """Writes nodes one after the other.

    A quantised tensor is held as the values that its codes stand for: rounding makes them, moves move them, and
    DequantizeLinear is nothing. `_scales` keeps what each was rounded with. `notes` says what a reader should know.
    """

    def __init__(self, constants: Mapping[str, Tensor], style: Style) -> None:
        self.notes: list[str] = []
        self._style = style
        self._graph = fx.Graph()
        self._root = nn.Module()
        self._weights = Weights()
        self._values: dict[str, Value] = {
            name: Operand((self._widened(value),), None, name) for name, value in constants.items()
        }
        self._scales: dict[str, tuple[float, int]] = {}
        self._attributes: dict[int, fx.Node] = {}
        self._kept: list[Any] = []
        self._readers: Counter[str] = Counter()

    def take(self, name: str, identifier: str, examples: Sequence[Tensor]) -> None:
        """The next input of the model."""
        node = self._graph.placeholder(identifier)
        node.meta[SHAPE] = tuple(examples[0].shape)
        operand = Operand(tuple(examples), node, name)
        narrow = self._style.layers and operand.dtype in _HALVES
        self._values[name] = self._call(Call(cast, (operand, torch.float32)), None)[0] if narrow else operand

    def read(self, names: Iterable[str]) -> None:
        """Counts what reads a value, before the nodes that make them are added."""
        self._readers.update(names)

    def add(self, node: Any, position: int, opset: int) -> None:
        """Raises Unsupported for a form that has no translation."""
        used = 1 + max((i for i, name in enumerate(node.output) if name and self._readers[name]), default=0)
        attributes = Attributes({entry.name: _attribute(entry) for entry in node.attribute}, opset, used)
        values = [self._values[name] if name else None for name in node.input]
        source = Source(node.name or f"{node.op_type}_{position}", node.op_type, tuple(node.input), tuple(node.output))
        if node.op_type == "If" and node.domain == "":
            return self._branch(values[0], attributes, source)
        if node.op_type in (_ROUNDING, _VALUES):
            return self._quantisation(node, values, attributes, source)
        rounded = [self._scales[name] for name in node.input if name in self._scales]
        if rounded and node.op_type not in MOVES:
            raise Unsupported("on a quantised tensor")
        self._scales.update({name: rounded[0] for name in node.output if rounded})
        self._keep(
            node.output, self._apply(("" if node.domain == "ai.onnx" else node.domain), values, attributes, source)
        )

    def finish(self, outputs: Sequence[tuple[str, torch.dtype | None]]) -> fx.GraphModule:
        """The module: it returns a tensor, or a dict of them by name where there are several.

        `outputs` says which values, and the element type that each has in the file.
        """
        made = {name: self._result(name, dtype) for name, dtype in outputs}
        self._graph.output(made if len(made) > 1 else next(iter(made.values())))
        for node in reversed(self._graph.nodes):
            if not node.users and node.op not in ("placeholder", "output"):
                self._graph.erase_node(node)
        return fx.GraphModule(self._root, self._graph)

    def value(self, name: str) -> Value:
        return self._values[name]

    def _result(self, name: str, dtype: torch.dtype | None) -> Any:
        value = self._values[name]
        if self._style.layers and dtype in _HALVES and value.dtype == torch.float32:
            value = self._call(Call(cast, (value, dtype)), None)[0]
        return self._reference(value)

    def _widened(self, tensor: Tensor) -> Tensor:
        return tensor.float() if self._style.layers and tensor.dtype in _HALVES else tensor

    def _keep(self, names: Sequence[str], results: Sequence[Value]) -> None:
        self._values.update(zip(names, results, strict=False))

    def _apply(self, domain: str, values: list[Any], a: Attributes, source: Source) -> Sequence[Value]:
        op = source.op
        if domain == "" and op == "Constant":
            return [Operand((self._widened(_constant(a)),))]
        if domain == "" and op in ("Shape", "Size"):
            return [shape_of(a, values[0]) if op == "Shape" else size_of(a, values[0])]
        if domain == "" and op in _ALIASES and a.outputs == 1 and len(values) < 3:
            return [values[0]]
        if domain == "" and computable(op, values):
            return [ON_SIZES[op](a, *values)]
        if op == "Cast" and self._style.layers and DTYPES.get(a["to"]) in _HALVES:
            a["to"] = 1
        if op == "Cast" and a["to"] in DTYPES and values[0].dtype == DTYPES[a["to"]]:
            return [values[0]]
        return self._call(self._translated(domain, values, a, source), source)

    def _translated(self, domain: str, values: list[Any], a: Attributes, source: Source) -> Call:
        key = (domain, source.op)
        layer = RECURRENT.get(key) or (LAYERS.get(key) if self._style.layers else None)
        call = layer(self._weights, a, *values) if layer is not None else None
        return call if call is not None else OPERATORS[key](a, *values)

    def _branch(self, condition: Any, a: Attributes, source: Source) -> None:
        chosen = {bool(example) for example in condition.examples}
        if len(chosen) > 1:
            raise Unsupported("whose condition depends on the size of an input")
        branch = a["then_branch" if chosen == {True} else "else_branch"]
        if condition.node is not None:
            self.notes.append(
                f"If (node {source.name}) always takes the branch that example_inputs select "
                f"({'then' if chosen == {True} else 'else'})"
            )
        self._add_branch(branch, a.opset)
        self._keep(source.outputs, [self._values[entry.name] for entry in branch.output])

    def _add_branch(self, branch: Any, opset: int) -> None:
        self._values.update({t.name: Operand((self._widened(tensor_of(t)),), None, t.name) for t in branch.initializer})
        self.read(name for node in branch.node for name in node.input)
        self.read(entry.name for entry in branch.output)
        for i, node in enumerate(branch.node):
            if not is_known("" if node.domain == "ai.onnx" else node.domain, node.op_type):
                raise Unsupported(f"whose branch holds {node.op_type} (node {node.name}), which")
            self.add(node, i, opset)

    def _quantisation(self, node: Any, values: list[Any], a: Attributes, source: Source) -> None:
        x, scale, zero = values[0], values[1].known(), values[2].known() if len(values) > 2 and values[2] else None
        if node.op_type == _VALUES and x.node is None:
            made = Operand((_dequantised(x.example, scale, zero, a),), None, x.name)
            return self._keep(node.output, [made])
        if scale.numel() != 1:
            raise Unsupported("channel by channel on a tensor that is computed")
        with_scale = float(scale), 0 if zero is None else int(zero)
        if node.op_type == _VALUES:
            if self._scales.get(node.input[0]) != with_scale:
                raise Unsupported("with another scale than its tensor was rounded with")
            return self._keep(node.output, [x])
        bounds = _BOUNDS.get(torch.uint8 if zero is None else zero.dtype)
        if bounds is None:
            raise Unsupported("to other than 8-bit codes")
        self._scales[node.output[0]] = with_scale
        if not self._style.rounds:
            return self._keep(node.output, [self._unrounded(x, with_scale, bounds, source)])
        call = Call(torch.fake_quantize_per_tensor_affine, (x, *with_scale, *bounds))
        self._keep(node.output, self._call(call, source))

    def _unrounded(
        self, x: Operand, scale: tuple[float, int], bounds: tuple[int, int], source: Source
    ) -> Value:  # fmt: skip
        """Codes that begin at zero may stand for a Relu or Clip that was left out for it."""
        largest = scale[0] * (bounds[1] - scale[1])
        if bounds[0] != scale[1] or all(bool((example >= 0).all()) for example in x.examples):
            return x
        return self._call(Call(torch.clamp, (x, 0.0, largest)), source)[0]

    def _call(self, call: Call, source: Source | None) -> Sequence[Value]:
        args = _mapped(call.args, self._resolved(source), (Call, Sizes))
        if call.target is torch.clone:
            return list(args)
        results: list[Any] = [
            call.target(*_mapped(args, _of(i), (Operand, Size)), **call.kwargs) for i in range(_count(args))
        ]
        several = isinstance(results[0], (tuple, list))
        parts = list(zip(*results, strict=True)) if several else [tuple(results)]
        if not _varies(args):
            return [Operand(examples, None, _name_of(args)) for examples in parts]
        made = self._made(call, _mapped(args, self._reference, (Operand, Size)), source)
        if source is not None:
            made.meta[SOURCE] = source
        items = (
            [self._graph.call_function(operator.getitem, (made, i)) for i in range(len(parts))] if several else [made]
        )
        for examples, item in zip(parts, items, strict=True):
            item.meta[SHAPE] = tuple(examples[0].shape)
        return [Operand(examples, item) for examples, item in zip(parts, items, strict=True)]

    def _made(self, call: Call, args: Any, source: Source | None) -> fx.Node:
        if not isinstance(call.target, nn.Module):
            return self._graph.call_function(call.target, args, dict(call.kwargs))
        name = _free_name(self._root, _module_name(source))
        owner, leaf = _owner(self._root, name)
        owner.add_module(leaf, call.target)
        return self._graph.call_module(name, args)

    def _resolved(self, source: Source | None) -> Callable[[Any], Any]:
        def resolve(value: Any) -> Any:
            if isinstance(value, Call):
                return self._call(value, source)[0]
            return self._call(Call(tensor_of_sizes, (value.entries(), list(value.array.shape), value.dtype)), None)[0]

        return resolve

    def _reference(self, value: Any) -> Any:
        if isinstance(value, Sizes):
            return self._reference(self._resolved(None)(value))
        if value.node is not None:
            return value.node
        key = id(value)
        if key not in self._attributes:
            self._kept.append(value)
            self._attributes[key] = self._graph.get_attr(self._stored(value))
        return self._attributes[key]

    def _stored(self, value: Operand) -> str:
        tensor = value.example
        if self._style.layers:
            name = _free_name(self._root, _attribute_name(value.name) or f"constant_{len(self._attributes)}")
            owner, leaf = _owner(self._root, name)
            if _is_weight(value):
                owner.register_parameter(leaf, self._weights.parameter(value))
            else:
                owner.register_buffer(leaf, tensor.clone())
            return name
        name = f"constant_{len(self._attributes)}"
        layout = torch.channels_last if value.rank == 4 else torch.contiguous_format
        self._root.register_buffer(name, tensor.clone(memory_format=layout))
        return name


def tensor_of_sizes(entries: Sequence[Any], shape: Sequence[int], dtype: torch.dtype) -> Tensor:
    return torch.stack([torch.scalar_tensor(entry, dtype=dtype) for entry in entries]).reshape(shape)


_LARGEST_WEIGHT = 1e4
"""A mask of attention holds larger numbers, and infinities: training must leave it."""


def _is_weight(value: Operand) -> bool:
    tensor = value.example
    learnt = bool(value.name) and tensor.is_floating_point() and tensor.numel() > 1
    return learnt and bool(tensor.isfinite().all()) and float(tensor.abs().max()) < _LARGEST_WEIGHT


def _owner(root: nn.Module, name: str) -> tuple[nn.Module, str]:
    *path, leaf = name.split(".")
    for part in path:
        if not hasattr(root, part):
            root.add_module(part, nn.Module())
        root = getattr(root, part)
    return root, leaf


def _free_name(root: nn.Module, name: str) -> str:
    """The name, or one with a number behind it: no other entry has it, nor lies on the way to it."""
    parts, found = name.split("."), root
    for i, part in enumerate(parts[:-1]):
        if not hasattr(found, part):
            return name
        found = getattr(found, part)
        if type(found) is not nn.Module:
            return _free_name(root, ".".join([*parts[:i], f"{part}_", *parts[i + 1 :]]))
    leaf, count = parts[-1], 2
    while hasattr(found, leaf):
        leaf, count = f"{parts[-1]}_{count}", count + 1
    return ".".join([*parts[:-1], leaf])


def _module_name(source: Source | None) -> str:
    """As its weight is called in the file, without that word; else as its node."""
    assert source is not None, "a layer stands for a node"
    for name in source.inputs[1:2] + source.inputs[:1]:
        if name.endswith((".weight", ".weight_ih_l0", ".bias")):
            return _attribute_name(name.rpartition(".")[0]) or source.op.lower()
    return _attribute_name(source.name.removesuffix(f"/{source.op}")) or source.op.lower()


def _attribute_name(name: str) -> str:
    """A path of identifiers: `/encoder/encoder.layer.0/MatMul` → `encoder.layer.0.MatMul`."""
    segments = [segment for segment in name.split("/") if segment]
    told = [s for i, s in enumerate(segments) if not any(later.startswith(f"{s}.") for later in segments[i + 1 :])]
    parts = [part for part in ".".join(told).replace("::", ".").split(".") if part]
    cleaned = ["".join(c if c.isascii() and (c.isalnum() or c == "_") else "_" for c in part) for part in parts]
    return ".".join(cleaned)


def sources(module: fx.GraphModule) -> dict[fx.Node, Source]:
    """The calls that stand for a node of the file, in order."""
    return {node: node.meta[SOURCE] for node in module.graph.nodes if SOURCE in node.meta}


def _mapped(value: Any, change: Callable[[Any], Any], kinds: tuple[type, ...]) -> Any:
    if isinstance(value, kinds):
        return change(value)
    if isinstance(value, (tuple, list)):
        return type(value)(_mapped(entry, change, kinds) for entry in value)
    if isinstance(value, slice):
        return slice(*(_mapped(n, change, kinds) for n in (value.start, value.stop, value.step)))
    return value


def _found(value: Any) -> list[Operand | Size]:
    found: list[Operand | Size] = []
    _mapped(value, found.append, (Operand, Size))
    return found


def _name_of(args: Any) -> str:
    """Of the initializer that a constant is computed from."""
    return next((v.name for v in _found(args) if isinstance(v, Operand) and v.name and v.rank), "")


def _varies(args: Any) -> bool:
    return any(value.node is not None for value in _found(args))


def _count(args: Any) -> int:
    counts = [
        len(v.values) if isinstance(v, Size) else len(v.examples) for v in _found(args) if v.node is not None
    ]  # fmt: skip
    return max(counts, default=1)


def _of(example: int) -> Callable[[Operand | Size], Any]:
    """What a value is for one example."""

    def pick(value: Operand | Size) -> Any:
        if isinstance(value, Size):
            return at(value, example)
        return value.examples[example if len(value.examples) > 1 else 0]

    return pick


def _dequantised(codes: Tensor, scale: Tensor, zero: Tensor | None, a: Attributes) -> Tensor:
    """Per tensor, per channel along the axis, or per block of it."""
    axis, block = a.get("axis", 1), a.get("block_size", 0)
    if block:
        scale = scale.repeat_interleave(block, axis).narrow(axis, 0, codes.shape[axis])
        zero = zero if zero is None else zero.repeat_interleave(block, axis).narrow(axis, 0, codes.shape[axis])
        view = list(codes.shape)
    elif scale.numel() > 1:
        view = [-1 if i == axis % codes.dim() else 1 for i in range(codes.dim())]
    else:
        view = [1] * codes.dim()
    shift = torch.zeros(()) if zero is None else zero.float().reshape(view)
    return (codes.float() - shift) * scale.reshape(view)


def tensor_of(proto: Any) -> Tensor:
    """Raises Unsupported for an element type that torch lacks."""
    import numpy as np
    from onnx import TensorProto, numpy_helper

    if proto.data_type == TensorProto.BFLOAT16:
        bits = np.array(numpy_helper.to_array(proto)).view(np.int16)
        return torch.from_numpy(bits).view(torch.bfloat16)
    try:
        return torch.from_numpy(np.array(numpy_helper.to_array(proto)))
    except (TypeError, KeyError) as error:
        kind = next((n for n, number in TensorProto.DataType.items() if number == proto.data_type), proto.data_type)
        raise Unsupported(f"on constant {proto.name!r} of {kind}, which") from error


def _attribute(entry: Any) -> Any:
    from onnx import TensorProto, helper

    value = helper.get_attribute_value(entry)
    if isinstance(value, bytes):
        return value.decode(errors="replace")
    if isinstance(value, list) and value and isinstance(value[0], bytes):
        return [item.decode(errors="replace") for item in value]
    return tensor_of(value) if isinstance(value, TensorProto) else value


_CONSTANTS = ("value", "value_float", "value_floats", "value_int", "value_ints")


def _constant(a: Attributes) -> Tensor:
    for name in _CONSTANTS:
        if name in a:
            kind = None if isinstance(a[name], Tensor) else torch.float32 if "float" in name else torch.int64
            return torch.as_tensor(a[name], dtype=kind)
    raise Unsupported("of text or of sparse values")
