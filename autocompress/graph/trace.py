"""From a user's model to the lifted graph that everything else works on.

The lifted form is a `torch.fx.GraphModule` with one `call_module` node for every operation that owns parameters (so
that it trains, and normalisation keeps its two modes), ATen overloads for the rest, and `get_attr` for free tensors.
Shapes are free of the batch size.
"""

import inspect
import io
import logging
import operator
import warnings
from collections.abc import Iterator
from contextlib import contextmanager, redirect_stderr
from hashlib import sha256
from typing import Any

import torch
from torch import Tensor, nn
from torch.export import Dim, ExportedProgram
from torch.export.graph_signature import InputKind
from torch.fx import Graph as FxGraph
from torch.fx import GraphModule, Node

from autocompress.vocabulary.errors import TraceError

aten = torch.ops.aten

IDENTITIES = {
    aten.dropout.default,
    aten.clone.default,
    aten.contiguous.default,
    aten.alias.default,
    aten.detach.default,
    aten.lift_fresh_copy.default,
}
_WHOLE = 2**31
_VIEWS = {aten.view.default, aten._unsafe_view.default}


def _channel_shuffle(x: Tensor, groups: int) -> Tensor:
    """A shuffle as the three moves it is made of, which channel labels can follow."""
    shuffled = x.view(x.shape[0], groups, x.shape[1] // groups, *x.shape[2:]).transpose(1, 2)
    return shuffled.reshape(x.shape)


_SPELL_OUT = {aten.channel_shuffle.default: _channel_shuffle}
getitem = operator.getitem


def capture(model: nn.Module, example_inputs: tuple[Tensor, ...]) -> GraphModule:
    """The model in lifted form, in eval mode; raises TraceError naming the user's line if it can't be captured."""
    inputs = tuple(_at_least_two(tensor) for tensor in example_inputs)
    program = _exported(model, inputs)
    lifted = _Lift(program).run()
    _record_shapes(lifted, inputs)
    return lifted


def fingerprint(model: GraphModule) -> str:
    """First 16 hex digits of the SHA-256 over the graph and every weight."""
    digest = sha256()
    for node in model.graph.nodes:
        digest.update(f"{node.op} {node.target} {node.args} {node.kwargs}\n".encode())
    for name, tensor in model.state_dict().items():
        digest.update(f"{name} {tuple(tensor.shape)}".encode())
        digest.update(tensor.detach().contiguous().view(-1).view(torch.uint8).numpy().tobytes())
    return digest.hexdigest()[:16]


def _at_least_two(tensor: Tensor) -> Tensor:
    """torch.export treats a batch of one as a constant, so trace with two."""
    if tensor.dim() == 0 or tensor.shape[0] >= 2:
        return tensor
    return torch.cat([tensor, tensor])


def _exported(model: nn.Module, inputs: tuple[Tensor, ...]) -> ExportedProgram:
    was_training = model.training
    model.eval()
    shapes = tuple({0: Dim.AUTO} if tensor.dim() else {} for tensor in inputs)
    try:
        with torch.no_grad():
            model(*inputs)
    except Exception as error:
        found = ", ".join(f"{tuple(t.shape)} {t.dtype}" for t in inputs)
        raise TraceError(
            f"the model does not run on example_inputs of shape {found}: {_one_line(error)}; "
            "give one batch as the model's forward takes it"
        ) from error
    try:
        with torch.no_grad(), _without_chatter():
            exported = torch.export.export(model, inputs, dynamic_shapes=_as_taken(model, shapes))
            program: ExportedProgram = exported.run_decompositions(_SPELL_OUT)
            return program
    except Exception as error:
        raise TraceError(
            f"torch.export can't capture the model: {_one_line(error)}{_user_line(error)}; write that line with tensor "
            "operations only (torch.where instead of `if` on values, no .item(), no Python side effects)"
        ) from error
    finally:
        model.train(was_training)


def _as_taken(model: nn.Module, shapes: tuple[Any, ...]) -> tuple[Any, ...]:
    """One entry per parameter of forward, as torch.export wants it: what `*args` takes is a tuple by itself."""
    kinds = [parameter.kind for parameter in inspect.signature(model.forward).parameters.values()]
    if inspect.Parameter.VAR_POSITIONAL not in kinds:
        return shapes
    named = kinds.index(inspect.Parameter.VAR_POSITIONAL)
    return (*shapes[:named], shapes[named:])


@contextmanager
def _without_chatter() -> Iterator[None]:
    """torch.export prints the partial graph, and logs, before it raises; the error says all that a user needs."""
    logger = logging.getLogger("torch.fx.experimental.symbolic_shapes")
    was_disabled = logger.disabled
    logger.disabled = True
    try:
        with redirect_stderr(io.StringIO()), warnings.catch_warnings():
            warnings.filterwarnings("ignore", category=FutureWarning)  # torch's own, about its tree utilities
            yield
    finally:
        logger.disabled = was_disabled


def _one_line(error: BaseException) -> str:
    lines = [line.strip() for line in str(error).splitlines() if line.strip()]
    return lines[0][:240] if lines else type(error).__name__


def _user_line(error: BaseException) -> str:
    """' (at file:line: code)' of the innermost frame that is neither torch's nor ours, if any."""
    for text in reversed(str(error).splitlines()):
        if text.strip().startswith("File ") and "/torch/" not in text and "autocompress/" not in text:
            return f" (at {text.strip()})"
    frames = []
    traceback = error.__traceback__
    while traceback is not None:
        frames.append((traceback.tb_frame.f_code.co_filename, traceback.tb_lineno))
        traceback = traceback.tb_next
    for name, line in reversed(frames):
        if "/torch/" not in name and "autocompress/" not in name and not name.startswith("<"):
            return f" (at {name}:{line})"
    return ""


class _Lift:
    """Copies an exported program's graph node by node, turning parameter-owning operations into modules."""

    def __init__(self, program: ExportedProgram) -> None:
        self.program = program
        self.root = nn.Module()
        self.graph = FxGraph()
        self.new: dict[Node, Node] = {}
        self.tensors: dict[str, tuple[str, Tensor]] = {}
        self.modules: set[Node] = set()

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
                raise TraceError(f"a {node.op} node ({node.target}) in the exported graph is not supported")
        model = GraphModule(self.root, self.graph)
        model.graph.eliminate_dead_code()
        model.delete_all_unused_submodules()
        model.recompile()
        return model.eval()

    def _placeholder(self, node: Node, spec: Any) -> None:
        if spec.kind == InputKind.USER_INPUT:
            self._check_batch(node)
            self.new[node] = self.graph.placeholder(node.name)
            return
        store = self.program.state_dict if spec.target in self.program.state_dict else self.program.constants
        self.tensors[node.name] = (spec.target, store[spec.target])

    def _check_batch(self, node: Node) -> None:
        value = node.meta.get("val")
        if isinstance(value, Tensor) and value.dim() and _is_number(value.shape[0]):
            raise TraceError(
                f"the model fixes the batch size of input {node.name!r} at {value.shape[0]}; "
                "write forward with x.shape[0] (or -1 in view/reshape) instead of a number"
            )

    def _call(self, node: Node) -> None:
        if node.target in (
            aten._assert_scalar.default,
            aten._assert_tensor_metadata.default,
            aten.sym_constrain_range_for_size.default,
        ):
            return
        if node.target in IDENTITIES or self._is_whole_slice(node):
            self.new[node] = self._value(node.args[0])
            return
        if node.target is getitem and node.args[0] in self.modules:
            self.new[node] = self.new[node.args[0]]  # type: ignore[index]
            return
        lift = _LIFTS.get(node.target)
        made = lift(self, node) if lift else None
        if made is None:
            args = torch.fx.map_arg(node.args, self._value)
            kwargs = torch.fx.map_arg(node.kwargs, self._value)
            target = aten.reshape.default if node.target in _VIEWS else node.target
            made = self.graph.create_node("call_function", target, args, kwargs, name=node.name)
        self.new[node] = made

    def _is_whole_slice(self, node: Node) -> bool:
        if node.target is not aten.slice.Tensor:
            return False
        given = [*node.args[2:], *(None, None, 1)[len(node.args) - 2 :]]
        start, end, step = given
        return start in (None, 0) and (end is None or (isinstance(end, int) and end >= _WHOLE)) and bool(step == 1)

    def _output(self, node: Node) -> None:
        outputs: Any = node.args[0]
        if len(outputs) != 1 or not isinstance(outputs[0], Node):
            raise TraceError(f"the model returns {len(outputs)} values; wrap it so that it returns one tensor")
        self.graph.output(self._value(outputs[0]))

    def _value(self, node: Any) -> Any:
        if not isinstance(node, Node):
            return node
        if node not in self.new:
            name, tensor = self.tensors[node.name]
            self.new[node] = self._free_tensor(name, tensor)
        return self.new[node]

    def _free_tensor(self, name: str, tensor: Tensor) -> Node:
        parent, _, leaf = name.rpartition(".")
        owner = self._module_at(parent)
        if not hasattr(owner, leaf):
            if isinstance(tensor, nn.Parameter):
                owner.register_parameter(leaf, nn.Parameter(tensor.detach().clone()))
            else:
                owner.register_buffer(leaf, tensor.detach().clone())
        return self.graph.get_attr(name)

    def _module_at(self, path: str) -> nn.Module:
        module = self.root
        for part in filter(None, path.split(".")):
            if not hasattr(module, part):
                module.add_module(part, nn.Module())
            module = getattr(module, part)
        return module

    def parameter(self, node: Any) -> Tensor | None:
        """The tensor behind a parameter or buffer argument, None for None, KeyError for an activation."""
        return None if node is None else self.tensors[node.name][1].detach().clone()

    def module_node(self, weight: Node, module: nn.Module, activation: Node, source: Node) -> Node:
        """One call of `module`, registered under the name its weight had in the user's model."""
        name = self.tensors[weight.name][0]
        path = name.removesuffix(".weight").removesuffix("_weight") if name.endswith("weight") else name
        parent, _, leaf = path.rpartition(".")
        owner = self._module_at(parent)
        if not isinstance(getattr(owner, leaf, None), type(module)):
            owner.add_module(leaf, module.eval())
        self.modules.add(source)
        args = (self._value(activation),)
        return self.graph.create_node("call_module", path, args, {}, name=source.name)


def _is_number(size: int | torch.SymInt) -> bool:
    """Whether torch.export settled on one value: it may still wrap it in a symbol."""
    return isinstance(size, int) or size.node.maybe_as_int() is not None


def _arguments(node: Node) -> dict[str, Any]:
    """The call's arguments by the operator's own names, defaults filled in."""
    schema = node.target._schema.arguments  # type: ignore[union-attr]
    values = {argument.name: argument.default_value for argument in schema if argument.has_default_value()}
    values.update({argument.name: value for argument, value in zip(schema, node.args, strict=False)})
    values.update(node.kwargs)
    return values


def _filled(module: nn.Module, **tensors: Tensor | None) -> nn.Module:
    for name, tensor in tensors.items():
        if tensor is not None:
            getattr(module, name).data = tensor
    return module


def _own_weight(lift: _Lift, weight: Any) -> bool:
    return isinstance(weight, Node) and weight.name in lift.tensors


_CONVOLUTIONS: dict[int, Any] = {1: nn.Conv1d, 2: nn.Conv2d, 3: nn.Conv3d}
_TRANSPOSED: dict[int, Any] = {1: nn.ConvTranspose1d, 2: nn.ConvTranspose2d, 3: nn.ConvTranspose3d}
_BATCH_NORMS = {2: nn.BatchNorm1d, 3: nn.BatchNorm1d, 4: nn.BatchNorm2d, 5: nn.BatchNorm3d}


def _lift_conv(lift: _Lift, node: Node) -> Node | None:
    a = _arguments(node)
    if not _own_weight(lift, a["weight"]):
        return None
    weight, bias = lift.parameter(a["weight"]), lift.parameter(a["bias"])
    assert weight is not None
    rank, groups = weight.dim() - 2, a["groups"]
    padding = a["padding"] if isinstance(a["padding"], str) else _tuple(a["padding"], rank)
    module = _CONVOLUTIONS[rank](
        weight.shape[1] * groups, weight.shape[0], tuple(weight.shape[2:]), _tuple(a["stride"], rank), padding,
        _tuple(a["dilation"], rank), groups, bias is not None,
    )  # fmt: skip
    return lift.module_node(a["weight"], _filled(module, weight=weight, bias=bias), a["input"], node)


def _lift_conv_transpose(lift: _Lift, node: Node) -> Node | None:
    a = _arguments(node)
    if not _own_weight(lift, a["weight"]):
        return None
    weight, bias = lift.parameter(a["weight"]), lift.parameter(a["bias"])
    assert weight is not None
    rank, groups = weight.dim() - 2, a["groups"]
    module = _TRANSPOSED[rank](
        weight.shape[0], weight.shape[1] * groups, tuple(weight.shape[2:]), _tuple(a["stride"], rank),
        _tuple(a["padding"], rank), _tuple(a["output_padding"], rank), groups, bias is not None,
        _tuple(a["dilation"], rank),
    )  # fmt: skip
    return lift.module_node(a["weight"], _filled(module, weight=weight, bias=bias), a["input"], node)


def _tuple(value: Any, rank: int) -> tuple[int, ...]:
    values = tuple(value) if isinstance(value, (list, tuple)) else (value,)
    return values * rank if len(values) == 1 else values


def _lift_linear(lift: _Lift, node: Node) -> Node | None:
    a = _arguments(node)
    if not _own_weight(lift, a["weight"]) or (a["bias"] is not None and not _own_weight(lift, a["bias"])):
        return None
    weight, bias = lift.parameter(a["weight"]), lift.parameter(a["bias"])
    assert weight is not None
    module = nn.Linear(weight.shape[1], weight.shape[0], bias is not None)
    return lift.module_node(a["weight"], _filled(module, weight=weight, bias=bias), a["input"], node)


def _lift_batch_norm(lift: _Lift, node: Node) -> Node | None:
    a = _arguments(node)
    if not _own_weight(lift, a["running_mean"]):
        return None
    mean, variance = lift.parameter(a["running_mean"]), lift.parameter(a["running_var"])
    assert mean is not None
    rank = a["input"].meta["val"].dim()
    module = _BATCH_NORMS[rank](mean.numel(), eps=a["eps"], momentum=a["momentum"])
    _filled(
        module,
        weight=lift.parameter(a["weight"]),
        bias=lift.parameter(a["bias"]),
        running_mean=mean,
        running_var=variance,
    )
    owner = a["weight"] if a["weight"] is not None else a["running_mean"]
    if a["weight"] is None:
        name, tensor = lift.tensors[owner.name]
        lift.tensors[owner.name] = (name.removesuffix(".running_mean") + ".weight", tensor)
    return lift.module_node(owner, module, a["input"], node)


def _lift_layer_norm(lift: _Lift, node: Node) -> Node | None:
    a = _arguments(node)
    if not _own_weight(lift, a["weight"]):
        return None
    module = nn.LayerNorm(a["normalized_shape"], eps=a["eps"], bias=a["bias"] is not None)
    _filled(module, weight=lift.parameter(a["weight"]), bias=lift.parameter(a["bias"]))
    return lift.module_node(a["weight"], module, a["input"], node)


def _lift_group_norm(lift: _Lift, node: Node) -> Node | None:
    a = _arguments(node)
    if not _own_weight(lift, a["weight"]):
        return None
    weight = lift.parameter(a["weight"])
    assert weight is not None
    module = nn.GroupNorm(a["num_groups"], weight.numel(), eps=a["eps"])
    return lift.module_node(
        a["weight"], _filled(module, weight=weight, bias=lift.parameter(a["bias"])), a["input"], node
    )


def _lift_embedding(lift: _Lift, node: Node) -> Node | None:
    a = _arguments(node)
    if not _own_weight(lift, a["weight"]):
        return None
    weight = lift.parameter(a["weight"])
    assert weight is not None
    module = nn.Embedding(weight.shape[0], weight.shape[1])
    return lift.module_node(a["weight"], _filled(module, weight=weight), a["indices"], node)


_LIFTS = {
    **{getattr(aten, f"conv{rank}d").default: _lift_conv for rank in (1, 2, 3)},
    **{getattr(aten, f"conv{rank}d").padding: _lift_conv for rank in (1, 2, 3)},
    aten.conv_transpose1d.default: _lift_conv_transpose,
    aten.conv_transpose2d.input: _lift_conv_transpose,
    aten.conv_transpose3d.input: _lift_conv_transpose,
    aten.linear.default: _lift_linear,
    aten.batch_norm.default: _lift_batch_norm,
    aten._native_batch_norm_legit_no_training.default: _lift_batch_norm,
    aten.layer_norm.default: _lift_layer_norm,
    aten.group_norm.default: _lift_group_norm,
    aten.embedding.default: _lift_embedding,
}


class _ShapeRecorder(torch.fx.Interpreter):
    """Runs the model and notes every node's output as a tensor without storage in meta["val"]."""

    def run_node(self, n: Node) -> Any:
        value = super().run_node(n)
        n.meta["val"] = torch.utils._pytree.tree_map(
            lambda v: torch.empty_like(v, device="meta") if isinstance(v, Tensor) else v, value
        )
        return value


def _record_shapes(model: GraphModule, inputs: tuple[Tensor, ...]) -> None:
    with torch.no_grad():
        _ShapeRecorder(model).run(*inputs)


def is_call(node: Node, *targets: Any) -> bool:
    return node.op == "call_function" and node.target in targets


def output_node(model: GraphModule) -> Node:
    """The node whose value the model returns."""
    last: Any = next(node for node in reversed(model.graph.nodes) if node.op == "output").args[0]
    found: Node = last if isinstance(last, Node) else last[0]
    return found
