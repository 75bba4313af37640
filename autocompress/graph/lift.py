"""From an exported program to the lifted graph: modules for what owns parameters, ATen calls for the rest.

Every call site has a module of its own. Two calls of one layer, or one weight used in two ways, are two modules that
hold the same Parameter objects: sharing is identity. What no input changes is computed here, once: tables and masks
made in forward, weights made of other parameters.
"""

import itertools
import operator
import re
from collections.abc import Mapping, Sequence
from dataclasses import dataclass
from typing import Any

import torch
from torch import Tensor, nn
from torch.export import ExportedProgram
from torch.export.graph_signature import InputKind
from torch.fx import Graph as FxGraph
from torch.fx import GraphModule, Node

from autocompress.graph.calls import arguments
from autocompress.vocabulary.errors import TraceError

aten = torch.ops.aten

IDENTITIES = frozenset({
    aten.dropout.default, aten.native_dropout.default, aten.feature_dropout.default, aten.alpha_dropout.default,
    aten.clone.default, aten.contiguous.default, aten.alias.default, aten.detach.default, aten.detach_.default,
    aten.lift_fresh_copy.default,
})  # fmt: skip
ASSERTIONS = frozenset({
    aten._assert_scalar.default, aten._assert_tensor_metadata.default, aten.sym_constrain_range_for_size.default,
    aten.sym_constrain_range.default, aten._assert_async.msg,
})  # fmt: skip
RESHAPES = frozenset({aten.view.default, aten._unsafe_view.default, aten.reshape.default})
_MAYBE_IDENTITIES = frozenset({
    aten.reshape.default, aten.expand.default, aten._to_copy.default, aten.to.dtype, aten.type_as.default,
    aten.slice.Tensor, aten.flatten.using_ints,
})  # fmt: skip
_FILLS = frozenset({
    aten.new_zeros.default, aten.new_ones.default, aten.new_full.default, aten.zeros_like.default,
    aten.ones_like.default, aten.full_like.default,
})  # fmt: skip
_WHOLE = 2**31
_WEIGHT = re.compile(r"(\.running_mean|\.weight_ih_l0|\.weight|_weight|\.?weight_[vg])$")


@dataclass(frozen=True, slots=True, eq=False)
class Constant:
    """A value that no input changes. `names` are those that it has in the user's model (none for what is computed from
    others), `sources` those of the parameters in it; `trains` tells parameters from buffers."""

    value: Any
    names: tuple[str, ...]
    sources: tuple[str, ...]
    trains: bool


def lift(program: ExportedProgram, lifts: Mapping[Any, Any]) -> GraphModule:
    """The lifted model, in eval mode; raises TraceError for what no lifted graph can hold.

    `lifts` says how each operator that owns parameters becomes a module (see lifts.py).
    """
    return _Lift(program, lifts).run()


class _Lift:
    def __init__(self, program: ExportedProgram, lifts: Mapping[Any, Any]) -> None:
        self.program, self.lifts = program, lifts
        self.root = nn.Module()
        self.graph = FxGraph()
        self.new: dict[Node, Node] = {}
        self.constants: dict[Node, Constant] = {}
        self.single: set[Node] = set()
        self._stored = _by_storage(program)
        self._computed: dict[Any, Constant] = {}
        self._parameters: dict[Constant, nn.Parameter] = {}
        self._attributes: dict[Constant, Node] = {}
        self._calls: dict[tuple[Any, ...], tuple[str, int]] = {}
        self._taken: set[str] = set()

    def run(self) -> GraphModule:
        specs = {spec.arg.name: spec for spec in self.program.graph_signature.input_specs if hasattr(spec.arg, "name")}
        for node in self.program.graph.nodes:
            if node.op == "placeholder":
                self._placeholder(node, specs[node.name])
            elif node.op == "call_function":
                self._call(node)
            elif node.op == "output":
                self._output(node)
            else:
                raise TraceError(
                    f"the model holds a {node.op} ({node.target}): control flow that depends on values can't be "
                    "followed; choose one way in forward, or freeze the condition before you hand the model over"
                )
        model = GraphModule(self.root, self.graph)
        sweep(model)
        return model.eval()

    def constant(self, node: Any) -> Constant | None:
        """What a node is known to be, whatever the inputs."""
        return self.constants.get(node) if isinstance(node, Node) else None

    def parameter(self, constant: Constant) -> nn.Parameter:
        """The one Parameter for a constant."""
        if constant not in self._parameters:
            tensor = constant.value.detach().clone(memory_format=torch.contiguous_format)
            self._parameters[constant] = nn.Parameter(tensor, requires_grad=constant.trains)
        return self._parameters[constant]

    def computed(self, key: Any, function: Any, *sources: Constant) -> Constant:
        """A constant made of others, once for the same `key` and sources."""
        whole = (key, *(id(source) for source in sources))
        if whole not in self._computed:
            with torch.no_grad():
                value = function(*(source.value for source in sources))
            names = tuple(dict.fromkeys(name for source in sources for name in source.sources))
            self._computed[whole] = Constant(value, (), names, any(source.trains for source in sources))
        return self._computed[whole]

    def module(self, owner: Constant | None, module: nn.Module, source: Node, *activations: Any) -> Node:
        """A call of `module`, named after where its weight (`owner`) stands in the user's model."""
        path = self._path(owner, source)
        parent, _, leaf = path.rpartition(".")
        self._module_at(parent).add_module(leaf, module.eval())
        args = tuple(self.value(activation) for activation in activations)
        node = self.graph.create_node("call_module", path, args, {}, name=source.name)
        node.meta["source"] = source.name
        return node

    def call(self, target: Any, args: Any, name: str, kwargs: Any = None) -> Node:
        node = self.graph.create_node("call_function", target, args, kwargs or {}, name=name)
        node.meta["source"] = name
        return node

    def value(self, node: Any) -> Any:
        """The new node for an old one; a constant becomes an attribute when somebody reads it."""
        if not isinstance(node, Node):
            return node
        constant = self.constants.get(node)
        if constant is None:
            return self.new[node]
        if constant not in self._attributes:
            if not isinstance(constant.value, Tensor):
                raise TraceError(f"{node.name} is a constant of type {type(constant.value).__name__}, not a tensor")
            self._attributes[constant] = self.graph.get_attr(self._attribute(constant, node.name))
        return self._attributes[constant]

    def _placeholder(self, node: Node, spec: Any) -> None:
        if spec.kind == InputKind.USER_INPUT:
            self.new[node] = self.graph.placeholder(node.name)
            return
        self.constants[node] = self._stored[spec.target]

    def _call(self, node: Node) -> None:
        if node.target in ASSERTIONS:
            return
        if node.target in IDENTITIES or (node.target in _MAYBE_IDENTITIES and _changes_nothing(node)):
            self._stand_in(node, node.args[0])
        elif node.target is aten.copy.default and _alike(node.args[1], node):
            self._stand_in(node, node.args[1])
        elif node.target is operator.getitem and node.args[0] in self.single:
            self._first_of(node)
        elif self._foldable(node):
            self.constants[node] = self._folded(node)
        elif _is_filled(node):
            self.constants[node] = self._filled(node)
        else:
            lifting = self.lifts.get(node.target)
            made = lifting(self, node) if lifting else None
            self.new[node] = self._plain(node) if made is None else made

    def _stand_in(self, node: Node, source: Any) -> None:
        if source in self.constants:
            self.constants[node] = self.constants[source]
        else:
            self.new[node] = self.value(source)

    def _first_of(self, node: Node) -> None:
        """A module yields the operator's first result; what training alone needs has no readers in eval mode."""
        if node.args[1] != 0 and node.users:
            raise TraceError(f"{node.name} reads a result of {node.args[0]} that exists in training only")
        self.new[node] = self.new[node.args[0]]  # type: ignore[index]

    def _foldable(self, node: Node) -> bool:
        if isinstance(node.target, torch._ops.OpOverload) and torch.Tag.nondeterministic_seeded in node.target.tags:
            return False
        return all(source in self.constants for source in node.all_input_nodes)

    def _folded(self, node: Node) -> Constant:
        sources = list(dict.fromkeys(self.constants[source] for source in node.all_input_nodes))
        places = {source: sources.index(self.constants[source]) for source in node.all_input_nodes}
        key = (str(node.target), str(torch.fx.map_arg((node.args, node.kwargs), lambda n: places[n])))

        def evaluated(*values: Any) -> Any:
            args, kwargs = torch.fx.map_arg((node.args, node.kwargs), lambda n: values[places[n]])
            return _as_reshape(node.target)(*args, **kwargs)

        return self.computed(key, evaluated, *sources)

    def _filled(self, node: Node) -> Constant:
        """What new_zeros and its kin make of a fixed size reads nothing of the tensor that it is called on."""
        made = node.meta["val"]
        like = torch.empty(made.shape, dtype=made.dtype)
        rest = node.args[1:] if len(node.args) > 1 else ()
        return self.computed(("filled", node.name), lambda: node.target(like, *rest, **node.kwargs))  # type: ignore[operator]

    def _plain(self, node: Node) -> Node:
        args = torch.fx.map_arg(node.args, self.value)
        kwargs = torch.fx.map_arg(node.kwargs, self.value)
        return self.call(_as_reshape(node.target), args, node.name, kwargs)

    def _output(self, node: Node) -> None:
        outputs: Any = node.args[0]
        kinds = [type(output).__name__ for output in outputs if not isinstance(output, Node)]
        if kinds or not outputs:
            found = f"{', '.join(sorted(set(kinds)))} beside tensors" if outputs else "nothing"
            raise TraceError(f"the model returns {found}; return tensors only (see docs/models.md)")
        values = tuple(self.value(output) for output in outputs)
        self.graph.output(values[0] if len(values) == 1 else values)

    def _path(self, owner: Constant | None, source: Node) -> str:
        """The first call keeps the layer's name, the others are numbered: conv, conv@2, conv@3."""
        base = self._base(owner, source)
        key = (base, id(owner) if owner is not None else source)
        if key not in self._calls:
            self._calls[key] = (self._free(base, owner), 0)
        name, calls = self._calls[key]
        self._calls[key] = (name, calls + 1)
        return name if calls == 0 else f"{name}@{calls + 1}"

    def _base(self, owner: Constant | None, source: Node) -> str:
        """Where the layer stands in the user's model: its module's path, else what its weight is called."""
        called = _calling_module(source)
        names = owner.names or owner.sources[:1] if owner else ()
        paths = [re.sub(_WEIGHT, "", name) or name for name in names]
        if called and (not paths or called in paths or len(owner.sources) > 1):  # type: ignore[union-attr]
            return called
        return paths[0] if paths else source.name

    def _free(self, name: str, owner: Constant | None) -> str:
        """`name`, or one like it that no other layer, parameter or folder of the user's model has."""
        own = {*owner.names, *owner.sources} if owner else set()
        others = [stored for stored in self._stored if stored not in own]
        numbered = (f"{name}_{count}" for count in itertools.count(2))
        for found in itertools.chain((name, *sorted(own)), numbered):
            if found not in self._taken and not any(o == found or _inside(o, found, own) for o in others):
                break
        self._taken.add(found)
        return found

    def _attribute(self, constant: Constant, name: str) -> str:
        """Registers a constant that an operator reads as it is, under its own name where that is free."""
        wanted = constant.names[0] if constant.names else f"{_common(constant.sources)}{name}"
        parent, _, leaf = wanted.rpartition(".")
        owner = self._module_at(parent)
        while hasattr(owner, leaf) or ".".join(filter(None, (parent, leaf))) in self._taken:
            leaf += "_"
        if constant.trains and constant.value.is_floating_point():
            owner.register_parameter(leaf, self.parameter(constant))
        else:
            owner.register_buffer(leaf, constant.value.detach().clone(memory_format=torch.contiguous_format))
        return ".".join(filter(None, (parent, leaf)))

    def _module_at(self, path: str) -> nn.Module:
        module = self.root
        for part in filter(None, path.split(".")):
            if not hasattr(module, part):
                module.add_module(part, nn.Module())
            found = getattr(module, part)
            if not isinstance(found, nn.Module):  # a parameter bears the name of what should hold others
                module.add_module(part + "_", nn.Module())
                found = getattr(module, part + "_")
            module = found
        return module


def sweep(model: GraphModule) -> None:
    """Removes, in place, what nothing reads: torch's own clean-up keeps attention, which it takes for random."""
    model.graph.eliminate_dead_code(is_impure_node=lambda node: node.op in ("placeholder", "output"))
    model.delete_all_unused_submodules()
    model.recompile()


def _by_storage(program: ExportedProgram) -> dict[str, Constant]:
    """Every parameter, buffer and constant by name; those that share their memory are one."""
    found: dict[Any, list[str]] = {}
    tensors: dict[str, Any] = {**program.state_dict, **program.constants}
    for name, value in tensors.items():
        whole = isinstance(value, Tensor) and value.numel() > 0
        key = (value.data_ptr(), value.shape, value.stride(), value.dtype) if whole else name
        found.setdefault(key, []).append(name)
    stored: dict[str, Constant] = {}
    for names in found.values():
        value = tensors[names[0]]
        trains = isinstance(value, nn.Parameter)
        constant = Constant(value, tuple(names), (names[0],), trains)
        stored.update(dict.fromkeys(names, constant))
    return stored


def _calling_module(node: Node) -> str:
    """Path of the user's module that made the call, if it is one of torch's own layers; "" if not."""
    stack = list(node.meta.get("nn_module_stack", {}).values())
    if not stack:
        return ""
    path, kind = stack[-1]
    return re.sub(r"@\d+", "", str(path)) if str(kind).startswith("torch.nn.") else ""


def _inside(stored: str, folder: str, own: set[str]) -> bool:
    """Whether a parameter stands in a folder that has none of the layer's own."""
    return stored.startswith(f"{folder}.") and not any(name.startswith(f"{folder}.") for name in own)


def _is_filled(node: Node) -> bool:
    made = node.meta.get("val")
    return node.target in _FILLS and isinstance(made, Tensor) and all(isinstance(size, int) for size in made.shape)


def _common(names: Sequence[str]) -> str:
    """The folder that all names share, with its dot."""
    folders = [name.split(".")[:-1] for name in names]
    shared = []
    for parts in zip(*folders, strict=False):
        if len(set(parts)) != 1 or parts[0] == "parametrizations":
            break
        shared.append(parts[0])
    return ".".join(shared) + "." if shared else ""


def _as_reshape(target: Any) -> Any:
    """A view needs strides that a folded constant, or what stands before it here, may not have."""
    return aten.reshape.default if target in RESHAPES else target


def _alike(source: Any, node: Node) -> bool:
    """Whether two nodes' tensors have one type and one shape, for every size of the free axes."""
    before, after = source.meta.get("val"), node.meta.get("val")
    if not isinstance(before, Tensor) or not isinstance(after, Tensor) or before.dtype != after.dtype:
        return False
    return [str(size) for size in before.shape] == [str(size) for size in after.shape]


def _changes_nothing(node: Node) -> bool:
    """Whether a reshape, cast or slice yields its operand as it is, for every size of the free axes."""
    if not _alike(node.args[0], node):
        return False
    if node.target is not aten.slice.Tensor:
        return True
    a = arguments(node)
    whole = a["end"] is None or not isinstance(a["end"], int) or a["end"] >= _WHOLE or a["end"] > 0
    return a["start"] in (0, None) and a["step"] == 1 and whole
