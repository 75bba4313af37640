"""Outputs of named nodes of a lifted model."""

from collections.abc import Collection
from typing import Any

from torch import Tensor
from torch.fx import GraphModule, Interpreter, Node

from autocompress.task.outputs import Outputs


def outputs_and_features(
    model: GraphModule, inputs: tuple[Tensor, ...], nodes: Collection[str]
) -> tuple[Outputs, dict[str, Tensor]]:
    """What the model returns, and what the named nodes do on the way; nodes that it lacks are left out."""
    recorder = _Recorder(model, frozenset(nodes))
    outputs: Outputs = recorder.run(*inputs)
    return outputs, recorder.found


class _Recorder(Interpreter):
    def __init__(self, model: GraphModule, wanted: frozenset[str]) -> None:
        super().__init__(model)
        self.wanted = wanted
        self.found: dict[str, Tensor] = {}

    def run_node(self, n: Node) -> Any:
        value = super().run_node(n)
        if n.name in self.wanted and isinstance(value, Tensor):
            self.found[n.name] = value
        return value
