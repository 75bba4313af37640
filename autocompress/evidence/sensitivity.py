"""How far a model's outputs move where its 8-bit tensors are rounded in another way that is as right."""

from collections.abc import Iterator
from contextlib import contextmanager
from typing import Any

import numpy as np
import torch
from torch import nn

from autocompress.compression.fake_quant import FakeQuantize
from autocompress.compression.weight_only import RoundGroups
from autocompress.evidence.verify import model_rows
from autocompress.task.batches import Batch

DRAWS = 4
"""Simulations whose roundings are drawn anew; few outputs of few samples would make one an unsteady estimate."""


def rounding_effect(model: nn.Module, batch: Batch, seed: int = 0) -> tuple[float, ...]:
    """Root mean square difference that independent roundings of the 8-bit tensors make to each output of a simulation,
    called with flat inputs; the outputs are those of `verify.model_rows`.

    A runtime sums in another order than the simulation, so that values near the middle between two steps fall to the
    other side. That seldom stays small: of the outputs of a layer whose inputs are off by 1/n of a step, about one in n
    is decided otherwise, and is then off by a whole step. So the variance of a perturbation becomes its square root
    from layer to layer: after half a dozen the roundings are as good as independent, however little it was at first.
    How much of that reaches the outputs is the model's own matter (of 27 to 80 layers with random weights between
    0.0003 and 0.13 of the outputs' range), so it is measured: each tensor is rounded up or down at random, in
    proportion to how near either is. That differs from the nearest by step^2 / 4 on average, where two independent
    rounding errors differ by step^2 / 6. 0 without 8-bit tensors.
    """
    roundings = [module for module in model.modules() if isinstance(module, (FakeQuantize, RoundGroups))]
    nearest = model_rows(model, batch)
    if not roundings:
        return (0.0,) * len(nearest.widths)
    generator = torch.Generator().manual_seed(seed)
    with _rounded_at_random(roundings, generator):
        draws = [model_rows(model, batch) for _ in range(DRAWS)]
    squares = [[np.square(a - b).mean() for a, b in zip(nearest.parts(), d.parts(), strict=True)] for d in draws]
    return tuple(float(effect) for effect in np.sqrt(np.mean(squares, axis=0)))


@contextmanager
def _rounded_at_random(roundings: list[FakeQuantize | RoundGroups], generator: torch.Generator) -> Iterator[None]:
    """Meanwhile each rounding gets its input with up to half a step added or taken away, uniformly."""

    def blur(module: Any, args: tuple[Any, ...]) -> tuple[Any, ...]:
        x: torch.Tensor = args[0]
        return (x + module.step(x) * (torch.rand(x.shape, generator=generator) - 0.5),)

    handles = [rounding.register_forward_pre_hook(blur) for rounding in roundings]
    try:
        yield
    finally:
        for handle in handles:
            handle.remove()
