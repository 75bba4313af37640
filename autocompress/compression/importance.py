"""Importance of a group's channels: how much is lost with each of them, larger = keep.

An importance is a function `(model, group, evidence) -> Tensor[channels]`; `evidence` iterates over calibration
batches and answers for what is costly and shared (Gram matrices, gradients). One is found by its entry point.
"""

from collections.abc import Callable, Iterable, Iterator, Mapping
from typing import Any, Protocol

import torch
from torch import Tensor, nn
from torch.fx import GraphModule
from torch.nn import functional as F

from autocompress.compression.matrices import NOTHING, TINY, columns, folded_weight, ridged, solvable, window_of
from autocompress.graph.labels import BATCH_NORMS, CONVOLUTIONS, TRANSPOSED
from autocompress.graph.types import Group, Member
from autocompress.task.batches import Batch, chunks, size, subset
from autocompress.task.outputs import Outputs, classes_first, paired, sole
from autocompress.vocabulary import plugins
from autocompress.vocabulary.errors import BuildError, ConfigError, nearest

GateGradients = Mapping[str, Tensor]
"""Layer → [samples, input channels]: d loss / d gate of a gate of value 1 on each channel that enters the layer."""


class Evidence(Protocol):
    """What calibration data says of the model, as importances may ask for it (see repair.statistics)."""

    def __iter__(self) -> Iterator[Batch]: ...

    def gram(self, layer: str) -> Tensor | None:
        """Second moments of what enters a layer, float64 [d+1, d+1]; None where there are none."""

    def gate_gradients(self) -> GateGradients: ...


Importance = Callable[[GraphModule, Group, Evidence], Tensor]

_AT_ONCE = 64
"""An elimination removes one in so many of the channels left at a time. On two linear layers with 256 to 1,024 channels
between them what is left errs as much as one by one (to 1.3 %), and 1,536 channels take a fifth of the time."""

_BACKWARD_SAMPLES = 64
"""Samples per backward pass, to bound the memory for activations."""


def require_importance(name: str) -> None:
    """Raises ConfigError, naming the nearest, for an importance that nobody declares."""
    known = plugins.names(plugins.IMPORTANCES)
    if name not in known:
        raise ConfigError(f"unknown importance {name!r}: {nearest(name, known)}")


def score_channels(name: str, model: GraphModule, group: Group, evidence: Evidence) -> Tensor:
    """Scores [channels], float64, at least 0, with mean 1 (all 1 where nothing tells the channels apart)."""
    require_importance(name)
    importance: Importance = plugins.load(plugins.IMPORTANCES, name)
    place = f"the {name} importance of {group.id}"
    with solvable(place):
        scores = importance(model, group, evidence).double()
    if not scores.isfinite().all():
        raise BuildError(
            f"{place} is not finite for some channels; choose another importance, or leave the group whole"
        )
    mean = scores.mean()
    return scores / mean if mean > 0 else torch.ones_like(scores)


def l1(model: GraphModule, group: Group, evidence: Evidence) -> Tensor:
    """Sum of absolute weights (Li et al., ICLR 2017) over all the group's members (DepGraph, CVPR 2023, 3.3)."""
    return _magnitude(model, group, order=1)


def l2(model: GraphModule, group: Group, evidence: Evidence) -> Tensor:
    """Euclidean norm of the weights, over all the group's members (DepGraph, CVPR 2023, 3.3)."""
    return _magnitude(model, group, order=2)


def taylor(model: GraphModule, group: Group, evidence: Evidence) -> Tensor:
    """Mean |d loss / d gate| of a gate on the channel (Molchanov et al., CVPR 2019, eq. 8 with gates)."""
    return _gates(model, group, evidence).abs().mean(0)


def fisher(model: GraphModule, group: Group, evidence: Evidence) -> Tensor:
    """Half the mean squared gate gradient: the second-order loss of removal (Theis et al., 2018, eq. 7)."""
    return _gates(model, group, evidence).square().mean(0) / 2


def reconstruction(model: GraphModule, group: Group, evidence: Evidence) -> Tensor:
    """The channel's place (1, 2, ...) in a greedy elimination that always removes what is cheapest to make up for.

    Cost is the error of the consumers' outputs after the best least-squares compensation by the channels left, in
    closed form from the inverse Gram matrix (Hassibi and Stork, 1993; blockwise as in OBC, Frantar and Alistarh, 2022),
    relative to each consumer's output power; rows count by the scale of the norm that follows. Consumers without a Gram
    matrix have no say; if there are none with one, magnitudes (l2) decide. As long as 128 channels or more are left,
    several are removed at a time.
    """
    eliminations = [
        _Elimination(model, member, gram)
        for member in group.members
        if member.tensor == "weight" and not member.produces and (gram := evidence.gram(member.target)) is not None
    ]
    if not eliminations:
        return l2(model, group, evidence)
    place = torch.zeros(group.channels, dtype=torch.float64)
    gone = 0
    while gone < group.channels:
        costs = torch.stack([elimination.costs() for elimination in eliminations]).sum(0)
        costs = costs.masked_fill(place > 0, torch.inf)
        cheapest = costs.argsort(stable=True)[: max(1, (group.channels - gone) // _AT_ONCE)]
        place[cheapest] = gone + torch.arange(1, len(cheapest) + 1, dtype=torch.float64)
        gone += len(cheapest)
        for elimination in eliminations:
            elimination.remove(cheapest)
    return place


class _Elimination:
    """One consumer's weights W and inverse Gram matrix H^-1 while channels (blocks of columns) leave both."""

    def __init__(self, model: GraphModule, member: Member, gram: Tensor) -> None:
        weight = folded_weight(model, member.target).flatten(1).double()
        window = window_of(model.get_submodule(member.target))
        self.columns = torch.tensor([columns(positions, window) for positions in member.index])
        self.weight = F.pad(weight, (0, 1))
        power = torch.einsum("oi,ij,oj->", self.weight, gram, self.weight)
        self.weight *= power.rsqrt() if power > NOTHING else 0.0
        self.inverse = torch.linalg.inv(ridged(gram))

    def costs(self) -> Tensor:
        """Error [channels] that removing each channel next would add, everything left compensating."""
        blocks = self.inverse[self.columns[:, :, None], self.columns[:, None, :]]
        weights = self.weight[:, self.columns].permute(1, 2, 0)
        errors: Tensor = (weights * torch.linalg.solve(blocks, weights)).sum((1, 2))
        return errors

    def remove(self, channels: Tensor) -> None:
        gone = self.columns[channels].flatten()
        rows = self.inverse[gone]
        gain = torch.linalg.solve(rows[:, gone], rows)
        self.weight -= self.weight[:, gone] @ gain
        self.inverse -= rows.T @ gain
        self.weight[:, gone] = 0
        self.inverse[gone, :] = 0
        self.inverse[:, gone] = 0
        self.inverse[gone, gone] = 1


def _magnitude(model: GraphModule, group: Group, order: int) -> Tensor:
    """Norms of every member's slice of each channel, batch norms folded in, summed over members of equal say."""
    total = torch.zeros(group.channels, dtype=torch.float64)
    for member in group.members:
        values = _weight(model, member)
        if values is None:
            continue
        slices = (
            values.detach().double().movedim(member.axis, 0).flatten(1)
            if values.dim() > 1
            else values.double()[:, None]
        )
        norms = slices.norm(order, dim=1)
        index = torch.tensor(member.index)
        total += norms[index].norm(order, dim=1) / norms.mean().clamp_min(TINY)
    return total


def _weight(model: GraphModule, member: Member) -> Tensor | None:
    """What a member contributes to magnitudes; biases and statistics do not, batch norms do through `folded_weight`."""
    if not member.tensor:
        return None
    module: Any = model.get_submodule(member.target)
    if member.tensor != "weight" or isinstance(module, BATCH_NORMS):
        return None
    is_layer = isinstance(module, (nn.Linear, *CONVOLUTIONS, *TRANSPOSED))
    return folded_weight(model, member.target) if is_layer else module.weight.detach()


def _gates(model: GraphModule, group: Group, evidence: Evidence) -> Tensor:
    """Gate gradients [samples, channels] of the group: summed over all the layers that read its channels."""
    gradients = evidence.gate_gradients()
    total: Tensor | None = None
    for member in group.members:
        if member.tensor != "weight" or member.produces or member.target not in gradients:
            continue
        entering = gradients[member.target]
        groups = getattr(model.get_submodule(member.target), "groups", 1)
        folded = entering.reshape(len(entering), groups, -1).sum(1)
        found = folded[:, torch.tensor(member.index)].sum(-1)
        total = found if total is None else total + found
    return torch.ones(1, group.channels) if total is None else total


def gate_gradients(model: GraphModule, layers: Iterable[str], batches: Iterable[Batch]) -> GateGradients:
    """See GateGradients; one forward and backward pass over the batches, parameters without gradients.

    Layers that read no activations (embeddings) or do not reach the output are left out.
    """
    batches = list(batches)
    gates: dict[str, Tensor] = {}
    handles = [model.get_submodule(name).register_forward_pre_hook(_gate(name, gates)) for name in layers]
    found: dict[str, list[Tensor]] = {}
    try:
        for batch in chunks(batches, _samples_per_pass(model, gates, batches)):
            gates.clear()
            with torch.enable_grad():
                loss = _surprise(model(*batch[0]), batch[1])
                gradients = torch.autograd.grad(loss, list(gates.values()), allow_unused=True)
            for name, gradient in zip(gates, gradients, strict=True):
                if gradient is not None:
                    rows = gradient.flatten(1)
                    found.setdefault(name, []).append(rows if len(rows) == size(batch) else rows.sum(0, keepdim=True))
    finally:
        for handle in handles:
            handle.remove()
    return {name: torch.cat(parts) for name, parts in found.items()}


def _samples_per_pass(model: GraphModule, gates: Mapping[str, Tensor], batches: list[Batch]) -> int:
    """One where a layer's first axis holds anything but the samples (positions, windows, heads): gates lie along it."""
    for samples in (1, 2):
        batch = subset(batches, samples)[0]
        with torch.no_grad():
            model(*batch[0])
        if any(len(gate) != size(batch) for gate in gates.values()):
            return 1
    return _BACKWARD_SAMPLES


def _gate(name: str, gates: dict[str, Tensor]) -> Any:
    """A forward hook that multiplies each sample's input channels by a gate of 1, noted under the layer's name."""

    def multiply(module: nn.Module, args: tuple[Tensor, ...]) -> tuple[Tensor, ...]:
        x, *rest = args
        axis = x.dim() - 1 if isinstance(module, nn.Linear) else 1
        shape = [size if d in (0, axis) else 1 for d, size in enumerate(x.shape)]
        gates[name] = torch.ones(shape, dtype=x.dtype, requires_grad=True)
        return (x * gates[name], *rest)

    return multiply


def _surprise(outputs: Outputs, targets: Any) -> Tensor:
    """Negative log-likelihood summed over samples: of integer labels where there are any, else of the squared error.

    Of several outputs all floating ones count; those that targets say nothing of are taken relative to their mean
    square, per value, so that a wide hidden state does not drown the rest.
    """
    only = sole(outputs)
    if isinstance(only, Tensor):
        return _surprise_of_one(only, targets)
    return torch.stack([_part(outputs[i], about) for i, about in paired(outputs, targets)]).sum()


def _part(output: Tensor, targets: Any) -> Tensor:
    if targets is not None:
        return _surprise_of_one(output, targets)
    power = output.detach().square().mean().clamp_min(TINY) * (output.numel() / len(output))
    return output.square().sum() / (2 * power)


def _surprise_of_one(outputs: Tensor, targets: Any) -> Tensor:
    if isinstance(targets, Tensor) and not targets.is_floating_point() and outputs.dim() == targets.dim() + 1:
        scores = classes_first(outputs, targets) if targets.dim() else outputs
        return F.cross_entropy(scores, targets, reduction="sum")
    if isinstance(targets, Tensor) and targets.shape == outputs.shape:
        return (outputs - targets).square().sum() / 2
    return outputs.square().sum() / 2
