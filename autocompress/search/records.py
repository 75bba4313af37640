"""A run's folder: atomic files, an append-only journal of candidates, and what is whole of them after a crash."""

import csv
import errno
import fcntl
import io
import json
import os
import shutil
import tomllib
from collections.abc import Iterator, Mapping, Sequence
from contextlib import contextmanager, suppress
from pathlib import Path
from typing import Any

import tomli_w

from autocompress.search.candidate import Candidate
from autocompress.vocabulary.errors import RunError, StorageError

RUN_FILE = "run.toml"
STATE_FILE = "state.json"
CANDIDATES_FILE = "candidates.jsonl"
STUDY_FILE = "study.journal"


class RunFolder:
    """Where one search keeps everything. Every finished candidate is on the disk before the search goes on.

    A file is replaced as a whole or not at all; a journal grows by whole lines, and a line cut off by a crash is
    removed when the folder is opened for writing. Raises StorageError where the disk is full or may not be written.
    """

    def __init__(self, path: Path) -> None:
        self.path = path

    @property
    def models(self) -> Path:
        return self._folder("models")

    @property
    def weights(self) -> Path:
        return self._folder("weights")

    @property
    def scratch(self) -> Path:
        """For files that are looked at once; emptied whenever the folder is opened."""
        return self._folder("scratch")

    @property
    def study_journal(self) -> Path:
        return self.path / STUDY_FILE

    @property
    def exists(self) -> bool:
        return (self.path / RUN_FILE).exists()

    @contextmanager
    def opened(self) -> Iterator[None]:
        """Holds the folder against other writers and mends what a crash left half-written.

        Raises RunError if another process searches here.
        """
        with _storage(self.path):
            self.path.mkdir(parents=True, exist_ok=True)
            lock = (self.path / ".lock").open("w")
        with lock:
            try:
                fcntl.flock(lock, fcntl.LOCK_EX | fcntl.LOCK_NB)
            except BlockingIOError as error:
                raise RunError(f"{self.path} is searched by another process; wait, or give another --out") from error
            for journal in (CANDIDATES_FILE, STUDY_FILE):
                with _storage(self.path / journal):
                    cut_torn_line(self.path / journal)
            shutil.rmtree(self.path / "scratch", ignore_errors=True)
            yield
            shutil.rmtree(self.path / "scratch", ignore_errors=True)

    def append(self, candidate: Candidate) -> None:
        """Adds a candidate, or its new state, to the journal; its plan gets a file of its own."""
        plan = self._folder("plans") / f"{candidate.id}.json"
        if not plan.exists():
            self.write(plan, candidate.plan.to_json())
        with _storage(self.path / CANDIDATES_FILE):
            append_lines(self.path / CANDIDATES_FILE, [candidate.to_json()])

    def candidates(self) -> dict[str, Candidate]:
        """The last state of every candidate, in the order in which they first came."""
        return {candidate.id: candidate for candidate in self.states(0)[0]}

    def states(self, offset: int) -> tuple[list[Candidate], int]:
        """States of candidates recorded from this byte of the journal on, and where to read on later.

        Damaged lines are passed over; one that is only being written is left for the next time.
        """
        try:
            with (self.path / CANDIDATES_FILE).open("rb") as file:
                file.seek(offset)
                content = file.read()
        except FileNotFoundError:
            return [], offset
        whole = content[: content.rfind(b"\n") + 1]
        found = []
        for line in whole.decode(errors="replace").splitlines():
            with suppress(RunError):
                found.append(Candidate.from_json(line))
        return found, offset + len(whole)

    def write_run(self, document: Mapping[str, Any]) -> None:
        self.write(self.path / RUN_FILE, tomli_w.dumps(document))

    def read_run(self) -> dict[str, Any]:
        """Raises RunError if there is no run here, or its run.toml is damaged."""
        try:
            return tomllib.loads((self.path / RUN_FILE).read_text())
        except FileNotFoundError as error:
            raise RunError(
                f"{self.path} holds no run ({RUN_FILE} is missing); `autocompress search` makes one"
            ) from error
        except (OSError, tomllib.TOMLDecodeError, UnicodeDecodeError) as error:
            raise RunError(
                f"{self.path / RUN_FILE} is damaged ({error}); delete that one file and search again with the same "
                "task: finished candidates are kept"
            ) from error

    def write_state(self, state: Mapping[str, Any]) -> None:
        """Whatever can be found out again, at a cost: baseline, sensitivities, where the time went."""
        self.write(self.path / STATE_FILE, json.dumps(state, indent=1))

    def read_state(self) -> dict[str, Any]:
        """Empty where there is none or it is damaged."""
        try:
            state = json.loads((self.path / STATE_FILE).read_text())
        except (OSError, ValueError):
            return {}
        return state if isinstance(state, dict) else {}

    def write_table(self, name: str, columns: Sequence[str], rows: Sequence[Mapping[str, Any]]) -> None:
        text = io.StringIO()
        writer = csv.DictWriter(text, columns, lineterminator="\n")
        writer.writeheader()
        writer.writerows(rows)
        self.write(self.path / name, text.getvalue())

    def claim(self, key: str) -> bool:
        """Whether this process is the first to ask for a plan since the folder was opened."""
        with _storage(self.path / "scratch"):
            try:
                (self.scratch / f"{key}.claim").touch(exist_ok=False)
            except FileExistsError:
                return False
        return True

    def write(self, path: Path, text: str) -> None:
        with _storage(path):
            replace_file(path, text.encode())

    def _folder(self, name: str) -> Path:
        with _storage(self.path / name):
            (self.path / name).mkdir(parents=True, exist_ok=True)
        return self.path / name


def replace_file(path: Path, content: bytes) -> None:
    """The file has the new content or the old one, whenever the process dies. Raises OSError."""
    temporary = path.with_name(f".{path.name}.new")
    try:
        with temporary.open("wb") as file:
            file.write(content)
            file.flush()
            os.fsync(file.fileno())
        temporary.replace(path)
    except OSError:
        temporary.unlink(missing_ok=True)
        raise


def append_lines(path: Path, lines: Sequence[str], *, sync: bool = True) -> None:
    """Adds whole lines, or none where the disk is full; with `sync` they are on the disk on return. Raises OSError."""
    with path.open("ab", buffering=0) as file:
        fcntl.flock(file, fcntl.LOCK_EX)
        end, left = file.tell(), memoryview("".join(f"{line}\n" for line in lines).encode())
        try:
            while left:
                left = left[file.write(left) :]
            if sync:
                os.fsync(file.fileno())
        except OSError:
            os.truncate(path, end)
            raise


def cut_torn_line(path: Path) -> None:
    """Removes what follows the last line end. Raises OSError."""
    if not path.exists():
        return
    content = path.read_bytes()
    if content and not content.endswith(b"\n"):
        os.truncate(path, content.rfind(b"\n") + 1)


@contextmanager
def _storage(path: Path) -> Iterator[None]:
    try:
        yield
    except OSError as error:
        raise storage_error(path, error) from error


def storage_error(path: Path, error: OSError) -> StorageError:
    """What went wrong on the disk, and what to do."""
    full = error.errno in (errno.ENOSPC, errno.EDQUOT)
    todo = "free some space, then repeat the command: it resumes" if full else "check the path and its permissions"
    return StorageError(f"can't write {path}: {error.strerror or error}; {todo}")
