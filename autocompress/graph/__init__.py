"""THE walk: a model becomes a Graph of layers, fused kernels, proven channel groups and residual branches."""

import copy
from collections import Counter
from collections.abc import Mapping, Sequence
from dataclasses import replace
from fnmatch import fnmatchcase
from itertools import chain

from torch import Tensor, nn
from torch.fx import GraphModule, Node

from autocompress.graph.branches import find_branches, with_branches
from autocompress.graph.check import check_group
from autocompress.graph.groups import axis_classes, find_groups
from autocompress.graph.kernels import Fused, fuse
from autocompress.graph.labels import CONVOLUTIONS, TRANSPOSED, label
from autocompress.graph.rewrites import apply_exact
from autocompress.graph.trace import capture, fingerprint
from autocompress.graph.types import Branch, Graph, Group, Layer, Member, Share
from autocompress.vocabulary.errors import TraceError
from autocompress.vocabulary.workload import Workload

__all__ = ["Branch", "Graph", "Group", "Layer", "Member", "Share", "trace"]

_KINDS: dict[type[nn.Module], str] = {
    **dict.fromkeys(CONVOLUTIONS, "conv"),
    **dict.fromkeys(TRANSPOSED, "conv_transpose"),
    nn.Linear: "linear",
}


def trace(model: nn.Module, example_inputs: Tensor | tuple[Tensor, ...], frozen: Sequence[str] = ()) -> Graph:
    """Everything that is known about a model before any data is seen.

    `frozen` are fnmatch patterns of layers to leave alone. Every group that is not frozen has passed the dead-channel
    check. Raises TraceError where the model can't be captured or holds nothing to compress.
    """
    inputs = example_inputs if isinstance(example_inputs, tuple) else (example_inputs,)
    lifted = capture(copy.deepcopy(model), inputs)
    calls = Counter(str(n.target) for n in lifted.graph.nodes if n.op == "call_module")
    labels = label(lifted, {name for name, count in calls.items() if count > 1})
    layers = _layers(lifted, calls, frozen)
    if not layers:
        raise TraceError("the model holds no convolution or linear layer: nothing to compress; check Task.model")
    classes = {name: found for name, array in labels.nodes.items() if (found := axis_classes(array))}
    graph = Graph(fingerprint(lifted), lifted, inputs, find_groups(labels, frozen), layers, {}, classes=classes)
    return _with_kernels(_with_branches(_with_proofs(graph), frozen))


def _layers(model: GraphModule, calls: Mapping[str, int], frozen: Sequence[str]) -> dict[str, Layer]:
    layers: dict[str, Layer] = {}
    for node in model.graph.nodes:
        if node.op != "call_module":
            continue
        name = str(node.target)
        module = model.get_submodule(name)
        kind = _KINDS.get(type(module))
        if kind is None or name in layers:
            continue
        pattern = next((f for f in frozen if fnmatchcase(name, f)), None)
        reason = f"left alone by the task ({pattern})" if pattern else None
        reason = reason or ("used more than once" if calls[name] > 1 else None)
        layers[name] = Layer(name, kind, node.name, tuple(module.weight.shape), reason)  # type: ignore[arg-type]
    return layers


def _with_proofs(graph: Graph) -> Graph:
    groups = {
        name: group if group.frozen else replace(group, frozen=check_group(graph, group))
        for name, group in graph.groups.items()
    }
    return replace(graph, groups=groups)


def _with_branches(graph: Graph, frozen: Sequence[str]) -> Graph:
    branches = {
        add: branch
        for add, branch in find_branches(graph.model, graph.layers).items()
        if not any(graph.layers[name].frozen for name in branch.layers)
    }
    return replace(graph, branches=branches, groups=with_branches(graph.groups, branches, graph.model))


def _with_kernels(graph: Graph) -> Graph:
    rewritten = copy.deepcopy(graph.model)
    apply_exact(rewritten, graph.example_inputs)
    fused = fuse(rewritten, graph.example_inputs)
    gone = {
        add: (*(k for k in fused.kernels if _started_in(k, branch, rewritten)), fused.holder[add])
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


def _started_in(kernel: str, branch: Branch, model: GraphModule) -> bool:
    return any(
        n.name in branch.nodes and kernel == (str(n.target) if n.op == "call_module" else n.name)
        for n in model.graph.nodes
    )


def _shares(graph: Graph, fused: Fused) -> dict[str, dict[str, Share]]:
    """How often each channel of a group lies on the channel axes of every kernel."""
    group_of = {number: group.id for group in graph.groups.values() for number in group.classes}
    nodes = {node.name: node for node in graph.model.graph.nodes}
    made_by: dict[str, Node] = {}
    for name, holder in fused.holder.items():
        if name in nodes and isinstance(nodes[name].meta["val"], Tensor):
            made_by.setdefault(holder, nodes[name])
    shares: dict[str, dict[str, Share]] = {name: {} for name in graph.groups}
    for name, kernel in fused.kernels.items():
        sources = fused.sources[name] if kernel.workload.op == "concat" else fused.sources[name][:1]
        read = [_along_axes(graph, nodes.get(source), kernel.workload, group_of) for source in sources]
        made = _along_axes(graph, made_by.get(name), kernel.workload, group_of)
        depthwise = kernel.workload.groups > 1 and kernel.workload.groups == kernel.workload.in_channels
        for group in {g for axis in (*chain(*read), *made) for g in axis}:
            channels = graph.groups[group].channels
            inputs = sum(axes[0][group] for axes in read if axes) // channels
            outputs = (made[0][group] if made else 0) // channels
            size = tuple(axis[group] // channels for axis in (read[0][1:] if read else ()))
            out_size = tuple(axis[group] // channels for axis in made[1:])
            shares[group][name] = Share(
                inputs,
                outputs,
                inputs if depthwise else 0,
                size if any(size) else (),
                out_size if any(out_size) else (),
            )
    return shares


def _along_axes(graph: Graph, node: Node | None, workload: Workload, group_of: Mapping[int, str]) -> list[Counter[str]]:
    """How often each group lies along a node's channel axis, then along its other axes as Workload orders them."""
    if node is None or not isinstance(node.meta["val"], Tensor):
        return []
    rank = node.meta["val"].dim()
    convolves = workload.op in ("conv", "conv_transpose")
    channel = rank - 1 if workload.op == "linear" or (rank == 3 and not convolves) else 1
    order = [channel, *(axis for axis in range(1, rank) if axis != channel)]
    axes = graph.classes.get(node.name, {})
    return [Counter(group_of[c] for c in axes.get(axis, ()) if c in group_of) for axis in order]
