"""Layer-wise least squares: after a cut, each reader's weights are solved anew from what is left of its input."""

from collections.abc import Mapping, Sequence
from typing import Any

import torch
from torch import Tensor
from torch.fx import GraphModule
from torch.nn import functional as F

from autocompress.compression.matrices import (
    RIDGE,
    columns,
    kept_positions,
    require_finite,
    shift_outputs,
    solvable,
    solve,
    window_of,
)
from autocompress.compression.repair.statistics import Statistics
from autocompress.graph.types import Graph


def repair(
    model: GraphModule, graph: Graph, keep: Mapping[str, Sequence[int]], statistics: Statistics
) -> tuple[str, ...]:
    """Refits, in place, every layer of the cut model that lost input channels; returns their names.

    `keep` is what the model was cut with. The constant goes into the layer's bias or the batch norm that follows.
    Layers that went with their branch, or have no Gram matrix, stay as they are.
    """
    present = {str(node.target) for node in model.graph.nodes if node.op == "call_module"}
    repaired = []
    for name in graph.layers:
        gram = statistics.gram(name)
        inputs = kept_positions(graph, keep, name, produces=False) if gram is not None and name in present else []
        if gram is None or name not in present or len(inputs) == graph.layers[name].weight_shape[1]:
            continue
        rows = kept_positions(graph, keep, name, produces=True)
        _refit(model, graph, name, rows, inputs, gram)
        repaired.append(name)
    return tuple(repaired)


def _refit(model: GraphModule, graph: Graph, layer: str, rows: list[int], inputs: list[int], gram: Tensor) -> None:
    original: Any = graph.model.get_submodule(layer)
    module: Any = model.get_submodule(layer)
    weight = original.weight.detach()[rows].flatten(1).double()
    with solvable(layer):
        solved, shift = fit(weight, gram, columns(inputs, window_of(original)))
    require_finite(layer, (solved, shift))
    with torch.no_grad():
        module.weight.copy_(solved.reshape(module.weight.shape))
    shift_outputs(model, layer, shift)


def fit(weight: Tensor, gram: Tensor, kept: Sequence[int], ridge: float = RIDGE) -> tuple[Tensor, Tensor]:
    """Weights [out, len(kept)] and constant [out] that best give weight [out, d] @ x from the kept entries of x alone.

    Minimises E|W x - Z x_kept - z|^2 + r |Z - W_kept|^2, r = `ridge` of the mean squared input: W* = (Y X^T + r W_kept)
    (X X^T + r I)^-1 with a row of ones in X, pulled towards the original weights rather than to zero. `gram` is
    [d+1, d+1] with the constant last, float64.
    """
    places = torch.tensor([*kept, gram.shape[0] - 1])
    wanted = F.pad(weight, (0, 1)) @ gram[:, places]
    return solve(gram[places][:, places], wanted, weight[:, places[:-1]], ridge)
