"""Compiled programs as files for another machine: linked here where a linker for it is found, else left to it."""

import json
import platform
import shutil
from dataclasses import dataclass, field
from functools import lru_cache
from pathlib import Path
from tempfile import TemporaryDirectory
from typing import Any

from autocompress.devices.tvm.model import Model, Shapes
from autocompress.devices.tvm.package import quiet
from autocompress.devices.tvm.program import PROGRAMS, Program, compiled

LINKED, OBJECTS = ".so", ".tar"


@dataclass(frozen=True, slots=True)
class Library:
    """A program's file: a shared library, or (`suffix` OBJECTS) an archive of objects that are still to be linked."""

    suffix: str
    content: bytes = field(repr=False)


@lru_cache(maxsize=PROGRAMS)
def library(model: Model, shapes: Shapes, target: str) -> Library:
    """The model's program for a target; raises what TVM raises, and RuntimeError if the linker fails."""
    return export(compiled(model, shapes, target), linker(json.loads(target)["mtriple"]))


def export(program: Program, link: str | None) -> Library:
    """A program in one file, linked by this command if there is one."""
    with TemporaryDirectory(prefix="autocompress-") as folder, quiet():
        path = Path(folder) / f"program{LINKED if link else OBJECTS}"
        program.executable.export_library(str(path), **_linked_by(link))
        return Library(path.suffix, path.read_bytes())


def linker(triple: str) -> str | None:
    """The command that links for a target such as "aarch64-linux-gnu", if one is on the search path here."""
    parts = triple.split("-")
    plain = "-".join((parts[0], *parts[-2:]))  # of aarch64-unknown-linux-gnu, say
    named = [f"{name}-{compiler}" for name in dict.fromkeys((triple, plain)) for compiler in ("g++", "gcc")]
    own = ["g++", "gcc", "clang"] if parts[0] == platform.machine() and platform.system().lower() in parts else []
    return next((command for command in (*named, *own) if shutil.which(command)), None)


def package(triple: str) -> str:
    """The Debian package that brings the linker for a target."""
    parts = triple.split("-")
    return f"gcc-{parts[0].replace('_', '-')}-linux-{parts[-1]}"


def _linked_by(link: str | None) -> dict[str, Any]:
    from tvm.support import cc

    return {"fcompile": cc.cross_compiler(link)} if link else {}
