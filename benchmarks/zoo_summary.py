"""What the zoo's rows come to: a line per architecture, and the bars that they are held against."""

import fnmatch
from collections.abc import Callable, Mapping
from dataclasses import dataclass
from typing import Any

Row = Mapping[str, Any]

COLUMNS = (
    "traces", "equal 1/2/3", "prunable", "MACs gone", "params gone", "exports", "halved file", "int8", "kernels",
    "MACs right", "joint oracle", "trace s / CPU s",
)  # fmt: skip
STEPS = ("trace", "equal", "macs", "groups", "halved", "joint", "export", "export_halved", "int8")
LIFTED_TOLERANCE = 1e-4
"""Of the largest output, in float32: a rewritten order of summation differs by 1e-6, wrong models by 1e-2 and more."""
FILE_TOLERANCE = 1e-3
ORACLE_TOLERANCE = 1e-6
ENCODERS = ("*vit*", "*deit*", "*swin*", "*bert*", "*llama*", "*gpt2*", "*gpt*", "*vision_transformer")
_NOT_ENCODERS = ("*mobilevit*", "*efficientvit*", "*levit*", "*repvit*", "*fastvit*", "*maxvit*")


def failure(row: Row, step: str) -> str | None:
    """Why a step says nothing: refused, raised, died, or never reached."""
    if row.get("died", {}).get("during") == step:
        return f"died ({row['died']['exit_code']})"
    said = row.get(step)
    if said is None:
        return "not reached"
    return said.get("refused") or said.get("raised")


def _worst(row: Row, step: str) -> float:
    return max(row[step]["difference"].values(), default=0.0)


def cells(row: Row) -> list[str]:
    """One line of the table, as COLUMNS has it."""
    if (why := failure(row, "made")) or (why := failure(row, "trace")):
        return [("NO: " if "made" in row else "not made: ") + why[:110], *[""] * (len(COLUMNS) - 1)]
    return [
        "yes",
        _cell(row, "equal", lambda said: f"{_worst(row, 'equal'):.0e}"),
        _cell(row, "groups", lambda said: f"{said['prunable_macs']:.0%} ({said['free']}/{said['all']})"),
        _cell(row, "halved", lambda said: f"{said['macs_gone']:.1%}"),
        _cell(row, "halved", lambda said: f"{said['parameters_gone']:.1%}"),
        _cell(row, "export", lambda said: f"{_worst(row, 'export'):.0e}"),
        _cell(row, "export_halved", lambda said: f"{_worst(row, 'export_halved'):.0e}"),
        _cell(row, "int8", lambda said: f"{said['rms']:.0e} of {said['explained']:.0e}"),
        _cell(row, "halved", lambda said: f"{len(said['kernels_differ'])} differ" if said["kernels_differ"] else "="),
        _cell(row, "macs", _macs_cell),
        _cell(row, "joint", lambda said: f"{said['difference']:.0e} {said['against']}"),
        f"{row['trace']['seconds']:.1f} / {row['trace']['cpu_seconds']:.1f}",
    ]


def _cell(row: Row, step: str, shown: Callable[[Any], str]) -> str:
    why = failure(row, step)
    return f"NO: {why[:60]}" if why else shown(row[step])


def _macs_cell(said: Any) -> str:
    if said["said"] == said["counted"]:
        return "="
    return f"{said['said'] / max(1, said['counted']):.3f}x" + (" (rest unused)" if _counts(said) else "")


def _counts(said: Any) -> bool:
    """As torch counts in the user's module, or in the lifted one where that leaves out what needs not run."""
    return said["said"] == said["counted"] or said["said"] == said["lifted"] < said["counted"]


@dataclass(frozen=True, slots=True)
class Bar:
    """`least` is the share of the rows that `holds` must be true of, among those that `counts`."""

    name: str
    least: float
    holds: Callable[[Row], bool]
    counts: Callable[[str, Row], bool]


def _traces(row: Row) -> bool:
    return failure(row, "trace") is None


def _traced(name: str, row: Row) -> bool:
    return failure(row, "made") is None and _traces(row)


def _no_raw(row: Row) -> bool:
    return not any("raised" in row.get(step, {}) for step in STEPS)


def _within(step: str, tolerance: float) -> Callable[[Row], bool]:
    return lambda row: failure(row, step) is None and _worst(row, step) <= tolerance


def _gone(least: float) -> Callable[[Row], bool]:
    return lambda row: failure(row, "halved") is None and row["halved"]["macs_gone"] >= least


def _family(family: str) -> Callable[[str, Row], bool]:
    return lambda name, row: _traced(name, row) and row["family"] == family


def is_encoder(name: str) -> bool:
    """ViT, Swin, BERT, Llama, GPT-2 and their like, not the nets that mix attention with convolutions."""
    if any(fnmatch.fnmatch(name, pattern) for pattern in _NOT_ENCODERS):
        return False
    return any(fnmatch.fnmatch(name, pattern) for pattern in ENCODERS)


BARS = (
    Bar("trace", 0.98, _traces, lambda name, row: failure(row, "made") is None),
    Bar("equal to the user's module at batch 1, 2, 3", 1.0, _within("equal", LIFTED_TOLERANCE), _traced),
    Bar("export and agree", 0.97, _within("export", FILE_TOLERANCE), _traced),
    Bar("halved file agrees", 0.97, _within("export_halved", FILE_TOLERANCE), _traced),
    Bar("int8 file agrees, but for what rounding explains", 0.97,
        lambda row: failure(row, "int8") is None and row["int8"]["rms"] <= row["int8"]["explained"], _traced),
    Bar("no raw exception", 1.0, _no_raw, lambda name, row: True),
    Bar("no hang, no crash", 1.0, lambda row: "died" not in row, lambda name, row: True),
    Bar("priced kernels are the built ones", 1.0,
        lambda row: failure(row, "halved") is None and not row["halved"]["kernels_differ"], _traced),
    Bar("MACs as torch counts them", 1.0,
        lambda row: failure(row, "macs") is None and _counts(row["macs"]), _traced),
    Bar("joint oracle", 1.0,
        lambda row: failure(row, "joint") is None and row["joint"]["difference"] <= ORACLE_TOLERANCE, _traced),
    Bar("conv nets: 60 % of MACs gone", 1.0, _gone(0.6), _family("conv")),
    Bar("ViT, Swin, BERT, Llama, GPT: 55 %", 1.0, _gone(0.55),
        lambda name, row: _traced(name, row) and is_encoder(name)),
    Bar("YOLO: 40 %", 1.0, _gone(0.4), _family("yolo")),
    Bar("something to gain", 1.0, _gone(1e-9), _traced),
)  # fmt: skip


def bars(rows: Mapping[str, Row]) -> list[dict[str, Any]]:
    """Each bar's verdict, with the names of the rows that fall short of it."""
    return [_verdict(bar, {name: row for name, row in rows.items() if bar.counts(name, row)}) for bar in BARS]


def _verdict(bar: Bar, rows: Mapping[str, Row]) -> dict[str, Any]:
    short = [name for name, row in rows.items() if not bar.holds(row)]
    share = 1 - len(short) / max(1, len(rows))
    return {
        "bar": bar.name,
        "asked": f"{bar.least:.0%}",
        "found": f"{len(rows) - len(short)} of {len(rows)}",
        "kept": share >= bar.least,
        "short": short,
    }
