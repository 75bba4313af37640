"""Whether OpenVINO survives compiling a model: some quantised ones take the whole process down.

Seen with 2026.4.1 on DenseNets in int8 (a segmentation fault in its low-precision transformations). So a quantised
model is compiled in a process of its own first: `python -m autocompress.devices._openvino_probe MODEL SETTINGS`.
"""

import json
import subprocess
import sys
from collections.abc import Mapping, Sequence
from functools import cache
from hashlib import sha256
from pathlib import Path
from typing import Any

from autocompress.vocabulary.errors import DeviceError

LIMIT_S = 300.0
"""A compilation that takes longer than this is taken for hung."""

_QUANTISED = frozenset({"FakeQuantize", "Convert"})
"""What OpenVINO reads QuantizeLinear and DequantizeLinear as; a Convert alone does no harm but a second of time."""


def require_survival(
    path: Path, model: Any, shapes: Sequence[tuple[int, ...]], plugin: str, settings: Mapping[str, Any]
) -> None:
    """Raises DeviceError for a quantised model that would end this process; equal files are tried once."""
    if not any(op.get_type_name() in _QUANTISED for op in model.get_ops()):
        return
    asked = json.dumps({"shapes": [list(shape) for shape in shapes], "plugin": plugin, "settings": dict(settings)})
    found = _end_of(str(path.resolve()), sha256(path.read_bytes()).hexdigest(), asked)
    if found:
        raise DeviceError(f"OpenVINO can't compile {path}: {found}; leave this model out, or run it on ort:cpu")


@cache
def _end_of(path: str, digest: str, asked: str) -> str:
    """How the other process ended, if by force; what it merely refuses, this one is told in its own words."""
    command = [sys.executable, "-m", __name__, path, asked]
    try:
        code = subprocess.run(command, capture_output=True, timeout=LIMIT_S, check=False).returncode
    except subprocess.TimeoutExpired:
        return f"it had not ended after {LIMIT_S:g} s"
    return f"it crashes (signal {-code})" if code < 0 else ""


def _compile(path: str, asked: str) -> None:
    import openvino  # type: ignore[import-not-found, unused-ignore]

    wanted = json.loads(asked)
    core = openvino.Core()
    model = core.read_model(path)
    model.reshape({i: openvino.PartialShape(shape) for i, shape in enumerate(wanted["shapes"])})
    core.compile_model(model, wanted["plugin"], wanted["settings"])


if __name__ == "__main__":
    _compile(*sys.argv[1:])
