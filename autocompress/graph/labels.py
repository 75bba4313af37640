"""Channel labels carried through the graph: which elements of which tensors live and die together.

Every tensor gets a label tensor of the shape that it has for one sample. Layers hand out fresh labels for the channels
they make; operators that move elements are simply run on the labels; operators that combine elements tie the labels
that meet. What is tied in the end, element by element, is one *class*: a channel that can only be cut as a whole.

Labels that no layer made (inputs, free tensors, padding, constants made in forward) are *soft*: they take on what
they meet, but a mask over positions says nothing of the channels that it is combined with.
"""

from dataclasses import dataclass
from typing import Any

import numpy as np
import torch
from scipy.sparse import coo_matrix
from scipy.sparse.csgraph import connected_components
from torch import Tensor, nn
from torch.fx import GraphModule, Node

from autocompress.graph.calls import arguments
from autocompress.graph.ledger import Axis, Ledger, Mix, compact, varying_axes
from autocompress.graph.operators import TABLE, Passage
from autocompress.graph.positions import between_linears
from autocompress.graph.recurrent import RECURRENT

aten = torch.ops.aten

CONVOLUTIONS = (nn.Conv1d, nn.Conv2d, nn.Conv3d)
TRANSPOSED = (nn.ConvTranspose1d, nn.ConvTranspose2d, nn.ConvTranspose3d)
BATCH_NORMS = (nn.BatchNorm1d, nn.BatchNorm2d, nn.BatchNorm3d)
INSTANCE_NORMS = (nn.InstanceNorm1d, nn.InstanceNorm2d, nn.InstanceNorm3d)


_CROSSED = "{} combines every channel of one tensor with all of another"


@dataclass(slots=True)
class Labels:
    """The outcome: classes per element of every node's output (of several the first), parameter axes, and why classes
    are frozen.

    `nodes[name]` holds class ids (-1: none) with the shape of the node's output for one sample; axes along which
    nothing varies may have size 1. `widths[name]` holds those along the last axis that lie there beside channels on
    another one (see positions.py).
    """

    nodes: dict[str, np.ndarray]
    widths: dict[str, np.ndarray]
    axes: list[Axis]
    frozen: dict[int, str]
    free_tensors: dict[str, np.ndarray]
    count: int = 0


def label(model: GraphModule) -> Labels:
    """Labels of a lifted model."""
    ledger = Ledger()
    flow = _Flow(model, ledger)
    flow.run(*[node for node in model.graph.nodes if node.op == "placeholder"])
    firsts = {name: v[0] if isinstance(v, (tuple, list)) and v else v for name, v in flow.values.items()}
    values = {name: v for name, v in firsts.items() if isinstance(v, Tensor)}
    beside = between_linears(model, flow.mixing, ledger)
    classes = _align(ledger, values)
    frozen: dict[int, str] = {}
    for labels, reason in ledger.freezes:
        for c in np.unique(classes[labels.numpy()]):
            frozen.setdefault(int(c), reason)
    for mix in ledger.mixes:
        for c in _varying(classes[mix.labels.numpy()], mix.axes):
            frozen.setdefault(int(c), mix.reason)
    frozen.pop(-1, None)
    free = {str(n.target): classes[flow.values[n.name].numpy()] for n in model.graph.nodes if n.op == "get_attr"}
    axes = [
        Axis(a.target, a.tensor, a.axis, torch.from_numpy(classes[a.labels.numpy()]), a.produces) for a in ledger.axes
    ]
    nodes = {name: classes[compact(v).numpy()] for name, v in values.items()}
    widths = {name: classes[labels.numpy()] for name, labels in beside.items()}
    return Labels(nodes, widths, axes, frozen, free, int(classes.max()) + 1)


class _Flow(torch.fx.Interpreter):
    """Runs the graph on labels instead of activations."""

    def __init__(self, model: GraphModule, ledger: Ledger) -> None:
        super().__init__(model)
        self.ledger = ledger
        self.values: dict[str, Any] = {}
        self.mixing: list[Node] = []

    def run_node(self, n: Node) -> Any:
        if n.op == "output":
            for value in _tensors(self.map_nodes_to_values(n.args, n)):
                self.ledger.freeze(value, "an output of the model")
            return None
        args, kwargs = self.fetch_args_kwargs_from_env(n)
        value = getattr(self, f"_{n.op}")(n, args, kwargs)
        self.values[n.name] = value
        return value

    def _placeholder(self, n: Node, args: Any, kwargs: Any) -> Tensor:
        if not n.meta["one"].dtype.is_floating_point:
            return _blank(n.meta["one"].shape)
        labels = self.ledger.fresh(*n.meta["one"].shape, soft=True)
        self.ledger.freeze(labels, "an input of the model")
        return labels

    def _get_attr(self, n: Node, args: Any, kwargs: Any) -> Tensor:
        tensor = self.fetch_attr(str(n.target))
        if not tensor.dtype.is_floating_point or tensor.numel() < 2:
            return _blank(tensor.shape)
        labels = self.ledger.fresh(*tensor.shape, soft=True)
        for (parameter, axis), owned in self.ledger.owned.items():
            if parameter == id(tensor):
                self.ledger.tie(labels, _along(owned, axis, tensor.shape))
        return labels

    def _call_module(self, n: Node, args: Any, kwargs: Any) -> Any:
        module, x, name = self.fetch_attr(str(n.target)), args[0], str(n.target)
        for kinds, passing in _MODULES:
            if isinstance(module, kinds):
                return passing(self, n, name, module, x, *args[1:])
        kind = type(module).__name__
        return self._unknown(n, args, f"{name} is a {kind}, which is not in the operator table")

    def _own_bias(self, name: str, module: Any, labels: Tensor) -> None:
        if module.bias is not None:
            self.ledger.own(name, "bias", 0, labels, True, module.bias)

    def _conv(self, n: Node, name: str, module: Any, x: Tensor) -> Tensor:
        inputs = self.ledger.tie_all(x, _all_but(x, 1)).flatten().expand(x.shape[1])
        outputs = self.ledger.fresh(module.out_channels)
        if module.groups > 1:
            self._tie_groups(inputs, outputs, module.groups)
            inputs = inputs[: module.in_channels // module.groups]
            if module.groups == module.in_channels:
                inputs = torch.zeros_like(inputs)
        self.ledger.own(name, "weight", 1, inputs, False, module.weight)
        self.ledger.own(name, "weight", 0, outputs, True, module.weight)
        self._own_bias(name, module, outputs)
        return _along(outputs, 1, n.meta["one"].shape)

    def _tie_groups(self, inputs: Tensor, outputs: Tensor, groups: int) -> None:
        """Depthwise: a channel goes with what is made of it. Grouped: channel i of every group goes together."""
        if groups == inputs.numel():
            self.ledger.tie(inputs.reshape(-1, 1), outputs.reshape(groups, -1))
            return
        self.ledger.tie_all(inputs.reshape(groups, -1), (0,))
        self.ledger.tie_all(outputs.reshape(groups, -1), (0,))

    def _conv_transpose(self, n: Node, name: str, module: Any, x: Tensor) -> Tensor:
        inputs = self.ledger.tie_all(x, _all_but(x, 1)).flatten().expand(x.shape[1])
        outputs = self.ledger.fresh(module.out_channels)
        if module.groups > 1:
            self.ledger.freeze(torch.cat([inputs, outputs]), f"{name} is a grouped transposed convolution")
        self.ledger.own(name, "weight", 0, inputs, False, module.weight)
        self.ledger.own(name, "weight", 1, outputs, True, module.weight)
        self._own_bias(name, module, outputs)
        return _along(outputs, 1, n.meta["one"].shape)

    def _linear(self, n: Node, name: str, module: nn.Linear, x: Tensor) -> Tensor:
        """Over positions (tokens, columns) that lie beside channels, what it makes are positions, not channels."""
        last = x.dim() - 1
        if not self._hard_along(x, [last]) and self._hard_along(x, range(1, last)):
            self.mixing.append(n)
            return _constant_along(x, (last,)).expand(n.meta["one"].shape)
        inputs = self.ledger.tie_all(x, tuple(range(last))).flatten().expand(x.shape[-1])
        outputs = self.ledger.fresh(module.out_features)
        self.ledger.own(name, "weight", 1, inputs, False, module.weight)
        self.ledger.own(name, "weight", 0, outputs, True, module.weight)
        self._own_bias(name, module, outputs)
        return outputs.expand(*x.shape[:-1], -1)

    def _norm(self, name: str, module: Any, channels: Tensor, x: Tensor) -> Tensor:
        """`channels` are labels with the shape of x but for ones along all axes that hold no channels."""
        for tensor in ("weight", "bias", "running_mean", "running_var"):
            value = getattr(module, tensor, None)
            if value is not None:
                labels = channels.flatten().expand(len(value))
                self.ledger.own(name, tensor, 0, labels, tensor in ("weight", "bias"), value)
        return channels.expand(x.shape)

    def _batch_norm(self, n: Node, name: str, module: Any, x: Tensor) -> Tensor:
        return self._norm(name, module, self.ledger.tie_all(x, _all_but(x, 1)), x)

    def _group_norm(self, n: Node, name: str, module: nn.GroupNorm, x: Tensor) -> Tensor:
        """Whole groups may go; one group over everything is normalised over what is left, as a layer norm is."""
        channels = self.ledger.tie_all(x, _all_but(x, 1)).expand([-1, x.shape[1], *[-1] * (x.dim() - 2)])
        if module.num_groups > 1:
            self.ledger.tie_all(channels.reshape(module.num_groups, -1), (1,))
        return self._norm(name, module, channels, x)

    def _last_axis_norm(self, n: Node, name: str, module: Any, x: Tensor) -> Tensor:
        rank = len(module.normalized_shape)
        if rank != 1:
            self.ledger.freeze(x, f"{name} normalises over {rank} axes")
            return x
        return self._norm(name, module, self.ledger.tie_all(x, tuple(range(x.dim() - 1))), x)

    def _prelu(self, n: Node, name: str, module: nn.PReLU, x: Tensor) -> Tensor:
        if module.num_parameters == 1:
            return x
        channels = self.ledger.tie_all(x, _all_but(x, 1))
        self.ledger.own(name, "weight", 0, channels.flatten().expand(module.num_parameters), True, module.weight)
        return channels.expand(x.shape)

    def _embedding(self, n: Node, name: str, module: nn.Embedding, x: Tensor) -> Tensor:
        outputs = self.ledger.fresh(module.embedding_dim)
        rows = self.ledger.fresh(module.num_embeddings, soft=True)
        self.ledger.own(name, "weight", 1, outputs, True, module.weight)
        self.ledger.freeze(rows, f"{name} holds one row for every index")
        if (id(module.weight), 0) in self.ledger.owned:
            self.ledger.own(name, "weight", 0, rows, False, module.weight)
        else:
            self.ledger.owned[id(module.weight), 0] = rows
        return outputs.expand(*x.shape, -1)

    def _recurrent(self, n: Node, name: str, module: Any, x: Tensor, *states: Tensor) -> tuple[Tensor, ...]:
        """Hidden unit i of all gates, layers and directions goes as a whole, and so does input channel i."""
        inputs = self.ledger.tie_all(x, tuple(range(x.dim() - 1))).flatten().expand(x.shape[-1])
        hidden, directions = module.hidden_size, 2 if module.bidirectional else 1
        units = self.ledger.fresh(hidden)
        for tensor, value in module.named_parameters():
            gates = value.shape[0] // hidden
            self.ledger.own(name, tensor, 0, units.repeat(gates), True, value)
            if tensor.startswith("weight_ih_l0"):
                self.ledger.own(name, tensor, 1, inputs, False, value)
            elif tensor.startswith("weight_ih"):
                self.ledger.own(name, tensor, 1, units.repeat(directions), False, value)
            elif tensor.startswith("weight_hh"):
                self.ledger.own(name, tensor, 1, units, False, value)
        for state in states:
            self.ledger.tie(state, units)
        output, *last = n.meta["one"]
        return (units.repeat(directions).expand(output.shape), *(units.expand(state.shape) for state in last))

    def _call_function(self, n: Node, args: Any, kwargs: Any) -> Any:
        row = TABLE.get(n.target)
        if row is not None and row.passage is Passage.CREATE:
            return self._create(n, args, kwargs)
        if not _tensors((args, kwargs)):
            value = _called(n, args, kwargs)
            return _blank(value.shape) if isinstance(value, Tensor) else value
        if row is None:
            return self._unknown(n, (args, kwargs), f"{n.target} is not in the operator table")
        if row.passage is Passage.SIZE:
            return _called(n, args, kwargs)
        return getattr(self, f"_{row.passage.name.lower()}")(n, args, kwargs)

    def _create(self, n: Node, args: Any, kwargs: Any) -> Tensor:
        return self.ledger.fresh(*n.meta["one"].shape, soft=True)

    def _move(self, n: Node, args: Any, kwargs: Any) -> Any:
        if n.target is aten.expand.default and not bool(compact(args[0]).any()):
            return self._spread(n, args[0])
        return _called(n, args, kwargs)

    def _spread(self, n: Node, x: Tensor) -> Tensor:
        """What is spread over heads or channels, beside a batch or folded into it, takes on what it meets there."""
        shape = n.meta["one"].shape
        before = (1,) * (len(shape) - x.dim()) + tuple(x.shape)
        spread = [size if size != old else 1 for size, old in zip(shape, before, strict=True)]
        if all(size == 1 for size in spread):
            return _blank(shape)
        return self.ledger.fresh(*spread, soft=True).expand(shape)

    def _elementwise(self, n: Node, args: Any, kwargs: Any) -> Tensor:
        tensors = _tensors((args, kwargs))
        result = tensors[0]
        for other in tensors[1:]:
            result = self.ledger.tie(result, other, _CROSSED.format(n.name))
        return result.expand(n.meta["one"].shape)

    def _per_channel(self, n: Node, args: Any, kwargs: Any) -> Any:
        x: Tensor = args[0]
        axis = x.dim() - 1 - TABLE[n.target].spatial
        positions = tuple(range(axis + 1, x.dim()))
        self.ledger.mixes.append(Mix(x, positions, f"{n.name} works along an axis that holds channels"))
        for other in _tensors((args[1:], kwargs)):
            self.ledger.freeze(other, f"{n.name} takes it for coordinates")
        channels = self._without(x, positions)
        return _each(
            n, lambda made: channels.expand(made.shape) if made.dtype.is_floating_point else _blank(made.shape)
        )

    def _windows(self, n: Node, args: Any, kwargs: Any) -> Tensor:
        """A channel becomes the rows of its windows, or is made of them."""
        x, shape = args[0], n.meta["one"].shape
        axis = x.dim() - 1 - TABLE[n.target].spatial
        channels = self.ledger.tie_all(x, _all_but(x, axis)).flatten().expand(x.shape[axis])
        if shape[axis] < len(channels):
            channels = self.ledger.tie_all(channels.reshape(shape[axis], -1), (1,)).flatten()
        return _along(channels.repeat_interleave(shape[axis] // len(channels)), axis, shape)

    def _reduce(self, n: Node, args: Any, kwargs: Any) -> Any:
        x: Tensor = args[0]
        axes = reduced_axes(n, x.dim())
        self.ledger.mixes.extend(self._ordered(n, x, axes))
        kept = self._without(x, axes)

        def reduced(made: Tensor) -> Tensor:
            if not made.dtype.is_floating_point:
                return _blank(made.shape)
            whole = kept if made.dim() == x.dim() else kept.reshape([kept.shape[d] for d in _others(x, axes)])
            return whole.expand(made.shape)

        return _each(n, reduced)

    def _without(self, x: Tensor, axes: tuple[int, ...]) -> Tensor:
        """Labels with size 1 along `axes`. What varies there beside channels on another axis (paths that are summed up)
        is tied, channel by channel; channels on these axes themselves leave no label."""
        return _constant_along(x, axes) if varying_axes(x) <= set(axes) else self.ledger.tie_all(x, axes)

    def _ordered(self, n: Node, x: Tensor, axes: tuple[int, ...]) -> list[Mix]:
        """Which of the channels is largest means another number once some are gone."""
        numbers = n.target in (aten.argmax.default, aten.argmin.default)
        indices = isinstance(n.meta["one"], tuple) and any(u.args[1] == 1 for u in n.users)
        return [Mix(x, axes, f"{n.name} numbers the channels")] if numbers or indices else []

    def _along(self, n: Node, args: Any, kwargs: Any) -> Any:
        x: Tensor = args[0]
        given = arguments(n)
        axes = _axes_of(given.get(TABLE[n.target].axes), x.dim())
        self.ledger.mixes.append(Mix(x, axes, f"{n.name} works along the channels"))
        if n.target is aten.unfold.default:
            frames: Tensor = x.unfold(*args[1:])
            return frames
        same = self._without(x, axes)
        return _each(n, lambda made: x if made.shape == x.shape else same.expand(made.shape))

    def _contract(self, n: Node, args: Any, kwargs: Any) -> Tensor:
        """a [..., M, K] times b [..., K, N]: heads are tied whole, else k meets k, and M or N carries on."""
        a, b = args[:2]
        shape = n.meta["one"].shape
        if a.dim() < 2 or b.dim() < 2:
            return torch.as_tensor(self._unknown(n, args, f"{n.name} multiplies a vector by a matrix"))
        if self._hard_along(a, range(a.dim() - 2)) or self._hard_along(b, range(b.dim() - 2)):
            return self._heads(n, a, b).expand(shape)
        terms_a, terms_b = self._hard_along(a, [a.dim() - 1]), self._hard_along(b, [b.dim() - 2])
        if terms_a or terms_b:
            self._summed_over(n, a, b, terms_a, terms_b)
        lines = [
            self.ledger.tie_all(x, _all_but(x, axis))
            for x, axis in ((a, a.dim() - 2), (b, b.dim() - 1))
            if self._hard_along(x, [axis])
        ]
        if not lines:
            return _blank(shape)
        first, *other = lines
        return (self.ledger.tie(first, other[0], _CROSSED.format(n.name)) if other else first).expand(shape)

    def _summed_over(self, n: Node, a: Tensor, b: Tensor, terms_a: bool, terms_b: bool) -> None:
        sides = ((a, a.dim() - 1, terms_a), (b, b.dim() - 2, terms_b))
        terms = [self.ledger.tie_all(x, _all_but(x, axis)).flatten() for x, axis, holds in sides if holds]
        if len(terms) == 2:
            self.ledger.tie(terms[0], terms[1])
        else:
            self.ledger.freeze(terms[0], f"{n.name} sums over the channels by computed weights")

    def _hard_along(self, x: Tensor, axes: Any) -> bool:
        """Whether channels of layers vary along one of the axes."""
        channels = torch.where(self.ledger.is_soft(x), torch.zeros(1, dtype=torch.long), x)
        return not varying_axes(channels).isdisjoint(axes)

    def _heads(self, n: Node, *operands: Tensor) -> Tensor:
        """Everything inside one head (the last two axes of each operand) is tied into one class."""
        reason = f"{n.name} combines every head of one tensor with all of another"
        first, *others = (self.ledger.tie_all(x, (x.dim() - 2, x.dim() - 1)) for x in operands)
        for other in others:
            first = self.ledger.tie(first, other, reason)
        return first

    def _attention(self, n: Node, args: Any, kwargs: Any) -> Tensor:
        query, key, value = args[:3]
        heads = self._heads(n, query, key, value)
        mask = arguments(n)["attn_mask"]
        if mask is not None and mask.name in self.values:
            tied = self.values[mask.name]
            self.ledger.tie(heads, tied, f"{n.name} masks every head by its own channels")
        return heads.expand(n.meta["one"].shape)

    def _pad(self, n: Node, args: Any, kwargs: Any) -> Tensor:
        """Zeros beside channels get labels of their own: an add that meets them decides what they stand for.

        Zeros around positions belong to the channel that they surround.
        """
        x: Tensor = args[0]
        pads: list[int] = list(args[1])
        channels = varying_axes(x)
        for axis in range(x.dim() - len(pads) // 2, x.dim()):
            low, high = pads[2 * (x.dim() - 1 - axis) : 2 * (x.dim() - 1 - axis) + 2]
            x = self._padded(x, axis, low, high, axis in channels)
        return x

    def _padded(self, x: Tensor, axis: int, low: int, high: int, channels: bool) -> Tensor:
        start, end = max(0, -low), x.shape[axis] - max(0, -high)
        x = x.narrow(axis, start, end - start)
        pieces = [x]
        for place, size in ((0, low), (len(pieces), high)):
            if size > 0:
                shape = [size if d == axis else n for d, n in enumerate(x.shape)]
                added = _along(self.ledger.fresh(size, soft=True), axis, shape)
                edge = x.narrow(axis, 0, 1).expand(shape)
                pieces.insert(place if place == 0 else len(pieces), added if channels else edge)
        return torch.cat(pieces, axis)

    def _index(self, n: Node, args: Any, kwargs: Any) -> Tensor:
        """Numbers that no input changes move elements; computed ones may pick any, so all of them are tied."""
        x: Tensor = args[0]
        places = self._places(n)
        if all(isinstance(place, Tensor) for place in places.values()):
            return self._picked(n, x, places)
        if n.target is aten.gather.default:
            x = self._reached(n, x)
        same = self.ledger.tie_all(x, tuple(places))
        self.ledger.mixes.append(Mix(x, tuple(places), f"{n.name} picks channels by computed numbers"))
        if n.target is aten.gather.default:
            same = self.ledger.tie(same, self._without(self.values[arguments(n)["index"].name], tuple(places)))
        one = same.flatten().unsqueeze(0) if not varying_axes(same) else None
        if one is not None:
            return one.flatten()[0].expand(n.meta["one"].shape)
        if n.target is aten.index.Tensor and sorted(places) == list(range(min(places), max(places) + 1)):
            lead, tail = same.shape[: min(places)], same.shape[max(places) + 1 :]
            size = len(n.meta["one"].shape) - len(lead) - len(tail)
            return same.reshape(*lead, *[1] * size, *tail).expand(n.meta["one"].shape)
        return same.expand(n.meta["one"].shape)

    def _reached(self, n: Node, x: Tensor) -> Tensor:
        """What a gather's index covers: along the axes that it does not number, from the start."""
        axis: int = arguments(n)["dim"] % x.dim()
        for d in _all_but(x, axis):
            x = x.narrow(d, 0, n.meta["one"].shape[d])
        return x

    def _places(self, n: Node) -> dict[int, Any]:
        """Axis → the constant numbers that pick along it, or the node that computes them."""
        a = arguments(n)
        if n.target is aten.index.Tensor:
            given = {axis: index for axis, index in enumerate(a["indices"]) if index is not None}
        else:
            given = {a["dim"] % a["self"].meta["one"].dim(): a["index"]}
        return {axis: self._constant(index) for axis, index in given.items()}

    def _constant(self, node: Node) -> Any:
        return self.fetch_attr(str(node.target)) if node.op == "get_attr" else node

    def _picked(self, n: Node, x: Tensor, places: dict[int, Tensor]) -> Tensor:
        if n.target is aten.index.Tensor:
            picked: Tensor = aten.index.Tensor(x, [places.get(axis) for axis in range(max(places) + 1)])
            return picked
        axis, index = next(iter(places.items()))
        result: Tensor = n.target(x, axis, index)  # type: ignore[operator]
        return result

    def _write(self, n: Node, args: Any, kwargs: Any) -> Any:
        """What is written at numbers along some axes meets, along the others, what stood there."""
        x: Tensor = args[0]
        axes, parts = self._put(n, args) if n.target is aten.index_put.default else self._scattered(n, args)
        reason = f"{n.name} writes channels by their numbers"
        self.ledger.mixes.append(Mix(x, axes, reason))
        result = self._without(x, axes)
        for part, along in parts:
            self.ledger.mixes.append(Mix(part, along, reason))
            kept = self._without(part, along)
            rest = iter([kept.shape[d] for d in _others(part, along)])
            kept = kept.reshape([1 if d in axes else next(rest) for d in range(x.dim())])
            if any(size not in (1, whole) for size, whole in zip(kept.shape, x.shape, strict=True)):
                return self._unknown(n, args, f"{n.name} writes into a part of an axis")
            result = self.ledger.tie(result, kept, _CROSSED.format(n.name))
        return result.expand(n.meta["one"].shape)

    def _put(self, n: Node, args: Any) -> tuple[tuple[int, ...], list[tuple[Tensor, tuple[int, ...]]]]:
        """The axes of an index_put that are numbered, and the values with the axes that run over the numbers."""
        indices: Any = n.args[1]
        axes: list[int] = []
        rank, axis = 0, 0
        for index in indices:
            mask = index is not None and index.meta["one"].dtype is torch.bool
            covered = index.meta["one"].dim() if mask else 1
            if index is not None:
                axes += range(axis, axis + covered)
                rank = max(rank, 1 if mask else index.meta["one"].dim())
            axis += covered
        adjacent = axes == list(range(axes[0], axes[-1] + 1))
        first = axes[0] if adjacent else 0
        values = args[2].reshape((1,) * (args[0].dim() - len(axes) + rank - args[2].dim()) + args[2].shape)
        return tuple(axes), [(values, tuple(range(first, first + rank)))]

    def _scattered(self, n: Node, args: Any) -> tuple[tuple[int, ...], list[tuple[Tensor, tuple[int, ...]]]]:
        """The axis of a scatter, and the numbers and values that lie as the tensor does."""
        axes = (args[1] % args[0].dim(),)
        return axes, [(part, axes) for part in _tensors(args[2:])]

    def _unknown(self, n: Node, args: Any, reason: str) -> Any:
        for labels in _tensors(args):
            self.ledger.freeze(labels, reason)
        return _each(n, lambda made: _blank(made.shape))


_MODULES: tuple[tuple[tuple[type[nn.Module], ...], Any], ...] = (
    (CONVOLUTIONS, _Flow._conv),
    (TRANSPOSED, _Flow._conv_transpose),
    ((nn.Linear,), _Flow._linear),
    ((*BATCH_NORMS, *INSTANCE_NORMS), _Flow._batch_norm),
    ((nn.LayerNorm, nn.RMSNorm), _Flow._last_axis_norm),
    ((nn.GroupNorm,), _Flow._group_norm),
    ((nn.Embedding,), _Flow._embedding),
    ((nn.PReLU,), _Flow._prelu),
    (RECURRENT, _Flow._recurrent),
)


def reduced_axes(node: Node, rank: int) -> tuple[int, ...]:
    """The axes that a REDUCE operator works along."""
    return _axes_of(arguments(node).get(TABLE[node.target].axes), rank)


def _axes_of(dims: Any, rank: int) -> tuple[int, ...]:
    listed = [dims] if isinstance(dims, int) else list(dims or ())
    return tuple(sorted({d % rank for d in listed})) or tuple(range(rank))


def _constant_along(labels: Tensor, axes: tuple[int, ...]) -> Tensor:
    """Labels with size 1 along `axes`: those that are the same there, none where they vary."""
    small = compact(labels)
    varies = torch.zeros_like(small, dtype=torch.bool)
    for d in axes:
        varies |= (small != small.narrow(d, 0, 1)).any(d, keepdim=True)
    return torch.where(varies, torch.zeros_like(small), small).amax(axes, keepdim=True)


def _others(x: Tensor, axes: tuple[int, ...]) -> list[int]:
    return [d for d in range(x.dim()) if d not in axes]


def _blank(shape: Any) -> Tensor:
    blank: Tensor = torch.zeros((1,) * len(shape), dtype=torch.long).expand(tuple(shape))
    return blank


def _each(n: Node, function: Any) -> Any:
    """Labels for every tensor that a node yields, made from a tensor without storage that has its shape and type."""
    return torch.utils._pytree.tree_map(lambda v: function(v) if isinstance(v, Tensor) else v, n.meta["one"])


def _called(node: Node, args: Any, kwargs: Any) -> Any:
    """What the node's own operator makes of labels: it only moves them, or returns sizes."""
    operator: Any = node.target
    return operator(*args, **kwargs)


def _tensors(args: Any) -> list[Tensor]:
    return [leaf for leaf in torch.utils._pytree.tree_leaves(args) if isinstance(leaf, Tensor)]


def _all_but(x: Tensor, axis: int) -> tuple[int, ...]:
    return tuple(d for d in range(x.dim()) if d != axis)


def _along(channels: Tensor, axis: int, shape: Any) -> Tensor:
    """Labels of a shape that vary along one axis."""
    view = [1] * len(shape)
    view[axis] = -1
    return channels.reshape(view).expand(tuple(shape))


def _closure(ledger: Ledger) -> np.ndarray:
    """Class id per label: connected components of the ties; label 0 gets -1."""
    pairs = np.concatenate(ledger.ties) if ledger.ties else np.zeros((0, 2), np.int64)
    n = ledger.count
    matrix = coo_matrix((np.ones(len(pairs), np.int8), (pairs[:, 0], pairs[:, 1])), shape=(n, n))
    _, component = connected_components(matrix, directed=False)
    classes = np.asarray(component, np.int64)
    blank = classes[0]
    classes = np.where(classes > blank, classes - 1, classes)
    classes[0] = -1
    return classes


def _align(ledger: Ledger, values: dict[str, Tensor]) -> np.ndarray:
    """Ties on until every tensor's classes lie along single axes, so that a cut removes whole slices.

    A reshape (C) → (g, C/g) that is neither attention's (heads already tied) nor undone would need equal cuts in all of
    the g parts: its outer axis is tied. What still lies across axes once nothing more can be tied is frozen.
    """
    crossing = {name: value for name, value in values.items() if len(varying_axes(value)) > 1}
    while True:
        classes = _closure(ledger)
        crossing = {name: value for name, value in crossing.items() if _crosses(classes[compact(value).numpy()])}
        before = len(ledger.ties)
        for value in crossing.values():
            ledger.tie_all(value, (_outermost(classes[compact(value).numpy()]),))
        if len(ledger.ties) == before or (_closure(ledger) == classes).all():
            for name, value in crossing.items():
                ledger.freeze(value, f"channels lie across several axes of {name}")
            return classes


def _crosses(array: np.ndarray) -> bool:
    """Whether the classes along some axis vary along another one too."""
    axes = [d for d in range(array.ndim) if _varies(array, d)]
    return len(axes) > 1


def _outermost(array: np.ndarray) -> int:
    return next(d for d in range(array.ndim) if _varies(array, d))


def _varies(array: np.ndarray, axis: int) -> bool:
    return array.shape[axis] > 1 and bool((array != array.take([0], axis)).any())


def _varying(array: np.ndarray, axes: tuple[int, ...]) -> np.ndarray:
    """Classes found in slices along `axes` that hold more than one class."""
    moved = np.moveaxis(array, axes, range(-len(axes), 0))
    flat = moved.reshape(*moved.shape[: moved.ndim - len(axes)], -1)
    differs = (flat != flat[..., :1]).any(-1)
    return np.unique(flat[differs])
