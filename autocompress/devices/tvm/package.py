"""The TVM package itself: whether it is the right one, what it says when it fails, and keeping it from chattering."""

import io
import os
import re
import warnings
from collections.abc import Iterator
from contextlib import contextmanager, redirect_stdout
from importlib.metadata import PackageNotFoundError, version
from importlib.util import find_spec
from tempfile import TemporaryFile
from typing import Any

from autocompress.vocabulary import errors
from autocompress.vocabulary.errors import DeviceError

DISTRIBUTION = "apache-tvm"
INSTALL = 'pip install "autocompress[tvm]"'

_OLDEST = (0, 27)
_RELAYED = "RPCError: Error caught from RPC call"
_CHECK = re.compile(r"^Check failed: \(.*?\) is false: (?=.)")
_LOG_LINE = re.compile(rb"^\[[\d:]+\] .*: Warning: .*\n?", re.MULTILINE)


def missing() -> str:
    """Why TVM can't be used here, if it can't; nothing is imported to find out."""
    if find_spec("tvm") is None:
        return f"{DISTRIBUTION} is not installed"
    try:
        found = version(DISTRIBUTION)
    except PackageNotFoundError:
        return f"the installed package `tvm` is not {DISTRIBUTION}, but another project's"
    if tuple(map(int, re.findall(r"\d+", found)[:2])) < _OLDEST:
        return f"{DISTRIBUTION} {found} is too old, {'.'.join(map(str, _OLDEST))} or newer is needed"
    return ""


def require_tvm() -> Any:
    """The package, imported; raises DeviceError when it is missing, another project's, or too old."""
    if reason := missing():
        raise DeviceError(f"{reason}; {INSTALL}")
    try:
        import tvm
        import tvm.relax.frontend.onnx
    except ImportError as error:
        raise DeviceError(f"{DISTRIBUTION} can't be imported ({first_line(error)}); {INSTALL}") from error
    return tvm


def first_line(error: BaseException) -> str:
    """What an exception of TVM's says, without where it was relayed from and which check in C++ failed."""
    return _CHECK.sub("", errors.first_line(error, skipping=_RELAYED))


@contextmanager
def quiet() -> Iterator[None]:
    """Keeps to itself what TVM says while it works: prints before it raises, warnings, and lines of C++ on stderr.

    Those last ("Scope Saving", "Fast mode segfaults") come with every model and there is no switch for them. Whatever
    else is written to stderr in the meantime comes out afterwards.
    """
    with warnings.catch_warnings(), redirect_stdout(io.StringIO()), TemporaryFile() as held:
        warnings.filterwarnings("ignore", module=r"tvm\.relax\.frontend\.onnx")
        stderr = os.dup(2)
        os.dup2(held.fileno(), 2)
        try:
            yield
        finally:
            os.dup2(stderr, 2)
            os.close(stderr)
            held.seek(0)
            os.write(2, _LOG_LINE.sub(b"", held.read()))
