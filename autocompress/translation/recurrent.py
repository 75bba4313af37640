"""LSTM, GRU and RNN of ONNX as torch's modules, which order their gates and axes otherwise."""

from collections.abc import Mapping, Sequence
from typing import Any

import torch
from torch import Tensor, nn

from autocompress.translation.layers import Layer, Weights
from autocompress.translation.operators.pointwise import is_constant
from autocompress.translation.values import Attributes, Call, Unsupported, Value

_MODULES: Mapping[str, Any] = {"LSTM": nn.LSTM, "GRU": nn.GRU, "RNN": nn.RNN}
_ORDERS: Mapping[str, Sequence[int]] = {"LSTM": (0, 2, 3, 1), "GRU": (1, 0, 2), "RNN": (0,)}
"""ONNX's place of each of torch's gates: torch has i f g o where ONNX has i o f c, r z n where it has z r h."""
_USUAL: Mapping[str, Sequence[str]] = {
    "LSTM": ("Sigmoid", "Tanh", "Tanh"),
    "GRU": ("Sigmoid", "Tanh"),
    "RNN": ("Tanh",),
}


class Recurrent(nn.Module):
    """One layer of ONNX's: (Y of (time, direction, batch, hidden), the last state of each direction, ...)."""

    def __init__(self, layer: nn.RNNBase, batch_first: bool, reverse: bool) -> None:
        super().__init__()
        self.layer = layer
        self.batch_first = batch_first
        self.reverse = reverse
        self.directions = 2 if layer.bidirectional else 1

    def forward(self, x: Tensor, *states: Tensor) -> tuple[Tensor, ...]:
        x = x.transpose(0, 1) if self.batch_first else x
        x = x.flip(0) if self.reverse else x
        if self.batch_first:
            states = tuple(state.transpose(0, 1) for state in states)
        output, last = self.layer(x, self._given(states)) if states else self.layer(x)
        output = output.flip(0) if self.reverse else output
        output = output.reshape(output.shape[0], output.shape[1], self.directions, -1)
        finals = last if isinstance(last, tuple) else (last,)
        if self.batch_first:
            return (output.transpose(0, 1), *(final.transpose(0, 1) for final in finals))
        return (output.transpose(1, 2), *finals)

    def _given(self, states: tuple[Tensor, ...]) -> Any:
        return states if isinstance(self.layer, nn.LSTM) else states[0]


def _translated(kind: str) -> Layer:
    def translate(weights: Weights, a: Attributes, x: Value, w: Value, r: Value, *rest: Value | None) -> Call:
        b, lengths, *states = (*rest, None, None, None, None, None)[:5]
        h, c, peepholes = states
        _check(kind, a, (w, r, b), lengths, peepholes)
        directions, hidden = w.example.shape[0], r.example.shape[2]
        nonlinear = {"nonlinearity": _activations(kind, a)[0].lower()} if kind == "RNN" else {}
        layer = _MODULES[kind](
            w.example.shape[2], hidden, bias=b is not None, bidirectional=directions == 2, device="meta", **nonlinear
        )
        _fill(weights, layer, kind, (w, r, b), hidden)
        backwards = a.get("direction", "forward") == "reverse"
        given = [] if _are_zeros(h) and _are_zeros(c) else [h, c] if kind == "LSTM" else [h]
        if any(state is None for state in given):
            raise Unsupported("with only one of its two initial states")
        return Call(Recurrent(layer, bool(a.get("layout", 0)), backwards).eval(), (x, *given))

    return translate


def _activations(kind: str, a: Attributes) -> Sequence[str]:
    return list(a.get("activations", _USUAL[kind]))


def _check(
    kind: str, a: Attributes, weights: Sequence[Value | None], lengths: Value | None, peepholes: Value | None
) -> None:
    found, usual = _activations(kind, a), list(_USUAL[kind])
    plain = kind == "RNN" and set(found) in ({"Tanh"}, {"Relu"})
    if not plain and found not in (usual, usual * 2):
        raise Unsupported(f"with activations {', '.join(found)}")
    if kind == "GRU" and not a.get("linear_before_reset", 0):
        raise Unsupported("with linear_before_reset=0, which torch's GRU can't do")
    if any(weight is not None and not is_constant(weight) for weight in weights):
        raise Unsupported("with weights that are computed")
    if lengths is not None and not is_constant(lengths):
        raise Unsupported("with sequence lengths")
    if (peepholes is not None and not _are_zeros(peepholes)) or a.get("input_forget", 0) or "clip" in a:
        raise Unsupported("with peepholes, coupled gates or clipping")


def _are_zeros(state: Value | None) -> bool:
    """Whether torch's default is meant: zeros, also of a batch of free size."""
    if state is None or is_constant(state):
        return state is None or not bool(state.example.any())
    node = getattr(state, "node", None)
    filled = node is not None and node.target is torch.full and node.args[1] == 0
    return filled or (node is not None and node.target is torch.broadcast_to and not bool(state.example.any())
                      and node.args[0].op == "get_attr")  # fmt: skip


def _fill(weights: Weights, layer: nn.RNNBase, kind: str, given: Sequence[Value | None], hidden: int) -> None:
    w, r, b = given
    assert w is not None and r is not None, "the file's format demands them"
    for i in range(w.example.shape[0]):
        suffix = "_l0_reverse" if i else "_l0"
        ordered = _ordering(kind, i, hidden)
        setattr(layer, f"weight_ih{suffix}", weights.parameter(w, ordered))
        setattr(layer, f"weight_hh{suffix}", weights.parameter(r, ordered))
        if b is not None:
            half = len(_ORDERS[kind]) * hidden
            setattr(layer, f"bias_ih{suffix}", nn.Parameter(ordered(b.example[:, :half]).clone()))
            setattr(layer, f"bias_hh{suffix}", nn.Parameter(ordered(b.example[:, half:]).clone()))


def _ordering(kind: str, direction: int, hidden: int) -> Any:
    def ordered(t: Tensor) -> Tensor:
        gates = t[direction].split(hidden)
        return torch.cat([gates[place] for place in _ORDERS[kind]])

    return ordered


RECURRENT: Mapping[tuple[str, str], Layer] = {("", kind): _translated(kind) for kind in _MODULES}
