"""How resizing and sampling of maps is written in ONNX."""

from typing import Any

import numpy as np
import torch
from torch.fx import Node

from autocompress.export.emitter import Emit, Emitter
from autocompress.graph.calls import arguments

aten = torch.ops.aten

_NEAREST = {"mode": "nearest", "coordinate_transformation_mode": "asymmetric", "nearest_mode": "floor"}
_NEAREST_EXACT = {
    "mode": "nearest", "coordinate_transformation_mode": "half_pixel", "nearest_mode": "round_prefer_ceil",
}  # fmt: skip


def _resize(rank: int, mode: str) -> Emit:
    def emit(e: Emitter, node: Node) -> str:
        a = arguments(node)
        way: dict[str, Any] = {"nearest": _NEAREST, "nearest_exact": _NEAREST_EXACT}.get(mode) or {
            "mode": mode,
            "coordinate_transformation_mode": "align_corners" if a["align_corners"] else "half_pixel",
            **({"cubic_coeff_a": -0.75} if mode == "cubic" else {}),
        }
        source: Any = node.args[0]
        x, flat = e.value(source), rank == 1
        if flat:
            x = e.add("Unsqueeze", x, e.integers(2))
        made = e.add("Resize", x, *_extent(e, node, rank, flat), **way)
        return e.add("Squeeze", made, e.integers(2)) if flat else made

    return emit


def _extent(e: Emitter, node: Node, rank: int, flat: bool) -> list[str]:
    """(region, scales) or (region, none, sizes): scales where the caller gave them, or where they give the size."""
    a, source = arguments(node), e.type(node.args[0])
    made = e.type(node)
    extra = [1.0] if flat else []
    given = _given_scales(a)
    if given is not None and all(given):
        return ["", e.constant([1.0, 1.0, *extra, *given], np.float32)]
    scales = [np.float32(t) / np.float32(n) for n, t in zip(source.one[2:], made.one[2:], strict=True)]
    exact = [int(np.float32(n) * s) == t for n, t, s in zip(source.one[2:], made.one[2:], scales, strict=True)]
    if all(exact) and not any(axis >= 2 for axis in (*source.free, *made.free)) and not a.get("align_corners"):
        return ["", e.constant([1.0, 1.0, *extra, *scales], np.float32)]
    wanted = a.get("output_size")
    requested = e.dims(node.args[0])[:2] + [e.size(n) for n in (wanted or made.one[2:])]
    return ["", "", e.vector(requested[:2] + ([1] if flat else []) + requested[2:])]


def _given_scales(a: dict[str, Any]) -> list[float] | None:
    """The factors that the caller asked for; an output size beside them wins unless both say the same."""
    if a.get("scale_factors"):
        return [float(s) for s in a["scale_factors"]]
    named = [a[name] for name in ("scales_d", "scales_h", "scales_w", "scales") if name in a]
    return [float(s) for s in named] if named and all(s is not None for s in named) else None


def _sample(e: Emitter, node: Node) -> str:
    a = arguments(node)
    return e.add(
        "GridSample", e.value(a["input"]), e.value(a["grid"]),
        mode=("bilinear", "nearest", "bicubic")[a["interpolation_mode"]],
        padding_mode=("zeros", "border", "reflection")[a["padding_mode"]], align_corners=int(a["align_corners"]),
    )  # fmt: skip


def _affine_grid(e: Emitter, node: Node) -> str | None:
    """theta (N, 2, 3) times the base grid of a fixed size."""
    a = arguments(node)
    height, width = e.type(node).one[1:3]
    if e.rank(node) != 4 or any(axis in (1, 2) for axis in e.type(node).free):
        return None
    unit = torch.eye(2, 3, dtype=e.dtype(node)).unsqueeze(0)
    grid = torch.nn.functional.affine_grid(unit, [1, 1, height, width], align_corners=bool(a["align_corners"]))
    base = torch.cat([grid, torch.ones(1, height, width, 1, dtype=grid.dtype)], -1).reshape(1, height * width, 3)
    turned = e.add("Transpose", e.value(a["theta"]), perm=[0, 2, 1])
    return e.add("Reshape", e.add("MatMul", e.constant(base.numpy()), turned), e.shape_of(node))


def _overloads(name: str) -> list[Any]:
    packet = getattr(aten, name)
    return [getattr(packet, overload) for overload in ("vec", "default") if overload in packet.overloads()]


_MODES = {
    "upsample_nearest1d": (1, "nearest"), "upsample_nearest2d": (2, "nearest"), "upsample_nearest3d": (3, "nearest"),
    "_upsample_nearest_exact1d": (1, "nearest_exact"), "_upsample_nearest_exact2d": (2, "nearest_exact"),
    "_upsample_nearest_exact3d": (3, "nearest_exact"), "upsample_linear1d": (1, "linear"),
    "upsample_bilinear2d": (2, "linear"), "upsample_trilinear3d": (3, "linear"), "upsample_bicubic2d": (2, "cubic"),
}  # fmt: skip

RESIZING: dict[Any, Emit] = {
    **{overload: _resize(*way) for name, way in _MODES.items() for overload in _overloads(name)},
    aten.grid_sampler_2d.default: _sample,
    aten.grid_sampler.default: lambda e, node: _sample(e, node) if e.rank(node) == 4 else None,
    aten.affine_grid_generator.default: _affine_grid,
}
