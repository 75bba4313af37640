"""Float layers between int8 neighbours, which ONNX Runtime would quantise by itself, kept in float.

It rewrites DequantizeLinear → Conv or Gemm with float weights → QuantizeLinear (its WeightBiasQuantization, seen in
1.31), also where Relu, Clip or moves stand before the last: the plan's fp32 decision would be overruled in
silence. Another activation in that place prevents it. LeakyRelu of slope 1 is the identity and of slope 0 is Relu;
either is fused into the layer, so it costs nothing.
"""

from typing import Any

import torch
from torch import nn
from torch.fx import GraphModule, Node

from autocompress.compression.fake_quant import FakeQuantize, QuantizedLayer
from autocompress.compression.weight_only import WeightOnlyLinear
from autocompress.graph.calls import calls

aten = torch.ops.aten

_WEIGHTED = (nn.Conv1d, nn.Conv2d, nn.Conv3d, nn.ConvTranspose1d, nn.ConvTranspose2d, nn.ConvTranspose3d, nn.Linear)


def leaky_slopes(model: GraphModule) -> dict[Node, float]:
    """Nodes to write with a LeakyRelu: slope 0 for a ReLU that becomes one, 1 for a layer that gets one after it."""
    slopes: dict[Node, float] = {}
    for node in model.graph.nodes:
        if _is_float_layer(model, node) and _is_rounded(model, node.args[0]) and _ends_rounded(model, node):
            user = next(iter(node.users))
            slopes.update({user: 0.0} if calls(user, aten.relu.default) else {node: 1.0})
    return slopes


def _is_float_layer(model: GraphModule, node: Node) -> bool:
    module = model.get_submodule(str(node.target)) if node.op == "call_module" else None
    return isinstance(module, _WEIGHTED) and not isinstance(module, (QuantizedLayer, WeightOnlyLinear))


def _is_rounded(model: GraphModule, node: Any) -> bool:
    return node.op == "call_module" and isinstance(model.get_submodule(str(node.target)), FakeQuantize)


def _ends_rounded(model: GraphModule, node: Node) -> bool:
    """Whether nothing but clipping and moves, each read once, lies between `node` and a rounding."""
    readers = [user for user in node.users if not calls(user, aten.sym_size.int)]
    if len(readers) != 1:
        return False
    return _is_rounded(model, readers[0]) or (calls(readers[0], *_TRANSPARENT) and _ends_rounded(model, readers[0]))


_TRANSPARENT = frozenset({
    aten.relu.default, aten.relu6.default, aten.hardtanh.default, aten.clamp.default, aten.clamp_min.default,
    aten.reshape.default, aten.permute.default, aten.transpose.int, aten.t.default, aten.flatten.using_ints,
    aten.squeeze.dim, aten.squeeze.dims, aten.unsqueeze.default, aten.slice.Tensor, aten.max_pool2d.default,
})  # fmt: skip
