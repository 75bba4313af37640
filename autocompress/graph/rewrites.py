"""Exact rewrites: the same function in operations that runtimes execute faster, each proven equal where it is made."""

import operator
from collections.abc import Callable
from dataclasses import dataclass, field
from typing import Any

import torch
from torch import Tensor, nn
from torch.fx import GraphModule, Node

from autocompress.graph.calls import arguments, calls
from autocompress.graph.capture import one_sample
from autocompress.graph.lift import sweep
from autocompress.graph.recording import recorded
from autocompress.vocabulary.precision import FIXED_SUFFIX

aten = torch.ops.aten

_CONVOLUTIONS = (nn.Conv1d, nn.Conv2d, nn.Conv3d)
_TRANSPOSED = (nn.ConvTranspose1d, nn.ConvTranspose2d, nn.ConvTranspose3d)
_BATCH_NORMS = (nn.BatchNorm1d, nn.BatchNorm2d, nn.BatchNorm3d)
_UNIT_ROUNDOFF = 2.0**-24


@dataclass(frozen=True, slots=True)
class Rewrite:
    """One rewrite that was made: `place` is the layer or node, `max_difference` what the proof saw on the example."""

    kind: str
    place: str
    max_difference: float


def apply_exact(model: GraphModule, example_inputs: tuple[Tensor, ...]) -> tuple[Rewrite, ...]:
    """Makes every rewrite that applies, in place, and returns them in order.

    Each rewritten operation is run on what reaches it for the example and compared with what it replaces; one that
    differs by more than rounding explains is not made. `model.meta["rewrites"]` collects all that were made, and
    `model.meta["replaced"]` maps the name of each node that is gone to that of the node that now yields its value.
    """
    with torch.no_grad():
        scene = _Scene.of(model, example_inputs)
        done = [made for rule in _RULES for node in list(model.graph.nodes) if (made := rule(scene, node)) is not None]
    sweep(model)
    model.meta["rewrites"] = (*model.meta.get("rewrites", ()), *done)
    return tuple(done)


@dataclass(slots=True)
class _Scene:
    """A model being rewritten, with the value of every node for the example."""

    model: GraphModule
    values: dict[Node, Any]
    replaced: dict[str, str]
    folds: dict[tuple[int, ...], tuple[Any, Any, nn.Parameter, nn.Parameter]] = field(default_factory=dict)

    @staticmethod
    def of(model: GraphModule, example_inputs: tuple[Tensor, ...]) -> "_Scene":
        training = model.training
        model.eval()
        values = recorded(model, one_sample(model, example_inputs))
        model.train(training)
        return _Scene(model, values, model.meta.setdefault("replaced", {}))

    def module(self, node: Any, kinds: tuple[type, ...]) -> Any:
        """The module that `node` calls if it is one of `kinds` and called here only."""
        if not isinstance(node, Node) or node.op != "call_module":
            return None
        found = self.model.get_submodule(str(node.target))
        calls = sum(other.op == "call_module" and other.target == node.target for other in self.model.graph.nodes)
        return found if isinstance(found, kinds) and calls == 1 else None

    def folded(self, layer: Any, norm: Any, weight: Tensor, bias: Tensor) -> tuple[nn.Parameter, nn.Parameter]:
        """Parameters for a layer and its norm in one; calls that share both share these."""
        sources = (layer.weight, layer.bias, norm.weight, norm.bias)
        same = (norm.running_mean, norm.running_var)
        key = (*map(id, sources), *(hash(tuple(t.tolist())) for t in same))
        if key not in self.folds:
            trains = layer.weight.requires_grad
            made = nn.Parameter(weight, requires_grad=trains), nn.Parameter(bias, requires_grad=trains)
            self.folds[key] = sources, same, *made
        return self.folds[key][2:]

    def remove(self, node: Node, stand_in: Node) -> None:
        """`stand_in` yields what `node` did."""
        node.replace_all_uses_with(stand_in)
        self.values[stand_in] = self.values.pop(node)
        for gone, name in list(self.replaced.items()):
            if name == node.name:
                self.replaced[gone] = stand_in.name
        self.replaced[node.name] = stand_in.name
        self.model.graph.erase_node(node)


def _difference(ours: Tensor, theirs: Tensor) -> float:
    if ours.shape != theirs.shape:
        return float("inf")
    return float((ours - theirs).abs().max()) if ours.numel() else 0.0


def _rounding(products: int, magnitude: Tensor) -> float:
    """How far two float32 sums of `products` terms may lie apart in any order of summation.

    `magnitude` is the sum of the terms' absolute values (Higham, Accuracy and Stability of Numerical Algorithms, 2002,
    section 3.1: each errs by at most n u / (1 - n u) times it). Eight more operations are granted for scaling a term.
    """
    n = products + 8
    return 2 * n * _UNIT_ROUNDOFF / (1 - n * _UNIT_ROUNDOFF) * float(magnitude.max())


def _fold_batch_norm(scene: _Scene, node: Node) -> Rewrite | None:
    """BN(W x + b) becomes one layer with scaled weight and shifted bias."""
    norm = scene.module(node, _BATCH_NORMS)
    source = node.args[0] if norm is not None else None
    layer = scene.module(source, (*_CONVOLUTIONS, *_TRANSPOSED, nn.Linear))
    if layer is None or norm.running_var is None or len(source.users) != 1:  # type: ignore[union-attr]
        return None
    assert isinstance(source, Node)
    if isinstance(layer, nn.Linear) and scene.values[source].dim() != 2:
        return None
    weight, bias, bias_terms = _folded(layer, norm)
    x = scene.values[source.args[0]]  # type: ignore[index]
    products = weight[0].numel() if not isinstance(layer, _TRANSPOSED) else weight[:, 0].numel()
    bound = _rounding(products, _with_parameters(layer, x.abs(), weight.abs(), bias_terms))
    difference = _difference(_with_parameters(layer, x, weight, bias), scene.values[node])
    if not difference <= bound:
        return None
    layer.weight, layer.bias = scene.folded(layer, norm, weight, bias)
    scene.remove(node, source)
    return Rewrite("fold_batch_norm", str(source.target), difference)


def _folded(layer: Any, norm: Any) -> tuple[Tensor, Tensor, Tensor]:
    """Weight and bias that do both, and the sum of the bias's terms in absolute value; computed in double precision."""
    zero = torch.zeros_like(norm.running_mean)
    bias = (layer.bias if layer.bias is not None else zero).double()
    gamma = (norm.weight if norm.weight is not None else zero + 1).double()
    beta = (norm.bias if norm.bias is not None else zero).double()
    scale = gamma / (norm.running_var.double() + norm.eps).sqrt()
    mean = norm.running_mean.double()
    terms = (bias * scale).abs() + (mean * scale).abs() + beta.abs()
    weight = _scale_outputs(layer, layer.weight.double(), scale)
    return weight.float(), ((bias - mean) * scale + beta).float(), terms.float()


def _scale_outputs(layer: Any, weight: Tensor, scale: Tensor) -> Tensor:
    """Scales what makes each output channel: rows, or for a transposed convolution columns (within each group)."""
    if not isinstance(layer, _TRANSPOSED):
        return weight * scale.reshape(-1, *[1] * (weight.dim() - 1))
    grouped = weight.reshape(layer.groups, -1, *weight.shape[1:])
    return (grouped * scale.reshape(layer.groups, 1, -1, *[1] * (weight.dim() - 2))).reshape(weight.shape)


def _with_parameters(layer: nn.Module, x: Tensor, weight: Tensor, bias: Tensor) -> Tensor:
    found: Tensor = torch.func.functional_call(layer, {"weight": weight}, (x,))
    if getattr(layer, "bias", None) is not None:
        found = torch.func.functional_call(layer, {"weight": weight, "bias": torch.zeros_like(bias)}, (x,))
    return found + bias.reshape(-1, *[1] * (found.dim() - 2))


def _shortcut_as_convolution(scene: _Scene, node: Node) -> Rewrite | None:
    """Every s-th pixel with zero channels around becomes a strided 1x1 convolution that selects channels."""
    pads = _zeros_added(node)
    if pads is None or len(pads) != 6 or any(pads[:4]) or min(pads[4:]) < 0:
        return None
    stride, source = _strided_slices(node.args[0])
    x = scene.values[source]
    if x.dim() != 4 or stride == (1, 1):
        return None
    channels = x.shape[1]
    select = nn.Conv2d(channels, pads[4] + channels + pads[5], 1, stride, bias=False).eval().requires_grad_(False)
    select.weight.zero_()[pads[4] + torch.arange(channels), torch.arange(channels)] = 1
    difference = _difference(select(x), scene.values[node])
    if difference != 0:
        return None
    name = node.name + FIXED_SUFFIX
    scene.model.add_submodule(name, select)
    _become(node, "call_module", name, (source,))
    return Rewrite("shortcut_as_convolution", node.name, difference)


def _zeros_added(node: Node) -> list[int] | None:
    """How many zeros a padding node adds, in torch's order (last axis first); None if it is no such node."""
    if not calls(node, aten.constant_pad_nd.default, aten.pad.default):
        return None
    a = arguments(node)
    zeros = not a["value"] and a.get("mode", "constant") == "constant"
    return list(a["pad"]) if zeros else None


def _strided_slices(node: Any) -> tuple[tuple[int, int], Any]:
    """(stride over rows, stride over columns) of a chain of slices of whole maps, and what they slice."""
    stride = {2: 1, 3: 1}
    while isinstance(node, Node) and calls(node, aten.slice.Tensor):
        a = arguments(node)
        if a["dim"] not in stride or a["start"] not in (0, None) or (a["end"] is not None and a["end"] < 2**31):
            break
        stride[a["dim"]] *= a["step"]
        node = a["self"]
    return (stride[2], stride[3]), node


def _pool_as_mean(scene: _Scene, node: Node) -> Rewrite | None:
    """Average pooling over whole maps becomes a mean over their axes."""
    if not calls(node, aten.avg_pool2d.default, aten.adaptive_avg_pool2d.default):
        return None
    source: Any = node.args[0]
    x, y = scene.values[source], scene.values[node]
    if x.dim() != 4 or y.shape[2:] != (1, 1):
        return None
    difference = _difference(x.mean((2, 3), keepdim=True), y)
    if not difference <= _rounding(x[0, 0].numel(), x.abs().mean((2, 3))):
        return None
    _become(node, "call_function", aten.mean.dim, (source, [2, 3], True))
    return Rewrite("pool_as_mean", node.name, difference)


def _drop_relu(scene: _Scene, node: Node) -> Rewrite | None:
    """ReLU does nothing to a tensor that can't be negative."""
    if not calls(node, aten.relu.default) or not _non_negative(node.args[0]):
        return None
    return _drop(scene, node, "drop_relu")


_POSITIVE = {aten.relu.default, aten.relu6.default, aten.sigmoid.default, aten.hardsigmoid.default, aten.softmax.int,
             aten._softmax.default, aten.exp.default, aten.abs.default, aten.softplus.default}  # fmt: skip
_SIGN_KEEPING = {aten.max_pool2d.default, aten.avg_pool2d.default, aten.adaptive_avg_pool2d.default, aten.mean.dim,
                 aten.reshape.default, aten.permute.default, aten.transpose.int, aten.slice.Tensor, aten.cat.default,
                 aten.split.Tensor, aten.split_with_sizes.default, aten.chunk.default, operator.getitem}  # fmt: skip


def _non_negative(node: Any) -> bool:
    """Whether no element can be below zero, whatever the input."""
    if not isinstance(node, Node) or node.op != "call_function":
        return False
    if node.target in _POSITIVE:
        return True
    if node.target is aten.hardtanh.default:
        return bool(arguments(node)["min_val"] >= 0)
    if _zeros_added(node) is not None:
        return _non_negative(node.args[0])
    if node.target in (aten.add.Tensor, aten.mul.Tensor):
        return not node.kwargs and all(map(_non_negative, node.args))
    operands = (n for n in node.all_input_nodes if not calls(n, aten.sym_size.int))
    return node.target in _SIGN_KEEPING and all(map(_non_negative, operands))


def _drop_identity(scene: _Scene, node: Node) -> Rewrite | None:
    """Slices of everything, pads by nothing and reshapes to the same shape do nothing."""
    moves = calls(node, aten.slice.Tensor, aten.reshape.default, aten.expand.default)
    if not moves and _zeros_added(node) is None:
        return None
    source: Any = node.args[0]
    if not isinstance(scene.values.get(source), Tensor) or scene.values[source].shape != scene.values[node].shape:
        return None
    return _drop(scene, node, "drop_identity") if _keeps_any_batch(node) else None


def _keeps_any_batch(node: Node) -> bool:
    """Whether an equal shape for one sample means an equal shape for many."""
    if node.target is aten.slice.Tensor:
        return bool(arguments(node)["dim"] != 0)
    if node.target is aten.expand.default:
        return _same_batch(node)
    sizes: Any = node.args[1]
    return _zeros_added(node) is not None or not isinstance(sizes[0], int) or sizes[0] == -1


def _same_batch(node: Node) -> bool:
    """Whether the axes that grow with the batch are those of the operand."""
    source: Any = node.args[0]
    if not all(key in n.meta for n in (source, node) for key in ("one", "val")):
        return False
    grows = [[a != b for a, b in zip(n.meta["one"].shape, n.meta["val"].shape, strict=True)] for n in (source, node)]
    return grows[0] == grows[1]


def _drop(scene: _Scene, node: Node, kind: str) -> Rewrite | None:
    source: Any = node.args[0]
    if source.op == "placeholder" and any(user.op == "output" for user in node.users):
        return None
    difference = _difference(scene.values[source], scene.values[node])
    if difference != 0:
        return None
    name = node.name
    scene.remove(node, source)
    return Rewrite(kind, name, difference)


def _become(node: Node, op: str, target: Any, args: tuple[Any, ...]) -> None:
    """Changes what a node does and keeps its name, by which others know its value."""
    node.op, node.target, node.args, node.kwargs = op, target, args, {}


_RULES: tuple[Callable[[_Scene, Node], Rewrite | None], ...] = (
    _fold_batch_norm,
    _shortcut_as_convolution,
    _pool_as_mean,
    _drop_relu,
    _drop_identity,
)
