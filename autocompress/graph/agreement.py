"""Whether a lifted model is the user's own module: both run on the same inputs, and what differs is named."""

from collections.abc import Collection, Sequence
from typing import Any

import torch
from torch import Tensor, nn
from torch.fx import GraphModule

from autocompress.graph.recording import recorded_until_failure
from autocompress.vocabulary.errors import TraceError, first_line

TOLERANCE = 1e-4
"""Of an output's largest value, in float32. Decomposed operators and weights computed beforehand round in another
order, which deep nets were seen to grow to 1e-5; a value taken for another one differs by far more."""

BATCHES = (1, 2, 3)

Outputs = tuple[Tensor, ...]


def require_agreement(model: nn.Module, lifted: GraphModule, inputs: tuple[Tensor, ...]) -> None:
    """Raises TraceError naming the first layer whose value differs from the user's module on these inputs."""
    _require_equal(model, lifted, inputs, _run(model, inputs))


def require_agreement_at_any_batch(
    model: nn.Module, lifted: GraphModule, inputs: tuple[Tensor, ...], free: Sequence[Collection[int]]
) -> None:
    """`require_agreement` with one, two and three samples made of the example, where the model takes so many; on the
    example itself where there is no batch."""
    if not any(0 in axes for axes in free):
        require_agreement(model, lifted, inputs)
        return
    for count in BATCHES:
        batch = tuple(_samples(t, count) if 0 in axes else t for t, axes in zip(inputs, free, strict=True))
        expected = _run(model, batch) if count == _size(inputs, free) else _run_if_taken(model, batch)
        if expected is not None:
            _require_equal(model, lifted, batch, expected)


def _require_equal(model: nn.Module, lifted: GraphModule, inputs: tuple[Tensor, ...], expected: Outputs) -> None:
    reason = _difference(expected, _run_lifted(lifted, inputs))
    if reason is not None:
        place = _first_difference(model, lifted, inputs)
        sizes = ", ".join(str(tuple(tensor.shape)) for tensor in inputs)
        raise TraceError(
            f"the captured model is not yours: on inputs of shape {sizes} {reason}{place}; "
            "what forward does there depends on more than its inputs' values (state, randomness, sizes): rewrite it"
        )


def _size(inputs: tuple[Tensor, ...], free: Sequence[Collection[int]]) -> int:
    return next(len(tensor) for tensor, axes in zip(inputs, free, strict=True) if 0 in axes)


def _samples(tensor: Tensor, count: int) -> Tensor:
    """The first samples; further ones are the given ones again, with noise where they are floats."""
    places = torch.arange(count) % len(tensor)
    taken = tensor[places]
    if not tensor.is_floating_point():
        return taken
    generator = torch.Generator().manual_seed(count)
    noise = torch.randn(taken.shape, generator=generator).to(taken.dtype) * 0.1 * tensor.abs().mean().nan_to_num()
    return torch.where((torch.arange(count) < len(tensor)).reshape(-1, *[1] * (tensor.dim() - 1)), taken, taken + noise)


def _run_if_taken(model: nn.Module, inputs: tuple[Tensor, ...]) -> Outputs | None:
    try:
        return _run(model, inputs)
    except Exception:  # a model may refuse a batch size for any reason: then there is nothing to compare
        return None


def _run(model: nn.Module, inputs: tuple[Tensor, ...]) -> Outputs:
    training = model.training
    model.eval()
    try:
        with torch.no_grad():
            value = model(*inputs)
    finally:
        model.train(training)
    leaves = torch.utils._pytree.tree_leaves(value)
    return tuple(leaf for leaf in leaves if isinstance(leaf, Tensor))


def _run_lifted(lifted: GraphModule, inputs: tuple[Tensor, ...]) -> Outputs | str:
    """Its outputs, or why it does not run."""
    try:
        return _run(lifted, inputs)
    except Exception as error:  # any operator may meet sizes that it does not take
        return f"it does not run ({first_line(error)})"


def _difference(expected: Outputs, found: Outputs | str) -> str | None:
    if isinstance(found, str):
        return found
    if len(expected) != len(found):
        return f"yours returns {len(expected)} tensors, the captured one {len(found)}"
    for number, (e, f) in enumerate(zip(expected, found, strict=True)):
        if e.shape != f.shape and not (e.numel() == f.numel() and 1 in f.shape[:1]):
            return f"output {number} has shape {tuple(e.shape)}, captured {tuple(f.shape)}"
        worst = _worst(e, f.reshape(e.shape))
        if not worst <= TOLERANCE:
            return f"output {number} differs by {worst:.1e} of its range"
    return None


def _worst(expected: Tensor, found: Tensor) -> float:
    """The largest difference over the largest value; what is not finite has to be so in both."""
    if not expected.numel():
        return 0.0
    e, f = expected.double(), found.double()
    finite = torch.isfinite(e)
    if not torch.equal(finite, torch.isfinite(f)):
        return float("inf")
    if not finite.any():
        return 0.0
    e, f = e[finite], f[finite]
    return float((e - f).abs().max() / e.abs().max().clamp_min(1e-12))


def _equal(expected: Tensor, found: Tensor) -> bool:
    return expected.numel() == found.numel() and _worst(expected, found.reshape(expected.shape)) <= TOLERANCE


def _first_difference(model: nn.Module, lifted: GraphModule, inputs: tuple[Tensor, ...]) -> str:
    """' (first at LAYER)', call by call of the user's own layers; ' (after LAYER)' where it is behind the last."""
    theirs, last = _layer_outputs(model, inputs), ""
    for node, value in recorded_until_failure(lifted, inputs).items():
        name, _, call = str(node.target).partition("@")
        calls = theirs.get(name, []) if node.op == "call_module" else []
        number = int(call or 1) - 1
        if number >= len(calls) or not isinstance(value, Tensor):
            continue
        if not _equal(calls[number], value):
            return f" (first at {node.target})"
        last = str(node.target)
    return f" (after {last})" if last else ""


def _layer_outputs(model: nn.Module, inputs: tuple[Tensor, ...]) -> dict[str, list[Tensor]]:
    """What each submodule that returns a tensor made, call by call, before anything was written into it."""
    made: dict[str, list[Tensor]] = {}

    def keep(name: str, value: Any) -> None:
        if isinstance(value, Tensor):
            made.setdefault(name, []).append(value.clone())

    handles = [
        module.register_forward_hook(lambda _m, _a, value, name=name: keep(name, value))
        for name, module in model.named_modules()
        if name
    ]
    try:
        _run(model, inputs)
    finally:
        for handle in handles:
            handle.remove()
    return made
