"""Kernels of a lifted model: what a runtime executes after it has fused normalisation and activations."""

from dataclasses import dataclass, field
from typing import Any, NamedTuple

import torch
from torch import Tensor, nn
from torch.fx import GraphModule, Node

from autocompress.graph.calls import arguments, calls, getitem
from autocompress.graph.capture import one_sample
from autocompress.graph.labels import BATCH_NORMS, CONVOLUTIONS, TRANSPOSED
from autocompress.graph.operators import TABLE
from autocompress.graph.products import Product, operand, product_of, recurrent_window
from autocompress.vocabulary.workload import WEIGHTED_OPS, Kernel, Workload, layer_of

_FUSES_ACTIVATION = ("conv", "conv_transpose", "linear", "add")

_NORMS = (
    *BATCH_NORMS, nn.GroupNorm, nn.InstanceNorm1d, nn.InstanceNorm2d, nn.InstanceNorm3d, nn.PReLU,
)  # fmt: skip
"""Modules whose channels are axis 1, whatever the rank."""

_LAST = (nn.Linear, nn.LayerNorm, nn.RMSNorm, nn.RNNBase, nn.Embedding)
"""Modules whose channels are the last axis."""

_MODULE_OPS: dict[type[nn.Module], str] = {
    **dict.fromkeys(CONVOLUTIONS, "conv"),
    **dict.fromkeys(TRANSPOSED, "conv_transpose"),
    **dict.fromkeys(BATCH_NORMS, "batch_norm"),
    **dict.fromkeys((nn.InstanceNorm1d, nn.InstanceNorm2d, nn.InstanceNorm3d), "instance_norm"),
    nn.Linear: "linear",
    nn.LayerNorm: "layer_norm",
    nn.RMSNorm: "rms_norm",
    nn.GroupNorm: "group_norm",
    nn.Embedding: "embedding",
    nn.LSTM: "lstm",
    nn.GRU: "gru",
    nn.RNN: "rnn",
}

_TABLED = frozenset(row.kernel for row in TABLE.values() if row.kernel) | WEIGHTED_OPS
"""Kernels of known kinds: what merely bears such a name by ATen is not one of them."""

KNOWN_OPS = _TABLED | frozenset(_MODULE_OPS.values())
"""Kernels whose kind the project knows; any other is an operator of that name."""


class Side(NamedTuple):
    """One side of a workload: a node, the axes of its value in the order channels, positions, and their sizes."""

    node: str
    axes: tuple[int, ...]
    sizes: tuple[int, ...]

    @property
    def channels(self) -> int:
        return self.sizes[0] if self.sizes else 1

    @property
    def positions(self) -> tuple[int, ...]:
        return self.sizes[1:]


@dataclass(frozen=True, slots=True)
class Place:
    """The node that a kernel begins with, and what the two sides of its workload are about."""

    node: str
    reads: Side
    makes: Side


@dataclass(frozen=True, slots=True)
class Fused:
    """Kernels by name, each with its place; `holder[node]` is the kernel (or graph input, or constant that a layer
    works on) that ends up making a node's output."""

    kernels: dict[str, Kernel]
    places: dict[str, Place]
    holder: dict[str, str]


def kernels_of(model: GraphModule, example_inputs: tuple[Tensor, ...]) -> dict[str, Kernel]:
    """Fused kernels in execution order, at batch size 1 (see `fuse`)."""
    return fuse(model, example_inputs).kernels


def fuse(model: GraphModule, example_inputs: tuple[Tensor, ...]) -> Fused:
    """Kernels of a model, and which nodes went into them.

    A kernel is named after its module (a part `fc.1` of a factorised layer `fc`: `fc#2`) or its node; where a module
    has the node's name already, `NODE:call`, and a graph input `NODE:input`. Batch norm and an only reader's activation
    disappear into the kernel before them; modules that only simulate quantisation and operators that only rename are
    transparent. An operator that the table lacks is a kernel by its own name.

    What is made of constants alone is no kernel, but a layer or a product that works on it (learnt queries, repeated
    for every sample) is one: to it that is what a graph input is.
    """
    walk = _Walk(model, _shapes(model, example_inputs), _names(model))
    for node in model.graph.nodes:
        walk.visit(node)
    made = {node.name: name for node, name in walk.holder.items()}
    gone = {old: made[new] for old, new in model.meta.get("replaced", {}).items() if new in made}
    return Fused(walk.kernels, walk.places, made | gone)


def _names(model: GraphModule) -> dict[Node, tuple[str, str]]:
    """Node → (name, layer) of the kernel that it would begin."""
    factorised: dict[str, tuple[str, ...]] = model.meta.get("factorised", {})
    parts = {
        part: (f"{call}#{number}", layer_of(call))
        for call, its_parts in factorised.items()
        for number, part in enumerate(its_parts, 1)
    }
    called = [n for n in model.graph.nodes if n.op == "call_module" and not _rounds(model, n)]
    modules = {n: parts.get(str(n.target), (str(n.target), layer_of(str(n.target)))) for n in called}
    taken = {name for name, _ in modules.values()}
    names = dict(modules)
    for node in model.graph.nodes:
        if node not in modules:
            kind = "input" if node.op == "placeholder" else "call"
            names[node] = (f"{node.name}:{kind}" if node.name in taken else node.name,) * 2
    return names


def _rounds(model: GraphModule, node: Node) -> bool:
    """Whether a module only simulates quantisation."""
    return type(model.get_submodule(str(node.target))).__name__ == "FakeQuantize"


class _Recorder(torch.fx.Interpreter):
    def __init__(self, model: GraphModule) -> None:
        super().__init__(model)
        self.shapes: dict[Node, Any] = {}

    def run_node(self, n: Node) -> Any:
        value = super().run_node(n)
        self.shapes[n] = _shape(value)
        return value


def _shape(value: Any) -> Any:
    """The shape of a tensor, those of several in a list, None for what is neither."""
    if isinstance(value, Tensor):
        return tuple(value.shape)
    if isinstance(value, (tuple, list)):
        return [_shape(each) for each in value]
    return None


def _first(shape: Any) -> tuple[int, ...] | None:
    return (_first(shape[0]) if shape else None) if isinstance(shape, list) else shape


def _shapes(model: GraphModule, example_inputs: tuple[Tensor, ...]) -> dict[Node, Any]:
    recorder = _Recorder(model)
    with torch.no_grad():
        recorder.run(*one_sample(model, example_inputs))
    return recorder.shapes


@dataclass(slots=True)
class _Walk:
    """One pass over the nodes in execution order; `shapes` are those of one sample."""

    model: GraphModule
    shapes: dict[Node, Any]
    names: dict[Node, tuple[str, str]]
    kernels: dict[str, Kernel] = field(default_factory=dict)
    places: dict[str, Place] = field(default_factory=dict)
    holder: dict[Node, str] = field(default_factory=dict)

    def visit(self, node: Node) -> None:
        if node.op == "placeholder":
            self.holder[node] = self.names[node][0]
        elif node.op in ("call_module", "call_function") and _first(self.shapes[node]) is not None:
            sources = [i for i in node.all_input_nodes if i in self.holder]
            if sources:
                self.holder[node] = self._absorbed(node, sources[0]) or self._begun(node, sources)
            elif product_of(node) or (node.op == "call_module" and not _rounds(self.model, node)):
                constants = [i for i in node.all_input_nodes if _first(self.shapes[i]) is not None]
                self.holder |= {constant: self.names[constant][0] for constant in constants}
                self.holder[node] = self._begun(node, constants)

    def _absorbed(self, node: Node, source: Node) -> str | None:
        """The kernel that swallows this node, if one does; its `fused` is extended for an activation."""
        name = self.holder[source]
        before = self.kernels.get(name)
        op = before.workload.op if before is not None and len(source.users) == 1 else None
        if node.op == "call_module":
            foldable = before is not None and op in ("conv", "conv_transpose") and not before.workload.fused
            norm = foldable and isinstance(self._module(node), BATCH_NORMS)
            return name if norm or _rounds(self.model, node) else None
        row = TABLE.get(node.target)
        if row is None:
            return None
        if row.kernel is None:
            return name
        if not row.activation or before is None or op not in _FUSES_ACTIVATION:
            return None
        self.kernels[name] = before.with_workload(fused=(*before.workload.fused, row.kernel))
        return name

    def _begun(self, node: Node, sources: list[Node]) -> str:
        (name, layer), product = self.names[node], product_of(node)
        inputs = tuple(dict.fromkeys(self.holder[i] for i in sources))
        place = self._place(node, (operand(node, product) if product else None) or sources[0])
        window, stride, groups = self._settings(node, product)
        reads, makes = place.reads, place.makes
        work = Workload(
            self._op(node, product), reads.channels, makes.channels, reads.positions, makes.positions, window, stride,
            groups,
        )  # fmt: skip
        self.places[name] = place
        self.kernels[name] = Kernel(name, layer, inputs, work)
        return name

    def _op(self, node: Node, product: Product | None) -> str:
        if node.op == "call_module":
            module = self._module(node)
            kind = next((kind for kind in _MODULE_OPS if isinstance(module, kind)), None)
            return _MODULE_OPS[kind] if kind else type(module).__name__.lower()
        row = TABLE.get(node.target)
        if row is not None and row.kernel:
            return row.kernel
        return product.op if product else own_name(node.target)

    def _settings(self, node: Node, product: Product | None) -> tuple[tuple[int, ...], tuple[int, ...], int]:
        """(window, stride, groups)."""
        if product is not None:
            return product.window(arguments(node), self.shapes), (), 1
        if node.op == "call_function":
            return _pool(node), (), 1
        module = self._module(node)
        if isinstance(module, (*CONVOLUTIONS, *TRANSPOSED)):
            return tuple(module.kernel_size), tuple(module.stride), module.groups
        return (recurrent_window(module) if isinstance(module, nn.RNNBase) else ()), (), 1

    def _place(self, node: Node, read: Node) -> Place:
        """A concatenation reads all that it makes; a split makes all that it reads, however its parts are cut."""
        reads, makes = self._side(read, node), self._side(node, node)
        op = self._op(node, None)
        return Place(node.name, makes if op == "concat" else reads, reads if op == "split" else makes)

    def _side(self, value: Node, reader: Node) -> Side:
        """What `reader` reads of a node, or makes: of several tensors the first."""
        while value.op == "call_module" and _rounds(self.model, value):
            value = value.args[0]  # type: ignore[assignment]
        shape = _first(self.shapes[value]) or ()
        name = next((user.name for user in value.users if _is_first_item(user)), value.name)
        rest = [axis for axis in range(len(shape)) if axis != self._batch_axis(value)]
        if not rest:
            return Side(name, (), ())
        channel = self._channel_axis(reader, shape, rest)
        axes = (channel, *(axis for axis in rest if axis != channel))
        return Side(name, axes, tuple(shape[axis] for axis in axes))

    def _channel_axis(self, reader: Node, shape: tuple[int, ...], rest: list[int]) -> int:
        """Modules know it. Elsewhere it is the last axis of a sequence (T, C), the first of anything larger, unless
        that is folded into the batch axis."""
        module = self._module(reader) if reader.op == "call_module" else None
        if isinstance(module, (*CONVOLUTIONS, *TRANSPOSED)):
            return len(shape) - 1 - len(module.kernel_size)
        if isinstance(module, _NORMS):
            return min(1, len(shape) - 1)
        if isinstance(module, _LAST) or len(rest) == 2:
            return rest[-1]
        return rest[1] if len(rest) == len(shape) > 3 else rest[0]

    def _batch_axis(self, node: Node) -> int | None:
        """The axis that is one for one sample and more for more; what folds others into it is not."""
        shape = _first(self.shapes[node]) or ()
        one, two = (_first(_shape(node.meta.get(batch))) for batch in ("one", "val"))
        if one is None or two is None or len(one) != len(shape):
            return self._inherited_batch_axis(node, shape)
        return next((axis for axis, (n, more) in enumerate(zip(one, two, strict=True)) if n == 1 != more), None)

    def _inherited_batch_axis(self, node: Node, shape: tuple[int, ...]) -> int | None:
        """A node that was made since the model was traced has it where the tensor that it reads does."""
        sources = [i for i in node.all_input_nodes if i in self.holder]
        if sources and len(_first(self.shapes[sources[0]]) or ()) == len(shape):
            return self._batch_axis(sources[0])
        return 0 if shape[:1] == (1,) else None

    def _module(self, node: Node) -> nn.Module:
        return self.model.get_submodule(str(node.target))


def _is_first_item(node: Node) -> bool:
    return calls(node, getitem) and node.args[1:] == (0,)


def own_name(target: Any) -> str:
    """An operator's name, without ATen's namespace; with its overload's where a kernel is called so already."""
    schema = getattr(target, "_schema", None)
    if schema is None:
        return str(getattr(target, "__name__", target))
    name = str(schema.name).removeprefix("aten::").replace("::", ".")
    return f"{name}.{schema.overload_name or 'default'}" if name in _TABLED else name


def _pool(node: Node) -> tuple[int, ...]:
    """The window of a pooling call."""
    size = arguments(node).get("kernel_size", ()) if hasattr(node.target, "_schema") else ()
    return tuple(int(k) for k in ([size] if isinstance(size, int) else size))
