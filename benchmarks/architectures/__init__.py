"""The zoo: well-known architectures with random weights, those in plain torch first."""

import torch
from torch import nn

from architectures import attention, detection, huggingface, images, packages, pictures, signals, tables
from architectures.architecture import Architecture, call, excite

PLAIN = {
    f"plain.{name}": found
    for module in (images, pictures, detection, signals, attention, tables)
    for name, found in module.NETS.items()
}
ARCHITECTURES = PLAIN | packages.NETS | huggingface.NETS

__all__ = ["ARCHITECTURES", "PLAIN", "Architecture", "call", "make"]


def make(name: str, seed: int = 0) -> nn.Module:
    """The model in eval mode, the same for the same seed; raises ImportError where its package is missing."""
    torch.manual_seed(seed)
    found = ARCHITECTURES[name]
    model = found.build().eval()
    call(model, found.inputs(2))  # gives lazy layers their sizes
    excite(model, found.inputs(8))
    return model
