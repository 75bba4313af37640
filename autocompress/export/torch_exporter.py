"""torch's own ONNX exporters, in memory and without their chatter."""

import inspect
import io
import logging
import warnings
from collections.abc import Collection, Iterator, Mapping, Sequence
from contextlib import contextmanager, redirect_stdout
from typing import Any
from unittest.mock import patch

import onnx
import torch
from torch import Tensor, nn

from autocompress.export.types import BATCH
from autocompress.export.writer import OPSET

Axes = Sequence[Mapping[int, str]]
"""The names of the free axes of every input."""


def export_by_tracing(
    model: nn.Module,
    inputs: Sequence[Tensor],
    names: Sequence[str],
    outputs: Sequence[str],
    free: Axes,
    batched: Collection[str] | None = None,
) -> onnx.ModelProto:
    """By the older exporter: a fraction of a second, no further packages, fewer models.

    `batched` are the outputs with the samples along axis 0, by default all.
    """
    axes = {name: dict(axes) for name, axes in zip(names, free, strict=True) if axes}
    if axes:
        axes |= {output: {0: BATCH} for output in outputs if batched is None or output in batched}
    file: Any = io.BytesIO()
    with quiet():
        torch.onnx.export(
            model, tuple(inputs), file, dynamo=False, opset_version=OPSET, input_names=list(names),
            output_names=list(outputs), dynamic_axes=axes or None,
        )  # fmt: skip
    return onnx.load_from_string(file.getvalue())


def export_by_capture(
    model: nn.Module,
    inputs: Sequence[Tensor],
    names: Sequence[str],
    outputs: Sequence[str],
    free: Axes,
    batched: Collection[str] | None = None,
) -> onnx.ModelProto:
    """By the newer exporter (torch.export and onnxscript): seconds, more models. It finds `batched` by itself."""
    shapes: Any = tuple({axis: torch.export.Dim.AUTO for axis in axes} for axes in free)
    if takes_any_number(model):
        shapes = (shapes,)
    with quiet():
        program: Any = torch.onnx.export(
            model, tuple(inputs), dynamo=True, verbose=False, input_names=list(names), output_names=list(outputs),
            dynamic_shapes=shapes if any(free) else None,
        )  # fmt: skip
    proto: onnx.ModelProto = program.model_proto
    return proto


def takes_any_number(model: nn.Module) -> bool:
    """Whether forward is `forward(*inputs)`, whose shapes torch.export wants as one tuple."""
    kinds = [parameter.kind for parameter in inspect.signature(model.forward).parameters.values()]
    return kinds == [inspect.Parameter.VAR_POSITIONAL]


@contextmanager
def quiet() -> Iterator[None]:
    """No warnings, log lines or graph dumps; PyTorch's fused attention path, which ONNX lacks, is off meanwhile."""
    fused = torch.backends.mha.get_fastpath_enabled()
    disabled = logging.root.manager.disable
    torch.backends.mha.set_fastpath_enabled(False)
    logging.disable(logging.ERROR)
    try:
        with (
            warnings.catch_warnings(),
            torch.no_grad(),
            redirect_stdout(io.StringIO()),
            patch.object(torch._C, "_jit_onnx_log", lambda *graph: None),
        ):
            warnings.simplefilter("ignore")
            yield
    finally:
        logging.disable(disabled)
        torch.backends.mha.set_fastpath_enabled(fused)
