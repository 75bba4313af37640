"""What a benchmark's figures depend on, for its JSON."""

import os
import platform
from importlib.metadata import version
from pathlib import Path


def environment() -> dict[str, str | int]:
    """Processor, cores and the versions of what computes; no host name, no path."""
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
    }
