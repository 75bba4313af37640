"""An architecture of the zoo: how it is built, what it is called with, and which bar it is held against."""

from collections.abc import Callable
from dataclasses import dataclass
from typing import Any

import torch
from torch import Tensor, nn

Inputs = Callable[[int], Any]
"""Batch size → random inputs: a tuple of tensors, or a dict of keyword arguments."""


@dataclass(frozen=True, slots=True)
class Architecture:
    """`family` is conv, attention (ViT, BERT and their like), yolo or other: MACs that halving must take away.

    `needs` is the package that it comes from, imported when it is built; empty for plain torch.
    """

    build: Callable[[], nn.Module]
    inputs: Inputs
    family: str = "conv"
    needs: str = ""


def images(size: int = 32, channels: int = 3) -> Inputs:
    return lambda batch: (torch.randn(batch, channels, size, size),)


def noise(*shape: int) -> Inputs:
    """Normal numbers of this shape, behind the batch axis."""
    return lambda batch: (torch.randn(batch, *shape),)


def tokens(length: int, vocabulary: int) -> Inputs:
    return lambda batch: (torch.randint(0, vocabulary, (batch, length)),)


def several(*parts: Inputs) -> Inputs:
    return lambda batch: tuple(tensor for part in parts for tensor in part(batch))


def integers(vocabulary: int, *shape: int) -> Inputs:
    return lambda batch: (torch.randint(0, vocabulary, (batch, *shape)),)


def excite(model: nn.Module, inputs: Any) -> None:
    """Makes, in place, every parameter count as in a trained model: norms are no identities, zero-initialised heads and
    tiny layer scales are filled, running statistics are near those of the inputs but not the same."""
    for module in model.modules():
        for name, parameter in module.named_parameters(recurse=False):
            _fill(module, name, parameter)
    _settle_statistics(model, inputs)


def _fill(module: nn.Module, name: str, parameter: Tensor) -> None:
    with torch.no_grad():
        if name == "weight" and "norm" in type(module).__name__.lower():
            parameter.uniform_(0.5, 1.5)
        elif float(parameter.abs().max()) < 1e-3 or bool((parameter == parameter.flatten()[0]).all()):
            _refill(name, parameter)


def _refill(name: str, parameter: Tensor) -> None:
    """A parameter that is zero, tiny or constant: a bias, a scale, or the weight of a zero-initialised layer."""
    if parameter.dim() > 1 and "bias" not in name and parameter.numel() > max(parameter.shape):
        parameter.normal_(0.0, parameter[0].numel() ** -0.5)
    elif "bias" in name:
        parameter.normal_(0.0, 0.2)
    else:
        parameter.uniform_(0.5, 1.5)


def _settle_statistics(model: nn.Module, inputs: Any) -> None:
    """Norms without them let activations explode in deep nets with random weights."""
    norms = [module for module in model.modules() if isinstance(module, nn.modules.batchnorm._BatchNorm)]
    for norm in norms:
        norm.train()
        norm.momentum = 1.0
    call(model, inputs)
    for norm in norms:
        norm.eval()
        norm.momentum = 0.1
        spread = norm.running_var.sqrt()
        norm.running_mean += 0.2 * spread * torch.randn_like(spread)
        norm.running_var *= torch.empty_like(spread).uniform_(0.5, 2.0)
        norm.running_var += 1e-3


def call(model: nn.Module, inputs: Any) -> Any:
    """The model's output, without gradients."""
    with torch.no_grad():
        return model(**inputs) if isinstance(inputs, dict) else model(*inputs)
