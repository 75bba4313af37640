"""The machine that this process runs on."""

import platform
from functools import cache
from pathlib import Path


@cache
def processor() -> str:
    """The processor's own name, as the operating system knows it."""
    cpuinfo = Path("/proc/cpuinfo")
    lines = cpuinfo.read_text().splitlines() if cpuinfo.exists() else []
    models = (line.split(":", 1)[1].strip() for line in lines if line.startswith("model name"))
    return next(models, platform.processor() or platform.machine())
