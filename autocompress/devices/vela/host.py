"""What an operator costs on the CPU beside the NPU: a roofline at the CPU's peak rates."""

import numpy as np

from autocompress.devices.vela.platforms import HostCpu
from autocompress.devices.vela.tflite import NUMPY_TYPES, Model, Operator, Precision, Tensor

_FUNCTIONS = frozenset({
    "EXP", "LOG", "LOGISTIC", "TANH", "ELU", "GELU", "SOFTMAX", "LOG_SOFTMAX", "DIV", "POW", "SQRT", "RSQRT",
})  # fmt: skip
"""Operators that take more than an addition or a multiplication per element."""

_FREE = frozenset({"RESHAPE"})

_LOOKUPS = frozenset({"GATHER"})
"""These read as much of a table as they make, not all of it."""


def host_cycles(operator: Operator, model: Model, cpu: HostCpu) -> float:
    """The CPU's cycles: the longer of computing and moving the tensors, after the launch; a reshape only renames."""
    if operator.code in _FREE:
        return 0.0
    read = [] if operator.code in _LOOKUPS else [model.tensors[index] for index in operator.inputs]
    made = [model.tensors[index] for index in operator.outputs]
    rate = cpu.fp32_macs if made[0].precision is Precision.FLOAT32 else cpu.int8_macs
    computing = multiplications(operator, model) / rate
    if operator.code in _FUNCTIONS:
        computing += cpu.function_cycles * made[0].elements
    moving = sum(_bytes(tensor) for tensor in (*(read or made), *made)) / cpu.bytes
    return cpu.launch_cycles + max(computing, moving)


def multiplications(operator: Operator, model: Model) -> int:
    """Multiply-accumulates of an operator; 0 for one without weights or a product."""
    made = model.tensors[operator.outputs[0]].elements
    if operator.code == "BATCH_MATMUL":
        return made * model.tensors[operator.inputs[0]].shape[-1]
    if operator.code not in _WEIGHTS:
        return 0
    weights = model.tensors[operator.inputs[1]]
    if operator.code == "TRANSPOSE_CONV":
        source = model.tensors[operator.inputs[2]]
        return source.elements // source.shape[-1] * weights.elements
    channels = weights.shape[3] if operator.code == "DEPTHWISE_CONV_2D" else weights.shape[0]
    return made // channels * weights.elements


_WEIGHTS = frozenset({"CONV_2D", "DEPTHWISE_CONV_2D", "FULLY_CONNECTED", "TRANSPOSE_CONV"})


def _bytes(tensor: Tensor) -> int:
    return tensor.elements * np.dtype(NUMPY_TYPES[tensor.precision]).itemsize
