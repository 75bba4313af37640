"""How much of what engineers bring is traced, pruned, exported and right: a zoo of well-known architectures.

    python benchmarks/zoo.py [--only PATTERN ...] [--jobs 1] [--again] [--json results/zoo.json]

Random weights, small sizes. Every architecture runs in a process of its own with limited CPU time and memory, so that a
hang or a crash is one row. Rows that the JSON file holds already are kept unless `--again`. Architectures of packages
that are not installed (`pip install -c constraints.txt -e ".[zoo]"`) are left out, and said to be.
"""

import fnmatch
import json
import multiprocessing
import os
import resource
import time
from multiprocessing.connection import wait
from pathlib import Path
from tempfile import TemporaryDirectory
from typing import Annotated, Any

import typer
from architectures import ARCHITECTURES
from architectures.packages import package
from environment import environment
from rich.console import Console
from rich.table import Table
from zoo_row import Row, inspect, warm
from zoo_summary import COLUMNS, bars, cells

CPU_LIMIT_S = 240
WALL_LIMIT_S = 1800
MEMORY_LIMIT_BYTES = 10 * 2**30
PACKAGES = ("timm", "torchvision", "segmentation_models_pytorch", "transformers")


def _child(name: str, path: Path, cpu_limit_s: int) -> None:
    resource.setrlimit(resource.RLIMIT_CPU, (cpu_limit_s, cpu_limit_s + 5))
    resource.setrlimit(resource.RLIMIT_AS, (MEMORY_LIMIT_BYTES, MEMORY_LIMIT_BYTES))
    resource.setrlimit(resource.RLIMIT_CORE, (0, 0))
    with open(os.devnull, "w") as nowhere:
        os.dup2(nowhere.fileno(), 1)
        os.dup2(nowhere.fileno(), 2)
    inspect(name, path)


class Runner:
    """A few processes at a time; forked, so that what all of them import is imported once."""

    def __init__(self, folder: Path, cpu_limit_s: int) -> None:
        self.folder, self.cpu_limit_s = folder, cpu_limit_s
        self.running: dict[str, tuple[Any, float]] = {}

    def start(self, name: str) -> None:
        fork = multiprocessing.get_context("fork")
        process = fork.Process(target=_child, args=(name, self.folder / f"{name}.json", self.cpu_limit_s))
        process.start()
        self.running[name] = process, time.monotonic()

    def finished(self) -> dict[str, Row]:
        """Rows of the processes that ended since, waiting for the next one."""
        wait([process.sentinel for process, _ in self.running.values()], timeout=5)
        rows = {}
        for name, (process, started) in list(self.running.items()):
            if process.is_alive() and time.monotonic() - started > WALL_LIMIT_S:
                process.kill()
                process.join()
            if not process.is_alive():
                process.join()
                rows[name] = self._row(name, process.exitcode)
                del self.running[name]
        return rows

    def _row(self, name: str, code: int) -> Row:
        path = self.folder / f"{name}.json"
        row: Row = json.loads(path.read_text()) if path.exists() else {}
        if code:
            row["died"] = {"during": row.pop("during", "start"), "exit_code": code}
        return row


def _available(names: list[str]) -> tuple[list[str], dict[str, str]]:
    """Those whose package imports, and the packages that don't, with the reason."""
    missing: dict[str, str] = {}
    for needed in {ARCHITECTURES[name].needs for name in names} - {""}:
        try:
            package("torchvision")
            package(needed)
        except ImportError as error:
            missing[needed] = str(error).splitlines()[0]
    return [name for name in names if ARCHITECTURES[name].needs not in missing], missing


def _save(path: Path, rows: dict[str, Row], seconds: float) -> None:
    ordered = {name: rows[name] for name in ARCHITECTURES if name in rows}
    document = {"environment": environment(PACKAGES), "bars": bars(ordered), "seconds": seconds, "rows": ordered}
    partial = path.with_suffix(".partial")
    partial.write_text(json.dumps(document, indent=1) + "\n")
    os.replace(partial, path)


def main(
    only: Annotated[list[str] | None, typer.Option(help="Names or fnmatch patterns; all otherwise.")] = None,
    jobs: Annotated[int, typer.Option(help="Processes at a time.")] = 1,
    again: Annotated[bool, typer.Option(help="Forget the chosen rows that the file has, and run them.")] = False,
    cpu_limit_s: Annotated[int, typer.Option(help="CPU seconds of one architecture.")] = CPU_LIMIT_S,
    out: Annotated[Path, typer.Option("--json", help="JSON file.")] = Path("zoo.json"),
) -> None:
    console = Console()
    document = json.loads(out.read_text()) if out.exists() else {}
    chosen = [name for name in ARCHITECTURES if any(fnmatch.fnmatch(name, p) for p in only or ["*"])]
    known: dict[str, Row] = document.get("rows", {})
    rows = {name: row for name, row in known.items() if not (again and name in chosen)}
    names, missing = _available(chosen)
    todo = [name for name in names if name not in rows]
    if todo:
        warm()
    seconds, last = document.get("seconds", 0.0), time.monotonic()
    with TemporaryDirectory() as folder:
        runner = Runner(Path(folder), cpu_limit_s)
        while todo or runner.running:
            while todo and len(runner.running) < jobs:
                runner.start(todo.pop(0))
            for name, row in runner.finished().items():
                rows[name] = row
                seconds, last = seconds + time.monotonic() - last, time.monotonic()
                _save(out, rows, seconds)
                console.print(" ".join([name, *cells(row)]), highlight=False, soft_wrap=True)
    shown = {name: rows[name] for name in chosen if name in rows}
    table = Table("architecture", *COLUMNS, box=None)
    for name, row in shown.items():
        table.add_row(name, *cells(row))
    console.print(table)
    for reason in missing.values():
        console.print(f"left out: {reason}")
    verdict = Table("bar", "asked", "found", "kept", "short of it", box=None)
    for bar in bars(shown):
        verdict.add_row(*(str(bar[key]) for key in ("bar", "asked", "found", "kept")), ", ".join(bar["short"]))
    console.print(verdict)


if __name__ == "__main__":
    typer.run(main)
