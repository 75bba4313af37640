"""What exporters write in several operators, as the one function or layer that it is."""

import operator
from collections.abc import Callable, Iterator, Sequence
from dataclasses import dataclass
from typing import Any

import torch
import torch.nn.functional as F
from torch import Tensor, fx, nn

from autocompress.translation.layers import filled
from autocompress.translation.operators.pointwise import hard_sigmoid
from autocompress.translation.writer import SHAPE, SOURCE

_ADD, _MUL = (torch.add, operator.add), (torch.mul, operator.mul)
_SUB, _DIV = (torch.sub, operator.sub), (torch.div, operator.truediv)


def simplified(model: fx.GraphModule) -> fx.GraphModule:
    """The module with these rewritten, which it loses; it computes the same."""
    for rewrite in (_biases, _activations, _group_norms, _layer_norms):
        for node in reversed(list(model.graph.nodes)):
            if node.users:
                rewrite(model, node)
        _sweep(model)
    return fx.GraphModule(model, model.graph)


def _sweep(model: fx.GraphModule) -> None:
    for node in reversed(model.graph.nodes):
        if not node.users and node.op not in ("placeholder", "output"):
            model.graph.erase_node(node)


def _replace(old: fx.Node, new: fx.Node) -> None:
    """`new` stands for what `old` was of the file."""
    new.meta.update({key: old.meta[key] for key in (SOURCE, SHAPE) if key in old.meta})
    old.replace_all_uses_with(new)


def _is(node: Any, targets: Sequence[Any]) -> bool:
    return isinstance(node, fx.Node) and node.op == "call_function" and node.target in targets


def _constant(model: fx.GraphModule, node: Any) -> Tensor | None:
    if not isinstance(node, fx.Node) or node.op != "get_attr":
        return None
    found: Any = model
    for part in str(node.target).split("."):
        found = getattr(found, part)
    return found if isinstance(found, Tensor) else None


def _with_constant(model: fx.GraphModule, node: Any, targets: Sequence[Any]) -> tuple[fx.Node, Tensor] | None:
    """(the computed operand, the constant one) of a commutative operation."""
    if not _is(node, targets):
        return None
    for x, other in (node.args[:2], node.args[1::-1]):
        constant = _constant(model, other)
        if constant is not None and isinstance(x, fx.Node) and x.op != "get_attr":
            return x, constant
    return None


def _layer(model: fx.GraphModule, node: Any, kinds: tuple[type[nn.Module], ...]) -> Any:
    found = model.get_submodule(str(node.target)) if isinstance(node, fx.Node) and node.op == "call_module" else None
    return found if isinstance(found, kinds) else None


def _shape(node: fx.Node) -> tuple[int, ...]:
    return tuple(node.meta.get(SHAPE, ()))


def _biases(model: fx.GraphModule, node: fx.Node) -> None:
    """A constant of one number per channel that is added to what a layer without a bias makes."""
    found = _with_constant(model, node, _ADD)
    if found is None or len(found[0].users) != 1:
        return
    layer_node, constant = found
    layer = _layer(model, layer_node, (nn.Linear, nn.Conv1d, nn.Conv2d, nn.Conv3d))
    if layer is None or layer.bias is not None or constant.numel() != layer.weight.shape[0]:
        return
    axis = -1 if isinstance(layer, nn.Linear) else 1 - layer.weight.dim()
    if constant.dim() < -axis or constant.shape[axis] != constant.numel() or constant.dim() > len(_shape(node)):
        return
    layer.bias = _shaped(constant, [constant.numel()])
    name = next(str(n.target) for n in node.all_input_nodes if n.op == "get_attr")
    own = name.removesuffix(".bias").rstrip("_") == str(layer_node.target)
    if name.endswith(".bias") and not own and not list(model.get_submodule(name.removesuffix(".bias")).children()):
        model.add_submodule(name.removesuffix(".bias"), layer)
        layer_node.target = name.removesuffix(".bias")
    _replace(node, layer_node)


_UNARY = frozenset({
    *_ADD, *_MUL, *_SUB, *_DIV, torch.pow, torch.erf, torch.tanh, torch.sigmoid, torch.clamp, torch.relu, torch.exp,
    F.relu6, F.softplus, hard_sigmoid, torch.reciprocal, torch.neg, F.hardsigmoid,
})  # fmt: skip
_TELLING = frozenset({torch.erf, torch.tanh, torch.sigmoid, torch.clamp, F.relu6, F.softplus, hard_sigmoid, torch.exp})
_DEEPEST = 12
"""Operators that an activation is made of at most."""

_ACTIVATIONS: tuple[tuple[Callable[..., Tensor], dict[str, Any]], ...] = (
    (F.silu, {}), (F.gelu, {}), (F.gelu, {"approximate": "tanh"}), (F.hardswish, {}), (F.hardsigmoid, {}),
    (F.mish, {}), (F.softplus, {}), (torch.sigmoid, {}),
)  # fmt: skip
_POINTS = torch.cat([torch.linspace(-9, 9, 181), torch.tensor([-3.0, 0.0, 3.0])])
_SAME = 2e-6
"""Of what an activation gives for arguments up to 9: a few units in the last place, and constants rounded otherwise."""


def _activations(model: fx.GraphModule, node: fx.Node) -> None:
    """A region of one input that computes what an activation does, known by its values."""
    if not _is(node, (*_MUL, *_DIV, *_ADD)):
        return
    for source, region in _regions(model, node):
        if not any(member.target in _TELLING for member in region):
            continue
        values = _evaluated(model, source, region)
        for function, settings in _ACTIVATIONS if values is not None else ():
            wanted = function(_POINTS, **settings)
            if values is not None and torch.allclose(values, wanted, rtol=_SAME, atol=_SAME * 9):
                with model.graph.inserting_before(node):
                    made = model.graph.call_function(function, (source,), settings)
                _replace(node, made)
                return


def _regions(model: fx.GraphModule, node: fx.Node) -> Iterator[tuple[fx.Node, list[fx.Node]]]:
    """Every way to see the node as made of one other, the largest first."""
    region: list[fx.Node] = [node]
    found = []
    while len(region) <= _DEEPEST:
        inputs = {arg for member in region for arg in member.all_input_nodes if arg not in region}
        inputs = {arg for arg in inputs if _number(model, arg) is None}
        if len(inputs) == 1 and len(region) > 1:
            found.append((next(iter(inputs)), list(region)))
        last = max(inputs, default=None)
        if last is None or not _is(last, tuple(_UNARY)):
            break
        region.append(last)
    yield from reversed(found)


def _number(model: fx.GraphModule, node: fx.Node) -> Tensor | None:
    constant = _constant(model, node)
    return constant if constant is not None and constant.numel() == 1 else None


def _evaluated(model: fx.GraphModule, source: fx.Node, region: Sequence[fx.Node]) -> Tensor | None:
    values: dict[fx.Node, Tensor] = {source: _POINTS}

    def value(node: fx.Node) -> Any:
        if node in values:
            return values[node]
        constant = _number(model, node)
        assert constant is not None, "a region has one input"
        return constant.reshape(())

    with torch.no_grad():
        for member in sorted(region):
            function: Any = member.target
            args, kwargs = fx.map_arg((member.args, member.kwargs), value)
            values[member] = function(*args, **kwargs)
    found = values[region[0]]
    return found if found.shape == _POINTS.shape and found.dtype == torch.float32 else None


@dataclass(frozen=True, slots=True)
class _Normed:
    """What is normalised over how many of its last axes."""

    source: fx.Node
    axes: int
    epsilon: float
    centred: bool


def _layer_norms(model: fx.GraphModule, node: fx.Node) -> None:
    scaled = _with_constant(model, node, _ADD)
    bias, inner = (scaled[1], scaled[0]) if scaled is not None else (None, node)
    found = _with_constant(model, inner, _MUL)
    normed = _normed(model, found[0]) if found is not None else None
    if found is None or normed is None or (bias is not None and not normed.centred):
        return
    shape, weight = list(_shape(node)[len(_shape(node)) - normed.axes :]), found[1]
    fits = weight.numel() == torch.Size(shape).numel() and list(weight.shape[-normed.axes :]) == shape
    if not fits or (bias is not None and list(bias.shape[-normed.axes :]) != shape):
        return
    if normed.centred:
        if bias is None and any(_with_constant(model, user, _ADD) for user in node.users):
            return
        layer: nn.Module = nn.LayerNorm(shape, normed.epsilon, bias=bias is not None, device="meta")
        filled(layer, weight=_shaped(weight, shape), **({} if bias is None else {"bias": _shaped(bias, shape)}))
    else:
        layer = filled(nn.RMSNorm(shape, normed.epsilon, device="meta"), weight=_shaped(weight, shape))
    _insert(model, node, layer, normed.source, "norm")


def _shaped(constant: Tensor, shape: Sequence[int]) -> nn.Parameter:
    if isinstance(constant, nn.Parameter) and list(constant.shape) == list(shape):
        return constant
    return nn.Parameter(constant.detach().reshape(tuple(shape)).clone())


def _insert(model: fx.GraphModule, node: fx.Node, layer: nn.Module, source: fx.Node, kind: str) -> None:
    name = _layer_name(model, node, kind)
    model.add_submodule(name, layer)
    with model.graph.inserting_before(node):
        made = model.graph.call_module(name, (source,))
    _replace(node, made)


def _layer_name(model: fx.GraphModule, node: fx.Node, kind: str) -> str:
    """As the file calls its scale or bias, without that word."""
    weights = [str(n.target) for n in (*node.all_input_nodes, *_below(node)) if n.op == "get_attr"]
    named = next((w.rpartition(".")[0] for w in weights if w.endswith((".weight", ".bias", ".gamma", ".beta"))), "")
    name = named or f"{kind}_{node.name}"
    owner = model.get_submodule(name) if named else None
    # what is left of the place of two free tensors is an empty module: the layer takes it
    return name if owner is None or not list(owner.children()) else f"{name}.{kind}"


def _below(node: fx.Node) -> list[fx.Node]:
    return [n for arg in node.all_input_nodes for n in arg.all_input_nodes]


def _normed(model: fx.GraphModule, node: fx.Node) -> _Normed | None:
    """(x - mean) / sqrt(variance + epsilon), or without the mean, in the ways that exporters write it."""
    for numerator, inverse in _quotients(node):
        deviation = _with_number(model, inverse, _ADD)
        if deviation is None:
            continue
        square, epsilon = deviation
        mean = _mean(square)
        if mean is None:
            continue
        squared, axes = mean
        base = _squared(squared)
        if base is not numerator or base is None:
            continue
        centre = _centred(base, axes)
        return _Normed(centre or base, len(axes), epsilon, centre is not None) if _trailing(base, axes) else None
    return None


def _quotients(node: Any) -> Iterator[tuple[Any, Any]]:
    """Ways to see a node as a / sqrt(b): (a, b)."""
    if _is(node, _DIV) and _is(node.args[1], (torch.sqrt,)):
        yield node.args[0], node.args[1].args[0]
    if _is(node, _MUL):
        for a, b in (node.args[:2], node.args[1::-1]):
            if _is(b, (torch.rsqrt,)) or (_is(b, (torch.pow,)) and b.args[1] == -0.5):
                yield a, b.args[0]
            if _is(b, (torch.reciprocal,)) and _is(b.args[0], (torch.sqrt,)):
                yield a, b.args[0].args[0]
            if _is(b, _DIV) and b.args[0] == 1 and _is(b.args[1], (torch.sqrt,)):
                yield a, b.args[1].args[0]


def _with_number(model: fx.GraphModule, node: Any, targets: Sequence[Any]) -> tuple[fx.Node, float] | None:
    if not _is(node, targets):
        return None
    for x, other in (node.args[:2], node.args[1::-1]):
        if isinstance(x, fx.Node) and isinstance(other, (int, float)):
            return x, float(other)
        constant = _number(model, other) if isinstance(other, fx.Node) else None
        if isinstance(x, fx.Node) and constant is not None:
            return x, float(constant)
    return None


def _mean(node: Any) -> tuple[Any, list[int]] | None:
    if _is(node, (torch.mean,)) and len(node.args) == 3 and node.args[2]:
        return node.args[0], list(node.args[1])
    return None


def _squared(node: Any) -> Any:
    if _is(node, (torch.pow,)) and node.args[1] == 2:
        return node.args[0]
    return node.args[0] if _is(node, _MUL) and node.args[0] is node.args[1] else None


def _centred(node: Any, axes: list[int]) -> fx.Node | None:
    """x of `x - mean(x)`."""
    if not _is(node, _SUB):
        return None
    mean = _mean(node.args[1])
    same = (
        mean is not None
        and mean[0] is node.args[0]
        and sorted(_positive(node, mean[1])) == sorted(_positive(node, axes))
    )
    return node.args[0] if same and isinstance(node.args[0], fx.Node) else None


def _positive(node: fx.Node, axes: Sequence[int]) -> list[int]:
    rank = len(_shape(node))
    return [axis % rank for axis in axes] if rank else list(axes)


def _trailing(node: fx.Node, axes: Sequence[int]) -> bool:
    rank = len(_shape(node))
    return rank > len(axes) and sorted(_positive(node, axes)) == list(range(rank - len(axes), rank))


def _group_norms(model: fx.GraphModule, node: fx.Node) -> None:
    """Instance normalisation of channels folded into groups, unfolded again, and the scale of each channel."""
    scaled = _with_constant(model, node, _ADD)
    found = _with_constant(model, scaled[0], _MUL) if scaled is not None else None
    if scaled is None or found is None or not _is(found[0], (torch.reshape,)):
        return
    unfolded = found[0]
    inner: Any = unfolded.args[0]
    layer = _layer(model, inner, (nn.InstanceNorm1d,))
    if layer is None or layer.affine or not _is(inner.args[0], (torch.reshape,)):
        return
    source = inner.args[0].args[0]
    shape, folded = _shape(source), _shape(inner)
    channels = shape[1] if len(shape) > 2 else 0
    per_channel = all(c.numel() == channels and c.dim() >= len(shape) - 1 and c.shape[1 - len(shape)] == channels
                      for c in (scaled[1], found[1]))  # fmt: skip
    if _shape(unfolded) != shape or len(folded) != 3 or folded[0] != shape[0] or not per_channel:
        return
    norm = nn.GroupNorm(folded[1], channels, layer.eps, device="meta")
    filled(norm, weight=_shaped(found[1], (channels,)), bias=_shaped(scaled[1], (channels,)))
    _insert(model, node, norm, source, "norm")
