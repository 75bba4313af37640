"""The machine that this process runs on."""

import platform
import shutil
import subprocess
from functools import cache
from pathlib import Path


@cache
def processor() -> str:
    """The processor's own name, as the operating system knows it."""
    cpuinfo = Path("/proc/cpuinfo")
    lines = cpuinfo.read_text().splitlines() if cpuinfo.exists() else []
    models = (line.split(":", 1)[1].strip() for line in lines if line.startswith("model name"))
    return next(models, platform.processor() or platform.machine())


@cache
def nvidia_gpu() -> str:
    """The first NVIDIA GPU's own name, "" where the driver's tool does not find one."""
    if shutil.which("nvidia-smi") is None:
        return ""
    asked = ["nvidia-smi", "--query-gpu=name", "--format=csv,noheader"]
    names = subprocess.run(asked, capture_output=True, text=True, check=False).stdout.strip().splitlines()
    return names[0] if names else ""
