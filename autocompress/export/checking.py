"""A written model beside the torch function it stands for, both on the same values."""

from collections.abc import Callable, Sequence
from typing import Any

import numpy as np
import onnx
import onnxruntime
import torch
from torch import Tensor

TOLERANCE = 1e-4
"""Float32 rounding of sums in another order, relative to the largest element."""


def difference(proto: onnx.ModelProto, function: Callable[..., Any], samples: Sequence[Sequence[Tensor]],
               names: Sequence[str], tolerance: float = TOLERANCE) -> str | None:  # fmt: skip
    """How ONNX Runtime's results differ from torch's on one of the samples beyond rounding; None if they don't.

    `names` are the inputs in the function's order; the file may lack some that it doesn't need.
    """
    options = onnxruntime.SessionOptions()
    options.intra_op_num_threads, options.log_severity_level = 1, 4
    session = onnxruntime.InferenceSession(proto.SerializeToString(), options, providers=["CPUExecutionProvider"])
    wanted = {info.name for info in session.get_inputs()}
    for values in samples:
        with torch.no_grad():
            expected = function(*values)
        expected = expected if isinstance(expected, (tuple, list)) else (expected,)
        feed = {name: value.numpy() for name, value in zip(names, values, strict=True) if name in wanted}
        found = session.run(None, feed)
        if len(found) != len(expected):
            return f"it has {len(found)} results instead of {len(expected)}"
        for array, tensor in zip(found, expected, strict=True):
            if (wrong := _wrong(array, tensor.numpy(), tolerance)) is not None:
                return f"{wrong} for inputs of shape {[tuple(v.shape) for v in values]}"
    return None


def _wrong(found: np.ndarray, expected: np.ndarray, tolerance: float) -> str | None:
    if found.shape != expected.shape or found.dtype != expected.dtype:
        return f"it makes {found.dtype} {found.shape} instead of {expected.dtype} {expected.shape}"
    if not expected.size:
        return None
    if not np.issubdtype(expected.dtype, np.floating):
        return None if np.array_equal(found, expected) else "it makes other integers"
    finite = np.isfinite(expected)
    if not np.array_equal(found[~finite], expected[~finite], equal_nan=True):
        return "it is infinite or not a number in other places"
    if not finite.any():
        return None
    error = float(np.abs(found[finite] - expected[finite]).max())
    limit = tolerance * max(1e-3, float(np.abs(expected[finite]).max()))
    return None if error <= limit else f"it differs by {error:.3g}"
