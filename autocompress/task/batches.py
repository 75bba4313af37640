"""Batches of a split in the form the package works on: inputs as a tuple of tensors, beside their targets."""

from collections.abc import Iterator, Sequence
from itertools import chain
from typing import Any

import torch
from torch import Tensor

from autocompress.task.task import Loader
from autocompress.vocabulary.errors import TaskError

Batch = tuple[tuple[Tensor, ...], Any]
"""(inputs, targets): what a model is called with, as `model(*inputs)`, and what its outputs are judged by."""


def as_tuple(inputs: Any) -> tuple[Tensor, ...]:
    return tuple(inputs) if isinstance(inputs, (tuple, list)) else (inputs,)


def batches(split: Loader) -> Iterator[Batch]:
    """The split's batches; raises TaskError for an empty split and for batches that are not (inputs, targets)."""
    found = False
    for batch in split:
        if not isinstance(batch, (tuple, list)) or len(batch) != 2:
            raise TaskError(f"a split yields {type(batch).__name__} batches; yield (inputs, targets) pairs")
        found = True
        yield as_tuple(batch[0]), batch[1]
    if not found:
        raise TaskError("a split is empty (or can be iterated only once); give a list of batches or a DataLoader")


def endless(split: Loader) -> Iterator[Batch]:
    """The split's batches, over and over; raises TaskError as `batches` does."""
    while True:
        yield from batches(split)


def as_one(held: Sequence[Batch]) -> tuple[Tensor, ...]:
    """The inputs of all batches, joined."""
    return tuple(torch.cat(tensors) for tensors in zip(*(inputs for inputs, _ in held), strict=True))


def subset(split: Loader, samples: int) -> list[Batch]:
    """The first `samples` samples (fewer if the split has fewer), the last batch cut to fit."""
    taken: list[Batch] = []
    wanted = samples
    for inputs, targets in batches(split):
        taken.append(first_samples((inputs, targets), wanted))
        wanted -= size(taken[-1])
        if wanted <= 0:
            break
    return taken


def first_samples(batch: Batch, count: int) -> Batch:
    inputs, targets = batch
    if size(batch) <= count:
        return batch
    kept = targets[:count] if isinstance(targets, Tensor) and targets.dim() else targets
    return tuple(tensor[:count] for tensor in inputs), kept


def chunks(split: Loader, samples: int) -> Iterator[Batch]:
    """The split in batches of at most `samples` samples."""
    return chain.from_iterable(_pieces(batch, samples) for batch in batches(split))


def _pieces(batch: Batch, samples: int) -> Iterator[Batch]:
    inputs, targets = batch
    for start in range(0, size(batch), samples):
        part = slice(start, start + samples)
        yield (
            tuple(t[part] for t in inputs),
            targets[part] if isinstance(targets, Tensor) and targets.dim() else targets,
        )


def size(batch: Batch) -> int:
    """Samples in a batch: the length of its first input."""
    return len(batch[0][0])
