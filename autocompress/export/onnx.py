"""Models as ONNX files: the compressed ones node by node, the user's original as torch exports it."""

import copy
import hashlib
import os
from collections import Counter
from collections.abc import Collection, Mapping, Sequence
from importlib.metadata import version
from pathlib import Path

import onnx
import torch
from onnx import helper
from torch import Tensor, nn
from torch.fx import GraphModule

from autocompress.export.checking import difference
from autocompress.export.fallback import emit_with_torch
from autocompress.export.lowering import lower
from autocompress.export.torch_exporter import export_by_capture, export_by_tracing
from autocompress.export.types import BATCH, ELEMENT_TYPES, input_types, zeros_of
from autocompress.export.whole import export_whole
from autocompress.export.writer import OUTPUT
from autocompress.graph.kernels import fuse
from autocompress.task.calling import calling_behind, model_behind
from autocompress.task.onnx_file import original_of
from autocompress.vocabulary.errors import ExportError, StorageError, first_line
from autocompress.vocabulary.workload import Artifact

VERSION = version("autocompress")
ORIGINAL = "original"
"""The plan key of the user's model as it came."""

TOLERANCE = 1e-3
"""Of the largest output: sums in another order, in nets of any depth."""


def to_onnx(model: GraphModule, path: str | Path, plan_key: str) -> Artifact:
    """Writes a finished model (exactly rewritten, perhaps with simulated quantisation) with a free batch axis.

    The file's metadata holds the plan's key, this package's version and the exact rewrites that were made. Raises
    ExportError naming the operator that can't be written, StorageError if the file can't be.
    """
    with torch.no_grad():
        kernel_of = fuse(model, zeros_of(input_types(model).values(), 0)).holder
        try:
            proto = lower(model, kernel_of, emit_with_torch)
        except ExportError as failure:
            proto = export_whole(model, failure)
    proto.producer_name, proto.producer_version = "autocompress", VERSION
    metadata = {"plan": plan_key, "autocompress": VERSION, "exact_rewrites": _rewrites(model)}
    return _write(proto, path, plan_key, metadata)


def plain_onnx(model: nn.Module, example_inputs: tuple[Tensor, ...], path: str | Path) -> Artifact:
    """Writes the user's untouched model: the baseline of every speed-up. One that came from an ONNX file is that file,
    any other is as torch.onnx exports it.

    The older exporter is tried first (it is fast and needs no other package), then the newer; each with free axes, then
    with the example's sizes. What is written has to compute what the model does, on values like the example's and with
    another number of samples too. Raises ExportError with what the last one said.
    """
    came_from = original_of(model_behind(model))
    if came_from is not None:
        return _stored(came_from.content(), path, ORIGINAL, came_from.opset)
    original = copy.deepcopy(model).eval()
    names, axes, outputs, batched = _form(model, example_inputs)
    failures: list[Exception] = []
    for export in (export_by_tracing, export_by_capture):
        for free in (axes, [{} for _ in axes]):
            try:
                inputs = _at_least_two(example_inputs, free) if export is export_by_capture else example_inputs
                proto = _with_all_inputs(export(original, inputs, names, outputs, free, batched), names, example_inputs)
                wrong = difference(proto, original, _samples(example_inputs, free), names, TOLERANCE)
            except Exception as error:  # whatever an exporter trips over, the next one may manage
                failures.append(error)
                continue
            if wrong is None:
                return _write(proto, path, ORIGINAL, {"plan": ORIGINAL})
            failures.append(ExportError(f"what torch.onnx writes is another model: {wrong}"))
    raise ExportError(
        f"neither exporter of torch.onnx can write the original model: {first_line(failures[-1])}; "
        "replace that operator in the model by ones that ONNX has"
    ) from failures[-1]


def _with_all_inputs(proto: onnx.ModelProto, names: Sequence[str], inputs: Sequence[Tensor]) -> onnx.ModelProto:
    """The model with the inputs that an exporter dropped because nothing reads them, in order."""
    written = {value.name: value for value in proto.graph.input}
    for name, x in zip(names, inputs, strict=True):
        if name not in written:
            axes = [f"axis_{axis}_of_{name}" for axis in range(x.dim())]
            written[name] = helper.make_tensor_value_info(name, ELEMENT_TYPES[x.dtype], axes)
    del proto.graph.input[:]
    proto.graph.input.extend(written[name] for name in names)
    return proto


def _samples(inputs: tuple[Tensor, ...], free: Sequence[Mapping[int, str]]) -> list[tuple[Tensor, ...]]:
    """Inputs like the example's, with as many samples and, where the batch is free, with two."""
    more = tuple(x[torch.arange(2) % len(x)] if 0 in axes else x for x, axes in zip(inputs, free, strict=True))
    return [tuple(map(_varied, found)) for found in ([inputs, more] if any(0 in axes for axes in free) else [inputs])]


def _varied(x: Tensor) -> Tensor:
    """Floats with noise: an example is often all zeros."""
    if not x.is_floating_point():
        return x
    noise = torch.randn(x.shape, generator=torch.Generator().manual_seed(x.numel())).to(x.dtype)
    return x + noise * (0.1 * x.abs().mean() if x.any() else 1.0)


def _form(
    model: nn.Module, inputs: tuple[Tensor, ...]
) -> tuple[Sequence[str], Sequence[Mapping[int, str]], Sequence[str], Collection[str]]:
    """Names of the inputs, their free axes, names of the outputs, and of those with the samples along axis 0: as the
    user's model gives them, or the usual ones of a model of tensors."""
    calling = calling_behind(model)
    if calling is None:
        names = [f"input_{i}" for i in range(len(inputs))]
        return names, [{0: BATCH} if x.dim() else {} for x in inputs], [OUTPUT], {OUTPUT}
    marked = zip(calling.results, calling.batched_results, strict=True)
    return calling.names, calling.axes.named(), calling.results, {name for name, mark in marked if mark}


def _at_least_two(inputs: tuple[Tensor, ...], free: Sequence[Mapping[int, str]]) -> tuple[Tensor, ...]:
    """torch.export takes an axis of one for a constant."""
    return tuple(torch.cat([x, x]) if 0 in axes and len(x) < 2 else x for x, axes in zip(inputs, free, strict=True))


def _rewrites(model: GraphModule) -> str:
    counts = Counter(rewrite.kind for rewrite in model.meta.get("rewrites", ()))
    return ", ".join(f"{kind} x{count}" for kind, count in counts.items())


def _write(proto: onnx.ModelProto, path: str | Path, plan_key: str, metadata: Mapping[str, str]) -> Artifact:
    helper.set_model_props(proto, dict(metadata))
    opset = next(entry.version for entry in proto.opset_import if entry.domain in ("", "ai.onnx"))
    return _stored(proto.SerializeToString(), path, plan_key, opset)


def _stored(content: bytes, path: str | Path, plan_key: str, opset: int) -> Artifact:
    """Writes beside the target and renames, so that a file by this name is always whole."""
    target = Path(path)
    partial = target.with_name(target.name + ".partial")
    try:
        partial.write_bytes(content)
        os.replace(partial, target)
    except OSError as error:
        raise StorageError(f"can't write {target}: {error.strerror}; free space or choose another folder") from error
    return Artifact(target, hashlib.sha256(content).hexdigest(), plan_key, opset, len(content))
