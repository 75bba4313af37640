"""THE walk: a model becomes a Graph of layers, fused kernels, proven channel groups and residual branches."""

import copy
import logging
from collections import Counter
from collections.abc import Mapping, Sequence
from dataclasses import replace
from fnmatch import fnmatchcase
from typing import Any

import numpy as np
from torch import Tensor, nn
from torch.fx import GraphModule

from autocompress.graph.branches import find_branches, with_branches
from autocompress.graph.capture import Axes
from autocompress.graph.check import check_groups
from autocompress.graph.groups import axis_classes, find_groups
from autocompress.graph.kernels import Fused, Side, fuse
from autocompress.graph.labels import CONVOLUTIONS, TRANSPOSED, label
from autocompress.graph.rewrites import apply_exact
from autocompress.graph.trace import capture, fingerprint
from autocompress.graph.types import Branch, Graph, Group, Layer, Member, Share
from autocompress.vocabulary.errors import TraceError

_log = logging.getLogger(__name__)

__all__ = ["Branch", "Graph", "Group", "Layer", "Member", "Share", "trace"]

_KINDS: dict[type[nn.Module], str] = {
    **dict.fromkeys(CONVOLUTIONS, "conv"),
    **dict.fromkeys(TRANSPOSED, "conv_transpose"),
    nn.Linear: "linear",
}


def trace(
    model: nn.Module,
    example_inputs: Tensor | tuple[Tensor, ...],
    frozen: Sequence[str] = (),
    axes: Axes | None = None,
) -> Graph:
    """Everything that is known about a model before any data is seen.

    `frozen` are fnmatch patterns of layers to leave alone, `axes` the free axes of every input (None: the batch, axis
    0). Every group that is not frozen has passed the dead-channel
    check. Raises TraceError where the model can't be captured or holds nothing to compress.
    """
    inputs = example_inputs if isinstance(example_inputs, tuple) else (example_inputs,)
    lifted = capture(model, inputs, axes)
    _log.info("following its channels")
    labels = label(lifted)
    layers = _layers(lifted, frozen)
    if not layers:
        raise TraceError("the model holds no convolution or linear layer: nothing to compress; check Task.model")
    classes = {
        name: found for name, array in labels.nodes.items() if (found := _classes(array, labels.widths.get(name)))
    }
    graph = Graph(fingerprint(lifted), lifted, inputs, find_groups(labels, frozen), layers, {}, classes=classes)
    return _with_kernels(_with_branches(_with_proofs(graph), frozen))


def _classes(array: np.ndarray, widths: np.ndarray | None) -> dict[int, tuple[int, ...]]:
    """Classes by axis of a node's output."""
    along = axis_classes(array)
    return along if widths is None else along | {array.ndim - 1: tuple(widths.tolist())}


def _layers(model: GraphModule, frozen: Sequence[str]) -> dict[str, Layer]:
    """Layers by the name of their first call; `calls` are all modules that hold the layer's weight as it does."""
    layers: dict[str, Layer] = {}
    shared = _shared_weights(model)
    for node in model.graph.nodes:
        module: Any = model.get_submodule(str(node.target)) if node.op == "call_module" else None
        kind = _KINDS.get(type(module))
        if kind is None:
            continue
        name = str(node.target)
        first = name.partition("@")[0]
        if first in layers:
            layers[first] = replace(layers[first], calls=(*layers[first].calls, name))
            continue
        pattern = next((f for f in frozen if fnmatchcase(name, f)), None)
        reason = f"left alone by the task ({pattern})" if pattern else None
        shape = tuple(module.weight.shape)
        layers[name] = Layer(name, kind, node.name, shape, reason, (name,), id(module.weight) in shared)
    return layers


def _shared_weights(model: GraphModule) -> set[int]:
    """Weights that several modules hold."""
    held = Counter(id(tensor) for module in model.modules() for tensor in module.parameters(recurse=False))
    return {tensor for tensor, count in held.items() if count > 1}


def _with_proofs(graph: Graph) -> Graph:
    free = [group for group in graph.groups.values() if group.frozen is None]
    _log.info("proving %d groups of channels", len(free))
    reasons = check_groups(graph, free)
    return replace(graph, groups={n: replace(g, frozen=reasons.get(n, g.frozen)) for n, g in graph.groups.items()})


def _with_branches(graph: Graph, frozen: Sequence[str]) -> Graph:
    branches = {
        add: branch
        for add, branch in find_branches(graph.model, graph.layers).items()
        if not any(graph.layers[name].frozen for name in branch.layers)
    }
    return replace(graph, branches=branches, groups=with_branches(graph.groups, branches, graph.model))


def _with_kernels(graph: Graph) -> Graph:
    """The kernels, and which of them go with each branch."""
    _log.info("listing its kernels")
    rewritten = copy.deepcopy(graph.model)
    apply_exact(rewritten, graph.example_inputs)
    fused = fuse(rewritten, graph.example_inputs)
    gone = {
        add: (*(k for k, place in fused.places.items() if place.node in branch.nodes), fused.holder[add])
        for add, branch in graph.branches.items()
    }
    shortcuts = {add: fused.holder[branch.shortcut] for add, branch in graph.branches.items()}
    return replace(
        graph,
        kernels=fused.kernels,
        shares=_shares(graph, fused),
        branch_kernels=gone,
        branch_shortcuts=shortcuts,
    )


def _shares(graph: Graph, fused: Fused) -> dict[str, dict[str, Share]]:
    """How often each channel of a group lies on the axes of every kernel."""
    group_of = {number: group.id for group in graph.groups.values() for number in group.classes}
    shares: dict[str, dict[str, Share]] = {name: {} for name in graph.groups}
    for name, kernel in fused.kernels.items():
        read = _along_axes(graph, fused.places[name].reads, group_of)
        made = _along_axes(graph, fused.places[name].makes, group_of)
        depthwise = kernel.workload.groups > 1 and kernel.workload.groups == kernel.workload.in_channels
        for group in {g for axis in (*read, *made) for g in axis}:
            channels = graph.groups[group].channels
            inputs, *size = (axis[group] / channels for axis in read)
            outputs, *out_size = (axis[group] / channels for axis in made)
            shares[group][name] = Share(
                inputs,
                outputs,
                inputs if depthwise else 0,
                tuple(size) if any(size) else (),
                tuple(out_size) if any(out_size) else (),
            )
    return shares


def _along_axes(graph: Graph, side: Side, group_of: Mapping[int, str]) -> list[Counter[str]]:
    """How often each group lies along the axes of a node's value, channels first; on none, where it has none."""
    axes = graph.classes.get(side.node, {})
    found = [Counter(group_of[c] for c in axes.get(axis, ()) if c in group_of) for axis in side.axes]
    return found or [Counter()]
