"""How recurrent layers are written in ONNX, from a module or from a call with its weights."""

from collections.abc import Sequence
from dataclasses import dataclass
from typing import Any

import torch
from torch import Tensor, nn
from torch.fx import Node

from autocompress.export.emitter import Emit, Emitter
from autocompress.graph.calls import arguments

aten = torch.ops.aten

_GATES = {"LSTM": (0, 3, 1, 2), "GRU": (1, 0, 2), "RNN": (0,)}
"""Where ONNX's gates are in torch's order: i, o, f, c of i, f, c, o; z, r, h of r, z, n."""


@dataclass(frozen=True, slots=True)
class _Recurrent:
    """What a recurrent operator is: `weights[layer * directions + direction]` are (w_ih, w_hh[, b_ih, b_hh])."""

    op: str
    weights: Sequence[Sequence[Tensor]]
    layers: int
    bidirectional: bool
    batch_first: bool
    activation: str = ""

    @property
    def directions(self) -> int:
        return 2 if self.bidirectional else 1

    @property
    def hidden(self) -> int:
        return int(self.weights[0][1].shape[1])


def _written(e: Emitter, x: Any, states: list[Any], kind: _Recurrent, name: str) -> tuple[str, ...]:
    """(output, last hidden state[, last cell state]) in torch's order of axes."""
    alone = e.rank(x) == 2
    value = e.add("Unsqueeze", e.value(x), e.integers(1)) if alone else e.value(x)
    if kind.batch_first and not alone:
        value = e.add("Transpose", value, perm=[1, 0, 2])
    given = [e.add("Unsqueeze", e.value(s), e.integers(1)) if alone else e.value(s) for s in states]
    last: list[list[str]] = []
    for layer in range(kind.layers):
        made = _layer(e, value, [_part(e, s, layer, kind) for s in given], kind, layer, name)
        last.append(list(made[1:]))
        value = _side_by_side(e, made[0], kind)
    if kind.batch_first and not alone:
        value = e.add("Transpose", value, perm=[1, 0, 2])
    ends = [_stacked(e, list(parts)) for parts in zip(*last, strict=True)]
    results = (value, *ends)
    return tuple(e.add("Squeeze", r, e.integers(1)) for r in results) if alone else results


def _layer(e: Emitter, x: str, states: list[str], kind: _Recurrent, layer: int, name: str) -> tuple[str, ...]:
    weights = kind.weights[layer * kind.directions : (layer + 1) * kind.directions]
    w, r = (_gates(kind.op, torch.stack([part[i] for part in weights])) for i in (0, 1))
    operands = [x, e.parameter(w, f"{name}.weight_ih_l{layer}"), e.parameter(r, f"{name}.weight_hh_l{layer}")]
    if len(weights[0]) == 4:
        biases = [_gates(kind.op, torch.stack([part[i] for part in weights])) for i in (2, 3)]
        operands.append(e.parameter(torch.cat(biases, 1), f"{name}.bias_l{layer}"))
    elif states:
        operands.append("")
    if states:
        operands += ["", *states]
    attributes: dict[str, Any] = {"hidden_size": kind.hidden}
    if kind.bidirectional:
        attributes["direction"] = "bidirectional"
    if kind.op == "GRU":
        attributes["linear_before_reset"] = 1
    if kind.activation:
        attributes["activations"] = [kind.activation] * kind.directions
    return e.add_many(kind.op, 3 if kind.op == "LSTM" else 2, *operands, **attributes)


def _gates(op: str, stacked: Tensor) -> Tensor:
    """(directions, gates * hidden, ...) with the gates in ONNX's order."""
    order = _GATES[op]
    parts = stacked.chunk(len(order), 1)
    return torch.cat([parts[i] for i in order], 1)


def _part(e: Emitter, state: str, layer: int, kind: _Recurrent) -> str:
    """A layer's rows of an initial state."""
    if kind.layers == 1:
        return state
    start = layer * kind.directions
    return e.add("Slice", state, e.integers(start), e.integers(start + kind.directions), e.integers(0))


def _side_by_side(e: Emitter, y: str, kind: _Recurrent) -> str:
    """(time, directions, batch, hidden) → (time, batch, directions * hidden)."""
    if not kind.bidirectional:
        return e.add("Squeeze", y, e.integers(1))
    turned = e.add("Transpose", y, perm=[0, 2, 1, 3])
    return e.add("Reshape", turned, e.integers(0, 0, 2 * kind.hidden))


def _stacked(e: Emitter, parts: list[str]) -> str:
    return parts[0] if len(parts) == 1 else e.add("Concat", *parts, axis=0)


def emit_recurrent(e: Emitter, node: Node, layer: Any) -> Any:
    """A module's call, with or without initial states; its results nested as the module's are."""
    if layer.proj_size or (layer.training and layer.dropout):
        return None
    directions = 2 if layer.bidirectional else 1
    kind = _Recurrent(
        "RNN" if isinstance(layer, nn.RNN) else layer.mode,
        [[w.detach() for w in weights] for weights in layer.all_weights],
        layer.num_layers, layer.bidirectional, layer.batch_first,
        {"RNN_TANH": "Tanh", "RNN_RELU": "Relu"}.get(layer.mode, ""),
    )  # fmt: skip
    assert len(kind.weights) == layer.num_layers * directions
    given = [source for source in _flat(node.args[1:]) if source is not None]
    made = _written(e, node.args[0], given, kind, str(node.target))
    nested = isinstance(e.types[node][1], tuple)
    return (made[0], made[1:]) if nested else made


def _flat(values: Any) -> list[Any]:
    return [x for v in values for x in _flat(v)] if isinstance(values, (tuple, list)) else [values]


def _call(op: str, activation: str = "") -> Emit:
    """A call with its weights, which must be constants."""

    def emit(e: Emitter, node: Node) -> Any:
        a = arguments(node)
        states = _flat(a["hx"])
        known = [e.constant_value(p) for p in a["params"]]
        count = 4 if a["has_biases"] else 2
        cells = a["num_layers"] * (2 if a["bidirectional"] else 1)
        if any(p is None for p in known) or len(known) != count * cells:
            return None
        weights: Any = [known[i : i + count] for i in range(0, len(known), count)]
        kind = _Recurrent(op, weights, a["num_layers"], a["bidirectional"], a["batch_first"], activation)
        return _written(e, a["input"], states, kind, node.name)

    return emit


RECURRENT: dict[Any, Emit] = {
    aten.lstm.input: _call("LSTM"),
    aten.gru.input: _call("GRU"),
    aten.rnn_tanh.input: _call("RNN", "Tanh"),
    aten.rnn_relu.input: _call("RNN", "Relu"),
}
