"""The package that docs/extending.md shows, installed beside this one without a network: files and their metadata."""

import os
import re
import subprocess
import sys
import tomllib
from collections.abc import Mapping
from pathlib import Path

ROOT = Path(__file__).parents[1]
EXTENDING = ROOT / "docs" / "extending.md"


def shown_package() -> dict[str, str]:
    """File → text: the document's blocks that begin with a comment that names a file."""
    blocks = re.findall(r"```(?:python|toml)\n(# (\S+)\n.*?)```", EXTENDING.read_text(encoding="utf-8"), re.DOTALL)
    return {name: text for text, name in blocks}


def install(folder: Path, files: Mapping[str, str]) -> Path:
    """Writes the files and what pip would note of them; returns the folder, to be put on the path."""
    for name, text in files.items():
        path = folder / name
        path.parent.mkdir(parents=True, exist_ok=True)
        path.write_text(text, encoding="utf-8")
    project = tomllib.loads(files["pyproject.toml"])["project"]
    told = folder / f"{project['name'].replace('-', '_')}-{project['version']}.dist-info"
    told.mkdir()
    (told / "METADATA").write_text(
        f"Metadata-Version: 2.4\nName: {project['name']}\nVersion: {project['version']}\n", encoding="utf-8"
    )
    groups = [
        f"[{group}]\n" + "".join(f"{name} = {value}\n" for name, value in entries.items())
        for group, entries in project["entry-points"].items()
    ]
    (told / "entry_points.txt").write_text("\n".join(groups), encoding="utf-8")
    return folder


def declaring(name: str, group: str, entries: Mapping[str, str]) -> dict[str, str]:
    """The one file of a package that declares these entry points."""
    lines = "".join(f'{key} = "{value}"\n' for key, value in entries.items())
    return {"pyproject.toml": f'[project]\nname = "{name}"\nversion = "2.5"\n[project.entry-points."{group}"]\n{lines}'}


def python(folder: Path, *arguments: str, timeout: float = 300) -> subprocess.CompletedProcess[str]:
    """Python with the folder's packages installed, and this checkout's."""
    paths = [str(folder), str(ROOT), os.environ.get("PYTHONPATH", "")]
    environment = {**os.environ, "PYTHONPATH": os.pathsep.join(filter(None, paths))}
    return subprocess.run(
        [sys.executable, *arguments], cwd=ROOT, env=environment, capture_output=True, text=True, timeout=timeout
    )
