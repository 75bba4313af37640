"""A file that torch.export.save wrote as a task's model."""

import copy
import json
import logging
import warnings
import zipfile
from collections.abc import Iterator, Mapping
from contextlib import contextmanager
from pathlib import Path
from typing import Any

import torch
from torch import Tensor, nn
from torch.export import ExportedProgram
from torch.export.graph_signature import InputKind
from torch.utils._pytree import tree_leaves

from autocompress.vocabulary.errors import TaskError, first_line

aten = torch.ops.aten

_AGAIN = "export it again: torch.export.export(model.eval(), inputs, dynamic_shapes=({0: torch.export.Dim.AUTO}, ...))"
_MODES = {aten.batch_norm.default: 5, aten.dropout.default: 2, aten.instance_norm.default: 5}
"""Where an operator is told whether it trains."""


def program_of(path: Path, example_inputs: Any) -> nn.Module:
    """The program as a module that can be trained and copied.

    Raises TaskError for a file that is none or holds pickled objects, a program that fixes the batch or was exported in
    training mode, and one that does not run on the example inputs or gives other values each time.
    """
    if not path.is_file():
        raise TaskError(f"no model file {str(path)!r}; give the path of a .pt2 file, relative to the task file")
    _check_archive(path)
    with _quietly():
        try:
            program = torch.export.load(path)
            module = _copied(program.module()).eval()
        except Exception as error:  # torch raises of every kind
            raise TaskError(f"can't load the program {path}: {first_line(error)}; {_AGAIN}") from error
    _check_mode(path, program)
    _check_batch(path, program)
    _check_outputs(path, module, example_inputs)
    return module


def _copied(module: nn.Module) -> nn.Module:
    """A copy that has modes, and whose own copies are made without torch's warnings about its trees.

    Every GraphModule has a class of its own, so that what is set there concerns this one alone.
    """
    with _quietly():
        made: nn.Module = copy.deepcopy(module)

    def copied_again(self: nn.Module, memo: Any) -> nn.Module:
        del self.__class__.__deepcopy__  # type: ignore[attr-defined]
        try:
            return _copied(self)
        finally:
            self.__class__.__deepcopy__ = copied_again  # type: ignore[attr-defined]

    made.__class__.__deepcopy__ = copied_again  # type: ignore[attr-defined]
    return made


def _check_archive(path: Path) -> None:
    """Nothing in it may be pickled: that could be any code."""
    try:
        with zipfile.ZipFile(path) as archive:
            names = [name for name in archive.namelist() if name.endswith("_config.json")]
            configs = [json.loads(archive.read(name)) for name in names]
    except (OSError, ValueError, zipfile.BadZipFile) as error:
        raise TaskError(f"{path} is no file of torch.export.save: {first_line(error)}; {_AGAIN}") from error
    pickled = [
        n for config in configs for n, entry in config.get("config", {}).items() if entry.get("use_pickle", True)
    ]
    if pickled:
        raise TaskError(f"{path} holds pickled objects ({pickled[0]}), which are not opened; give the torch.nn.Module")


def _check_mode(path: Path, program: ExportedProgram) -> None:
    for node in program.graph.nodes:
        place = _MODES.get(node.target)
        if place is not None and len(node.args) > place and node.args[place] is True:
            raise TaskError(f"{path} was exported in training mode ({node.target}); {_AGAIN}")


def _check_batch(path: Path, program: ExportedProgram) -> None:
    given = {spec.arg.name for spec in program.graph_signature.input_specs if spec.kind is InputKind.USER_INPUT}
    values = {n.name: n.meta.get("val") for n in program.graph.nodes if n.op == "placeholder" and n.name in given}
    shapes = {name: value.shape for name, value in values.items() if isinstance(value, Tensor) and value.dim()}
    if shapes and not any(isinstance(shape[0], torch.SymInt) for shape in shapes.values()):
        name, shape = next(iter(shapes.items()))
        raise TaskError(f"{path} fixes the batch of input {name!r} at {shape[0]}; {_AGAIN}")


def _check_outputs(path: Path, module: nn.Module, example_inputs: Any) -> None:
    first, second = (_run(path, module, example_inputs) for _ in range(2))
    if any(not torch.equal(a, b) for a, b in zip(first, second, strict=True) if not a.isnan().any()):
        raise TaskError(f"{path} gives other values each time it runs on Task.example_inputs; {_AGAIN}")


def _run(path: Path, module: nn.Module, example_inputs: Any) -> list[Tensor]:
    keyed = isinstance(example_inputs, Mapping)
    args = example_inputs if isinstance(example_inputs, (tuple, list)) else (example_inputs,)
    try:
        with torch.no_grad(), _quietly():
            found = module(**example_inputs) if keyed else module(*args)
    except Exception as error:  # torch raises of every kind
        shapes = ", ".join(str(tuple(x.shape)) for x in tree_leaves(example_inputs) if isinstance(x, Tensor))
        raise TaskError(
            f"{path} does not run on Task.example_inputs of {shapes}: {first_line(error)}; give inputs as it was "
            "exported for, or export it with other dynamic_shapes"
        ) from error
    return [leaf for leaf in tree_leaves(found) if isinstance(leaf, Tensor)]


@contextmanager
def _quietly() -> Iterator[None]:
    """torch warns of its own deprecations while it loads."""
    logger = logging.getLogger("torch.export")
    disabled, logger.disabled = logger.disabled, True
    try:
        with warnings.catch_warnings():
            warnings.simplefilter("ignore")
            yield
    finally:
        logger.disabled = disabled
