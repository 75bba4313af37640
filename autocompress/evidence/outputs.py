"""A model's outputs as a card keeps them: a row for each sample, and which columns belong to which output."""

from collections.abc import Iterator, Sequence
from dataclasses import dataclass
from typing import Any

import numpy as np
from numpy.typing import NDArray

MOST_VALUES = 4096
"""Values of one output that are kept of a sample, evenly spread: the logits of a language model are millions."""


@dataclass(frozen=True, slots=True)
class Rows:
    """`values` [samples, columns]; of these the first `widths[0]` are the first output's, and so on."""

    values: NDArray[np.float64]
    widths: tuple[int, ...]

    def parts(self) -> Iterator[NDArray[np.float64]]:
        """The values of each output."""
        ends = np.cumsum(self.widths)
        return (self.values[:, end - width : end] for end, width in zip(ends, self.widths, strict=True))

    def as_lists(self) -> tuple[tuple[float, ...], ...]:
        return tuple(tuple(row) for row in self.values.tolist())


def rows(outputs: Sequence[NDArray[Any]], samples: int) -> Rows:
    """All floating outputs; integers, which are decided by these, only where there is nothing else.

    An output that is not made of as many equal parts as there are samples stands in each row.
    """
    floats = [array for array in outputs if np.issubdtype(array.dtype, np.floating)]
    found = [_by_sample(array, samples) for array in floats or outputs]
    return Rows(np.concatenate(found, axis=1), tuple(part.shape[1] for part in found))


def _by_sample(array: NDArray[Any], samples: int) -> NDArray[np.float64]:
    values = np.asarray(array, dtype=np.float64)
    whole = values.reshape(samples, -1) if values.ndim and len(values) % samples == 0 else values.reshape(1, -1)
    step = -(-whole.shape[1] // MOST_VALUES) or 1
    return np.repeat(whole, samples // len(whole), axis=0)[:, ::step]
