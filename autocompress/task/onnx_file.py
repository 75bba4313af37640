"""An ONNX file as a task's model: translated to torch, and proven to compute what ONNX Runtime makes of the file."""

import hashlib
import os
from collections.abc import Mapping, Sequence
from dataclasses import dataclass
from functools import cached_property
from pathlib import Path
from typing import Any

import numpy as np
import torch
from numpy.typing import NDArray
from torch import Tensor, fx, nn

from autocompress.task.agreement import Agreement, compared, tolerance
from autocompress.translation.patterns import simplified
from autocompress.translation.program import Input, Program, TranslationError
from autocompress.translation.writer import FAITHFUL, SOURCE, TRAINABLE
from autocompress.vocabulary.errors import TaskError, first_line

ORIGINAL = "original"
"""Key of a module's metadata: the Original that it was made of."""

BATCH = "batch"
BATCHES = (1, 2, 3)
"""Batch sizes at which a translation is compared with the file."""

Arrays = list[NDArray[Any]]
Flat = tuple[Tensor, ...]


@dataclass(frozen=True, slots=True)
class Original:
    """The file that a module was made of. `weights` is the digest of the module's tensors as they were made, `freed`
    says that the file fixes a batch of one which it does not need, `notes` what a user should know of the translation.
    """

    path: Path
    sha256: str
    weights: str
    opset: int
    freed: bool = False
    notes: tuple[str, ...] = ()

    def __deepcopy__(self, memo: Any) -> "Original":
        return self

    def content(self) -> bytes:
        """The file as one: with its external data, free of a batch that it need not fix. Raises TaskError."""
        try:
            found = self.path.read_bytes()
        except OSError as error:
            raise TaskError(f"can't read the model {self.path}: {error.strerror}; it was there before") from error
        if hashlib.sha256(found).hexdigest() != self.sha256:
            raise TaskError(f"{self.path} was changed since it was loaded; start again with the new file")
        program = _program(self.path)
        if not program.external and not self.freed:
            return found
        whole: bytes = (freed(program.proto) if self.freed else program.proto).SerializeToString()
        return whole


def original_of(model: nn.Module) -> Original | None:
    """What an untouched module was made of; None for any other, and for one that was trained since."""
    found = getattr(model, "meta", {}).get(ORIGINAL) if isinstance(model, fx.GraphModule) else None
    return found if found is not None and digest(model) == found.weights else None


def notes_of(model: nn.Module) -> tuple[str, ...]:
    """What a user should know of a module that came from a file."""
    found = getattr(model, "meta", {}).get(ORIGINAL) if isinstance(model, fx.GraphModule) else None
    return found.notes if found is not None else ()


def digest(model: nn.Module) -> str:
    total = hashlib.sha256()
    for name, tensor in model.state_dict().items():
        total.update(name.encode())
        total.update(tensor.detach().cpu().contiguous().reshape(-1).view(torch.uint8).numpy().tobytes())
    return total.hexdigest()


def model_of(path: Path, example_inputs: Any) -> fx.GraphModule:
    """A module that computes what the file does, its weighted operators torch's own layers, in eval mode.

    Inputs are called as in the file (other characters than letters, digits and "_" are "_"); several outputs are a
    dict by name. Raises TaskError for a file that can't be read or translated, inputs that do not fit it, and a
    translation that differs from what ONNX Runtime computes.
    """
    program = _program(path)
    examples = _examples(program, example_inputs)
    failures: list[str] = []
    for freedom in _freedoms(program, examples):
        try:
            return _translated(program, freedom)
        except _Refused as error:
            failures.append(str(error))
    raise TaskError(
        f"can't take {path} as a model: {failures[-1]}; give it as a torch.nn.Module, or export it otherwise"
    )


class _Refused(Exception):
    """Why a file can't be followed with this freedom; with less it may."""


def _program(path: Path) -> Program:
    if not path.is_file():
        raise TaskError(f"no model file {str(path)!r}; give the path of an .onnx file, relative to the task file")
    try:
        return Program(path)
    except TranslationError as error:
        raise TaskError(_refusal(path, error)) from error


def _refusal(path: Path, why: object) -> str:
    told = " ".join(str(why).split())
    return f"can't take {path} as a model: {told}; give it as a torch.nn.Module, or export it otherwise"


def _examples(program: Program, given: Any) -> Flat:
    """The example inputs in the file's order."""
    names = [entry.name for entry in program.inputs]
    if isinstance(given, Mapping):
        by_name = {entry.identifier: entry.name for entry in program.inputs}
        found = {by_name.get(str(key), str(key)): value for key, value in given.items()}
        values = tuple(found[name] for name in names if name in found) if set(found) == set(names) else ()
    else:
        values = tuple(given) if isinstance(given, (tuple, list)) else (given,)
    fits = len(values) == len(names) and all(
        isinstance(x, Tensor) and entry.fits(x.shape) and x.numpy(force=True).dtype == entry.dtype
        for x, entry in zip(values, program.inputs, strict=True)
    )
    if not fits:
        wanted = ", ".join(_shown(entry.identifier, entry.shape, entry.dtype) for entry in program.inputs)
        raise TaskError(f"{program.path} takes {wanted}; Task.example_inputs is {_described(given)}")
    return values


def _shown(name: str, shape: Sequence[int | None], dtype: Any) -> str:
    return f"{name} ({', '.join('?' if n is None else str(n) for n in shape)}) of {np.dtype(dtype)}"


def _described(given: Any) -> str:
    if isinstance(given, Mapping):
        return ", ".join(_one_described(str(key), x) for key, x in given.items())
    values = given if isinstance(given, (tuple, list)) else [given]
    return ", ".join(_one_described(str(i), x) for i, x in enumerate(values))


def _one_described(name: str, x: Any) -> str:
    if not isinstance(x, Tensor):
        return f"{name} a {type(x).__name__}"
    return _shown(name, list(x.shape), x.numpy(force=True).dtype)


@dataclass(frozen=True)
class _Freedom:
    """Which axes may have other sizes: by (input, axis), the name of what they share."""

    axes: Mapping[tuple[int, int], str]
    examples: Flat
    freed: bool = False

    @cached_property
    def sizes(self) -> dict[str, tuple[int, int]]:
        """Of each name, the two sizes that tell what depends on it."""
        return {
            name: (2, 3) if name == BATCH else (size, 2 * size)
            for (i, axis), name in self.axes.items()
            for size in (self.examples[i].shape[axis],)
        }

    def inputs(self, batch: int, second: bool = False, values: Flat | None = None) -> Flat:
        """The examples (or other values like them) in these sizes."""
        found = list(values or self.examples)
        for (i, axis), name in self.axes.items():
            size = batch if name == BATCH else self.sizes[name][second]
            found[i] = found[i].index_select(axis, torch.arange(size) % found[i].shape[axis])
        return tuple(found)

    @property
    def batches(self) -> tuple[int, ...]:
        return BATCHES if BATCH in self.axes.values() else (0,)


def _freedoms(program: Program, examples: Flat) -> list[_Freedom]:
    """From all that the file leaves free to its batch alone; first of all a batch of one that it fixes.

    Free axes without a name may be the batch too where they are as long (a state of (layers, batch, width)).
    """
    free = {
        (i, axis): entry for i, entry in enumerate(program.inputs) for axis, n in enumerate(entry.shape) if n is None
    }
    batch_names = {entry.axes[0] for (_, axis), entry in free.items() if axis == 0}

    def name(i: int, axis: int, entry: Input) -> str:
        shared = entry.axes[axis]
        return BATCH if axis == 0 or (shared and shared in batch_names) else shared or f"{i}.{axis}"

    every = {key: name(*key, entry) for key, entry in free.items()}
    batch = {key: found for key, found in every.items() if found == BATCH}
    samples = {examples[i].shape[axis] for i, axis in batch}
    alike = {
        key: BATCH
        for key, entry in free.items()
        if not entry.axes[key[1]] and examples[key[0]].shape[key[1]] in samples
    }
    choices = [
        _Freedom(every, examples), _Freedom({**every, **alike}, examples),
        _Freedom({**batch, **alike}, examples), _Freedom(batch, examples),
    ]  # fmt: skip
    if not batch and all(entry.shape[:1] == (1,) for entry in program.inputs):
        choices = [_Freedom({**every, **{(i, 0): BATCH for i in range(len(examples))}}, examples, True), *choices]
    return [choice for i, choice in enumerate(choices) if all(choice.axes != other.axes for other in choices[:i])]


def _translated(program: Program, freedom: _Freedom) -> fx.GraphModule:
    proto = freed(program.proto) if freedom.freed else None
    runtime = _Runtime(program.path, proto.SerializeToString() if proto is not None else None)
    first, second = freedom.inputs(2), freedom.inputs(3, second=True)
    for inputs in (first, second):
        runtime.run(inputs)  # with sizes that the file itself refuses nothing is to be found out
    examples = [(a,) if a.shape == b.shape else (a, b) for a, b in zip(first, second, strict=True)]
    try:
        model = simplified(program.written(examples, TRAINABLE)).eval()
        rounded = program.written(examples, FAITHFUL).eval() if program.quantised else model
    except TranslationError as error:
        raise _Refused(str(error)) from error
    _check(program, rounded, freedom, runtime)
    model.meta[ORIGINAL] = Original(
        program.path.resolve(), hashlib.sha256(program.path.read_bytes()).hexdigest(), digest(model),
        program.opset, freedom.freed,
        tuple([*program.notes, *_notes(program)]),
    )  # fmt: skip
    return model


def _notes(program: Program) -> list[str]:
    if not program.quantised:
        return []
    return [f"{program.quantised} tensors are 8-bit in the file: the module computes with the values behind them"]


def freed(proto: Any) -> Any:
    """A copy whose inputs have a free axis 0."""
    copied = type(proto)()
    copied.CopyFrom(proto)
    constants = {t.name for t in copied.graph.initializer}
    for value in copied.graph.input:
        if value.name not in constants:
            value.type.tensor_type.shape.dim[0].dim_param = BATCH
    for value in copied.graph.output:
        value.ClearField("type")
    del copied.graph.value_info[:]
    return copied


class _Runtime:
    """ONNX Runtime with the file itself."""

    def __init__(self, path: Path, content: bytes | None = None, plain: bool = False) -> None:
        import onnxruntime

        options = onnxruntime.SessionOptions()
        options.log_severity_level = 4
        if plain:
            options.graph_optimization_level = onnxruntime.GraphOptimizationLevel.ORT_DISABLE_ALL
        try:
            self._session = onnxruntime.InferenceSession(
                content if content is not None else os.fspath(path), options, providers=["CPUExecutionProvider"]
            )
        except Exception as error:  # onnxruntime's own classes
            raise _Refused(f"ONNX Runtime can't load it: {first_line(error)}") from error
        self.names = [entry.name for entry in self._session.get_outputs()]

    def run(self, inputs: Flat) -> Arrays:
        names = [entry.name for entry in self._session.get_inputs()]
        try:
            found: Arrays = self._session.run(
                None, {name: x.numpy(force=True) for name, x in zip(names, inputs, strict=True)}
            )
        except Exception as error:  # onnxruntime's own classes
            shapes = ", ".join(str(tuple(x.shape)) for x in inputs)
            raise _Refused(f"ONNX Runtime can't run it on inputs of {shapes}: {first_line(error)}") from error
        return found


def _check(program: Program, model: fx.GraphModule, freedom: _Freedom, runtime: _Runtime) -> None:
    """Raises TaskError where the module differs from the file, naming the first node that does."""
    generator = torch.Generator().manual_seed(0)
    allowed = tolerance(len(program.proto.graph.node), program.quantised, _is_half(program))
    for values in (freedom.examples, tuple(_like(x, generator) for x in freedom.examples)):
        for batch in freedom.batches:
            inputs = freedom.inputs(batch, False, values)
            expected = runtime.run(inputs)
            for name, found, wanted in zip(runtime.names, _outputs(model, inputs), expected, strict=True):
                agreement = compared(found, wanted, allowed)
                if not agreement.holds:
                    raise TaskError(_difference(program, model, inputs, name, agreement))


def _outputs(model: nn.Module, inputs: Flat) -> Arrays:
    with torch.no_grad():
        found = model(*inputs)
    return [t.numpy() for t in (found.values() if isinstance(found, dict) else [found])]


def _is_half(program: Program) -> bool:
    return any(t.data_type in (10, 16) for t in program.proto.graph.initializer)


def _like(x: Tensor, generator: torch.Generator) -> Tensor:
    """Other values of the same kind: floats of the same mean and spread, integers that occur."""
    if x.is_floating_point():
        spread = float(x.float().std()) if x.numel() > 1 else 0.0
        drawn = torch.randn(x.shape, generator=generator) * (spread or 1.0) + float(x.float().mean())
        return drawn.to(x.dtype)
    order = torch.randint(x.numel(), (max(x.numel(), 1),), generator=generator) if x.numel() else torch.zeros(0).long()
    return x.reshape(-1)[order].reshape(x.shape)


def _difference(program: Program, model: fx.GraphModule, inputs: Flat, output: str, found: Agreement) -> str:
    node = " ".join(_first_difference(program, model, inputs).split())
    return (
        f"{program.path}: output {output!r} of its translation to torch differs from ONNX Runtime's: {found}; the "
        f"first node whose value differs is {node}; give the model as a torch.nn.Module"
    )


def _first_difference(program: Program, model: fx.GraphModule, inputs: Flat) -> str:
    """By a copy of the file all of whose values are outputs."""
    recorder = _Recorder(model)
    with torch.no_grad():
        recorder.run(*inputs)
    copied = freed(program.proto)
    del copied.graph.output[:]
    copied.graph.output.extend(type(program.proto.graph.output[0])(name=name) for name in recorder.values)
    try:
        runtime = _Runtime(program.path, copied.SerializeToString(), plain=True)
        expected = dict(zip(runtime.names, runtime.run(inputs), strict=True))
    except _Refused:
        return "unknown (ONNX Runtime can't show its values)"
    allowed = tolerance(len(program.proto.graph.node), program.quantised, _is_half(program))
    for node in program.proto.graph.node:
        for name in node.output:
            if name in recorder.values and not compared(recorder.values[name], expected[name], allowed).holds:
                return f"{node.name or name!r} ({node.op_type})"
    return "in its last part"


class _Recorder(fx.Interpreter):
    """Keeps what stands for a value of the file, by its name there."""

    def __init__(self, model: fx.GraphModule) -> None:
        super().__init__(model)
        self.values: dict[str, NDArray[Any]] = {}

    def run_node(self, n: fx.Node) -> Any:
        value = super().run_node(n)
        if SOURCE in n.meta:
            parts = value if isinstance(value, (tuple, list)) else [value]
            for name, part in zip(n.meta[SOURCE].outputs, parts, strict=False):
                if name:
                    self.values[name] = part.numpy(force=True)
        return value
