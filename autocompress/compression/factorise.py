"""Factorising a layer in a model: its weight as a product of thinner ones, close on the inputs that it really sees."""

import math
from collections.abc import Callable, Sequence
from functools import partial
from typing import Any

import torch
from torch import Tensor, nn
from torch.fx import GraphModule
from torch.nn import functional as F

from autocompress.compression.matrices import TINY, require_finite, ridge_of, ridged, row_scale, shift_outputs, solvable


def ranks(kind: str, rank: int, inputs: int, outputs: int, window: Sequence[int]) -> tuple[int, ...]:
    """Channels between the parts of a layer factorised at this rank, which is cut to the full one.

    One number for svd and spatial, two (input side, output side) for tucker2, whose input side keeps the same share of
    its channels as the output side.
    """
    if kind == "svd":
        return (min(rank, inputs, outputs),)
    if kind == "spatial":
        return (min(rank, inputs * window[0], outputs * window[1]),)
    outer = min(rank, outputs)
    return min(max(1, round(inputs * outer / outputs)), outputs * math.prod(window)), outer


def factorise(model: GraphModule, layer: str, kind: str, rank: int, gram: Tensor | None) -> tuple[str, ...]:
    """Replaces the layer, in place, by parts `<layer>.0`, `<layer>.1`, ...; returns their names.

    `gram` are the second moments of its inputs (Statistics.gram), None for plain factorisation of the weight. The mean
    of what is lost goes into the last part's bias or the batch norm behind it. model.meta["factorised"] names the
    parts. Raises BuildError where the numbers are too large for that.
    """
    module: Any = model.get_submodule(layer)
    inputs = _Inputs(module, gram)
    weight = module.weight.detach().double()
    scale = row_scale(model, layer)
    scaled = _scaled(weight, scale, 1)
    between = ranks(kind, rank, weight.shape[1], weight.shape[0], weight.shape[2:])
    place = f"{layer} as {kind} of rank {rank}"
    with solvable(place):
        factors = [*_FACTORS[kind](scaled, inputs, *between)]
    factors[-1] = _scaled(factors[-1], scale, -1)
    require_finite(place, factors)
    lost = (weight - _PRODUCTS[kind](*factors)).flatten(1) @ inputs.mean
    names = _replace(model, layer, _modules(module, kind, _balanced(factors)))
    shift_outputs(model, names[-1], lost)
    return names


class _Inputs:
    """First and second moments of a layer's input patches; white noise where nothing is known."""

    def __init__(self, module: Any, gram: Tensor | None) -> None:
        dim = module.weight[0].numel()
        known = torch.eye(dim + 1, dtype=torch.float64) if gram is None else ridged(gram)
        self.mean = torch.zeros(dim, dtype=torch.float64) if gram is None else gram[-1, :-1]
        self.covariance = known[:-1, :-1] - torch.outer(self.mean, self.mean)
        self.shape = tuple(module.weight.shape[1:])

    def root(self, axes: tuple[int, ...]) -> Tensor:
        """Cholesky factor of the covariance over these axes of (channels, window...), averaged over the others."""
        rank = len(self.shape)
        letters = [chr(ord("a") + i) for i in range(rank)]
        right = [chr(ord("A") + i) if i in axes else letters[i] for i in range(rank)]
        wanted = [letters[i] for i in axes] + [right[i] for i in axes]
        full = self.covariance.reshape(*self.shape, *self.shape)
        summed = torch.einsum(f"{''.join(letters)}{''.join(right)}->{''.join(wanted)}", full)
        size = math.prod(self.shape[i] for i in axes)
        root: Tensor = torch.linalg.cholesky(summed.reshape(size, size) * size / self.covariance.shape[0])
        return root


def _svd(weight: Tensor, inputs: _Inputs, rank: int) -> tuple[Tensor, ...]:
    """The best rank-r product in the mean square of the outputs: truncated SVD of W S, S S^T the inputs' covariance."""
    shape = weight.shape
    first, second = _split(weight.flatten(1), inputs.root(tuple(range(weight.dim() - 1))), rank)
    return first.reshape(rank, *shape[1:]), second.reshape(shape[0], rank, *(1 for _ in shape[2:]))


def _spatial(weight: Tensor, inputs: _Inputs, rank: int) -> tuple[Tensor, ...]:
    """A column convolution then a row convolution (Jaderberg et al., BMVC 2014, scheme 2).

    The first by SVD on the inputs' covariance down a column, the second by least squares on what that lets through.
    """
    out, channels, high, wide = weight.shape
    unfolded = weight.permute(0, 3, 1, 2).reshape(out * wide, channels * high)
    first, second = _split(unfolded, inputs.root((0, 1)), rank)
    first = first.reshape(rank, channels, high)
    seen = torch.einsum("rch,wv->rwchv", first, torch.eye(wide, dtype=first.dtype)).reshape(rank * wide, -1)
    start = second.reshape(out, wide, rank).transpose(1, 2).reshape(out, rank * wide)
    fitted = _fitted(weight.flatten(1), inputs.covariance, seen, start)
    return first.unsqueeze(3), fitted.reshape(out, rank, 1, wide)


def _tucker2(weight: Tensor, inputs: _Inputs, inner: int, outer: int) -> tuple[Tensor, ...]:
    """A 1x1 in, a small core, a 1x1 out (Kim et al., ICLR 2016).

    Out: principal components of the outputs. In: SVD on the input channels' covariance. Core: least squares between.
    """
    out, channels, *window = weight.shape
    taps = math.prod(window)
    unfolded = weight.flatten(2).transpose(1, 2).reshape(out * taps, channels)
    first, _ = _split(unfolded, inputs.root((0,)), inner)
    outputs = weight.flatten(1) @ inputs.covariance @ weight.flatten(1).T
    last = torch.linalg.eigh(outputs).eigenvectors[:, -outer:]
    seen = torch.einsum("rc,tu->rtcu", first, torch.eye(taps, dtype=first.dtype)).reshape(inner * taps, -1)
    wanted = last.T @ weight.flatten(1)
    start = torch.einsum("oct,cr->ort", wanted.reshape(outer, channels, taps), torch.linalg.pinv(first)).flatten(1)
    core = _fitted(wanted, inputs.covariance, seen, start)
    ones = [1 for _ in window]
    return first.reshape(inner, channels, *ones), core.reshape(outer, inner, *window), last.reshape(out, outer, *ones)


_FACTORS: dict[str, Callable[..., tuple[Tensor, ...]]] = {"svd": _svd, "spatial": _spatial, "tucker2": _tucker2}


def _split(matrix: Tensor, root: Tensor, rank: int) -> tuple[Tensor, Tensor]:
    """(first [r, d], second [o, r]) with second @ first closest to the matrix on inputs of covariance root @ root.T.

    What flows between has unit variance in every channel: the least noise for one quantisation range over all of them.
    """
    u, sigma, v = torch.linalg.svd(matrix @ root, full_matrices=False)
    first = torch.linalg.solve_triangular(root, v[:rank], upper=False, left=False)
    return first, u[:, :rank] * sigma[:rank]


def _fitted(wanted: Tensor, covariance: Tensor, seen: Tensor, start: Tensor) -> Tensor:
    """Z that makes Z @ seen closest to `wanted` on the inputs, pulled towards `start`."""
    system = seen @ covariance @ seen.T
    strength = ridge_of(F.pad(system, (0, 1, 0, 1)))
    system.diagonal().add_(strength)
    solution: Tensor = torch.linalg.solve(system, wanted @ covariance @ seen.T + strength * start, left=False)
    return solution


def _product_svd(first: Tensor, second: Tensor) -> Tensor:
    return torch.einsum("rc...,or->oc...", first, second.flatten(1))


def _product_spatial(first: Tensor, second: Tensor) -> Tensor:
    return torch.einsum("rch,orw->ochw", first.squeeze(3), second.squeeze(2))


def _product_tucker2(first: Tensor, core: Tensor, last: Tensor) -> Tensor:
    return torch.einsum("ic,ri...,or->oc...", first.flatten(1), core, last.flatten(1))


_PRODUCTS: dict[str, Callable[..., Tensor]] = {
    "svd": _product_svd,
    "spatial": _product_spatial,
    "tucker2": _product_tucker2,
}


def _scaled(weight: Tensor, scale: Tensor | None, power: int) -> Tensor:
    """Rows times scale**power; rows that a norm all but silences count as a thousandth of the loudest, or alike if it
    silences all."""
    if scale is None:
        return weight
    size = scale.double().abs()
    if not size.max() > TINY:
        return weight
    return weight * size.clamp_min(float(size.max() * 1e-3)).pow(power).reshape(-1, *(1 for _ in weight.shape[1:]))


def _balanced(factors: Sequence[Tensor]) -> list[Tensor]:
    """The same product from factors of equal norm, which train at one rate."""
    norms = [factor.norm().clamp_min(TINY) for factor in factors]
    mean = torch.stack(norms).log().mean().exp()
    return [factor * (mean / norm) for factor, norm in zip(factors, norms, strict=True)]


def _modules(module: Any, kind: str, factors: Sequence[Tensor]) -> list[nn.Module]:
    """A module per factor; only the last has a bias, so that zero padding between the parts stays zero."""
    made: list[Any] = []
    for number, factor in enumerate(factors):
        bias = module.bias if number == len(factors) - 1 else None
        make = _linear if isinstance(module, nn.Linear) else partial(_conv, module, kind, number)
        part: Any = make(factor, bias)
        with torch.no_grad():
            part.weight.copy_(factor)
            if bias is not None:
                part.bias.copy_(bias)
        made.append(part)
    return made


def _linear(factor: Tensor, bias: Tensor | None) -> nn.Module:
    return nn.Linear(factor.shape[1], factor.shape[0], bias is not None)


def _conv(module: Any, kind: str, number: int, factor: Tensor, bias: Tensor | None) -> nn.Module:
    """A convolution that strides, pads and dilates along those axes of the original's which this part sees."""
    rank = factor.dim() - 2
    sees = [axis == number for axis in range(rank)] if kind == "spatial" else [number == (kind == "tucker2")] * rank

    def along(values: Any, otherwise: int) -> Any:
        return (
            values
            if isinstance(values, str)
            else tuple(v if s else otherwise for v, s in zip(values, sees, strict=True))
        )

    conv: nn.Module = type(module)(
        factor.shape[1], factor.shape[0], tuple(factor.shape[2:]), along(module.stride, 1), along(module.padding, 0),
        along(module.dilation, 1), 1, bias is not None,
    )  # fmt: skip
    return conv


def _replace(model: GraphModule, layer: str, modules: list[nn.Module]) -> tuple[str, ...]:
    """One call per part instead of the layer's call; returns the parts' names."""
    names = tuple(f"{layer}.{number}" for number in range(len(modules)))
    node = next(n for n in model.graph.nodes if n.op == "call_module" and n.target == layer)
    parent, _, leaf = layer.rpartition(".")
    setattr(model.get_submodule(parent), leaf, nn.Sequential(*modules).train(model.training))
    value = node.args[0]
    with model.graph.inserting_before(node):
        for name in names:
            value = model.graph.call_module(name, (value,))
    node.replace_all_uses_with(value)
    model.graph.erase_node(node)
    model.recompile()
    model.meta.setdefault("factorised", {})[layer] = names
    return names
