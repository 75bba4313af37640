"""From a user's module to the operators that it runs: torch.export, with the user's line where that fails."""

import inspect
import io
import logging
import warnings
from collections.abc import Collection, Iterator, Sequence
from contextlib import contextmanager, redirect_stderr
from typing import Any

import torch
from torch import Tensor, nn
from torch.export import Dim, ExportedProgram, default_decompositions
from torch.fx import Graph, GraphModule, Node

from autocompress.graph.calls import arguments
from autocompress.graph.writes import replace_writes, unseen_writes
from autocompress.vocabulary.errors import TraceError, first_line

aten = torch.ops.aten

_SYNONYMS: dict[Any, Any] = {
    aten.__and__.Tensor: aten.bitwise_and.Tensor,
    aten.__or__.Tensor: aten.bitwise_or.Tensor,
    aten.__xor__.Tensor: aten.bitwise_xor.Tensor,
}
_CASTS = frozenset({aten.to.device, aten.to.dtype, aten.to.dtype_layout, aten.to.other, aten.type_as.default})

Axes = Sequence[Collection[int]]
"""For every input the axes whose size varies from call to call: the batch, perhaps a sequence's length."""


def batch_axes(inputs: Sequence[Tensor]) -> tuple[frozenset[int], ...]:
    """The first axis of every input that has one."""
    return tuple(frozenset({0}) if tensor.dim() else frozenset() for tensor in inputs)


def one_sample(model: GraphModule, inputs: tuple[Tensor, ...]) -> tuple[Tensor, ...]:
    """The inputs of a lifted model cut to one sample; those without a batch stay as they are."""
    free = model.meta.get("free_axes") or batch_axes(inputs)
    return tuple(tensor[:1] if 0 in axes else tensor for tensor, axes in zip(inputs, free, strict=True))


def export(
    model: nn.Module, inputs: tuple[Tensor, ...], axes: Axes, known: Collection[Any]
) -> tuple[ExportedProgram, tuple[Tensor, ...]]:
    """The model's program in eval mode with those axes free, and the inputs that it was captured with.

    Operators outside `known` are decomposed by torch's own tables where torch can. Raises TraceError naming the user's
    line, or the input whose free axis the model fixes.
    """
    traced = tuple(_at_least_two(tensor, free) for tensor, free in zip(inputs, axes, strict=True))
    was_training = model.training
    model.eval()
    try:
        _run_once(model, traced)
        program = _captured(model, traced, axes)
        _require_free(program, axes)
        return _decomposed(program, known), traced
    finally:
        model.train(was_training)


def _at_least_two(tensor: Tensor, free: Collection[int]) -> Tensor:
    """torch.export takes a size of one for a constant, so a free batch is captured with two."""
    return torch.cat([tensor, tensor]) if 0 in free and tensor.shape[0] < 2 else tensor


def _run_once(model: nn.Module, inputs: tuple[Tensor, ...]) -> None:
    try:
        with torch.no_grad():
            model(*inputs)
    except Exception as error:
        found = ", ".join(f"{tuple(t.shape)} {t.dtype}" for t in inputs)
        raise TraceError(
            f"the model does not run on example_inputs of shape {found}: {first_line(error)}; "
            "give one batch as the model's forward takes it"
        ) from error


def _captured(model: nn.Module, inputs: tuple[Tensor, ...], axes: Axes) -> ExportedProgram:
    shapes = tuple(dict.fromkeys(sorted(free), Dim.AUTO) for free in axes)
    try:
        with torch.no_grad(), _without_chatter():
            program: ExportedProgram = torch.export.export(model, inputs, dynamic_shapes=_as_taken(model, shapes))
            return program
    except Exception as error:
        raise TraceError(
            f"torch.export can't capture the model: {first_line(error)}{_user_line(error)}; write that line with "
            "tensor operations only (torch.where instead of `if` on values, no .item(), no Python side effects)"
        ) from error


def _as_taken(model: nn.Module, shapes: tuple[Any, ...]) -> tuple[Any, ...]:
    """One entry per parameter of forward, as torch.export wants it: what `*args` takes is a tuple by itself."""
    kinds = [parameter.kind for parameter in inspect.signature(model.forward).parameters.values()]
    if inspect.Parameter.VAR_POSITIONAL not in kinds:
        return shapes
    named = kinds.index(inspect.Parameter.VAR_POSITIONAL)
    if len(shapes) <= named:
        return shapes
    return (*shapes[:named], shapes[named:])


def _require_free(program: ExportedProgram, axes: Axes) -> None:
    values = {node.name: node.meta.get("val") for node in program.graph.nodes if node.op == "placeholder"}
    for name, free in zip(program.graph_signature.user_inputs, axes, strict=True):
        value = values.get(str(name))
        for axis in free:
            if isinstance(value, Tensor) and _is_number(value.shape[axis]):
                what = "the batch size" if axis == 0 else f"the size of axis {axis}"
                raise TraceError(
                    f"the model fixes {what} of input {name!r} at {value.shape[axis]}; "
                    f"write forward with x.shape[{axis}] (or -1 in view/reshape) instead of a number or len()"
                )


def _is_number(size: int | torch.SymInt) -> bool:
    """Whether torch.export settled on one value: it may still wrap it in a symbol."""
    return isinstance(size, int) or size.node.maybe_as_int() is not None


def _decomposed(program: ExportedProgram, known: Collection[Any]) -> ExportedProgram:
    """The functional program, in which every operator outside `known` that torch can decompose is decomposed."""
    if _made_plain(program.graph, known):
        return program  # torch would trace it twice more, to the same end
    try:
        with torch.no_grad(), _without_chatter():
            table = default_decompositions()
            for target in [target for target in table if target in known]:
                table.pop(target)
            plain: ExportedProgram = program.run_decompositions(table)
            return plain
    except Exception as error:
        raise TraceError(
            f"torch can't decompose the model into plain operators: {first_line(error)}; "
            "report the model's kind, or replace that part by other operators"
        ) from error


def _made_plain(graph: Graph, known: Collection[Any]) -> bool:
    """Whether there is nothing to decompose once writes that nobody sees are replaced and operators have the one name
    that `known` has for them, which is done then."""
    writes, named = unseen_writes(graph), {*known, *_SYNONYMS, *_CASTS}
    if writes is None or not all(_is_plain(node, writes.get(node, node.target), named) for node in graph.nodes):
        return False
    replace_writes(graph, writes)
    for node in graph.nodes:
        if node.target in _CASTS:
            node.target, node.args, node.kwargs = (
                aten._to_copy.default,
                node.args[:1],
                {"dtype": node.meta["val"].dtype},
            )
        node.target = _SYNONYMS.get(node.target, node.target)
    return True


def _is_plain(node: Node, target: Any, known: Collection[Any]) -> bool:
    if node.op != "call_function":
        return node.op in ("placeholder", "output")
    return target in known and not (target is aten.batch_norm.default and arguments(node)["training"])


@contextmanager
def _without_chatter() -> Iterator[None]:
    """torch.export prints the partial graph, and logs, before it raises; the error says all that a user needs."""
    logger = logging.getLogger("torch.fx.experimental.symbolic_shapes")
    was_disabled = logger.disabled
    logger.disabled = True
    try:
        with redirect_stderr(io.StringIO()), warnings.catch_warnings():
            warnings.filterwarnings("ignore", category=FutureWarning)  # torch's own, about its tree utilities
            warnings.filterwarnings("ignore", message="The tensor attribute")  # recurrent layers flatten weights
            yield
    finally:
        logger.disabled = was_disabled


def _user_line(error: BaseException) -> str:
    """' (at file:line: code)' of the innermost frame that is neither torch's nor ours, if any."""
    for text in reversed(str(error).splitlines()):
        if text.strip().startswith("File ") and "/torch/" not in text and "autocompress/" not in text:
            return f" (at {text.strip()})"
    frames = []
    traceback = error.__traceback__
    while traceback is not None:
        frames.append((traceback.tb_frame.f_code.co_filename, traceback.tb_lineno))
        traceback = traceback.tb_next
    for name, line in reversed(frames):
        if "/torch/" not in name and "autocompress/" not in name and not name.startswith("<"):
            return f" (at {name}:{line})"
    return ""
