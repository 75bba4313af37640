"""Vela in this process: a .tflite file's cycles, operator by operator, as the vendor's compiler estimates them.

The calls are those of Vela's own command line (ethosu/vela/vela.py, `main` and `process_regor`), which are documented
nowhere: that is why one version is required.
"""

import os
import sys
import tempfile
from collections.abc import Iterator
from contextlib import contextmanager
from dataclasses import dataclass
from functools import cache
from importlib import import_module
from importlib.metadata import PackageNotFoundError, version
from importlib.util import find_spec
from pathlib import Path
from threading import Lock
from typing import Any

from autocompress.devices.vela.platforms import Platform
from autocompress.vocabulary.errors import DeviceError, in_one_line

REQUIRED = "5.2.0"
INSTALL = 'pip install "autocompress[npu]"'
PACKAGE = "ethos-u-vela"

_ON_THE_HOST = "Passthrough"
"""The compiler's name for an operator that it leaves to the CPU."""

_compiling = Lock()


@dataclass(frozen=True, slots=True)
class Cycles:
    """What the compiler made of one operator of the file, by its place there: NPU cycles, or none on the host CPU."""

    operator: int
    cycles: int
    on_host: bool


@dataclass(frozen=True, slots=True)
class Report:
    """Every operator that is left after optimisation, in execution order; `total_cycles` are the NPU's."""

    operators: tuple[Cycles, ...]
    total_cycles: int


def problem() -> str:
    """Why Vela can't be used here, in one clause; "" if it can."""
    if find_spec("ethosu") is None:
        return f"{PACKAGE} is not installed"
    try:
        found = version(PACKAGE)
    except PackageNotFoundError:
        return f"{PACKAGE} has no metadata, so its version is unknown"
    if found != REQUIRED:
        return f"{PACKAGE} {found} is installed, and its undocumented interface is known here as of {REQUIRED} only"
    return ""


def require() -> None:
    """Raises DeviceError, with what to install, where Vela of the right version is missing."""
    if found := problem():
        raise DeviceError(f"{found}; {INSTALL}")


def compiled(model: bytes, platform: Platform) -> Report:
    """The compiler's report on a .tflite file, which must be well-formed: the compiler does not survive others."""
    require()
    regor = import_module("ethosu.regor")
    system, options = _configuration(platform)
    with _compiling, _silenced():
        try:
            result = regor.compile(platform.family, model, "TFLITE", system, options=options, verbose=False)
        except Exception as error:  # the compiler raises plain RuntimeError, but nothing says that it is all
            raise DeviceError(f"{PACKAGE} can't compile for {platform.accelerator}: {in_one_line(error)}") from error
    report = Report(_operators(result.opt_database.tables), int(result.perf_report.totalCycles))
    attributed = sum(row.cycles for row in report.operators)
    if attributed != report.total_cycles:
        raise DeviceError(
            f"{PACKAGE} reports {report.total_cycles} cycles in all and {attributed} over the operators; "
            "please report this with the model"
        )
    return report


@cache
def _configuration(platform: Platform) -> tuple[str, str]:
    """System and compiler options, in the files' own format, as the command line makes them."""
    features = import_module("ethosu.vela.architecture_features")
    path = Path(features.CONFIG_FILES_PATH, "Arm", "vela.ini")
    architecture = features.ArchitectureFeatures(
        vela_config_files=[str(path)],
        accelerator_config=platform.accelerator,
        system_config=platform.system_config,
        memory_mode=platform.memory_mode,
        max_blockdep=features.ArchitectureFeatures.MAX_BLOCKDEP,
        verbose_config=False,
        arena_cache_size=None,
    )
    if architecture.core_clock != platform.clock_hz:
        raise DeviceError(
            f"{path} gives {platform.system_config} a clock of {architecture.core_clock:g} Hz, expected "
            f"{platform.clock_hz:g}; reinstall: {INSTALL}"
        )
    return _system(architecture, path), _options(architecture)


def _system(architecture: Any, path: Path) -> str:
    return (
        f"[architecture]\nmacs={architecture.num_macs_per_cycle}\ncores={architecture.ncores}\n"
        f"[vela]\nsystem_config_name={architecture.system_config}\nmemory_mode_name={architecture.memory_mode}\n"
        f"{path.read_text()}"
    )


def _options(architecture: Any) -> str:
    return (
        "\n[compiler]\nenable_db=true\noutput_format=TFLite\ncop_format=COP1\n"
        f"\n[scheduler]\noptimize=Performance\narena_size_limit={architecture.arena_cache_size}\ndisable_feature=\n"
        "cpu_tensor_alignment=16\ntensor_allocator=HillClimb\n"
        "\n[graph]\nsoftmax_int16_neg_exp_range=10.0\n"
    )


def _operators(tables: Any) -> tuple[Cycles, ...]:
    """The performance table summed over the operators of the file that its rows come from."""
    places = {row["id"]: int(row["ext_key"]) for row in _rows(tables["source"])}
    cycles: dict[int, int] = {}
    on_host: set[int] = set()
    for row in _rows(tables["perf"]):
        operator = places[row["source_id"]]
        cycles[operator] = cycles.get(operator, 0) + int(row["op_cycles"])
        if row["operator"] == _ON_THE_HOST:
            on_host.add(operator)
    return tuple(Cycles(operator, count, operator in on_host) for operator, count in cycles.items())


def _rows(table: Any) -> list[dict[str, str]]:
    return [dict(zip(table.header, row, strict=True)) for row in table.data]


@contextmanager
def _silenced() -> Iterator[None]:
    """The compiler writes warnings past Python, straight to the process's outputs: these lead nowhere meanwhile.

    What another thread prints in that time is lost too. The warnings say which operators are left to the CPU, and
    the report says it again.
    """
    for stream in (sys.stdout, sys.stderr):
        if stream is not None:
            stream.flush()
    with tempfile.TemporaryFile() as sink:
        kept = {descriptor: os.dup(descriptor) for descriptor in (1, 2)}
        try:
            for descriptor in kept:
                os.dup2(sink.fileno(), descriptor)
            yield
        finally:
            for descriptor, copy in kept.items():
                os.dup2(copy, descriptor)
                os.close(copy)
