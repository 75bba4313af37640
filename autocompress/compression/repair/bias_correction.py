"""Bias correction: each rounded layer's mean output is brought back to the original's, measured through the chain."""

from collections.abc import Callable, Iterable, Sequence
from typing import Any

import torch
from torch import Tensor, nn
from torch.fx import GraphModule

from autocompress.task.batches import Batch, as_one

Observe = Callable[[str, nn.Module, Tensor], Tensor | None]
"""Told a layer's name, the layer and its output; what it returns, if anything, takes the output's place."""


def correct_biases(model: GraphModule, reference: GraphModule, batches: Sequence[Batch], layers: Iterable[str]) -> None:
    """b -= E[W' x' - W x] in place, for convolutions and linear layers (Nagel et al., ICCV 2019, section 4.2).

    x' is what really arrives after all earlier layers were corrected, so that the layers' errors do not add up. Layers
    that either model lacks, or calls more than once, are passed over. Takes the batches as one: some 100 samples do.
    """
    shared = [name for name in layers if _called_once(model, name) and _called_once(reference, name)]
    inputs = as_one(batches)
    wanted: dict[str, Tensor] = {}

    def note(name: str, layer: nn.Module, output: Tensor) -> None:
        wanted[name] = _channel_means(layer, output)

    def correct(name: str, layer: Any, output: Tensor) -> Tensor:
        shift = wanted[name] - _channel_means(layer, output)
        layer.bias = nn.Parameter((shift if layer.bias is None else layer.bias + shift).to(layer.weight.dtype))
        axis = _channel_axis(layer, output)
        return output + shift.reshape([-1 if d == axis else 1 for d in range(output.dim())])

    _observed(reference, shared, inputs, note)
    _observed(model, shared, inputs, correct)


def _observed(model: GraphModule, layers: Sequence[str], inputs: tuple[Tensor, ...], observe: Observe) -> None:
    """Runs the model and calls `observe` on what each layer makes."""

    def hook(name: str) -> Any:
        return lambda layer, args, output: observe(name, layer, output)

    handles = [model.get_submodule(name).register_forward_hook(hook(name)) for name in layers]
    try:
        with torch.no_grad():
            model(*inputs)
    finally:
        for handle in handles:
            handle.remove()


def _channel_means(layer: nn.Module, output: Tensor) -> Tensor:
    """Mean of a layer's output per channel, over samples and positions."""
    axis = _channel_axis(layer, output)
    return output.mean([d for d in range(output.dim()) if d != axis])


def _channel_axis(layer: nn.Module, output: Tensor) -> int:
    return output.dim() - 1 if isinstance(layer, nn.Linear) else 1


def _called_once(model: GraphModule, layer: str) -> bool:
    return [str(node.target) for node in model.graph.nodes if node.op == "call_module"].count(layer) == 1
