"""The order of axes where maps enter and leave int8, chosen so that ONNX Runtime need not transpose.

Its int8 convolutions are channels-last. A map that a convolution and a residual add both read enters the add
channels-first, and the runtime then transposes around every add down to the next strided block: 7 transposes in stage 1
of a ResNet-20, 3 % of its time. Written as channels-last at the entrance, with two axes merged so that the runtime
can't cancel the transposes against each other, all of them vanish but one. Values are unchanged.
"""

from typing import Any

import torch
from torch import nn
from torch.fx import GraphModule, Node

from autocompress.compression.fake_quant import FakeQuantize, QuantizedLayer
from autocompress.export.emitter import Emitter
from autocompress.graph.calls import calls

aten = torch.ops.aten

_COMBINES = frozenset({aten.add.Tensor, aten.mul.Tensor, aten.relu.default, aten.relu6.default, aten.hardtanh.default})


def enters_channels_last(model: GraphModule, node: Node) -> bool:
    """Whether this rounding of something computed in float feeds an int8 2-d convolution, and the runtime would
    transpose more than what it rounds: because something else reads it too, or because it is combined from maps that
    left int8, up to which the transpose would be moved."""
    convolutions = [_is_int8_convolution(model, user) for user in node.users]
    if not any(convolutions) or not _made_in_float(model, node.args[0]):
        return False
    return not all(convolutions) or _left_int8(model, node.args[0])


def channels_last(e: Emitter, codes: str, shape: tuple[int, ...]) -> str:
    """(N, C, H, W) → (N, H, W, C), by way of (N, C, HW)."""
    _, channels, height, width = shape
    flat = e.add("Reshape", codes, e.integers(0, channels, -1))
    return e.add("Reshape", e.add("Transpose", flat, perm=[0, 2, 1]), e.integers(0, height, width, channels))


def leaves_as_vector(model: GraphModule, source: Node, before: tuple[int, ...], after: tuple[int, ...]) -> bool:
    """Whether an int8 map of one position becomes a vector: read channels-last, which for one position is the same, it
    needs no transpose."""
    return len(before) == 4 and before[2:] == (1, 1) and after == before[:2] and _is_rounding(model, source)


def _is_int8_convolution(model: GraphModule, node: Node) -> bool:
    module = model.get_submodule(str(node.target)) if node.op == "call_module" else None
    return isinstance(module, QuantizedLayer) and isinstance(module, nn.Conv2d)


def _left_int8(model: GraphModule, node: Any) -> bool:
    """Whether a rounded map comes here through nothing but sums and activations."""
    if _is_rounding(model, node):
        return True
    return calls(node, *_COMBINES) and any(_left_int8(model, source) for source in node.all_input_nodes)


def _made_in_float(model: GraphModule, node: Any) -> bool:
    """Whether a float operation made the tensor; one that reads only rounded tensors runs in int8."""
    if node.op == "call_function":
        sources = node.all_input_nodes
        if len(sources) == 1:
            return _made_in_float(model, sources[0])
        return not all(_is_rounding(model, source) for source in sources)
    return node.op != "call_module" or not isinstance(
        model.get_submodule(str(node.target)), (QuantizedLayer, FakeQuantize)
    )


def _is_rounding(model: GraphModule, node: Node) -> bool:
    return node.op == "call_module" and isinstance(model.get_submodule(str(node.target)), FakeQuantize)
