"""The value of every node of a model for some inputs."""

from contextlib import suppress
from typing import Any

import torch
from torch import Tensor
from torch.fx import GraphModule, Interpreter, Node


def recorded(model: GraphModule, inputs: tuple[Tensor, ...]) -> dict[Node, Any]:
    """Node → value, in the order of execution and without gradients; the model stays in the mode that it is in."""
    recorder = _Recorder(model)
    with torch.no_grad():
        recorder.run(*inputs)
    return recorder.values


def recorded_until_failure(model: GraphModule, inputs: tuple[Tensor, ...]) -> dict[Node, Any]:
    """`recorded`, as far as a model gets that may not run."""
    recorder = _Recorder(model)
    with torch.no_grad(), suppress(Exception):
        recorder.run(*inputs)
    return recorder.values


class _Recorder(Interpreter):
    def __init__(self, model: GraphModule) -> None:
        super().__init__(model)
        self.values: dict[Node, Any] = {}

    def run_node(self, n: Node) -> Any:
        self.values[n] = super().run_node(n)
        return self.values[n]
