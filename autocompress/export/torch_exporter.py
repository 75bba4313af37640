"""torch's own ONNX exporters, in memory and without their chatter."""

import io
import logging
import warnings
from collections.abc import Iterator, Sequence
from contextlib import contextmanager, redirect_stdout
from typing import Any
from unittest.mock import patch

import onnx
import torch
from torch import Tensor, nn

from autocompress.export.emitter import BATCH, OPSET, OUTPUT


def export_by_tracing(
    model: nn.Module, inputs: Sequence[Tensor], names: Sequence[str], *, free_batch: bool = True
) -> onnx.ModelProto:
    """By the older exporter: a fraction of a second, no further packages, fewer models."""
    axes = {name: {0: BATCH} for name, x in zip(names, inputs, strict=True) if x.dim()}
    file: Any = io.BytesIO()
    with _quiet():
        torch.onnx.export(
            model, tuple(inputs), file, dynamo=False, opset_version=OPSET, input_names=list(names),
            output_names=[OUTPUT], dynamic_axes={**axes, OUTPUT: {0: BATCH}} if free_batch else None,
        )  # fmt: skip
    return onnx.load_from_string(file.getvalue())


def export_by_capture(
    model: nn.Module, inputs: Sequence[Tensor], names: Sequence[str], *, free_batch: bool = True
) -> onnx.ModelProto:
    """By the newer exporter (torch.export and onnxscript): seconds, more models."""
    shapes = tuple({0: torch.export.Dim.AUTO} if x.dim() else {} for x in inputs)
    with _quiet():
        program: Any = torch.onnx.export(
            model, tuple(inputs), dynamo=True, verbose=False, input_names=list(names), output_names=[OUTPUT],
            dynamic_shapes=shapes if free_batch else None,
        )  # fmt: skip
    proto: onnx.ModelProto = program.model_proto
    return proto


@contextmanager
def _quiet() -> Iterator[None]:
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
