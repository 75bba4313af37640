"""A copy of a lifted model that computes in float64, whatever forward said about the types of what it makes."""

import copy
from collections.abc import Iterator
from contextlib import contextmanager
from typing import Any

import torch
from torch import nn
from torch.fx import GraphModule


def in_double(model: GraphModule) -> GraphModule:
    """Parameters, buffers, and the types of tensors made or cast on the way: all of float32 becomes float64."""
    doubled = copy.deepcopy(model).double()
    for module in doubled.modules():
        if isinstance(module, nn.RNNBase):
            module._init_flat_weights()
    for node in doubled.graph.nodes:
        if node.op == "call_function":
            node.args, node.kwargs = torch.fx.node.map_aggregate((node.args, node.kwargs), _doubled)
    doubled.recompile()
    return doubled


@contextmanager
def made_in_double() -> Iterator[None]:
    """Meanwhile, tensors made without a type are of float64 too."""
    before = torch.get_default_dtype()
    torch.set_default_dtype(torch.float64)
    try:
        yield
    finally:
        torch.set_default_dtype(before)


def _doubled(value: Any) -> Any:
    return torch.float64 if value is torch.float32 else value
