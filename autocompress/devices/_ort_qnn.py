"""Qualcomm's QNN, a plug-in that any ONNX Runtime takes: compiled for Hexagon, and emulated where there is none.

The package `onnxruntime-qnn` brings the compiler and, on x86, an emulator of the hardware. An emulated model says that
it compiles and what it computes; how long the emulator takes means nothing.
"""

import os
import sys
from collections.abc import Iterator, Sequence
from contextlib import contextmanager
from importlib.util import find_spec
from typing import Any

PACKAGE = "onnxruntime_qnn"
PROVIDER = "QNNExecutionProvider"

EMULATED = "Hexagon v75, as in a Snapdragon 8 Gen 3"
_EMULATED = {"soc_model": "57", "htp_arch": "75"}


def installed() -> bool:
    return find_spec(PACKAGE) is not None


def emulated(ort: Any) -> bool:
    """Whether QNN finds nothing here but the CPU to stand in for its hardware."""
    return _only_cpu(ort, _devices(ort))


def attach(ort: Any, options: Any, model: str | bytes) -> None:
    """Makes a session with these options compile the model for QNN, which knows fixed shapes only: one sample.

    What QNN does not take runs on the CPU, as with any provider.
    """
    import onnxruntime_qnn

    devices = _devices(ort)
    chosen = {"backend_path": onnxruntime_qnn.get_qnn_htp_path()} | (_EMULATED if _only_cpu(ort, devices) else {})
    options.add_provider_for_devices(devices, chosen)
    for axis in _free_axes(model):
        options.add_free_dimension_override_by_name(axis, 1)


@contextmanager
def silenced() -> Iterator[None]:
    """The emulator greets on the standard output, where a program may be reading JSON."""
    sys.stdout.flush()
    kept, nowhere = os.dup(1), os.open(os.devnull, os.O_WRONLY)
    os.dup2(nowhere, 1)
    try:
        yield
    finally:
        os.dup2(kept, 1)
        os.close(kept)
        os.close(nowhere)


def _devices(ort: Any) -> Sequence[Any]:
    import onnxruntime_qnn

    if PROVIDER not in {found.ep_name for found in ort.get_ep_devices()}:
        ort.register_execution_provider_library(PROVIDER, onnxruntime_qnn.get_library_path())
    return [found for found in ort.get_ep_devices() if found.ep_name == PROVIDER]


def _only_cpu(ort: Any, devices: Sequence[Any]) -> bool:
    return all(found.device.type == ort.OrtHardwareDeviceType.CPU for found in devices)


def _free_axes(model: str | bytes) -> set[str]:
    """Of a file or of its content."""
    import onnx

    read = onnx.load_from_string(model) if isinstance(model, bytes) else onnx.load(model, load_external_data=False)
    return {axis.dim_param for value in read.graph.input for axis in value.type.tensor_type.shape.dim if axis.dim_param}
