"""The public names, nothing else; each is imported when it is first used, so that the command line starts at once."""

import sys
from importlib import import_module
from types import ModuleType
from typing import TYPE_CHECKING, Any

if TYPE_CHECKING:
    from autocompress.compression.build import build as build
    from autocompress.compression.plan import Plan as Plan
    from autocompress.compression.plan import Step as Step
    from autocompress.evidence.verify import verify as verify
    from autocompress.graph import trace as trace
    from autocompress.search import Study as Study
    from autocompress.search import load as load
    from autocompress.search import search as search
    from autocompress.search.profiling import profile_task
    from autocompress.task.task import Score as Score
    from autocompress.task.task import Task as Task
    from autocompress.vocabulary.errors import AutocompressError as AutocompressError

    profile = profile_task

_HOMES = {
    "AutocompressError": ("vocabulary.errors", "AutocompressError"),
    "Plan": ("compression.plan", "Plan"),
    "Score": ("task.task", "Score"),
    "Step": ("compression.plan", "Step"),
    "Study": ("search", "Study"),
    "Task": ("task.task", "Task"),
    "build": ("compression.build", "build"),
    "load": ("search", "load"),
    "profile": ("search.profiling", "profile_task"),
    "search": ("search", "search"),
    "trace": ("graph", "trace"),
    "verify": ("evidence.verify", "verify"),
}
__all__ = sorted(_HOMES)


def _public(home: str, name: str) -> property:
    def resolve(_: ModuleType) -> Any:
        return getattr(import_module(f"autocompress.{home}"), name)

    def keep(_: ModuleType, submodule: Any) -> None:
        """Importing the submodule `search` would hide the function `search`: the function stays."""

    return property(resolve, keep)


class _Package(ModuleType):
    """This package, with its public names as properties."""


for _name, (_home, _attribute) in _HOMES.items():
    setattr(_Package, _name, _public(_home, _attribute))
sys.modules[__name__].__class__ = _Package
