"""What a benchmark's figures depend on, for its JSON."""

import os
import platform
from collections.abc import Iterable
from importlib.metadata import PackageNotFoundError, version
from pathlib import Path


def environment(others: Iterable[str] = ()) -> dict[str, str | int]:
    """Processor, cores and the versions of what computes, `others` too where installed; no host name, no path."""
    cpu = next(
        (
            line.split(":", 1)[1].strip()
            for line in Path("/proc/cpuinfo").read_text().splitlines()
            if "model name" in line
        ),
        platform.processor(),
    )
    packages = ("autocompress", "torch", "onnx", "onnxruntime", "optuna", "numpy")
    return {
        "cpu": cpu,
        "cores": os.cpu_count() or 1,
        "python": platform.python_version(),
        **{name: version(name) for name in packages},
        **{name: found for name in others if (found := _installed(name))},
    }


def _installed(name: str) -> str | None:
    try:
        return version(name)
    except PackageNotFoundError:
        return None
