"""Linear CKA: how alike the features of two models are, whatever their widths and rotations."""

import torch
from torch import Tensor
from torch.fx import GraphModule

from autocompress.compression.features import outputs_and_features
from autocompress.task.batches import batches
from autocompress.task.task import Loader
from autocompress.vocabulary.errors import TaskError


def linear_cka(a: Tensor, b: Tensor) -> float:
    """Similarity in [0, 1] of features (samples, p) and (samples, q) of the same samples.

    1 for features that are equal up to rotation and scale. ||Y'X||^2 / (||X'X|| ||Y'Y||) of the centred features in
    Frobenius norms (Kornblith et al., ICML 2019, eq. 5), from the samples' Gram matrices, so that wide features cost
    nothing. Features that do not vary give 0.
    """
    x, y = (_centred_gram(features) for features in (a, b))
    scale = (x.norm() * y.norm()).item()
    return (x * y).sum().item() / scale if scale > 0 else 0.0


def cka(model: GraphModule, other: GraphModule, split: Loader, nodes: tuple[str, ...]) -> dict[str, float]:
    """Linear CKA of both models' features at each named node that both have, over all samples of a split.

    Features are averaged over positions. Raises TaskError for a node that neither model has.
    """
    wanted = set(nodes)
    known = {node.name for found in (model, other) for node in found.graph.nodes}
    if missing := wanted - known:
        raise TaskError(f"neither model has a node {sorted(missing)[0]!r}; inspect lists the model's layers")
    collected: dict[str, tuple[list[Tensor], list[Tensor]]] = {name: ([], []) for name in nodes}
    for inputs, _ in batches(split):
        for side, found in enumerate((model, other)):
            with torch.no_grad():
                features = outputs_and_features(found, inputs, wanted)[1]
            for name, value in features.items():
                collected[name][side].append(_per_sample(value))
    return {name: linear_cka(torch.cat(a), torch.cat(b)) for name, (a, b) in collected.items() if a and b}


def _per_sample(value: Tensor) -> Tensor:
    """(N, C, positions...) averaged to (N, C); (N, T, C) to (N, C)."""
    if value.dim() == 3:
        return value.mean(1)
    return value.flatten(2).mean(2) if value.dim() > 2 else value


def _centred_gram(features: Tensor) -> Tensor:
    centred = features.double() - features.double().mean(0)
    return centred @ centred.T
