"""Nets of the zoo as the exporter writes them: in float, in int8, and with every other layer in int8."""

from functools import cache
from pathlib import Path
from tempfile import TemporaryDirectory

import numpy as np
from torch import Tensor

from autocompress.compression.build import build, plan_kernels
from autocompress.compression.methods.quantize import Quantize
from autocompress.compression.plan import Plan, Step
from autocompress.export.onnx import to_onnx
from autocompress.graph import trace
from autocompress.graph.types import Graph
from autocompress.vocabulary.formats import INT8
from autocompress.vocabulary.precision import lower
from autocompress.vocabulary.workload import Kernel
from tests.zoo import make

SHARES = {"fp32": slice(0, 0), "int8": slice(None), "every other": slice(0, None, 2)}
"""Which of a net's layers are int8."""


def export(net: str, share: str, folder: Path) -> Path:
    path = folder / f"{net}-{share.replace(' ', '-')}.onnx"
    path.write_bytes(_exported(net, share))
    return path


@cache
def _exported(net: str, share: str) -> bytes:
    graph, _ = _traced(net)
    with TemporaryDirectory() as folder:
        path = Path(folder) / "model.onnx"
        to_onnx(build(_plan(net, share), graph), path, "test")
        return path.read_bytes()


def kernels(net: str, share: str) -> list[Kernel]:
    return lower(plan_kernels(_plan(net, share), _traced(net)[0]))


def sample(net: str) -> np.ndarray:
    return _traced(net)[1].numpy()


def rms(difference: np.ndarray) -> float:
    return float(np.sqrt(np.square(difference).mean()))


def _plan(net: str, share: str) -> Plan:
    graph, _ = _traced(net)
    return Plan(graph.fingerprint, tuple(Step(layer, Quantize(INT8)) for layer in list(graph.layers)[SHARES[share]]))


@cache
def _traced(net: str) -> tuple[Graph, Tensor]:
    model, inputs = make(net)
    return trace(model, (inputs,)), inputs
