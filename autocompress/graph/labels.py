"""Channel labels carried through the graph: which elements of which tensors live and die together.

Every tensor gets a label tensor of its own shape (batch of one). Layers hand out fresh labels for the channels they
make; operators that move elements are simply run on the labels; operators that combine elements tie the labels that
meet. What is tied in the end, element by element, is one *class*: a channel that can only be cut as a whole.
"""

from dataclasses import dataclass, field
from typing import Any

import numpy as np
import torch
from scipy.sparse import coo_matrix
from scipy.sparse.csgraph import connected_components
from torch import Tensor, nn
from torch.fx import GraphModule, Node

from autocompress.graph.operators import TABLE, Passage

CONVOLUTIONS = (nn.Conv1d, nn.Conv2d, nn.Conv3d)
TRANSPOSED = (nn.ConvTranspose1d, nn.ConvTranspose2d, nn.ConvTranspose3d)
BATCH_NORMS = (nn.BatchNorm1d, nn.BatchNorm2d, nn.BatchNorm3d)


@dataclass(slots=True)
class Axis:
    """Labels along one axis of one parameter; `produces` as in Member."""

    target: str
    tensor: str
    axis: int
    labels: Tensor
    produces: bool


@dataclass(slots=True)
class Labels:
    """The outcome: classes per element of every node's output, parameter axes, and why classes are frozen.

    `nodes[name]` holds class ids (-1: none) with the shape of the node's output at batch size 1.
    """

    nodes: dict[str, np.ndarray]
    axes: list[Axis]
    frozen: dict[int, str]
    free_tensors: dict[str, np.ndarray]
    count: int = 0


@dataclass(slots=True)
class _Mix:
    labels: Tensor
    axes: tuple[int, ...]
    reason: str


@dataclass(slots=True)
class _Ledger:
    """Collects ties and reasons while labels flow; label 0 stands for 'no channel'."""

    count: int = 1
    ties: list[np.ndarray] = field(default_factory=list)
    axes: list[Axis] = field(default_factory=list)
    freezes: list[tuple[Tensor, str]] = field(default_factory=list)
    mixes: list[_Mix] = field(default_factory=list)

    def fresh(self, *shape: int) -> Tensor:
        size = int(np.prod(shape))
        labels = torch.arange(self.count, self.count + size).reshape(shape)
        self.count += size
        return labels

    def tie(self, a: Tensor, b: Tensor) -> Tensor:
        """Labels that meet element by element become one; where one side has none, the other's stands."""
        a, b = torch.broadcast_tensors(a, b)
        meet = (a > 0) & (b > 0) & (a != b)
        if meet.any():
            pairs = torch.stack([a[meet], b[meet]], 1).unique(dim=0)
            self.ties.append(pairs.numpy())
        return torch.where(a > 0, a, b)

    def tie_all(self, labels: Tensor, dims: tuple[int, ...]) -> Tensor:
        """Ties everything along `dims`, which are kept with size 1; elements without a label take the others'."""
        kept = [d for d in range(labels.dim()) if d not in dims]
        flat = labels.permute(*kept, *dims).reshape(*[labels.shape[d] for d in kept], -1)
        first = flat.max(-1, keepdim=True).values
        self.tie(first, flat)
        result = first.squeeze(-1)
        for d in sorted(dims):
            result = result.unsqueeze(d)
        return result

    def freeze(self, labels: Tensor, reason: str) -> None:
        self.freezes.append((labels.unique(), reason))


class _Flow(torch.fx.Interpreter):
    """Runs the graph on labels instead of activations."""

    def __init__(self, model: GraphModule, ledger: _Ledger, shared: set[str]) -> None:
        super().__init__(model)
        self.ledger = ledger
        self.shared = shared
        self.values: dict[str, Any] = {}

    def run_node(self, n: Node) -> Any:
        if n.op == "output":
            for value in torch.utils._pytree.tree_leaves(self.map_nodes_to_values(n.args, n)):
                self.ledger.freeze(value, "an output of the model")
            return None
        args, kwargs = self.fetch_args_kwargs_from_env(n)
        value = getattr(self, f"_{n.op}")(n, args, kwargs)
        self.values[n.name] = value
        return value

    def _placeholder(self, n: Node, args: Any, kwargs: Any) -> Tensor:
        meta = n.meta["val"]
        shape = (1, *meta.shape[1:])
        if not meta.dtype.is_floating_point:
            return torch.zeros(shape, dtype=torch.long)
        labels = self.ledger.fresh(*shape)
        self.ledger.freeze(labels, "an input of the model")
        return labels

    def _get_attr(self, n: Node, args: Any, kwargs: Any) -> Tensor:
        tensor = self.fetch_attr(str(n.target))
        if not tensor.dtype.is_floating_point or tensor.numel() < 2:
            return torch.zeros(tensor.shape, dtype=torch.long)
        return self.ledger.fresh(*tensor.shape)

    def _call_module(self, n: Node, args: Any, kwargs: Any) -> Tensor:
        module, x = self.fetch_attr(str(n.target)), args[0]
        name = str(n.target)
        if isinstance(module, CONVOLUTIONS):
            y = self._conv(n, name, module, x)
        elif isinstance(module, TRANSPOSED):
            y = self._conv_transpose(n, name, module, x)
        elif isinstance(module, nn.Linear):
            y = self._linear(name, module, x)
        elif isinstance(module, BATCH_NORMS):
            y = self._norm(name, module, self.ledger.tie_all(x, _all_but(x, 1)), x, 1)
        elif isinstance(module, nn.LayerNorm):
            y = self._layer_norm(name, module, x)
        elif isinstance(module, nn.GroupNorm):
            y = self._norm(name, module, self.ledger.tie_all(x, _all_but(x, 1)), x, 1)
            self.ledger.mixes.append(_Mix(y, (1,), f"{name} normalises over groups of channels"))
        elif isinstance(module, nn.Embedding):
            y = self._embedding(name, module, x)
        else:
            unknown: Tensor = self._unknown(
                n, args, f"{name} is a {type(module).__name__}, which is not in the operator table"
            )
            return unknown
        if name in self.shared:
            self.ledger.freeze(torch.cat([x.flatten(), y.flatten()]), f"{name} is used more than once")
        return y

    def _own(self, name: str, tensor: str, axis: int, labels: Tensor, produces: bool) -> None:
        self.ledger.axes.append(Axis(name, tensor, axis, labels.flatten(), produces))

    def _conv(self, n: Node, name: str, module: Any, x: Tensor) -> Tensor:
        spatial = tuple(range(2, x.dim()))
        inputs = self.ledger.tie_all(x, (0, *spatial)).flatten()
        outputs = self.ledger.fresh(module.out_channels)
        if module.groups > 1:
            self._tie_groups(inputs, outputs, module.groups)
            inputs = inputs[: module.in_channels // module.groups]
            if module.groups == module.in_channels:
                inputs = torch.zeros_like(inputs)
        self._own(name, "weight", 1, inputs, False)
        self._own(name, "weight", 0, outputs, True)
        if module.bias is not None:
            self._own(name, "bias", 0, outputs, True)
        return _spread(outputs, 1, self._out_shape(n))

    def _tie_groups(self, inputs: Tensor, outputs: Tensor, groups: int) -> None:
        """Depthwise: a channel goes with what is made of it. Grouped: channel i of every group goes together."""
        if groups == inputs.numel():
            self.ledger.tie(inputs.reshape(-1, 1), outputs.reshape(groups, -1))
            return
        self.ledger.tie_all(inputs.reshape(groups, -1), (0,))
        self.ledger.tie_all(outputs.reshape(groups, -1), (0,))

    def _conv_transpose(self, n: Node, name: str, module: Any, x: Tensor) -> Tensor:
        spatial = tuple(range(2, x.dim()))
        inputs = self.ledger.tie_all(x, (0, *spatial)).flatten()
        outputs = self.ledger.fresh(module.out_channels)
        if module.groups > 1:
            self.ledger.freeze(torch.cat([inputs, outputs]), f"{name} is a grouped transposed convolution")
        self._own(name, "weight", 0, inputs, False)
        self._own(name, "weight", 1, outputs, True)
        if module.bias is not None:
            self._own(name, "bias", 0, outputs, True)
        return _spread(outputs, 1, self._out_shape(n))

    def _linear(self, name: str, module: nn.Linear, x: Tensor) -> Tensor:
        last = x.dim() - 1
        inputs = self.ledger.tie_all(x, tuple(range(last))).flatten()
        outputs = self.ledger.fresh(module.out_features)
        self._own(name, "weight", 1, inputs, False)
        self._own(name, "weight", 0, outputs, True)
        if module.bias is not None:
            self._own(name, "bias", 0, outputs, True)
        return outputs.expand(*x.shape[:-1], -1)

    def _norm(self, name: str, module: Any, channels: Tensor, x: Tensor, axis: int) -> Tensor:
        for tensor in ("weight", "bias", "running_mean", "running_var"):
            if getattr(module, tensor, None) is not None:
                self._own(name, tensor, 0, channels, tensor in ("weight", "bias"))
        return channels.expand(x.shape)

    def _layer_norm(self, name: str, module: nn.LayerNorm, x: Tensor) -> Tensor:
        rank = len(module.normalized_shape)
        last = tuple(range(x.dim() - rank, x.dim()))
        if rank != 1:
            self.ledger.freeze(x, f"{name} normalises over {rank} axes")
            return x
        y = self._norm(name, module, self.ledger.tie_all(x, tuple(range(x.dim() - 1))), x, last[0])
        self.ledger.mixes.append(_Mix(y, last, f"{name} normalises over the channels"))
        return y

    def _embedding(self, name: str, module: nn.Embedding, x: Tensor) -> Tensor:
        outputs = self.ledger.fresh(module.embedding_dim)
        self._own(name, "weight", 1, outputs, True)
        return outputs.expand(*x.shape, -1)

    def _call_function(self, n: Node, args: Any, kwargs: Any) -> Any:
        if not _tensors(args):
            value = _called(n, args, kwargs)
            return torch.zeros(value.shape, dtype=torch.long) if isinstance(value, Tensor) else value
        row = TABLE.get(n.target)
        if row is None:
            return self._unknown(n, args, f"{n.target} is not in the operator table")
        if row.passage is Passage.SIZE:
            return _called(n, args, kwargs)
        return getattr(self, f"_{row.passage.name.lower()}")(n, args, kwargs)

    def _move(self, n: Node, args: Any, kwargs: Any) -> Any:
        return _called(n, args, kwargs)

    def _elementwise(self, n: Node, args: Any, kwargs: Any) -> Tensor:
        tensors = _tensors(args)
        result = tensors[0]
        for other in tensors[1:]:
            result = self.ledger.tie(result, other)
        return result

    def _per_channel(self, n: Node, args: Any, kwargs: Any) -> Tensor:
        channels = self.ledger.tie_all(args[0], _all_but(args[0], 1))
        return channels.expand(self._out_shape(n))

    def _reduce(self, n: Node, args: Any, kwargs: Any) -> Tensor:
        x: Tensor = args[0]
        dims = kwargs.get("dim", args[1] if len(args) > 1 else None) or range(x.dim())
        axes = tuple(d % x.dim() for d in dims)
        self.ledger.mixes.append(_Mix(x, axes, f"{n.name} sums over the channels"))
        keep = kwargs.get("keepdim", args[2] if len(args) > 2 else False)
        return x.amax(axes, keepdim=bool(keep))

    def _normalise(self, n: Node, args: Any, kwargs: Any) -> Tensor:
        x: Tensor = args[0]
        axis = kwargs.get("dim", args[1] if len(args) > 1 else -1)
        self.ledger.mixes.append(_Mix(x, (axis % x.dim(),), f"{n.name} normalises over the channels"))
        return x

    def _contract(self, n: Node, args: Any, kwargs: Any) -> Tensor:
        """Everything inside one head (the last two axes of each operand) is tied into one class."""
        operands = [t for t in _tensors(args)[:3] if t.dim() >= 3]
        heads = self.ledger.tie_all(operands[0], (operands[0].dim() - 2, operands[0].dim() - 1))
        for other in operands[1:]:
            heads = self.ledger.tie(heads, self.ledger.tie_all(other, (other.dim() - 2, other.dim() - 1)))
        return heads.expand(self._out_shape(n))

    def _pad(self, n: Node, args: Any, kwargs: Any) -> Tensor:
        """Zeros beside channels get labels of their own: an add that meets them decides what they stand for."""
        padded: Tensor = torch.ops.aten.constant_pad_nd.default(args[0], args[1], -1)
        added = padded < 0
        padded[added] = self.ledger.fresh(int(added.sum()))
        return padded

    def _unknown(self, n: Node, args: Any, reason: str) -> Any:
        for labels in _tensors(args):
            self.ledger.freeze(labels, reason)
        return torch.utils._pytree.tree_map(
            lambda v: torch.zeros((1, *v.shape[1:]), dtype=torch.long) if isinstance(v, Tensor) else v, n.meta["val"]
        )

    def _out_shape(self, n: Node) -> tuple[int, ...]:
        return (1, *n.meta["val"].shape[1:])


def _called(node: Node, args: Any, kwargs: Any) -> Any:
    """What the node's own operator makes of labels: it only moves them, or returns sizes."""
    operator: Any = node.target
    return operator(*args, **kwargs)


def _tensors(args: Any) -> list[Tensor]:
    return [leaf for leaf in torch.utils._pytree.tree_leaves(args) if isinstance(leaf, Tensor)]


def _all_but(x: Tensor, axis: int) -> tuple[int, ...]:
    return tuple(d for d in range(x.dim()) if d != axis)


def _spread(channels: Tensor, axis: int, shape: tuple[int, ...]) -> Tensor:
    view = [1] * len(shape)
    view[axis] = -1
    return channels.reshape(view).expand(shape)


def label(model: GraphModule, shared: set[str]) -> Labels:
    """Labels of a lifted model; `shared` are modules called more than once, whose channels are frozen."""
    ledger = _Ledger()
    flow = _Flow(model, ledger, shared)
    names = [node for node in model.graph.nodes if node.op == "placeholder"]
    flow.run(*names)
    values = {name: v for name, v in flow.values.items() if isinstance(v, Tensor)}
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
    nodes = {name: classes[v.numpy()] for name, v in values.items()}
    return Labels(nodes, axes, frozen, free, int(classes.max()) + 1)


def _closure(ledger: _Ledger) -> np.ndarray:
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


def _align(ledger: _Ledger, values: dict[str, Tensor]) -> np.ndarray:
    """Ties on until every tensor's classes lie along single axes, so that a cut removes whole slices.

    A reshape (C) → (g, C/g) that is neither attention's (heads already tied) nor undone would need equal cuts in all of
    the g parts: its outer axis is tied.
    """
    while True:
        classes = _closure(ledger)
        tied = False
        for value in values.values():
            array = classes[value.numpy()]
            if array.size == 0 or array.max() < 0:
                continue
            axes = [d for d in range(1, array.ndim) if _varies(array, d)]
            crossing = [d for d in axes if not _alone(array, d)]
            if crossing and len(axes) > 1:
                ledger.tie_all(value, (axes[0],))
                tied = True
        if not tied:
            return classes


def _varies(array: np.ndarray, axis: int) -> bool:
    return bool((array != array.take([0], axis)).any())


def _alone(array: np.ndarray, axis: int) -> bool:
    """Whether the classes vary along `axis` only."""
    return not any(_varies(array, d) for d in range(array.ndim) if d != axis)


def _varying(array: np.ndarray, axes: tuple[int, ...]) -> np.ndarray:
    """Classes found in slices along `axes` that hold more than one class."""
    moved = np.moveaxis(array, axes, range(-len(axes), 0))
    flat = moved.reshape(*moved.shape[: moved.ndim - len(axes)], -1)
    differs = (flat != flat[..., :1]).any(-1)
    return np.unique(flat[differs])
