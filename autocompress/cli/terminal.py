"""What people see at the terminal: tables of results, and a live view of a running search."""

import logging
import math
import sys
import time
from collections.abc import Callable, Collection, Iterable, Iterator, Mapping, Sequence
from contextlib import contextmanager, nullcontext
from typing import TYPE_CHECKING, Any

from rich.console import Console, Group, RenderableType
from rich.live import Live
from rich.table import Table
from rich.text import Text

if TYPE_CHECKING:
    from autocompress.devices import Availability
    from autocompress.evidence.verify import Verification
    from autocompress.profiles.accuracy import Accuracy
    from autocompress.profiles.files import Description
    from autocompress.report.compare import Comparison
    from autocompress.report.inspection import Inspection
    from autocompress.report.runtimes import Running
    from autocompress.search.candidate import Candidate
    from autocompress.search.engine import Baseline
    from autocompress.search.progress import Progress, Snapshot
    from autocompress.search.study import Study
    from autocompress.vocabulary.workload import Latency

FRONT_ROWS = 12
"""The live view shows this many models of the front, spread evenly over it."""

LINES_EVERY_S = 10.0
"""Where the output is no terminal, a line as often as this tells how far a calibration is."""

PATIENCE_S = 2.0
"""What takes longer says what it is at, where that is seen by somebody."""

SLOWING_ROWS = 12
"""Of the options that would slow a device the worst are shown."""

_PLAIN_WIDTH = 140
"""Columns where the output is no terminal."""


def console() -> Console:
    """Standard output, wide enough for the tables when it is a file or a pipe."""
    return Console(width=None if sys.stdout.isatty() else _PLAIN_WIDTH, soft_wrap=False, highlight=False)


def show(*parts: RenderableType) -> None:
    console().print(*parts, sep="\n")


def table(
    *columns: str, rows: Iterable[Sequence[object]], title: str | None = None, left: int = 1,
    wrapped: Collection[int] = (0,),
) -> RenderableType:  # fmt: skip
    """A plain table below its title; the first `left` columns are text, the others numbers.

    Where it is too wide, the `wrapped` columns take more lines.
    """
    made = Table(box=None, pad_edge=False, header_style="bold")
    for i, column in enumerate(columns):
        made.add_column(column, justify="left" if i < left else "right", no_wrap=i not in wrapped)
    for row in rows:
        made.add_row(*(Text(str(cell)) for cell in row))
    return Group(Text(f"\n{title}", style="italic"), made) if title else made


def milliseconds(latency: "Latency | None") -> str:
    """`0.312 (0.305-0.320) measured`; a dash if nothing is known."""
    if latency is None:
        return "-"
    low, middle, high = (f"{s * 1e3:.3f}" for s in (latency.low, latency.seconds, latency.high))
    return f"{middle} ({low}-{high}) {latency.origin}"


def devices_table(rows: "Sequence[Availability]") -> RenderableType:
    cells = [(r.name, "usable" if r.usable else "no", r.detail, r.install) for r in rows]
    return table("device", "usable", "what", "to get it", rows=cells, left=4, wrapped=(2, 3))


def runtimes_table(rows: "Sequence[Running]") -> RenderableType:
    """One model on every device, fastest first."""
    cells = [
        (r.device, milliseconds(r.latency), f"{r.speedup:.2f}x" if r.speedup else "-", r.runtime or r.reason)
        for r in rows
    ]
    title = "The original, as plainly exported, on every device: batch 1, one thread"
    return table("device", "latency ms", "against ort:cpu", "runtime", rows=cells, title=title)


def profiles_table(found: "Mapping[str, Description]") -> RenderableType:
    rows = [(name, d.device, d.origin, d.environment.get("processor", "")) for name, d in found.items()]
    title = "Hardware profiles, for `search --profile` and `compare --profile`"
    return table("profile", "device", "how it is known", "hardware", rows=rows, left=4, title=title)


def inspection_view(found: "Inspection") -> Group:
    """Kernels with their share of the time, groups, and everything that is frozen with its reason."""
    head = f"model {found.fingerprint}: {found.parameters:,} parameters, {found.macs:,} MACs"
    if found.latency:
        head += f", {milliseconds(found.latency)} ms on {found.profile}"
    noted = any(row.note for row in found.kernels)
    kernels = table(
        "kernel", "operation", "shape", "fused", *(["note"] if noted else []), "MACs", "weights", "time us", "share",
        title="Where the time goes", rows=[_kernel_cells(row, noted) for row in found.kernels], left=4 + noted,
    )  # fmt: skip
    groups = table(
        "group", "made by", "read by", "left alone because", "channels", title="Channels that are cut together",
        rows=[_group_cells(row) for row in found.groups], left=4,
    )  # fmt: skip
    parts: list[RenderableType] = [Text("\n".join([head, *found.notes])), kernels, groups]
    if found.frozen_layers:
        frozen = table("layer", "reason", rows=found.frozen_layers.items(), title="Layers left alone", left=2)
        parts.append(frozen)
    if found.slowing:
        parts.append(_slowing_table(found))
    return Group(*parts)


def _slowing_table(found: "Inspection") -> RenderableType:
    worst = sorted(found.slowing, key=lambda option: -option.factor)
    rows = [(option.decision, option.value, f"{option.factor:.2f}x") for option in worst[:SLOWING_ROWS]]
    more = f", {len(worst) - SLOWING_ROWS} more" if len(worst) > SLOWING_ROWS else ""
    title = f"Not offered on {found.profile}: predicted no faster than the next milder option{more}"
    return table("decision", "option", "time", rows=rows, title=title, left=2)


def _kernel_cells(row: Any, noted: bool) -> tuple[str, ...]:
    time = "-" if row.seconds is None else f"{row.seconds * 1e6:.1f}"
    share = "-" if row.share is None else f"{row.share:.1%}"
    what = (row.name, row.op, row.shape, row.fused, *([row.note] if noted else []))
    return *what, f"{row.macs:,}", f"{row.weights:,}", time, share


def _group_cells(row: Any) -> tuple[str, ...]:
    why = row.frozen or (f"(zero drops the branch into {row.drops})" if row.drops else "")
    return row.id, _short(row.producers), _short(row.consumers), why, str(row.channels)


def _short(names: Sequence[str], most: int = 3) -> str:
    more = f" and {len(names) - most} more" if len(names) > most else ""
    return ", ".join(names[:most]) + more


def study_view(study: "Study") -> Group:
    """The models that were verified, those on the front marked; before any are, the front as far as it is known."""
    models, front = study.verified or study.front, {candidate.id for candidate in study.front}
    title = f"{len(study.verified)} verified models; {len(front)} on the front: none of the others beats them in both"
    parts = [front_table(models, study.baseline, title, front)]
    if study.baseline and len(study.baseline.devices) > 1:
        parts.append(devices_of(models, study.baseline))
    files = Text(f"\nmodels, cards, plans and report.html are in {study.path}")
    return Group(*parts, files)


def devices_of(models: "Sequence[Candidate]", baseline: "Baseline") -> RenderableType:
    """The original and the models on each profile of the search: at a glance, whether a runtime beats compression."""
    names = list(baseline.devices)
    rows = [("original", *(milliseconds(baseline.devices[name]) for name in names))]
    rows += [(c.id, *(milliseconds(c.devices.get(name)) for name in names)) for c in models]
    return table("milliseconds on", *names, rows=rows, title="The same models on each profile")


def front_table(
    front: "Sequence[Candidate]", baseline: "Baseline | None", title: str | None = None, marked: Collection[str] = ()
) -> RenderableType:
    """Models by falling latency; speed-ups are over the original as plainly exported. `marked` ids are on the front."""
    rows = [_candidate_cells(candidate, baseline, candidate.id in marked) for candidate in front]
    return table(
        "model", "score", "±", "test", "latency ms", "predicted ms", "speed-up", "kB", "",
        rows=[*([_baseline_cells(baseline)] if baseline else []), *rows], title=title,
    )  # fmt: skip


def _baseline_cells(baseline: "Baseline") -> tuple[str, ...]:
    test = f"{baseline.test_score.value:.4f}" if baseline.test_score else "-"
    return (
        "original", f"{baseline.score.value:.4f}", f"{baseline.score.stderr:.4f}", test, milliseconds(baseline.latency),
        "-", "1.00x", f"{baseline.size_bytes / 1e3:,.0f}", "",
    )  # fmt: skip


def _candidate_cells(candidate: "Candidate", baseline: "Baseline | None", on_front: bool) -> tuple[str, ...]:
    score, stderr = (f"{candidate.score.value:.4f}", f"{candidate.score.stderr:.4f}") if candidate.score else ("-", "-")
    speedup = f"{baseline.latency.seconds / candidate.best_latency.seconds:.2f}x" if baseline else "-"
    return (
        candidate.id, score, stderr, f"{candidate.test_score.value:.4f}" if candidate.test_score else "-",
        milliseconds(candidate.best_latency), f"{candidate.latency.seconds * 1e3:.3f}", speedup,
        f"{candidate.size_bytes / 1e3:,.0f}" if candidate.size_bytes else "-",
        ", ".join(_remarks(candidate, on_front)),
    )  # fmt: skip


def _remarks(candidate: "Candidate", on_front: bool) -> list[str]:
    several = len(candidate.devices) > 1
    return (
        ["front"] * on_front
        + [f"fastest on {candidate.fastest_on}"] * several
        + ["outside its interval"] * candidate.outside_interval
    )


def verification_view(found: "Verification") -> Group:
    rows = [(c.name, "kept" if c.passed else "BROKEN", c.promised, c.found) for c in found.checks]
    head = f"{found.artifact} on {found.device}: {'every promise kept' if found.passed else 'BROKEN PROMISES'}"
    if found.untimed:
        head += f"\nnot timed: {found.untimed}"
    elif found.latency and found.speedup:
        head += f"\n{milliseconds(found.latency)} ms, {found.speedup:.2f}x as fast as the original beside it"
    head += f"\nran on {found.ran_on}"
    return Group(Text(head), table("promise", "", "promised", "found", rows=rows, left=4))


def comparison_view(found: "Comparison") -> Group:
    """How every device ranks the same models, what a user of each would take, and what taking another's would cost."""
    names = found.profiles
    ranks = table(
        "rank correlation", *names, rows=[(a, *(f"{found.spearman[a][b]:.3f}" for b in names)) for a in names]
    )
    regret = table(
        "front of / used on", *names, rows=[(a, *(f"{found.regret[a][b]:.1%}" for b in names)) for a in names],
        title="Hypervolume lost by using the front of one device on another",
    )  # fmt: skip
    lost = table(
        "choice for / used on", *names, rows=[(a, *(_share(found.time_lost[a][b]) for b in names)) for a in names],
        title="Time lost by deploying the model chosen for one device on another",
    )  # fmt: skip
    head = Text("\n".join([f"{found.models} models, priced on {len(names)} profiles", *found.notes]))
    return Group(head, ranks, regret, _choices(found), lost)


def _choices(found: "Comparison") -> RenderableType:
    """The model for each device, beside how many are on its front."""
    asked = f"loses at most {found.max_drop:g}" + (f", within {found.budget_ms:g} ms" if found.budget_ms else "")
    rows = []
    for name, chosen in found.chosen.items():
        original = found.originals[name]
        speedup = f"{original.seconds / chosen.seconds:.2f}x" if chosen else "-"
        cells = (chosen.id, f"{chosen.score:.4f}", milliseconds(chosen.latency)) if chosen else ("none fits", "-", "-")
        rows.append((name, *cells, speedup, milliseconds(original), len(found.fronts[name])))
    return table(
        "device", "model", "score", "latency ms", "speed-up", "original, rewritten ms", "on the front", rows=rows,
        title=f"The model for each device: {asked}",
    )  # fmt: skip


def _share(value: float | None) -> str:
    return "-" if value is None else f"{value:+.1%}"


@contextmanager
def watching(quiet: bool) -> "Iterator[Progress]":
    """A live view on standard error; without a terminal one line whenever the stage changes; nothing when quiet."""
    if quiet:
        yield lambda snapshot: None
    elif not sys.stderr.isatty():
        yield _Lines()
    else:
        with Live(console=Console(stderr=True), refresh_per_second=4, transient=True) as live:
            yield lambda snapshot: live.update(snapshot_view(snapshot))


@contextmanager
def telling(quiet: bool) -> Iterator[None]:
    """What the library says it is at (its log), in one line of a terminal's standard error, if it takes longer."""
    if quiet or not sys.stderr.isatty():
        yield
        return
    at = _At()
    shown = Console(file=sys.stderr)  # this very stream: others stand in for it while torch.export chatters
    logger = logging.getLogger("autocompress")
    level = logger.level
    logger.addHandler(at)
    logger.setLevel(logging.INFO)
    try:
        with Live(console=shown, get_renderable=at.view, refresh_per_second=4, transient=True):
            yield
    finally:
        logger.removeHandler(at)
        logger.setLevel(level)


class _At(logging.Handler):
    """The last message, and the seconds since the first."""

    def __init__(self) -> None:
        super().__init__(logging.INFO)
        self._said, self._begun = "", time.monotonic()

    def emit(self, record: logging.LogRecord) -> None:
        self._said = record.getMessage()

    def view(self) -> RenderableType:
        spent = time.monotonic() - self._begun
        return Text(f"{self._said}, {spent:.0f} s") if self._said and spent >= PATIENCE_S else Group()


@contextmanager
def counting(what: str, quiet: bool) -> "Iterator[Callable[[int, int], None]]":
    """`12 of 60 models, about 1:20 left`, on standard error, in one line that is overwritten where it is a terminal."""
    shown = Console(stderr=True, quiet=quiet)
    begun = time.monotonic()
    with shown.status(f"no {what} yet") if shown.is_terminal else nullcontext() as status:
        told = -math.inf

        def count(done: int, whole: int) -> None:
            nonlocal told
            spent = time.monotonic() - begun
            left = f", about {_clock(spent / done * (whole - done))} left" if done else ""
            line = f"{done} of {whole} {what}{left}"
            if status:
                status.update(line)
            elif spent - told >= LINES_EVERY_S or done == whole:
                told = spent
                shown.print(line)

        yield count


def accuracy_view(found: "Accuracy") -> RenderableType:
    """How well a profile predicts whole models that nothing was fitted to."""
    rows = [(
        str(found.models), f"{found.mape:.2%}", f"{found.within_5:.0%}", f"{found.within_10:.0%}",
        f"{found.spearman:.3f}", f"{found.covered:.0%}",
    )]  # fmt: skip
    return table("held-out models", "mean error", "within 5 %", "within 10 %", "Spearman", "in interval", rows=rows)


class _Lines:
    """Tells of each stage once."""

    def __init__(self) -> None:
        self.stage = ""

    def __call__(self, snapshot: "Snapshot") -> None:
        if snapshot.stage != self.stage:
            self.stage = snapshot.stage
            print(status_line(snapshot), file=sys.stderr, flush=True)


def snapshot_view(snapshot: "Snapshot") -> Group:
    """Where the search stands, the front so far, and the best model at the budget."""
    parts: list[RenderableType] = [Text(status_line(snapshot), style="bold"), Text(snapshot.detail, style="dim")]
    if snapshot.front:
        parts.append(front_table(_spread(snapshot.front, FRONT_ROWS), snapshot.baseline))
    if snapshot.best is not None:
        parts.append(front_table([snapshot.best], None, title="Best at the budget"))
    return Group(*parts)


def status_line(snapshot: "Snapshot") -> str:
    """`trials: 31 of 200 trials, 12 over budget, 0 failed, front 7, 3:20 left`"""
    of = f" of {snapshot.trials_limit}" if snapshot.trials_limit is not None else ""
    left = f", {_clock(snapshot.time_left_s)} left" if snapshot.time_left_s is not None else ""
    return (
        f"{snapshot.stage}: {snapshot.trials}{of} trials, {snapshot.rejected} over budget, {snapshot.failed} failed, "
        f"front {len(snapshot.front)}, {_clock(snapshot.elapsed_s)} spent{left}"
    )


def _clock(seconds: float) -> str:
    return f"{max(0, int(seconds)) // 60}:{max(0, int(seconds)) % 60:02d}"


def _spread(front: "Sequence[Candidate]", most: int) -> "list[Candidate]":
    """At most so many of them, both ends included."""
    if len(front) <= most:
        return list(front)
    return [front[round(i * (len(front) - 1) / (most - 1))] for i in range(most)]
