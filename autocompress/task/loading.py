"""From `path/to/file.py:task` or `package.module:task` to the Task that the user wrote there.

The named file is the only code of the user's that is ever executed.
"""

import sys
import traceback
from hashlib import sha256
from importlib import import_module
from importlib.util import module_from_spec, spec_from_file_location
from logging import getLogger
from pathlib import Path
from types import ModuleType

from autocompress.task.doors import is_model_file, settle
from autocompress.task.task import Task
from autocompress.vocabulary.errors import TaskError, nearest

_log = getLogger(__name__)

DEFAULT_NAME = "task"


def load_task(reference: str) -> Task:
    """The Task called `reference`; without ":name" the name is "task".

    Raises TaskError if the file is missing, fails to run, or holds no Task under that name.
    """
    place, name = split_reference(reference)
    if is_model_file(reference):
        raise TaskError(
            f"{reference!r} is a model, but data are needed too; write a Python file with `task = autocompress.Task("
            f"model={Path(reference).name!r}, example_inputs=..., validation=...)` beside it and name that"
        )
    _log.info("loading the task")
    module = _run_file(Path(place)) if place.endswith(".py") else _import(place)
    task = _task_in(module, name, place)
    settle(task, Path(module.__file__).parent if module.__file__ else None)
    return task


def split_reference(reference: str) -> tuple[str, str]:
    """(file or module, name) of a reference; a drive letter's colon is not taken for the separator."""
    place, colon, name = reference.rpartition(":")
    if not colon or not name.isidentifier() or not place:
        return reference.rstrip(":"), DEFAULT_NAME
    return place, name


def _run_file(path: Path) -> ModuleType:
    if not path.is_file():
        there = [str(p) for p in path.parent.glob("*.py")] if path.parent.is_dir() else []
        raise TaskError(f"no task file {str(path)!r}; {_offer(str(path), there)}")
    module_name = f"autocompress_task_{path.stem}_{sha256(str(path.resolve()).encode()).hexdigest()[:8]}"
    spec = spec_from_file_location(module_name, path)
    assert spec is not None and spec.loader is not None, "a .py path always has a source loader"
    module = module_from_spec(spec)
    sys.modules[module_name] = module
    folder = str(path.resolve().parent)
    if folder not in sys.path:
        sys.path.insert(0, folder)
    try:
        spec.loader.exec_module(module)
    except Exception as error:
        del sys.modules[module_name]
        raise TaskError(
            f"the task file {str(path)!r} fails to run: {_where(error, path)}; fix it and run again"
        ) from error
    return module


def _import(name: str) -> ModuleType:
    if not all(part.isidentifier() for part in name.split(".")):
        raise TaskError(f"{name!r} is neither a Python file nor a module; name a task as path/to/file.py:task")
    if (folder := str(Path.cwd())) not in sys.path:
        sys.path.insert(0, folder)
    try:
        return import_module(name)
    except ModuleNotFoundError as error:
        if error.name and name.startswith(error.name):
            raise TaskError(f"no module {name!r}; for a file write path/to/file.py:task") from error
        raise TaskError(
            f"the task module {name!r} fails to import: {_where(error, None)}; fix it and run again"
        ) from error
    except Exception as error:
        raise TaskError(
            f"the task module {name!r} fails to import: {_where(error, None)}; fix it and run again"
        ) from error


def _task_in(module: ModuleType, name: str, place: str) -> Task:
    try:
        found = getattr(module, name)
    except AttributeError as error:
        tasks = [n for n, value in vars(module).items() if isinstance(value, Task)]
        raise TaskError(f"{place!r} has no {name!r}; {_offer(name, tasks)}") from error
    except Exception as error:
        raise TaskError(f"{name!r} of {place!r} fails: {_where(error, None)}; fix it and run again") from error
    if not isinstance(found, Task):
        call = "call it" if callable(found) else f"write {name} = autocompress.Task(model=..., ...)"
        raise TaskError(f"{name!r} of {place!r} is a {type(found).__name__}, not an autocompress.Task; {call}")
    return found


def _offer(asked: str, there: list[str]) -> str:
    return nearest(asked, there) if there else "write `task = autocompress.Task(model=..., ...)` in a Python file"


def _where(error: Exception, path: Path | None) -> str:
    """'ValueError: message (file.py, line 3)', the line being the innermost one of the named file."""
    text = " ".join(str(error).split())
    told = f"{type(error).__name__}: {text}" if text else type(error).__name__
    frames = traceback.extract_tb(error.__traceback__)
    own = [f for f in frames if path is not None and Path(f.filename) == path] or frames[-1:]
    return told if isinstance(error, SyntaxError) else f"{told} ({Path(own[-1].filename).name}, line {own[-1].lineno})"
