"""Every error that autocompress raises on purpose, in one tree.

AutocompressError
├── UserError                 the request can't be met as asked (exit 2)
│   ├── TaskError             the task file, its model, loaders or score
│   ├── ConfigError           RUN.toml, a flag or a value
│   ├── TraceError            torch.export or the operator table can't follow the model
│   ├── ProfileError          a hardware profile is missing, damaged or of another version
│   ├── PluginError           an installed plug-in can't be loaded, or two have one name
│   ├── RunError              a run folder is missing, damaged or of another model
│   └── BudgetError           no plan (or no measured candidate) meets the asked limit
└── Failure                   the request was fine, the work failed (exit 1)
    ├── BuildError            a plan could not be applied to the model
    ├── ExportError           a built model could not be written as an artifact
    ├── VerificationError     an artifact differs from what was promised
    ├── DeviceError           a runtime is missing, or refused the model
    │   ├── DeviceLostError   it stopped answering: the same may work when tried again
    │   └── UntimedError      it computes, but how long that takes says nothing about the hardware
    └── StorageError          the run's folder can't be written (disk full, permissions)

A message says what was asked, what was found, what is valid and what to do next, in one line.
"""

from collections.abc import Iterable
from difflib import get_close_matches


class AutocompressError(Exception):
    """Root of the tree; `exit_code` is what the command line returns."""

    exit_code = 1


class UserError(AutocompressError):
    exit_code = 2


class TaskError(UserError): ...


class ConfigError(UserError): ...


class TraceError(UserError): ...


class ProfileError(UserError): ...


class PluginError(UserError): ...


class RunError(UserError): ...


class BudgetError(UserError): ...


class Failure(AutocompressError): ...


class BuildError(Failure): ...


class ExportError(Failure): ...


class VerificationError(Failure): ...


class DeviceError(Failure): ...


class DeviceLostError(DeviceError): ...


class UntimedError(DeviceError): ...


class StorageError(Failure): ...


LONGEST_LINE = 240
"""Characters of another library's words in a message of ours."""


def first_line(error: BaseException, skipping: str | tuple[str, ...] = ()) -> str:
    """What another library's error says first: its first line, with the next where that one announces it.

    Lines that begin with `skipping` do not count; the error's type stands for one that says nothing.
    """
    lines = [line.strip() for line in str(error).splitlines() if line.strip() and not line.startswith(skipping)]
    lines = lines or [type(error).__name__]
    return (" ".join(lines[:2]) if lines[0].endswith(":") else lines[0])[:LONGEST_LINE]


def in_one_line(error: BaseException) -> str:
    """All that another library's error says, without its line breaks."""
    return " ".join(str(error).split())[:LONGEST_LINE] or type(error).__name__


def nearest(asked: str, valid: Iterable[str]) -> str:
    """A clause naming the closest valid word, or all valid words if none is close."""
    names = sorted(valid)
    close = get_close_matches(asked, names, n=1)
    return f"did you mean {close[0]!r}?" if close else f"valid: {', '.join(names) or 'none'}"
