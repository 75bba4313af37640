"""Batches of a split in the form the package works on: inputs as a tuple of tensors, beside their targets."""

from collections.abc import Callable, Iterator, Mapping, Sequence
from dataclasses import dataclass
from itertools import chain, islice
from typing import Any

import torch
from torch import Tensor

from autocompress.task.task import Loader
from autocompress.vocabulary.errors import TaskError

Batch = tuple[tuple[Tensor, ...], Any]
"""(inputs, targets): what a model is called with, as `model(*inputs)`, and what its outputs are judged by."""

Call = tuple[tuple[Any, ...], Mapping[str, Any]]
"""Positional and keyword arguments."""


class PartlyBatched(tuple[tuple[Tensor, ...], Any]):
    """A Batch that knows which of its inputs have the samples along axis 0; of any other all do, but for scalars."""

    batched: tuple[bool, ...]

    @staticmethod
    def of(inputs: tuple[Tensor, ...], targets: Any, batched: tuple[bool, ...]) -> "PartlyBatched":
        made = PartlyBatched((inputs, targets))
        made.batched = batched
        return made


@dataclass(frozen=True, slots=True)
class Split:
    """A user's loader whose batches are flattened as they come."""

    loader: Loader
    flatten: Callable[[Any, Any], Batch]

    def __iter__(self) -> Iterator[Batch]:
        return (self.flatten(inputs, targets) for inputs, targets in pairs(self.loader))


def as_call(inputs: Any) -> Call:
    """What a batch's inputs are to the model: a tuple or list its positional arguments, a mapping its keywords."""
    if isinstance(inputs, Mapping):
        return (), dict(inputs)
    return (tuple(inputs) if isinstance(inputs, (tuple, list)) else (inputs,)), {}


def as_tuple(inputs: Any) -> tuple[Tensor, ...]:
    return tuple(inputs) if isinstance(inputs, (tuple, list)) else (inputs,)


def pairs(split: Loader) -> Iterator[tuple[Any, Any]]:
    """The split's batches as they are; raises TaskError for an empty split and what is no (inputs, targets)."""
    found = False
    for batch in split:
        if not isinstance(batch, (tuple, list)) or len(batch) != 2:
            raise TaskError(f"a split yields {type(batch).__name__} batches; yield (inputs, targets) pairs")
        found = True
        yield batch
    if not found:
        raise TaskError("a split is empty (or can be iterated only once); give a list of batches or a DataLoader")


def first_batches(split: str, loader: Loader, count: int) -> list[tuple[Any, Any]]:
    """At most this many batches, as the loader of the split of this name gives them; raises TaskError for none."""
    if isinstance(loader, Iterator):
        raise TaskError(f"Task.{split} can be iterated only once; give a list of batches or a DataLoader")
    try:
        found = list(islice(iter(loader), count))
    except TypeError as error:
        raise TaskError(f"Task.{split} is a {type(loader).__name__}, not an iterable of (inputs, targets)") from error
    if not found:
        raise TaskError(f"Task.{split} is empty; give at least one (inputs, targets) batch")
    for batch in found:
        if not isinstance(batch, (tuple, list)) or len(batch) != 2:
            what = f"{len(batch)} values" if isinstance(batch, (tuple, list)) else type(batch).__name__
            raise TaskError(f"Task.{split} yields {what} instead of an (inputs, targets) pair; labels are needed")
    return found


def batches(split: Loader) -> Iterator[Batch]:
    """The split's batches with their inputs as tuples; raises TaskError as `pairs` does."""
    return (batch if isinstance(batch, PartlyBatched) else (as_tuple(batch[0]), batch[1]) for batch in pairs(split))


def endless(split: Loader) -> Iterator[Batch]:
    """The split's batches, over and over; raises TaskError as `batches` does."""
    while True:
        yield from batches(split)


def as_one(held: Sequence[Batch]) -> tuple[Tensor, ...]:
    """The inputs of all batches, joined. Of batches that differ in more than their number of samples, those that are
    alike and have the most samples between them."""
    alike: dict[Any, list[Batch]] = {}
    for batch in held:
        alike.setdefault(_kind(batch), []).append(batch)
    most = max(alike.values(), key=lambda found: sum(map(size, found)))
    joined = zip(batched(most[0]), zip(*(inputs for inputs, _ in most), strict=True), strict=True)
    return tuple(torch.cat(tensors) if along else tensors[0] for along, tensors in joined)


def _kind(batch: Batch) -> Any:
    """Equal for batches that can be joined. What has no batch axis differs in its values too."""
    marks = batched(batch)
    shapes = tuple(t.shape[1:] if along else None for along, t in zip(marks, batch[0], strict=True))
    fixed = (_content(t) for along, t in zip(marks, batch[0], strict=True) if not along)
    return shapes, tuple(fixed) if any(marks) else id(batch)


def _content(tensor: Tensor) -> bytes:
    return tensor.detach().contiguous().reshape(-1).view(torch.uint8).numpy().tobytes()


def subset(split: Loader, samples: int) -> list[Batch]:
    """The first `samples` samples (fewer if the split has fewer), the last batch cut to fit."""
    taken: list[Batch] = []
    wanted = samples
    for batch in batches(split):
        taken.append(first_samples(batch, wanted))
        wanted -= size(taken[-1])
        if wanted <= 0:
            break
    return taken


def first_samples(batch: Batch, count: int) -> Batch:
    return batch if size(batch) <= count else _part(batch, slice(count))


def chunks(split: Loader, samples: int) -> Iterator[Batch]:
    """The split in batches of at most `samples` samples."""
    return chain.from_iterable(_pieces(batch, samples) for batch in batches(split))


def _pieces(batch: Batch, samples: int) -> Iterator[Batch]:
    if size(batch) <= samples:
        yield batch
        return
    for start in range(0, size(batch), samples):
        yield _part(batch, slice(start, start + samples))


def _part(batch: Batch, part: slice) -> Batch:
    """Some of a batch's samples, with their targets."""
    inputs, targets = batch
    marks = batched(batch)
    kept = tuple(t[part] if along else t for along, t in zip(marks, inputs, strict=True))
    return PartlyBatched.of(kept, _part_of_targets(targets, part, size(batch)), marks)


def _part_of_targets(targets: Any, part: slice, samples: int) -> Any:
    """Those of these samples: of tensors (and lists) with an entry for each sample, also within tuples and dicts."""
    if isinstance(targets, Tensor):
        return targets[part] if targets.dim() and len(targets) == samples else targets
    if isinstance(targets, Mapping):
        return {name: _part_of_targets(value, part, samples) for name, value in targets.items()}
    if not isinstance(targets, (tuple, list)):
        return targets
    if len(targets) == samples and not any(isinstance(t, Tensor) and t.dim() and len(t) == samples for t in targets):
        return targets[part]
    return tuple(_part_of_targets(value, part, samples) for value in targets)


def batched(batch: Batch) -> tuple[bool, ...]:
    """Of each input, whether the samples lie along its axis 0."""
    return batch.batched if isinstance(batch, PartlyBatched) else tuple(t.dim() > 0 for t in batch[0])


def size(batch: Batch) -> int:
    """Samples in a batch: the length of its first input that has them along axis 0; one where none has."""
    return next((len(t) for along, t in zip(batched(batch), batch[0], strict=True) if along), 1)
