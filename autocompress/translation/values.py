"""What tensors of an ONNX file are while it is translated: values of examples, and the call that makes them."""

import math
import operator
from collections.abc import Callable, Mapping, Sequence
from dataclasses import dataclass, field
from typing import Any

import numpy as np
import torch
from numpy.typing import NDArray
from torch import Tensor, fx


class Unsupported(Exception):
    """A form of an operator that has no translation; says which."""


class Attributes(dict[str, Any]):
    """A node's attributes by name (strings decoded, tensors as torch's), beside what the operator set makes of them.

    `opset` is the version of the node's domain, `outputs` how many of its results something reads.
    """

    def __init__(self, values: Mapping[str, Any], opset: int, outputs: int = 1) -> None:
        super().__init__(values)
        self.opset = opset
        self.outputs = outputs


@dataclass(frozen=True, slots=True, eq=False)
class Size:
    """A number that depends on the inputs' sizes: what it is for each example, and the node that computes it."""

    values: tuple[Any, ...]
    node: fx.Node


Number = Any
"""A Python number or a Size."""


@dataclass(frozen=True, slots=True, eq=False)
class Operand:
    """A tensor: as it is for each set of example inputs, and the node that makes it, None for a constant."""

    examples: tuple[Tensor, ...]
    node: fx.Node | None = None
    name: str = ""
    """Of the initializer that a constant is."""

    @property
    def example(self) -> Tensor:
        return self.examples[0]

    @property
    def rank(self) -> int:
        return self.example.dim()

    @property
    def dtype(self) -> torch.dtype:
        return self.example.dtype

    @property
    def shape(self) -> list[Number]:
        """Its sizes; those that differ between examples are computed."""
        return [self.size(axis) for axis in range(self.rank)]

    def size(self, axis: int) -> Number:
        found = tuple(example.shape[axis] for example in self.examples)
        if self.node is None or len(set(found)) == 1:
            return found[0]
        return Size(found, self.node.graph.call_method("size", (self.node, axis % self.rank)))

    def known(self) -> Tensor:
        """Its value if no input changes it. Raises Unsupported."""
        if self.node is not None:
            raise Unsupported("with a shape or an index that depends on the data")
        return self.example

    def entries(self) -> list[Number]:
        return list(self.known().reshape(-1).tolist())


@dataclass(frozen=True, slots=True, eq=False)
class Sizes:
    """A tensor of numbers some of which depend on the inputs' sizes: Python computes it, not torch."""

    array: NDArray[np.object_]
    dtype: torch.dtype

    @property
    def rank(self) -> int:
        return self.array.ndim

    @property
    def shape(self) -> list[Number]:
        return list(self.array.shape)

    @property
    def examples(self) -> tuple[Tensor, ...]:
        entries: list[Any] = list(self.array.flat)
        count = next(len(entry.values) for entry in entries if isinstance(entry, Size))
        return tuple(
            torch.tensor([at(entry, i) for entry in entries], dtype=self.dtype).reshape(self.array.shape)
            for i in range(count)
        )

    @property
    def example(self) -> Tensor:
        return self.examples[0]

    def size(self, axis: int) -> Number:
        return self.array.shape[axis]

    def known(self) -> Tensor:
        raise Unsupported("with a value that depends on the size of an input")

    def entries(self) -> list[Number]:
        return list(self.array.flat)


Value = Operand | Sizes


@dataclass(frozen=True, slots=True)
class Call:
    """What to call, a function or a module; arguments are values, sizes, calls, lists of them, or plain."""

    target: Callable[..., Any]
    args: tuple[Any, ...]
    kwargs: Mapping[str, Any] = field(default_factory=dict)


Translate = Callable[..., Call]
"""(attributes, value or None, ...) → call."""


def at(number: Number, example: int) -> Any:
    """A number as it is for one example."""
    return number.values[example] if isinstance(number, Size) else number


def computed(function: Callable[..., Any], *numbers: Number) -> Number:
    """The function of these numbers: a plain one where every example gives the same."""
    sized = [number for number in numbers if isinstance(number, Size)]
    if not sized:
        return function(*numbers)
    found = tuple(function(*(at(n, i) for n in numbers)) for i in range(len(sized[0].values)))
    if len(set(found)) == 1:
        return found[0]
    made = sized[0].node.graph.call_function(function, tuple(n.node if isinstance(n, Size) else n for n in numbers))
    return Size(found, made)


def quotient(a: Any, b: Any) -> Any:
    """ONNX's division: of integers towards zero."""
    if isinstance(a, float) or isinstance(b, float) or isinstance(a, torch.SymFloat) or isinstance(b, torch.SymFloat):
        return a / b
    if isinstance(a, int) and isinstance(b, int):
        return -(-a // b) if (a < 0) != (b < 0) else a // b
    return a // b


def product(numbers: Sequence[Number]) -> Number:
    found: Number = 1
    for number in numbers:
        found = computed(operator.mul, found, number)
    return found


def integers(value: Value) -> list[int]:
    """Its entries as plain numbers. Raises Unsupported where they depend on an input or its size."""
    if any(isinstance(entry, Size) for entry in value.entries()):
        raise Unsupported("with a value that depends on the size of an input")
    return [int(entry) for entry in value.entries()]


def scalar(value: Value | None) -> Any:
    """The one number that a constant holds, None for anything else."""
    if isinstance(value, Operand) and value.node is None and value.example.numel() == 1:
        return value.example.item()
    return None


def simplified(array: NDArray[np.object_], dtype: torch.dtype) -> Value:
    """Sizes, or a constant if none of them depends on an input."""
    if any(isinstance(entry, Size) for entry in array.flat):
        return Sizes(array, dtype)
    return Operand((torch.tensor([entry for entry in array.flat], dtype=dtype).reshape(array.shape),))


def objects(entries: Sequence[Any], shape: Sequence[int]) -> NDArray[np.object_]:
    array = np.empty(len(entries), dtype=object)
    for i, entry in enumerate(entries):
        array[i] = entry
    return array.reshape(tuple(shape))


def floor(number: Any) -> Any:
    return math.floor(number)


def ceil(number: Any) -> Any:
    return math.ceil(number)
