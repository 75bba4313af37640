"""ONNX files as they are read: what they ask of their inputs, and what makes two of them the same."""

from collections.abc import Sequence
from dataclasses import dataclass, field
from hashlib import sha256
from pathlib import Path
from typing import Any

from autocompress.devices.base import Array
from autocompress.devices.tvm.package import first_line
from autocompress.vocabulary.errors import DeviceError

Shapes = tuple[tuple[int, ...], ...]


@dataclass(frozen=True, slots=True)
class Model:
    """An ONNX file in memory; two with the same content are equal."""

    digest: str
    proto: Any = field(compare=False, repr=False)

    def inputs(self) -> list[Any]:
        """What a run must be given: the graph's inputs that have no value in the file."""
        constants = {tensor.name for tensor in self.proto.graph.initializer}
        return [value for value in self.proto.graph.input if value.name not in constants]

    def shapes_of_one(self) -> Shapes:
        """The inputs' shapes as the file declares them, one where an axis is free."""
        return tuple(tuple(a.dim_value or 1 for a in v.type.tensor_type.shape.dim) for v in self.inputs())

    def shapes_for(self, inputs: Sequence[Array]) -> Shapes:
        """The inputs' shapes; raises ValueError if the file asks for other shapes or types."""
        sizes: dict[str, int] = {}
        for declared, given in zip(self.inputs(), inputs, strict=True):
            _require_fit(declared, given, sizes)
        return tuple(given.shape for given in inputs)


def read(path: Path) -> Model:
    """The file's model; raises DeviceError when it is none."""
    import onnx

    try:
        proto = onnx.load(str(path))
        onnx.checker.check_model(proto)
    except Exception as error:  # protobuf, the checker and the file system each have their own
        raise DeviceError(f"tvm can't load {path}: {first_line(error)}") from error
    return Model(sha256(proto.SerializeToString()).hexdigest(), proto)


def _require_fit(declared: Any, given: Array, sizes: dict[str, int]) -> None:
    """An input against its declaration; `sizes` are those of the named axes so far, which must agree."""
    import onnx

    tensor = declared.type.tensor_type
    dtype = onnx.helper.tensor_dtype_to_np_dtype(tensor.elem_type)
    axes = list(tensor.shape.dim)
    fits = len(axes) == given.ndim and all(
        size == (axis.dim_value or (sizes.setdefault(axis.dim_param, size) if axis.dim_param else size))
        for axis, size in zip(axes, given.shape, strict=True)
    )
    if not fits or dtype != given.dtype:
        asked = ", ".join(str(axis.dim_value or axis.dim_param or "?") for axis in axes)
        raise ValueError(f"input {declared.name} is {given.dtype} {given.shape}, the file asks for {dtype} ({asked})")
