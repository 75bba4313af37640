"""A model that the emitters can't write, as torch.onnx writes it whole; int8 layers and roundings included."""

import copy
from collections.abc import Iterator, Mapping, Sequence
from typing import Any

import onnx
import torch
from torch import Tensor, nn
from torch.fx import GraphModule

from autocompress.compression.fake_quant import ACTIVATION_MAX, ACTIVATION_MIN, FakeQuantize, QuantizedLayer
from autocompress.compression.weight_only import WeightOnlyLinear
from autocompress.export.checking import difference
from autocompress.export.fallback import random_inputs
from autocompress.export.lowering import output_names, results
from autocompress.export.torch_exporter import export_by_capture, export_by_tracing
from autocompress.export.types import axes_of, input_types, inputs_of
from autocompress.task.calling import NAMES
from autocompress.vocabulary.errors import ExportError, first_line

FLOAT_TOLERANCE = 1e-3
INT8_TOLERANCE = 0.1
"""A value at the edge of a step may be rounded the other way, and go on from there; parity is judged after this."""


class _Dequantize(torch.autograd.Function):
    """(steps - 0) * scale; DequantizeLinear in a file of the older exporter."""

    @staticmethod
    def forward(ctx: Any, steps: Tensor, scale: Tensor, zero: Tensor, axis: int) -> Tensor:
        return steps.float() * scale.reshape([-1 if d == axis else 1 for d in range(steps.dim())])

    @staticmethod
    def symbolic(g: Any, steps: Any, scale: Any, zero: Any, axis: int) -> Any:
        return g.op("DequantizeLinear", steps, scale, zero, axis_i=axis).setType(steps.type().with_dtype(torch.float32))


class _Round(torch.autograd.Function):
    """A rounding to the uint8 grid; QuantizeLinear and DequantizeLinear in a file of the older exporter."""

    @staticmethod
    def forward(ctx: Any, x: Tensor, scale: Tensor, zero: Tensor) -> Tensor:
        grid = zero.to(torch.int32)
        return torch.fake_quantize_per_tensor_affine(x, scale, grid, ACTIVATION_MIN, ACTIVATION_MAX)

    @staticmethod
    def symbolic(g: Any, x: Any, scale: Any, zero: Any) -> Any:
        codes = g.op("QuantizeLinear", x, scale, zero)
        return g.op("DequantizeLinear", codes, scale, zero).setType(x.type())


class _WrittenRounding(nn.Module):
    scale: Tensor
    zero: Tensor

    def __init__(self, rounding: FakeQuantize) -> None:
        super().__init__()
        self.register_buffer("scale", rounding.scale.detach().clone())
        self.register_buffer("zero", rounding.zero_point.to(torch.uint8))

    def forward(self, x: Tensor) -> Any:
        return _Round.apply(  # type: ignore[no-untyped-call]
            x, self.scale, self.zero
        )


class _WrittenLayer:
    """Mixed into an int8 layer: its weight and bias are stored as integers."""

    channel_axis: int
    steps: Tensor
    bias_steps: Tensor
    weight_scale: Tensor
    bias_scale: Tensor

    @property
    def quantized_weight(self) -> Any:
        zeros = torch.zeros(self.weight_scale.shape, dtype=torch.int8)
        return _Dequantize.apply(  # type: ignore[no-untyped-call]
            self.steps, self.weight_scale, zeros, self.channel_axis
        )

    @property
    def quantized_bias(self) -> Any:
        if not hasattr(self, "bias_steps"):
            return None
        zeros = torch.zeros(self.bias_scale.shape, dtype=torch.int32)
        return _Dequantize.apply(  # type: ignore[no-untyped-call]
            self.bias_steps, self.bias_scale, zeros, 0
        )


def export_whole(model: GraphModule, failure: ExportError) -> onnx.ModelProto:
    """The first of torch.onnx's ways that agrees with torch: each exporter with free axes, then with fixed ones.

    Raises ExportError that says what the emitters lacked (`failure`) and what the exporters said, or what they lack.
    """
    if any(isinstance(module, WeightOnlyLinear) for module in model.modules()):
        raise ExportError(f"{failure}; torch.onnx, which writes whole models, has no weight-only layers") from failure
    inputs, given = inputs_of(model), model.meta.get(NAMES)
    names, outputs = given or ([node.name for node in inputs], output_names(len(results(model))))
    int8 = any(isinstance(module, QuantizedLayer) for module in model.modules())
    tolerance = INT8_TOLERANCE if int8 else FLOAT_TOLERANCE
    written = _with_integers(model) if int8 else model
    kinds = list(input_types(model).values())
    said = ""
    for export, free, batches in _ways(list(axes_of(model).values()), int8):
        samples = [random_inputs(kinds, batch - 1) for batch in batches]
        try:
            proto = export(written, samples[-1], names, outputs, free)
            wrong = difference(proto, model, samples, names, tolerance)
        except Exception as error:  # whatever an exporter or the runtime trips over, the next one may manage
            said = first_line(error)
            continue
        if wrong is None:
            made: onnx.ModelProto = proto
            return made
        said = f"what torch.onnx writes is wrong: {wrong}"
    raise ExportError(f"{failure}; torch.onnx can't write the whole model either: {said}") from failure


def _ways(
    free: Sequence[Mapping[int, str]], int8: bool
) -> Iterator[tuple[Any, Sequence[Mapping[int, str]], Sequence[int]]]:
    """(exporter, names of the free axes, numbers of samples to check); the newer one knows no int8 layers of ours."""
    for export in (export_by_tracing,) if int8 else (export_by_tracing, export_by_capture):
        yield export, free, (1, 3, 2)
        yield export, [{} for _ in free], (1,)


def _with_integers(model: GraphModule) -> GraphModule:
    """A copy whose int8 layers and roundings are written as such."""
    copied = copy.deepcopy(model)
    for name, module in list(copied.named_modules()):
        if isinstance(module, FakeQuantize):
            copied.set_submodule(name, _WrittenRounding(module))
        elif isinstance(module, QuantizedLayer):
            layer: Any = module
            weight, bias = layer.integers()
            layer.__class__ = type(type(layer).__name__, (_WrittenLayer, type(layer)), {})
            layer.register_buffer("steps", weight)
            if bias is not None:
                layer.register_buffer("bias_steps", bias)
    return copied
