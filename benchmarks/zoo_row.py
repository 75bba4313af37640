"""What is found out about one architecture of the zoo, step by step; each step may be refused or fail by itself."""

import copy
import json
import os
import random
import re
import tempfile
import time
import traceback
from collections import Counter
from collections.abc import Callable, Mapping, Sequence
from pathlib import Path
from typing import Any

import numpy as np
import onnxruntime as ort
import torch
from architectures import ARCHITECTURES, call, make
from torch import Tensor, nn
from torch.nn.attention import SDPBackend, sdpa_kernel
from torch.utils._pytree import tree_leaves
from torch.utils.flop_counter import FlopCounterMode
from zoo_oracle import joint_difference

from autocompress.compression.build import build, plan_kernels, restructure
from autocompress.compression.methods.prune import Prune
from autocompress.compression.methods.quantize import Quantize, QuantizeMethod
from autocompress.compression.plan import Plan, Step
from autocompress.devices import open_device
from autocompress.evidence.sensitivity import rounding_effect
from autocompress.evidence.verify import model_rows, session_rows, worst_parity
from autocompress.export.onnx import to_onnx
from autocompress.graph import Graph, trace
from autocompress.graph.kernels import kernels_of
from autocompress.task.calling import calling_of, flat_model
from autocompress.task.task import Task
from autocompress.vocabulary.errors import AutocompressError
from autocompress.vocabulary.formats import INT8
from autocompress.vocabulary.workload import Kernel, total_macs

BATCHES = (1, 2, 3)
Row = dict[str, Any]
Flat = Callable[[Any], tuple[Tensor, ...]]
"""Inputs as the user gives them → as the lifted model takes them."""


class Report:
    """A row that is written to its file after every step, so that it tells where a process died."""

    def __init__(self, path: Path, row: Row) -> None:
        self.path, self.row = path, row

    def step(self, name: str, function: Callable[..., Any], *arguments: Any) -> Any:
        """Runs a step and keeps what it says; returns what it made (None where it failed)."""
        self._write(during=name)
        started = time.perf_counter(), time.process_time()
        made = None
        try:
            made, said = function(*arguments)
        except AutocompressError as error:
            said = {"refused": str(error).splitlines()[0][:400], "kind": type(error).__name__}
        except Exception as error:  # the benchmark's very question: what escapes that is not ours
            said = {"raised": f"{type(error).__name__}: {_first_line(error)}", "at": _origin(error)}
        said["seconds"] = time.perf_counter() - started[0]
        said["cpu_seconds"] = time.process_time() - started[1]
        self.row[name] = said
        self._write(during=None)
        return made

    def _write(self, during: str | None) -> None:
        partial = self.path.with_suffix(".partial")
        partial.write_text(json.dumps({**self.row, **({"during": during} if during else {})}, indent=1))
        os.replace(partial, self.path)


def _first_line(error: BaseException) -> str:
    lines = [line for line in str(error).splitlines() if line.strip()]
    return lines[0].strip()[:300] if lines else ""


def _origin(error: BaseException) -> str:
    """`folder/file.py:line` of the innermost frame of the package (else of any)."""
    frames = traceback.extract_tb(error.__traceback__)
    own = [frame for frame in frames if "/autocompress/" in frame.filename] or list(frames)
    return f"{'/'.join(Path(own[-1].filename).parts[-2:])}:{own[-1].lineno}"


def warm() -> None:
    """Imports, by using it once, what torch and the package import late: no row's seconds hold it."""
    torch.set_num_threads(1)
    graph = trace(nn.Sequential(nn.Linear(4, 4), nn.ReLU(), nn.Linear(4, 2)).eval(), (torch.randn(1, 4),))
    with tempfile.TemporaryDirectory() as folder:
        to_onnx(build(Plan(graph.fingerprint), graph), Path(folder) / "model.onnx", "warm")


def inspect(name: str, path: Path, seed: int = 0) -> None:
    """Everything about one architecture, into the JSON file `path`."""
    architecture = ARCHITECTURES[name]
    torch.manual_seed(seed)
    torch.set_num_threads(1)
    report = Report(path, {"family": architecture.family, "needs": architecture.needs})
    model: nn.Module | None = report.step("made", _made, name, seed)
    if model is None:
        return
    inputs = {batch: architecture.inputs(batch) for batch in BATCHES}
    traced = report.step("trace", _traced, model, inputs)
    if traced is None:
        return
    graph, flat = traced
    halved = _halved(graph)
    report.step("equal", _equal, model, graph, inputs, flat)
    report.step("macs", _macs, model, graph, inputs[1], flat(inputs[1]))
    report.step("groups", _groups, graph)
    report.step("halved", _priced, graph, halved)
    report.step("joint", joint_difference, model, graph, inputs[3], flat(inputs[3]), random.Random(seed))
    report.step("export", _exported, graph, Plan(graph.fingerprint), inputs, flat, model)
    report.step("export_halved", _exported, graph, halved, inputs, flat, None)
    report.step("int8", _int8, graph, flat(inputs[3]))


def _made(name: str, seed: int) -> tuple[nn.Module, Row]:
    model = make(name, seed)
    return model, {"parameters": sum(p.numel() for p in model.parameters())}


def _traced(model: nn.Module, inputs: Mapping[int, Any]) -> tuple[tuple[Graph, Flat], Row]:
    """As a task's model is traced: how it is called is learnt from batches of several sizes."""
    calling = calling_of(Task(model, inputs[1], validation=[(inputs[batch], None) for batch in (2, 3)]))

    def flat(given: Any) -> tuple[Tensor, ...]:
        return calling.flat(**given) if isinstance(given, dict) else calling.flat(*given)

    return (trace(flat_model(model, calling), calling.examples), flat), {}


def tensors(outputs: Any) -> list[Tensor]:
    """The tensors of whatever a model returns, in order."""
    return [leaf for leaf in tree_leaves(outputs) if isinstance(leaf, Tensor)]


def difference(expected: Sequence[Tensor], found: Sequence[Tensor]) -> float:
    """The largest difference of any output, relative to that output's largest value; infinite where shapes differ."""
    if [t.shape for t in expected] != [t.shape for t in found]:
        return float("inf")
    return max(_relative(a, b) for a, b in zip(expected, found, strict=True))


def _relative(expected: Tensor, found: Tensor) -> float:
    a, b = expected.double(), found.double()
    if a.numel() == 0:
        return 0.0
    worst = float((a - b).abs().max()) / max(float(a.abs().max()), 1e-12)
    return worst if worst == worst else float("inf")


def _equal(model: nn.Module, graph: Graph, inputs: Mapping[int, Any], flat: Flat) -> tuple[None, Row]:
    found = {}
    for batch, given in inputs.items():
        with torch.no_grad():
            found[str(batch)] = difference(tensors(call(model, given)), tensors(graph.model(*flat(given))))
    return None, {"difference": found}


def counted_macs(model: nn.Module, inputs: Any) -> int:
    """Multiplications as torch's own counter sees them in the user's module: attention and recurrent layers spelt
    out in the operators that it knows."""
    quiet = copy.deepcopy(model).requires_grad_(False)
    fast = torch.backends.mha.get_fastpath_enabled()
    torch.backends.mha.set_fastpath_enabled(False)
    try:
        counter = FlopCounterMode(display=False)
        with torch.backends.mkldnn.flags(enabled=False), sdpa_kernel(SDPBackend.MATH), counter:
            call(quiet, inputs)
    finally:
        torch.backends.mha.set_fastpath_enabled(fast)
    return counter.get_total_flops() // 2


def _macs(model: nn.Module, graph: Graph, inputs: Any, flat: tuple[Tensor, ...]) -> tuple[None, Row]:
    """What the kernels say before any rewrite, and what torch counts in the user's module and in the lifted one: the
    latter lacks what reaches no output or depends on no input."""
    said = total_macs(list(kernels_of(copy.deepcopy(graph.model), graph.example_inputs).values()))
    return None, {"said": said, "counted": counted_macs(model, inputs), "lifted": counted_macs(graph.model, flat)}


def _groups(graph: Graph) -> tuple[None, Row]:
    kernels = graph.kernels.values()
    prunable = {
        name
        for group in graph.free_groups
        for name, share in graph.shares[group].items()
        if share.inputs + share.outputs
    }
    frozen = Counter(re.sub(r"[\d.]+e-?\d+|\d+", "N", group.frozen) for group in graph.groups.values() if group.frozen)
    return None, {
        "all": len(graph.groups),
        "free": len(graph.free_groups),
        "prunable_macs": total_macs([k for k in kernels if k.name in prunable]) / max(1, total_macs(list(kernels))),
        "frozen": dict(frozen.most_common()),
    }


def _halved(graph: Graph) -> Plan:
    wide = [group for group in graph.free_groups.values() if group.channels > 1]
    return Plan(graph.fingerprint, tuple(Step(group.id, Prune(group.channels // 2)) for group in wide))


def _priced(graph: Graph, plan: Plan) -> tuple[None, Row]:
    priced = plan_kernels(plan, graph)
    built = kernels_of(build(plan, graph), graph.example_inputs)
    before, after = (total_macs(list(kernels.values())) for kernels in (graph.kernels, priced))
    shorter = restructure(plan, graph, None)
    sizes = [sum(p.numel() for p in model.parameters()) for model in (graph.model, shorter)]
    return None, {
        "macs_gone": 1 - after / max(1, before),
        "parameters_gone": 1 - sizes[1] / max(1, sizes[0]),
        "kernels": len(built),
        "kernels_differ": _differing(priced, built),
    }


def _differing(priced: Mapping[str, Kernel], built: Mapping[str, Kernel]) -> list[str]:
    return sorted(name for name in {*priced, *built} if priced.get(name) != built.get(name))


def _exported(
    graph: Graph, plan: Plan, inputs: Mapping[int, Any], flat: Flat, user: nn.Module | None
) -> tuple[None, Row]:
    """Parity of the file with the user's module (or, of a cut model, with the model that was built) per batch size."""
    with tempfile.TemporaryDirectory() as folder:
        built = build(plan, graph)
        artifact = to_onnx(built, Path(folder) / "model.onnx", plan.key)
        session = _session(artifact.path)
        found = {}
        for batch, given in inputs.items():
            with torch.no_grad():
                expected = tensors(call(user, given)) if user else tensors(built(*flat(given)))
            found[str(batch)] = difference(expected, _run(session, flat(given)))
    return None, {"difference": found, "size_bytes": artifact.size_bytes}


def _session(path: Path) -> ort.InferenceSession:
    options = ort.SessionOptions()
    options.intra_op_num_threads = 1
    options.log_severity_level = 4
    return ort.InferenceSession(str(path), options, providers=["CPUExecutionProvider"])


def _run(session: ort.InferenceSession, inputs: tuple[Tensor, ...]) -> list[Tensor]:
    """Inputs by position; those that the file has no use for were left out of it by name."""
    named = {argument.name: tensor.numpy() for argument, tensor in zip(session.get_inputs(), inputs, strict=True)}
    return [torch.from_numpy(np.asarray(array)) for array in session.run(None, named)]


def _int8(graph: Graph, inputs: tuple[Tensor, ...]) -> tuple[None, Row]:
    """Parity of the file with the simulation, every layer that may be in int8: root mean square difference of the worst
    output, and how much of one the roundings of that very model explain."""
    layers = QuantizeMethod().targets(graph)
    plan = Plan(graph.fingerprint, tuple(Step(name, Quantize(INT8)) for name in layers))
    batch = inputs, None
    with tempfile.TemporaryDirectory() as folder:
        built = build(plan, graph)
        artifact = to_onnx(built, Path(folder) / "int8.onnx", plan.key)
        session = open_device("ort:cpu").open(artifact.path)
        found = worst_parity(
            model_rows(built, batch), session_rows(session, batch), rounding_effect(built, batch),
            len(session.providers()),
        )  # fmt: skip
    return None, {
        "layers": len(layers),
        "of": len(graph.layers),
        "rms": found.rms_difference,
        "explained": found.tolerance,
    }
