"""Batch norm re-estimation: after a change, every norm's output gets back the mean and spread it had before."""

from collections.abc import Mapping, Sequence
from typing import Any

import torch
from torch import Tensor, nn
from torch.fx import GraphModule

from autocompress.batches import Batch, as_one
from autocompress.graph.labels import BATCH_NORMS
from autocompress.graph.types import Graph
from autocompress.matrices import kept_positions


def reestimate(model: GraphModule, graph: Graph, keep: Mapping[str, Sequence[int]], batches: Sequence[Batch]) -> None:
    """Sets the running statistics of every batch norm in place; `keep` is what the model was cut with.

    Statistics are not simply measured anew: the data they came from is not the calibration data (a ResNet-20 trained on
    crops padded with black lost 3.5 points by that alone, its stem's variance being 30 % larger than on whole images).
    Instead they are moved by as much as the norm's input has moved from the original's on the same batches: with input
    mean m, variance v here and m0, v0 there, var = var0 v / v0 and mean = m - sigma (m0 - mean0) / sigma0. An unchanged
    model stays as it is; a channel that was constant in the original keeps its variance. Each norm is set before what
    follows it is measured. Takes the batches as one.
    """
    inputs = as_one(batches)
    names = _norms(model)
    wanted: dict[str, tuple[Tensor, Tensor]] = {}

    def note(name: str, norm: Any, x: Tensor) -> None:
        rows = kept_positions(graph, keep, name, produces=False, tensor="running_mean")
        mean, variance = _moments(x)
        wanted[name] = mean[rows], variance[rows]

    def move(name: str, norm: Any, x: Tensor) -> None:
        (mean0, variance0), (mean, variance) = wanted[name], _moments(x)
        sigma0 = (norm.running_var + norm.eps).sqrt()
        floor = torch.finfo(variance0.dtype).eps * norm.running_var
        norm.running_var *= torch.where(variance0 > floor, variance / variance0.clamp_min(floor), 1.0)
        sigma = (norm.running_var + norm.eps).sqrt()
        norm.running_mean.copy_(mean - sigma * (mean0 - norm.running_mean) / sigma0)

    _observed(graph.model, names, inputs, note)
    _observed(model, names, inputs, move)


def _observed(model: GraphModule, norms: Sequence[str], inputs: tuple[Tensor, ...], observe: Any) -> None:
    """Runs the model, calling observe(name, norm, input) before each of the norms."""

    def hook(name: str) -> Any:
        return lambda module, args: observe(name, module, args[0])

    handles = [model.get_submodule(name).register_forward_pre_hook(hook(name)) for name in norms]
    try:
        with torch.no_grad():
            model(*inputs)
    finally:
        for handle in handles:
            handle.remove()


def _norms(model: nn.Module) -> list[str]:
    return [name for name, m in model.named_modules() if isinstance(m, BATCH_NORMS) and m.track_running_stats]


def _moments(x: Tensor) -> tuple[Tensor, Tensor]:
    """Mean and variance per channel (axis 1)."""
    variance, mean = torch.var_mean(x, [d for d in range(x.dim()) if d != 1], correction=0)
    return mean, variance
