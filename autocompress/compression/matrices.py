"""Layers as matrices: patches that the weight multiplies, columns of a channel, the norm that scales the rows."""

import math
from collections.abc import Iterable, Iterator, Mapping, Sequence
from contextlib import contextmanager
from typing import Any

import torch
from torch import Tensor, nn
from torch.fx import GraphModule
from torch.nn import functional as F

from autocompress.graph.labels import BATCH_NORMS, TRANSPOSED
from autocompress.graph.types import Graph
from autocompress.vocabulary.errors import BuildError, first_line

RIDGE = 1e-3
"""Of the mean squared input, added to every Gram matrix that is inverted; between 1e-5 and 1e-1 it hardly matters."""

POSITIONS_PER_COLUMN = 24
"""Positions that a Gram matrix is summed over, per column: 50 images were seen to do nearly as well as 1,000."""

TINY = torch.finfo(torch.float64).tiny

NOTHING = 1e-200
"""A mean square below this is zero: its inverse, times a squared weight, would be too large for float64."""


def input_patches(module: nn.Module, x: Tensor, chosen: Tensor | None = None) -> Tensor:
    """Rows [samples * positions, d] that the weight of a convolution or linear layer multiplies.

    Column order as in weight.reshape(out, d), so that rows @ weight.reshape(out, d).T + bias are `output_rows`.
    `chosen` are the output positions to take, numbered as if flattened; all if None.
    """
    if isinstance(module, nn.Linear):
        return x.reshape(-1, x.shape[-1])
    view = _windows(module, x)
    rank = x.dim() - 2
    dim = view.shape[1] * math.prod(view.shape[2 + rank :])
    if chosen is None:
        return view.movedim(1, 1 + rank).reshape(-1, dim)
    places: tuple[Any, ...] = torch.unravel_index(chosen, view.shape[2 : 2 + rank])
    return view[(slice(None), slice(None), *places)].movedim(1, 2).reshape(-1, dim)


def output_rows(module: nn.Module, y: Tensor, chosen: Tensor | None = None) -> Tensor:
    """The layer's output as rows [samples * positions, out], in the order of `input_patches`."""
    if isinstance(module, nn.Linear):
        return y.reshape(-1, y.shape[-1])
    flat = y.flatten(2) if chosen is None else y.flatten(2)[:, :, chosen]
    return flat.transpose(1, 2).reshape(-1, y.shape[1])


def draw_positions(module: Any, x: Tensor, samples: int, generator: torch.Generator) -> Tensor | None:
    """Output positions that are plenty for a Gram matrix over so many samples of the layer's input x; None for all."""
    if isinstance(module, nn.Linear):
        return None
    wanted = -(-POSITIONS_PER_COLUMN * module.weight[0].numel() // samples)
    padded = torch.tensor(x.shape[2:]) + torch.tensor(_padding(module)).reshape(-1, 2).sum(1).flip(0)
    reach = torch.tensor([d * (k - 1) + 1 for d, k in zip(module.dilation, module.kernel_size, strict=True)])
    positions = int(((padded - reach) // torch.tensor(module.stride) + 1).prod())
    return None if wanted >= positions else torch.randperm(positions, generator=generator)[:wanted]


def _windows(module: Any, x: Tensor) -> Tensor:
    """A view [N, C, positions..., window...] of a convolution's padded input."""
    padded = F.pad(x, _padding(module))
    for axis, (size, step, apart) in enumerate(zip(module.kernel_size, module.stride, module.dilation, strict=True)):
        padded = padded.unfold(2 + axis, apart * (size - 1) + 1, step)[..., ::apart]
    return padded


def _padding(module: Any) -> list[int]:
    """Padding in the order of F.pad: last axis first, (before, after)."""
    if module.padding == "valid":
        return [0, 0] * len(module.kernel_size)
    if module.padding == "same":
        extra = [apart * (size - 1) for apart, size in zip(module.dilation, module.kernel_size, strict=True)]
        return [side for e in reversed(extra) for side in (e // 2, e - e // 2)]
    return [side for p in reversed(module.padding) for side in (p, p)]


def ridged(gram: Tensor, ridge: float = RIDGE) -> Tensor:
    """A copy with `ridge` of the mean squared input on the diagonal, the constant's last place left alone."""
    result = gram.clone()
    result.diagonal()[:-1] += ridge_of(gram, ridge)
    return result


def ridge_of(gram: Tensor, ridge: float = RIDGE) -> Tensor:
    """1 where the inputs are nothing but zeros: any weights do there, and whole numbers are safe to divide by."""
    power = gram.diagonal()[:-1].mean()
    return torch.where(power > NOTHING, ridge * power, 1.0)


def second_moments(rows: Tensor) -> Tensor:
    """rows.T @ rows with a constant 1 appended to every row: multiplied in the rows' precision, float64."""
    rows = F.pad(rows, (0, 1), value=1.0)
    return (rows.T @ rows).double()


@contextmanager
def solvable(place: str) -> Iterator[None]:
    """An equation without a solution, of numbers too large or not finite, is a plan's failure, not the search's."""
    try:
        yield
    except torch.linalg.LinAlgError as error:  # type: ignore[attr-defined]
        raise BuildError(f"{place} can't be solved for ({first_line(error)}): {_ADVICE}") from error


def require_finite(place: str, tensors: Iterable[Tensor]) -> None:
    if not all(bool(tensor.isfinite().all()) for tensor in tensors):
        raise BuildError(f"{place} gets weights that are not finite: {_ADVICE}")


_ADVICE = "its weights or inputs are too large or too far apart in size; leave the layer as it is"


def solve(gram: Tensor, wanted: Tensor, start: Tensor, ridge: float = RIDGE) -> tuple[Tensor, Tensor]:
    """(Z [out, d], z [out]) with Z x + z closest to y in the mean square, Z pulled towards `start`.

    `gram` [d+1, d+1] are second moments of x with a constant 1 last, `wanted` [out, d+1] those of y with it, float64.
    """
    strength = ridge_of(gram, ridge)
    wanted = wanted.clone()
    wanted[:, :-1] += strength * start
    solution = torch.linalg.solve(ridged(gram, ridge), wanted, left=False)
    return solution[:, :-1], solution[:, -1]


def columns(positions: Iterable[int], window: int) -> list[int]:
    """Columns of weight.reshape(out, -1) that belong to these input positions."""
    return [position * window + tap for position in positions for tap in range(window)]


def window_of(module: Any) -> int:
    """Taps per input channel."""
    return math.prod(module.kernel_size) if hasattr(module, "kernel_size") else 1


def kept_positions(
    graph: Graph, keep: Mapping[str, Sequence[int]], target: str, produces: bool, tensor: str = "weight"
) -> list[int]:
    """Positions that a cut leaves of a parameter of the original, on the axis where channels are made or read.

    For a layer's weight these are its outputs and its inputs.
    """
    module = graph.model.get_submodule(target)
    shape = getattr(module, tensor).shape
    axis = 0 if len(shape) == 1 or produces != isinstance(module, TRANSPOSED) else 1
    left = set(range(shape[axis]))
    for group, channels in keep.items():
        kept = set(channels)
        for member in graph.groups[group].members:
            if (member.target, member.tensor, member.produces) == (target, tensor, produces):
                left -= {p for channel, places in enumerate(member.index) if channel not in kept for p in places}
    return sorted(left)


def following_norm(model: GraphModule, layer: str) -> Any:
    """The batch norm that alone reads the layer's output, or None."""
    node = next(n for n in reversed(model.graph.nodes) if n.op == "call_module" and n.target == layer)
    readers = list(node.users)
    if len(readers) != 1 or readers[0].op != "call_module":
        return None
    module = model.get_submodule(str(readers[0].target))
    return module if isinstance(module, BATCH_NORMS) else None


def row_scale(model: GraphModule, layer: str) -> Tensor | None:
    """gamma / sigma of the batch norm that reads the layer's outputs, or None."""
    norm = following_norm(model, layer)
    if norm is None:
        return None
    scale: Tensor = (norm.running_var + norm.eps).rsqrt()
    return scale if norm.weight is None else norm.weight.detach() * scale


def folded_weight(model: GraphModule, layer: str) -> Tensor:
    """The layer's weight as its batch norm scales it, in the weight's own shape."""
    module: Any = model.get_submodule(layer)
    weight: Tensor = module.weight.detach()
    scale = row_scale(model, layer)
    if scale is None:
        return weight
    axis = 1 if isinstance(module, TRANSPOSED) else 0
    return weight * scale.reshape([-1 if d == axis else 1 for d in range(weight.dim())])


def shift_outputs(model: GraphModule, layer: str, shift: Tensor) -> None:
    """Adds a constant [out] to what the layer puts out, in place: in its bias or in its batch norm's running mean."""
    module: Any = model.get_submodule(layer)
    norm = following_norm(model, layer)
    with torch.no_grad():
        if module.bias is not None:  # a new one: another call of the layer may hold the old
            module.bias = nn.Parameter(module.bias.detach() + shift.to(module.bias.dtype))
        elif norm is not None:
            norm.running_mean -= shift.to(norm.running_mean.dtype)
        else:
            module.bias = nn.Parameter(shift.to(module.weight.dtype))
