"""Bias correction: each layer's mean output is brought back to the original's, measured through the changed chain."""

from collections.abc import Mapping, Sequence
from typing import Any

import torch
from torch import Tensor, nn
from torch.fx import GraphModule

from autocompress.batches import Batch, as_one
from autocompress.matrices import following_norm


def correct_biases(
    model: GraphModule, reference: GraphModule, batches: Sequence[Batch], rows: Mapping[str, Sequence[int]]
) -> None:
    """b -= E[W' x' - W x] in place, for every layer of `rows` (Nagel et al., ICCV 2019, section 4.2).

    x' is what really arrives after all earlier layers were corrected, so that the layers' errors do not add up; outputs
    are compared behind the layer's batch norm. `rows[layer]` are the outputs of the reference's layer that the model
    still has, in order; layers that either model lacks are passed over. Takes the batches as one: a few hundred samples
    do.
    """
    layers = [name for name in rows if _called_once(model, name) and _called_once(reference, name)]
    inputs = as_one(batches)
    wanted: dict[str, Tensor] = {}

    def note(name: str, module: nn.Module, output: Tensor) -> None:
        wanted[name] = _channel_means(module, output)

    def correct(name: str, module: nn.Module, output: Tensor) -> Tensor:
        shift = wanted[name][list(rows[name])] - _channel_means(module, output)
        _shift(module, shift)
        axis = _channel_axis(module, output)
        return output + shift.reshape([-1 if d == axis else 1 for d in range(output.dim())])

    _observed(reference, layers, inputs, note)
    _observed(model, layers, inputs, correct)


def _observed(model: GraphModule, layers: Sequence[str], inputs: tuple[Tensor, ...], observe: Any) -> None:
    """Runs the model, calling observe(layer, module, output) where each layer's output is complete."""

    def hook(name: str) -> Any:
        return lambda module, args, output: observe(name, module, output)

    ends = {name: following_norm(model, name) or model.get_submodule(name) for name in layers}
    handles = [module.register_forward_hook(hook(name)) for name, module in ends.items()]
    try:
        with torch.no_grad():
            model(*inputs)
    finally:
        for handle in handles:
            handle.remove()


def _shift(module: Any, shift: Tensor) -> None:
    """To the bias; a norm without one has no weight either, so its mean takes it, in units of its input."""
    if module.bias is not None:
        module.bias += shift.to(module.bias.dtype)
    elif getattr(module, "running_mean", None) is not None:
        module.running_mean -= shift * (module.running_var + module.eps).sqrt()
    else:
        module.bias = nn.Parameter(shift.to(module.weight.dtype))


def _channel_means(module: nn.Module, output: Tensor) -> Tensor:
    """Mean of a layer's output per channel, over samples and positions."""
    axis = _channel_axis(module, output)
    return output.mean([d for d in range(output.dim()) if d != axis])


def _channel_axis(module: nn.Module, output: Tensor) -> int:
    return output.dim() - 1 if isinstance(module, nn.Linear) else 1


def _called_once(model: GraphModule, layer: str) -> bool:
    return [str(node.target) for node in model.graph.nodes if node.op == "call_module"].count(layer) == 1
