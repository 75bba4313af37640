"""How padding is written in ONNX."""

from typing import Any

import torch
from torch.fx import Node

from autocompress.export.emitter import Emit, Emitter, cast
from autocompress.export.functions.arithmetic import computed_in
from autocompress.graph.calls import arguments, calls

aten = torch.ops.aten
_MAX_POOLS = (
    aten.max_pool1d.default, aten.max_pool2d.default, aten.max_pool3d.default,
    aten.max_pool2d_with_indices.default, aten.max_pool3d_with_indices.default,
)  # fmt: skip
"""ONNX Runtime 1.31 fuses a zero padding into these, where padding counts as minus infinity."""
_MODES = {"constant": "constant", "reflect": "reflect", "replicate": "edge"}


def padded(e: Emitter, x: Any, pads: Any, mode: str, value: float = 0, alone: bool = False) -> str | None:
    """A node's value padded as torch lists it: (before, after) from the last axis on. ONNX wants all befores first.

    `alone` puts a reshape to the same shape behind it, so that ONNX Runtime can't fuse it with what reads it.
    """
    dtype = computed_in(e.dtype(x))
    inner = e.cast_to(x, dtype)
    if mode == "circular":
        made = _wrapped(e, inner, e.rank(x), pads)
    else:
        sizes: list[Any] = [e.size(n) for n in pads]
        absent: list[Any] = [0] * (e.rank(x) - len(sizes) // 2)
        places = e.vector([*absent, *sizes[-2::-2], *absent, *sizes[::-2]])
        filler = [e.value(value, dtype)] if mode == "constant" else []
        made = e.add("Pad", inner, places, *filler, mode=_MODES[mode])
        made = e.add("Reshape", made, e.integers(*[0] * e.rank(x))) if alone else made
    return made if made is None or dtype is e.dtype(x) else cast(e, made, e.dtype(x))


def _pad(mode: str | None = None) -> Emit:
    def emit(e: Emitter, node: Node) -> str | None:
        a = arguments(node)
        pads = a["pad" if "pad" in a else "padding"]
        alone = any(calls(user, *_MAX_POOLS) for user in node.users)
        return padded(e, a["self"], pads, mode or a.get("mode", "constant"), a.get("value") or 0, alone)

    return emit


def _wrapped(e: Emitter, x: str, rank: int, pads: Any) -> str | None:
    """Every axis continued by its own other end."""
    if not all(isinstance(n, int) and n >= 0 for n in pads):
        return None
    for i in range(len(pads) // 2):
        axis, before, after = rank - 1 - i, pads[2 * i], pads[2 * i + 1]
        parts = [e.add("Slice", x, e.integers(-before), e.integers(2**62), e.integers(axis))] if before else []
        parts.append(x)
        if after:
            parts.append(e.add("Slice", x, e.integers(0), e.integers(after), e.integers(axis)))
        x = e.add("Concat", *parts, axis=axis) if len(parts) > 1 else x
    return x


PADDING: dict[Any, Emit] = {
    aten.constant_pad_nd.default: _pad("constant"),
    aten.pad.default: _pad(),
    aten._pad_circular.default: _pad("circular"),
    **{getattr(aten, f"reflection_pad{n}d").default: _pad("reflect") for n in (1, 2, 3)},
    **{getattr(aten, f"replication_pad{n}d").default: _pad("replicate") for n in (1, 2, 3)},
}
