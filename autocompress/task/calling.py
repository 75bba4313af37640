"""How a user's model is called and what it returns: between the user's own structures and flat tuples of tensors."""

import inspect
from collections.abc import Callable, Iterator, Mapping, Sequence
from contextlib import contextmanager
from dataclasses import dataclass
from functools import cached_property
from typing import Any

import numpy as np
import torch
from torch import Tensor, nn

from autocompress.task.batches import Batch, Call, PartlyBatched, Split, as_call, first_batches
from autocompress.task.doors import settle
from autocompress.task.outputs import cross_entropy
from autocompress.task.structure import Mismatch, Structure, returned, taken, tensors_of
from autocompress.task.task import Loader, LossFunction, Predict, Task
from autocompress.vocabulary.errors import TaskError, in_one_line

SPLITS = ("validation", "calibration", "train", "test")

LOOKED_AT = 2
"""Batches of each split that tell which axes vary."""

NAMES = "names"
"""Where a lifted model's meta holds the names of its inputs and of its outputs in a file, if the user gave them any."""

_PARAMETER = inspect.Parameter
_POSITIONAL = {_PARAMETER.POSITIONAL_ONLY, _PARAMETER.POSITIONAL_OR_KEYWORD}

BATCH, LENGTH = "batch", "length"
"""Names of axes."""

OUTPUT = "output"
"""The name of an output that has none of its own."""

Flat = tuple[Tensor, ...]
Run = Callable[[Flat], Flat]
"""A model, or what was made of it, from flat inputs to flat outputs."""


@dataclass(frozen=True, slots=True)
class Axes:
    """Of each flat input: whether axis 0 is the batch, and which other axes differ between batches.

    `lengths` names these; what has one size in every batch has one name. Where no input carries a batch, every batch is
    one sample.
    """

    batched: tuple[bool, ...]
    lengths: tuple[Mapping[int, str], ...]

    @property
    def varying(self) -> tuple[frozenset[int], ...]:
        return tuple(map(frozenset, self.lengths))

    @property
    def usual(self) -> bool:
        """All tensors have a batch axis, and no other that varies."""
        return all(self.batched) and not any(self.varying)

    def free(self) -> tuple[frozenset[int], ...]:
        """The axes of each input whose size a graph or a file must leave open."""
        return tuple(v | {0} if b else v for b, v in zip(self.batched, self.varying, strict=True))

    def named(self) -> tuple[dict[int, str], ...]:
        """`free` with a name for each axis."""
        return tuple({**({0: BATCH} if b else {}), **n} for b, n in zip(self.batched, self.lengths, strict=True))

    def resized(self, inputs: Flat, samples: int) -> Flat:
        """Inputs with this many samples: the first ones, repeated where there are fewer."""
        return tuple(_repeated(t, samples) if b else t for b, t in zip(self.batched, inputs, strict=True))


def _repeated(tensor: Tensor, samples: int) -> Tensor:
    return tensor[torch.arange(samples) % len(tensor)] if len(tensor) != samples else tensor


@dataclass(frozen=True)
class Calling:
    """A model's call, learnt once from `Task.example_inputs` and the first batches of the splits.

    `call` is the structure of what the parameters of forward are bound to, `returns` that of the output. `names` and
    `results` name the flat inputs and outputs in a file. `examples` are the flat example inputs.
    """

    signature: inspect.Signature
    call: Structure
    form: type
    examples: Flat
    axes: Axes
    returns: Structure
    batched_results: tuple[bool, ...]

    def __deepcopy__(self, memo: Any) -> "Calling":
        return self

    @property
    def plain(self) -> bool:
        """Whether the model can be called with the flat tensors as it is, and returns one tensor."""
        positional = all(self._is_plain(name, part) for name, part in self.call.named_parts() if part.paths())
        constants = any(part.kind is None for part in self.call.parts)
        one = self.returns.kind is Tensor and self.form is not dict
        return positional and not constants and one and self.axes.usual

    def _is_plain(self, parameter: str, part: Structure) -> bool:
        kind = self.signature.parameters[parameter].kind
        if kind is _PARAMETER.VAR_POSITIONAL:
            return all(below.kind is Tensor for below in part.parts)
        return kind in _POSITIONAL and part.kind is Tensor

    @cached_property
    def names(self) -> tuple[str, ...]:
        """The parameters of forward, keys and positions below them behind a "_"."""
        return _unique([path for key, part in self.call.named_parts() for path in part.paths(self._place(key))])

    def _place(self, parameter: str) -> str:
        return "" if self.signature.parameters[parameter].kind is _PARAMETER.VAR_KEYWORD else parameter

    @cached_property
    def results(self) -> tuple[str, ...]:
        """`output` for what the model returns by itself, else the keys of its structure; never an input's name."""
        paths = self.returns.paths()
        named = [f"{OUTPUT}_{path}" if path.isdigit() else path or OUTPUT for path in paths]
        return _unique(named, self.names)

    def flat(self, *args: Any, **kwargs: Any) -> Flat:
        """The tensors of one call. Raises TaskError where it is not made as example_inputs are."""
        try:
            return tuple(self.call.flat(_bound(self.signature, (args, kwargs))))
        except Mismatch as error:
            raise TaskError(f"the model is called otherwise than with Task.example_inputs: {error}") from error

    def structured(self, tensors: Sequence[Tensor]) -> tuple[tuple[Any, ...], dict[str, Any]]:
        """Positional and keyword arguments of the model."""
        bound = inspect.BoundArguments(self.signature, dict(self.call.restored(iter(tensors))))
        return bound.args, bound.kwargs

    def as_given(self, tensors: Sequence[Tensor]) -> Any:
        """Inputs as the user's loaders give them: a tensor, a tuple, or a dict of keyword arguments."""
        if self.form is dict:
            found = self.call.restored(iter(tensors))
            return {
                k: v for key, value in found.items() for k, v in ({key: value} if self._place(key) else value).items()
            }
        args, _ = self.structured(tensors)
        return args[0] if self.form is Tensor else args

    def one_sample(self) -> tuple[np.ndarray, ...]:
        """The example inputs with one sample, as a runtime takes them."""
        return tuple(tensor.detach().numpy() for tensor in self.axes.resized(self.examples, 1))

    def restore(self, outputs: Tensor | Sequence[Tensor]) -> Any:
        """What the user's model would return, of its own types, with these tensors."""
        return self.returns.restored(iter((outputs,) if isinstance(outputs, Tensor) else outputs))

    def flat_outputs(self, outputs: Any) -> Flat:
        """The tensors that the user's model returned."""
        try:
            return tuple(tensors_of(self.returns, outputs))
        except Mismatch as error:
            raise TaskError(f"{error}; a model's outputs must have one structure") from error

    def loss(self, own: LossFunction | None) -> LossFunction:
        """A loss of flat outputs; the task's own gets what the model returns, cross-entropy stands in for none."""
        judge = own or cross_entropy
        return lambda outputs, targets: judge(self.restore(outputs), targets)

    def split(self, loader: Loader) -> Split:
        """The loader's batches with flat inputs; it can be iterated as often as the loader can."""
        return Split(loader, self.batch)

    def as_user_split(self, batches: Sequence[Batch]) -> list[tuple[Any, Any]]:
        """Flat batches as the user's loaders yield them."""
        return [(self.as_given(inputs), targets) for inputs, targets in batches]

    def predictor(self, run: Run) -> Predict:
        """A callable that takes and returns what the user's own model does."""

        def predict(*args: Any, **kwargs: Any) -> Any:
            return self.restore(run(self.flat(*args, **kwargs)))

        return predict

    def batch(self, inputs: Any, targets: Any) -> Batch:
        """A batch of the user's with flat inputs. Raises TaskError as `flat` does."""
        args, kwargs = as_call(inputs)
        return PartlyBatched.of(self.flat(*args, **kwargs), targets, self.axes.batched)

    def shown(self, inputs: Any) -> str:
        """Shapes and types of a batch's inputs."""
        return " and ".join(map(_shown, self.batch(inputs, None)[0]))


class FlatModel(nn.Module):
    """The user's model as a function of flat tensors, with the very parameters and the names that they have there.

    Its modules, parameters and buffers are those of the user's model, in the same dictionaries, so that no name gets a
    prefix. One tensor comes back where the user's model returns one by itself, else a tuple of tensors.
    """

    def __init__(self, model: nn.Module, calling: Calling) -> None:
        super().__init__()
        for shared in ("_parameters", "_buffers", "_modules", "_non_persistent_buffers_set"):
            self.__dict__[shared] = model.__dict__[shared]
        self.__dict__[_CALLING], self.__dict__[_MODEL] = calling, model
        self.training = model.training

    def forward(self, *tensors: Tensor) -> Tensor | Flat:
        calling: Calling = self.__dict__[_CALLING]
        args, kwargs = calling.structured(tensors)
        outputs: Any = self.__dict__[_MODEL](*args, **kwargs)
        return outputs if calling.returns.kind is Tensor else tuple(tensors_of(calling.returns, outputs))

    def train(self, mode: bool = True) -> "FlatModel":
        self.__dict__[_MODEL].train(mode)
        self.training = mode
        return self


_CALLING, _MODEL = "_autocompress_calling", "_autocompress_model"
"""Names that no module of the user's bears: a FlatModel's attributes would hide its modules."""


def calling_behind(model: nn.Module) -> Calling | None:
    """How the user's model behind a FlatModel is called; None of any other model: it takes and returns tensors."""
    return model.__dict__[_CALLING] if isinstance(model, FlatModel) else None


def model_behind(model: nn.Module) -> nn.Module:
    """The user's model, of which a FlatModel is a view."""
    found: nn.Module = model.__dict__[_MODEL] if isinstance(model, FlatModel) else model
    return found


def flat_model(model: nn.Module, calling: Calling) -> nn.Module:
    """The model as a function of flat tensors: itself if it is one already."""
    return model if calling.plain else FlatModel(model, calling)


def calling_of(task: Task) -> Calling:
    """Runs the model on the example inputs, and looks at the first batches of every split.

    Raises TaskError where the model can't be called so, or splits and example inputs have different structures.
    """
    settle(task)
    return _Learning(task.model, task.example_inputs).over(
        {
            name: first_batches(name, getattr(task, name), LOOKED_AT)
            for name in SPLITS
            if getattr(task, name) is not None
        }
    )


class _Learning:
    """What the example inputs tell by themselves, then with batches beside them."""

    def __init__(self, model: nn.Module, example: Any) -> None:
        self.model = model
        self.signature = signature_of(model)
        self.form = dict if isinstance(example, Mapping) else tuple if isinstance(example, (tuple, list)) else Tensor
        try:
            bound = _bound(self.signature, as_call(example))
            self.call = taken(bound)
        except Mismatch as error:
            raise TaskError(f"Task.example_inputs can't be given to the model: {error}") from error
        self.examples = tuple(self.call.flat(bound))
        if not self.examples:
            raise TaskError("Task.example_inputs holds no tensor; give a batch as the model's forward takes it")
        with evaluating(model):
            self.returns = returned(self._run(self.examples, "the model does not run on Task.example_inputs"))
        if not self.returns.paths():
            raise TaskError(
                "the model returns no tensor for Task.example_inputs; make forward return a tensor, or a tuple, dict "
                "or dataclass of tensors"
            )

    def over(self, splits: Mapping[str, Sequence[tuple[Any, Any]]]) -> Calling:
        seen = [(self.examples, None)]
        for name, batches in splits.items():
            seen += [(self._flat(name, inputs), targets) for inputs, targets in batches]
        with evaluating(self.model):
            batched, results = self._batched(seen)
            calling = Calling(
                self.signature, self.call, self.form, self.examples,
                Axes(batched, _lengths([inputs for inputs, _ in seen], batched)), self.returns, results,
            )  # fmt: skip
            self._require_runs(splits, calling)
        return calling

    def _flat(self, split: str, inputs: Any) -> Flat:
        try:
            flat = tuple(self.call.flat(_bound(self.signature, as_call(inputs))))
        except Mismatch as error:
            raise TaskError(
                f"Task.{split} yields other inputs than Task.example_inputs holds: {error}; make both as the model's "
                "forward takes them"
            ) from error
        for name, found, example in zip(self.call.paths(), flat, self.examples, strict=True):
            if found.dtype != example.dtype or found.dim() != example.dim():
                raise TaskError(
                    f"Task.{split} yields {name} as {_shown(found)} but Task.example_inputs has {_shown(example)}; "
                    "make both as the model's forward takes them"
                )
        return flat

    def _batched(self, seen: Sequence[tuple[Flat, Any]]) -> tuple[tuple[bool, ...], tuple[bool, ...]]:
        """Which inputs and which outputs have the samples along axis 0: tried out, with two samples and with three.

        If some candidate leaves each sample its own output, that one; else the likeliest of those that run.
        """
        likeliest = None
        for candidate in _candidates(seen):
            results, alike = self._follow(Axes(candidate, ()))
            if any(results) and alike:
                return candidate, results
            likeliest = likeliest or ((candidate, results) if any(results) else None)
        return likeliest or ((False,) * len(self.examples), (False,) * len(self.returns.paths()))

    def _follow(self, axes: Axes) -> tuple[tuple[bool, ...], bool]:
        """Which outputs' leading axes follow the number of samples, and whether samples keep their outputs."""
        try:
            own, two, three = (
                tensors_of(self.returns, self._call(inputs))
                for inputs in (self.examples, *(axes.resized(self.examples, n) for n in (2, 3)))
            )
        except Exception:  # whatever the model trips over: it does not take another number of samples so
            return (), False
        results = tuple(_is_batch(a, b) for a, b in zip(two, three, strict=True))
        compared = [(a, b) for a, b, follows in zip(own, two, results, strict=True) if follows]
        return results, all(_begin_alike(a, b) for a, b in compared)

    def _require_runs(self, splits: Mapping[str, Sequence[tuple[Any, Any]]], calling: Calling) -> None:
        """Batches of other shapes than the example's, samples aside, are run."""
        own = calling.axes.resized(self.examples, 1)
        for name, batches in splits.items():
            flat = self._flat(name, batches[0][0])
            sample = calling.axes.resized(flat, 1)
            if [t.shape for t in sample] != [t.shape for t in own]:
                what = (
                    f"Task.{name} yields inputs of shape {_shapes(sample, calling.axes)} per sample but "
                    f"Task.example_inputs has {_shapes(own, calling.axes)}, and the model does not run on the former"
                )
                calling.flat_outputs(self._run(flat, what))

    def _run(self, inputs: Flat, otherwise: str) -> Any:
        try:
            return self._call(inputs)
        except Exception as error:
            raise TaskError(
                f"{otherwise} (a batch of {' and '.join(map(_shown, inputs))}): {type(error).__name__}: "
                f"{in_one_line(error)}; give batches as the model's forward takes them"
            ) from error

    def _call(self, inputs: Flat) -> Any:
        bound = inspect.BoundArguments(self.signature, dict(self.call.restored(iter(inputs))))
        return self.model(*bound.args, **bound.kwargs)


def _candidates(seen: Sequence[tuple[Flat, Any]]) -> list[tuple[bool, ...]]:
    """Sets of inputs that may carry the batch, the likeliest first.

    Those whose leading axes are of one size wherever we look, and vary together; where none varies, those of any one
    size. Targets that are as long speak for a set.
    """
    count = len(seen[0][0])
    leads = [tuple(len(inputs[i]) if inputs[i].dim() else 0 for inputs, _ in seen) for i in range(count)]
    lengths = [len(t) if isinstance(t, Tensor) and t.dim() else None for _, t in seen]
    kinds = [lead for lead in dict.fromkeys(leads) if all(lead)]
    moving = [lead for lead in kinds if len(set(lead)) > 1]
    kinds = moving or kinds
    kinds.sort(key=lambda lead: sum(n not in (None, size) for n, size in zip(lengths, lead, strict=True)))
    found = [tuple(lead == kind for lead in leads) for kind in kinds]
    return found if moving else list(dict.fromkeys([*found, *(fewer for marks in found for fewer in _fewer(marks))]))


def _fewer(marks: tuple[bool, ...]) -> list[tuple[bool, ...]]:
    """One of the marked inputs less, or one alone: what is not batched may be as long as the batch by chance."""
    places = [i for i, mark in enumerate(marks) if mark]
    if len(places) < 2:
        return []
    without = [tuple(mark and i != gone for i, mark in enumerate(marks)) for gone in places]
    return [*without, *(tuple(i == kept for i in range(len(marks))) for kept in places)]


def _lengths(seen: Sequence[Flat], batched: Sequence[bool]) -> tuple[dict[int, str], ...]:
    """The axes whose sizes differ, the batch aside; equal sizes throughout, equal names: length, length_1, ..."""
    names: dict[tuple[int, ...], str] = {}
    found: list[dict[int, str]] = []
    for shapes, along in zip(zip(*([t.shape for t in inputs] for inputs in seen), strict=True), batched, strict=True):
        found.append({})
        for axis, sizes in enumerate(zip(*shapes, strict=True)):
            if len(set(sizes)) > 1 and not (along and axis == 0):
                found[-1][axis] = names.setdefault(sizes, f"{LENGTH}_{len(names)}" if names else LENGTH)
    return tuple(found)


def _is_batch(two: Tensor, three: Tensor) -> bool:
    return two.dim() > 0 and two.dim() == three.dim() and 3 * len(two) == 2 * len(three) and len(two) > 0


def _begin_alike(a: Tensor, b: Tensor) -> bool:
    """Whether the first samples of two outputs are equal, but for rounding."""
    if a.shape[1:] != b.shape[1:]:
        return False
    count = min(len(a), len(b))
    return torch.allclose(a[:count].double(), b[:count].double(), rtol=1e-3, atol=1e-4, equal_nan=True)


def signature_of(model: nn.Module) -> inspect.Signature:
    """That of forward; (*args, **kwargs) where it can't be known."""
    try:
        return inspect.signature(model.forward)
    except (TypeError, ValueError):
        return inspect.signature(lambda *args, **kwargs: None)


def _bound(signature: inspect.Signature, call: Call) -> dict[str, Any]:
    """Parameter → argument, however it is passed. Raises Mismatch."""
    args, kwargs = call
    try:
        found = dict(signature.bind(*args, **kwargs).arguments)
    except TypeError as error:
        raise Mismatch(f"{error}; forward takes {signature}") from error
    others = (p.name for p in signature.parameters.values() if p.kind is _PARAMETER.VAR_KEYWORD)
    return {**found, **{name: {} for name in others if name not in found}}


@contextmanager
def evaluating(model: nn.Module) -> Iterator[None]:
    """In eval mode and without gradients, each module's own mode given back afterwards."""
    modes = {module: module.training for module in model.modules()}
    model.eval()
    try:
        with torch.no_grad():
            yield
    finally:
        for module, mode in modes.items():
            module.training = mode


def _shapes(sample: Flat, axes: Axes) -> str:
    """Shapes of one sample."""
    shapes = (tuple(t.shape[1:] if b else t.shape) for t, b in zip(sample, axes.batched, strict=True))
    return " and ".join(map(str, shapes))


def _shown(tensor: Tensor) -> str:
    return f"{tuple(tensor.shape)} {str(tensor.dtype).removeprefix('torch.')}"


def _unique(names: Sequence[str], used: Sequence[str] = ()) -> tuple[str, ...]:
    found: list[str] = []
    for name in names:
        others, count, unique = {*used, *found}, 1, name
        while unique in others:
            unique, count = f"{name}_{count}", count + 1
        found.append(unique)
    return tuple(found)
