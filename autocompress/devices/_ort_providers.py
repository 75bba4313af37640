"""ONNX Runtime's execution providers: what each can make use of, how to get it, and which nodes it really ran."""

import warnings
from collections.abc import Mapping, Sequence
from dataclasses import dataclass, field
from pathlib import Path

from autocompress.devices import _ort_qnn
from autocompress.devices.base import DeviceWarning, NodeTime
from autocompress.vocabulary.errors import DeviceError
from autocompress.vocabulary.formats import FP32, INT8, Mode, formats

CPU = "CPUExecutionProvider"
"""What takes every node that the asked provider does not take, and all of them if that one can't be loaded."""

NEARLY_ALL = 0.9
"""With this share of its weighted nodes on the CPU, a model's time is the CPU's."""

NO_HARDWARE = frozenset({"AzureExecutionProvider"})
_SUFFIX = "ExecutionProvider"
_WEIGHTED = ("Conv", "Gemm", "MatMul", "Attention", "LSTM", "GRU")
"""Parts of the names of operators with weights, fused and quantised ones too (QLinearConv, FusedMatMul)."""

_NAMED = 3


@dataclass(frozen=True, slots=True)
class Provider:
    """An execution provider; only that of the CPU, and QNN's emulated, were ever run here.

    `precision` is what it computes float layers in by its own default, "" for float32. `compiles` where it makes one
    node of many, of which ONNX Runtime can't write the optimised model. `gpu` where it computes on NVIDIA's. `plugin`
    where it comes as a library of its own, see _ort_qnn.py. `packs` where it has quick products by packed weights.
    """

    name: str
    install: str
    channel_multiple: Mapping[str, int] = field(default_factory=lambda: {FP32: 16})
    precision: str = ""
    compiles: bool = True
    gpu: bool = False
    plugin: bool = False
    packs: bool = False


PACKED_GROUPS = {2: (32, 64, 128), 4: (16, 32, 64, 128, 256), 8: (16, 32, 64, 128, 256)}
"""Bits of a weight → sizes of groups for which MatMulNBits of ONNX Runtime 1.31 multiplies integers; 2 bits with other
groups are 40 times slower."""


def packed_formats() -> dict[str, int]:
    """Those that MatMulNBits is quick in, with their width step: a group is computed whole."""
    rows = ((row, row.group_size) for row in formats() if row.mode is Mode.WEIGHT_ONLY)
    return {row.name: size for row, size in rows if size and size in PACKED_GROUPS.get(row.weight_bits, ())}


_IN_PLACE_OF = "in place of onnxruntime"

PROVIDERS = {
    "cpu": Provider(CPU, "pip install onnxruntime", {FP32: 16, INT8: 4}, compiles=False, packs=True),
    "cuda": Provider(
        "CUDAExecutionProvider", f"an NVIDIA GPU with CUDA and cuDNN; pip install onnxruntime-gpu {_IN_PLACE_OF}",
        {FP32: 8}, precision="tf32", compiles=False, gpu=True,
    ),
    "tensorrt": Provider(
        "TensorrtExecutionProvider", f"an NVIDIA GPU and TensorRT; pip install onnxruntime-gpu {_IN_PLACE_OF}",
        {FP32: 8}, precision="tf32", gpu=True,
    ),
    "openvino": Provider(
        "OpenVINOExecutionProvider", f"pip install onnxruntime-openvino {_IN_PLACE_OF}; or use openvino:cpu",
        {FP32: 16, INT8: 16}, precision="bf16",
    ),
    "qnn": Provider(
        _ort_qnn.PROVIDER, 'pip install "autocompress[qnn]"; without a Qualcomm processor it is emulated',
        {FP32: 32, INT8: 32}, precision="fp16", plugin=True,
    ),
    "coreml": Provider("CoreMLExecutionProvider", "a Mac; pip install onnxruntime there", precision="fp16"),
    "dml": Provider("DmlExecutionProvider", f"Windows; pip install onnxruntime-directml {_IN_PLACE_OF}"),
    "migraphx": Provider("MIGraphXExecutionProvider", f"an AMD GPU; pip install onnxruntime-migraphx {_IN_PLACE_OF}"),
}  # fmt: skip
"""Variant of `ort:` → provider. Channel multiples are from the vendors' guides but for the CPU's, which is measured."""


def known(found: Sequence[str]) -> dict[str, Provider]:
    """The table, and what else this ONNX Runtime was built with: `XnnpackExecutionProvider` is `ort:xnnpack`."""
    listed = {provider.name for provider in PROVIDERS.values()} | NO_HARDWARE
    others = {name.removesuffix(_SUFFIX).lower(): Provider(name, "") for name in found if name not in listed}
    return PROVIDERS | others


def audit(device: str, path: Path, nodes: Sequence[NodeTime], weighted: int) -> None:
    """Compares where the nodes ran with what was asked for; no node is too small to be told.

    `weighted` is the number of weighted nodes in the file. Raises DeviceError if nearly all of them (or, where there
    are none, nearly all of the time) fell back to the CPU, warns if anything did.
    """
    fallen = [node for node in nodes if node.provider == CPU]
    if not fallen:
        return
    heavy = sum(is_weighted(node.op) for node in fallen)
    share = sum(node.seconds for node in fallen) / (sum(node.seconds for node in nodes) or 1.0)
    if (heavy / weighted if weighted else share) >= NEARLY_ALL:
        raise DeviceError(
            f"{device} was asked for, but {heavy} of {weighted} layers with weights in {path} ran on the CPU, which "
            "would be timed as if it were the device; open it on ort:cpu, or replace the layers it does not take"
        )
    names = ", ".join(f"{node.op} {node.source or node.name}" for node in fallen[:_NAMED])
    more = f" and {len(fallen) - _NAMED} more" if len(fallen) > _NAMED else ""
    warnings.warn(
        f"{device} left {len(fallen)} of {len(nodes)} nodes of {path} to the CPU, {share:.0%} of the profiled time: "
        f"{names}{more}",
        DeviceWarning,
        stacklevel=4,
    )


def is_weighted(op: str) -> bool:
    return any(part in op for part in _WEIGHTED)
