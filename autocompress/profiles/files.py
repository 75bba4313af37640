"""A profile's folder: profile.toml says what it is, kernels.csv and models.csv hold what was measured.

A profile with [rates] prices by the roofline until something is measured; only then has it the two tables.

kernels.csv: one row per site; `time_s` and `samples` are empty where the site was never measured by itself.
models.csv: one row per whole model; `kernels` are ids of kernels.csv, `7*3` for three times the same.
"""

import csv
import tomllib
from collections import Counter
from collections.abc import Iterable, Iterator, Sequence
from enum import StrEnum
from pathlib import Path
from typing import Annotated, Any

import tomli_w
from pydantic import (
    AfterValidator,
    AllowInfNan,
    BaseModel,
    ConfigDict,
    Field,
    NonNegativeInt,
    PositiveInt,
    ValidationError,
)

from autocompress.devices.roofline import FormatName, Rates
from autocompress.profiles.sites import BLOCKED, ISOLATED, LAST, PLANAR, SHARED, Site
from autocompress.vocabulary.errors import ProfileError, StorageError, first_line, nearest
from autocompress.vocabulary.formats import format_of
from autocompress.vocabulary.workload import Capabilities, Workload

SCHEMA = 1
"""Version of the folder's layout; a file of a newer one is refused."""

_KERNEL_COLUMNS = (
    "id", "op", "dtype", "in_channels", "out_channels", "size", "out_size", "window", "stride", "groups", "fused",
    "arity", "layout", "moved", "peculiarity", "time_s", "samples",
)  # fmt: skip
_LAYOUTS = {"planar": PLANAR, "blocked": BLOCKED, "last": LAST}
_PECULIARITIES = {"isolated": ISOLATED, "shared": SHARED}
_MODEL_COLUMNS = ("id", "role", "ratio", "low", "high", "gated", "score", "kernels")


class Role(StrEnum):
    """What a whole model is for: fitted to, held out to judge and calibrate, or measured in a search and fed back."""

    FIT = "fit"
    HELD_OUT = "held_out"
    SEARCH = "search"


def _rounded(value: float) -> float:
    """To six digits, as a file shows it: a profile predicts the same before it is saved and after."""
    return float(f"{value:.6g}")


Rounded = Annotated[float, AllowInfNan(False), AfterValidator(_rounded)]


class _Strict(BaseModel):
    model_config = ConfigDict(extra="forbid", frozen=True)


class Description(_Strict):
    """What profile.toml says.

    `rates` are a datasheet's, for hardware that was not measured; `learnt_from` names the profiles whose kernels it
    borrows, if none was measured on this device; `source` says which datasheet, or on what and how the profile was
    measured. `reference_s` is the reference model's own time in seconds on the quiet device; every other time follows
    from it by a ratio. `node_overhead_s` is what the runtime's profiler added to each node.
    """

    schema_version: PositiveInt = SCHEMA
    name: str
    device: str
    runtime: str
    reference: str
    reference_s: Rounded = Field(gt=0)
    node_overhead_s: Rounded = Field(ge=0)
    dtypes: tuple[FormatName, ...]
    channel_multiple: dict[FormatName, PositiveInt]
    estimate: bool = False
    learnt_from: tuple[str, ...] | None = None
    environment: dict[str, str] = Field(default_factory=dict)
    source: str = ""
    rates: Rates | None = None

    @property
    def origin(self) -> str:
        """How its latencies are known, in words."""
        if self.rates is not None:
            return "datasheet's roofline, uncalibrated"
        if self.learnt_from:
            return f"a few models measured, {self.runtime}; kernels borrowed of {', '.join(self.learnt_from)}"
        return f"{self.runtime}, the vendor's estimate" if self.estimate else f"measured, {self.runtime}"

    def capabilities(self) -> Capabilities:
        return Capabilities(frozenset(self.dtypes), self.channel_multiple)


class KernelRow(_Strict):
    """A site's own time as the runtime's profiler saw it, its overhead taken off; None if never measured alone."""

    time_s: Rounded | None = Field(default=None, ge=0)
    samples: NonNegativeInt = 0


class ModelRow(_Strict):
    """A whole model's measured ratio to the reference with its 95 % interval.

    `score` is set for a model that was predicted before it was fitted to: the predicted standard deviations it lay off.
    """

    id: str
    role: Role
    ratio: Rounded = Field(gt=0)
    low: Rounded
    high: Rounded
    gated: bool = True
    score: Rounded | None = Field(default=None, ge=0)
    sites: tuple[Any, ...] = Field(min_length=1)


class Tables(_Strict):
    """All that a profile stores."""

    description: Description
    kernels: dict[Any, KernelRow]
    models: tuple[ModelRow, ...]


def write(folder: Path, tables: Tables) -> None:
    """Write the three files, each through a temporary one. Raises StorageError."""
    sites = dict.fromkeys([*tables.kernels, *(site for model in tables.models for site in model.sites)])
    ids = {site: index for index, site in enumerate(sites)}
    document = tables.description.model_dump(mode="json", exclude_none=True)
    try:
        folder.mkdir(parents=True, exist_ok=True)
        _replace(folder / "profile.toml", tomli_w.dumps(document))
        kernels = (_kernel_cells(i, site, tables.kernels.get(site, KernelRow())) for site, i in ids.items())
        _replace(folder / "kernels.csv", _csv(_KERNEL_COLUMNS, kernels))
        _replace(folder / "models.csv", _csv(_MODEL_COLUMNS, (_model_cells(m, ids) for m in tables.models)))
    except OSError as error:
        raise StorageError(f"can't write the profile {folder}: {error.strerror}") from error


def read(folder: Path) -> Tables:
    """Raises ProfileError for a file that is missing, damaged or of a newer schema, saying which and where."""
    description = read_description(folder)
    sites: dict[str, Site] = {}
    kernels: dict[Site, KernelRow] = {}
    if description.rates is not None and not (folder / "models.csv").exists():
        return Tables(description=description, kernels={}, models=())
    for place, cells in _rows(folder / "kernels.csv", _KERNEL_COLUMNS):
        with _Reading(place):
            site = _site(cells)
            sites[cells["id"]] = site
            kernels[site] = KernelRow(time_s=cells["time_s"] or None, samples=cells["samples"] or 0)  # type: ignore[arg-type]
    models = []
    for place, cells in _rows(folder / "models.csv", _MODEL_COLUMNS):
        with _Reading(place):
            models.append(_model(cells, sites))
    return Tables(description=description, kernels=kernels, models=tuple(models))


class _Reading:
    """Turns whatever a damaged line raises into one ProfileError that names the line."""

    def __init__(self, place: str) -> None:
        self._place = place

    def __enter__(self) -> None: ...

    def __exit__(self, kind: type[BaseException] | None, error: BaseException | None, trace: object) -> None:
        if isinstance(error, (ValueError, KeyError)):
            raise ProfileError(f"{self._place} is damaged: {_reason(error)}; calibrate again or restore it") from error


def read_description(folder: Path) -> Description:
    """profile.toml alone. Raises ProfileError as `read` does."""
    path = folder / "profile.toml"
    try:
        document = tomllib.loads(path.read_text(encoding="utf-8"))
    except FileNotFoundError as error:
        raise ProfileError(f"{path.parent} is no profile: it has no {path.name}") from error
    except (tomllib.TOMLDecodeError, UnicodeDecodeError) as error:
        raise ProfileError(f"{path} is damaged: {error}; calibrate again or restore it") from error
    version = document.get("schema_version")
    if isinstance(version, int) and version > SCHEMA:
        raise ProfileError(f"{path} has schema {version}, this autocompress reads up to {SCHEMA}: update autocompress")
    try:
        return Description(**document)
    except (ValidationError, TypeError) as error:
        raise ProfileError(f"{path} is damaged: {_reason(error)}; calibrate again or restore it") from error


def _rows(path: Path, columns: Sequence[str]) -> Iterator[tuple[str, dict[str, str]]]:
    try:
        with path.open(newline="", encoding="utf-8") as file:
            lines = list(csv.DictReader(file))
    except (FileNotFoundError, UnicodeDecodeError, csv.Error) as error:
        raise ProfileError(f"{path} is missing or damaged: {error}; calibrate again or restore it") from error
    for number, cells in enumerate(lines, start=2):
        if None in cells or None in cells.values() or not set(columns) <= cells.keys():
            raise ProfileError(
                f"{path}:{number} is damaged: expected {len(columns)} columns; calibrate again or restore it"
            )
        yield f"{path}:{number}", cells


def _kernel_cells(index: int, site: Site, row: KernelRow) -> list[object]:
    w = site.workload
    dims = ("x".join(map(str, d)) for d in (w.size, w.out_size, w.window, w.stride))
    measured = ["", ""] if row.time_s is None else [row.time_s, row.samples]
    return [
        index, w.op, w.dtype, w.in_channels, w.out_channels, *dims, w.groups, "+".join(w.fused), site.arity,
        _words(site.layout, _LAYOUTS), _words(site.moved, _LAYOUTS), _words(site.peculiarity, _PECULIARITIES),
        *measured,
    ]  # fmt: skip


def _site(cells: dict[str, str]) -> Site:
    size, out_size, window, stride = (_dims(cells[c]) for c in ("size", "out_size", "window", "stride"))
    workload = Workload(
        cells["op"], _positive(cells["in_channels"]), _positive(cells["out_channels"]), size, out_size, window, stride,
        _positive(cells["groups"]), format_of(cells["dtype"]).name, tuple(filter(None, cells["fused"].split("+"))),
    )  # fmt: skip
    layout, moved = _bits(cells["layout"], _LAYOUTS), _bits(cells["moved"], _LAYOUTS)
    return Site(workload, int(cells["arity"]), layout, moved, _bits(cells["peculiarity"], _PECULIARITIES))


def _model_cells(model: ModelRow, ids: dict[Site, int]) -> list[object]:
    counts = Counter(ids[site] for site in model.sites)
    kernels = " ".join(str(i) if n == 1 else f"{i}*{n}" for i, n in sorted(counts.items()))
    score = "" if model.score is None else model.score
    return [model.id, model.role.value, model.ratio, model.low, model.high, int(model.gated), score, kernels]


def _model(cells: dict[str, str], sites: dict[str, Site]) -> ModelRow:
    found: list[Site] = []
    for word in cells["kernels"].split():
        index, _, count = word.partition("*")
        if index not in sites:
            raise ValueError(f"kernel {index!r} is not in kernels.csv")
        found += [sites[index]] * int(count or 1)
    numbers: dict[str, Any] = {name: cells[name] for name in ("id", "role", "ratio", "low", "high", "gated")}
    return ModelRow(**numbers, score=cells["score"] or None, sites=tuple(found))  # type: ignore[arg-type]


def _words(bits: int, names: dict[str, int]) -> str:
    return "+".join(name for name, bit in names.items() if bits & bit)


def _bits(text: str, names: dict[str, int]) -> int:
    words = text.split("+") if text else []
    for word in words:
        if word not in names:
            raise ValueError(f"unknown word {word!r}: {nearest(word, names)}")
    return sum(names[word] for word in words)


def _dims(text: str) -> tuple[int, ...]:
    return tuple(_positive(part) for part in text.split("x")) if text else ()


def _positive(text: str) -> int:
    number = int(text)
    if number < 1:
        raise ValueError(f"{text} is below 1")
    return number


def _csv(columns: Sequence[str], rows: Iterable[Sequence[object]]) -> str:
    from io import StringIO

    text = StringIO()
    writer = csv.writer(text, lineterminator="\n")
    writer.writerow(columns)
    writer.writerows(rows)
    return text.getvalue()


def _replace(path: Path, text: str) -> None:
    partial = path.with_suffix(".partial")
    partial.write_text(text, encoding="utf-8")
    partial.replace(path)


def _reason(error: BaseException) -> str:
    """What is wrong in one line, pydantic's many included."""
    if isinstance(error, ValidationError):
        first = error.errors()[0]
        return f"{'.'.join(map(str, first['loc'])) or 'row'}: {first['msg']}"
    return first_line(error)
