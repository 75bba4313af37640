"""Optuna's journal in a run's folder: the format of its own file backend, without waiting for the disk each time."""

import json
from collections.abc import Generator
from pathlib import Path
from typing import Any

from optuna.storages.journal import BaseJournalBackend

from autocompress.search.records import append_lines


class Journal(BaseJournalBackend):
    """Logs as JSON lines, readable by Optuna's JournalFileBackend.

    Optuna writes one log per parameter and its backend waits for the disk after each: a quarter of a second per trial
    at 60 parameters. Here the kernel is left to write them. A killed process loses nothing by that; what a power
    failure may lose is told to Optuna again from the run's own journal of candidates (`Trials.reconcile`). Raises
    OSError.
    """

    def __init__(self, path: Path) -> None:
        self._path = path
        self._offsets = [0]
        path.touch()

    def read_logs(self, log_number_from: int) -> Generator[dict[str, Any], None, None]:
        """Logs from this number on; a line that another process has only begun to write is left for the next time."""
        start = min(log_number_from, len(self._offsets) - 1)
        with self._path.open("rb") as file:
            file.seek(self._offsets[start])
            for number, line in enumerate(file, start=start):
                if not line.endswith(b"\n"):
                    return
                if number + 1 == len(self._offsets):
                    self._offsets.append(self._offsets[number] + len(line))
                if number >= log_number_from:
                    yield json.loads(line)

    def append_logs(self, logs: list[dict[str, Any]]) -> None:
        append_lines(self._path, [json.dumps(log, separators=(",", ":")) for log in logs], sync=False)
