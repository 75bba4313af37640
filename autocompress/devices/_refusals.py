"""What devices say when a runtime or its inputs do not fit."""

from collections.abc import Iterable, Sequence
from pathlib import Path

from autocompress.devices.base import Array
from autocompress.vocabulary.errors import DeviceError, nearest


def check_count(path: Path, names: Sequence[str], inputs: Sequence[Array]) -> None:
    """Raises DeviceError unless there are as many inputs as the model takes."""
    if len(names) != len(inputs):
        raise DeviceError(f"{path} takes {len(names)} inputs ({', '.join(names)}), got {len(inputs)}")


def unknown_variant(family: str, variant: str, known: Iterable[str]) -> DeviceError:
    """Names the nearest device of the family, or all of them if no variant was asked for."""
    names = [f"{family}:{name}" for name in known]
    asked = f"{family}:{variant}"
    return DeviceError(f"unknown device {asked!r}: {nearest(asked if variant else '', names)}")


def last_line(error: BaseException) -> str:
    """The reason at the end of a message that begins with where in its own sources the runtime failed."""
    return str(error).strip().splitlines()[-1].lstrip("- ") if str(error).strip() else type(error).__name__


def out_of_memory(error: BaseException) -> bool:
    """Whether a runtime's refusal is about memory, as each of them words it."""
    text = f"{type(error).__name__} {error}".lower()
    return any(words in text for words in _MEMORY)


_MEMORY = ("out of memory", "outofmemory", "failed to allocate memory", "bad_alloc", "bad allocation")
