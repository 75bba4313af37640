"""Plug-ins: what installed packages, this one among them, declare as entry points; imported when they are asked for."""

import tomllib
from functools import cache
from importlib.metadata import EntryPoint, entry_points
from pathlib import Path
from typing import Any

from autocompress.vocabulary.errors import PluginError

METHODS = "autocompress.methods"
DEVICES = "autocompress.devices"
IMPORTANCES = "autocompress.importances"
FUSIONS = "autocompress.fusions"
FORMATS = "autocompress.formats"

_OWN = "autocompress"
_SOURCES = Path(__file__).parents[2] / "pyproject.toml"
"""Beside the package in a source checkout, nowhere else."""


def names(group: str) -> tuple[str, ...]:
    """The names declared in a group, in alphabetical order; nothing is imported.

    Raises PluginError for a name that two packages declare, and for an installation older than its sources.
    """
    return tuple(_declared(group))


@cache
def load(group: str, name: str) -> Any:
    """What a declared name stands for, imported. Raises PluginError, in one line, for whatever goes wrong there."""
    entry = _declared(group)[name]
    try:
        return entry.load()
    except Exception as error:
        text = " ".join(str(error).split())
        raise PluginError(
            f"{owner(group, name)} declares {group} {name!r} = {entry.value}, which can't be loaded: "
            f"{type(error).__name__}: {text[:240]}; mend that package or uninstall it"
        ) from error


def owner(group: str, name: str) -> str:
    """The package (with its version) that declares the name."""
    return _package(_declared(group)[name])


@cache
def _declared(group: str) -> dict[str, EntryPoint]:
    found: dict[str, EntryPoint] = {}
    for entry in sorted(entry_points(group=group)):
        other = found.setdefault(entry.name, entry)
        if other is not entry:
            raise PluginError(
                f"{group} {entry.name!r} is declared twice, by {_package(other)} ({other.value}) and "
                f"{_package(entry)} ({entry.value}); uninstall one of them"
            )
    ours = {name for name, entry in found.items() if entry.dist is not None and entry.dist.name == _OWN}
    missing = sorted(_in_sources(group) - ours)
    if missing:
        raise PluginError(
            f"autocompress was installed before it declared {group} {', '.join(missing)}; "
            f"install it again: pip install -e {_SOURCES.parent}"
        )
    return found


def _package(entry: EntryPoint) -> str:
    return f"{entry.dist.name} {entry.dist.version}" if entry.dist is not None else "an unknown package"


def _in_sources(group: str) -> set[str]:
    """What a source checkout declares of its own, which its installation may not know yet."""
    if not _SOURCES.exists():
        return set()
    project = tomllib.loads(_SOURCES.read_text(encoding="utf-8")).get("project", {})
    return set(project.get("entry-points", {}).get(group, {})) if project.get("name") == _OWN else set()
