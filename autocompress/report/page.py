"""The page: one HTML file without outside references, tables beside figures, every number with its origin."""

from collections.abc import Callable, Mapping, Sequence
from dataclasses import asdict
from html import escape
from string import Template
from typing import Any

import pandas as pd
import plotly.graph_objects as go
from plotly.offline import get_plotlyjs

from autocompress.report.plots import comparison_figure, decisions_figure, front_figure, prediction_figure, time_figure
from autocompress.report.records import Records

SLOWING_ROWS = 12
"""So many of the options that were left out are listed."""

Cell = Callable[[Any], str]


def page(records: Records) -> str:
    """The whole report as HTML."""
    sections = [
        ("The front", _front_section(records)),
        ("What each model is", _decisions_section(records)),
        ("Predicted and measured", _prediction_section(records)),
        ("On other devices", _comparison_section(records)),
        ("Where the time went", _time_section(records)),
        ("How these numbers are known", _origins_section(records)),
        ("The run", _settings_section(records)),
    ]
    body = "".join(f"<section><h2>{escape(title)}</h2>{html}</section>" for title, html in sections if html)
    title = f"autocompress: {records.run.name}"
    return _PAGE.substitute(title=escape(title), summary=_summary(records), body=body, plotly=get_plotlyjs())


def _summary(records: Records) -> str:
    built = (records.candidates["status"] == "complete").sum()
    told = [
        f"{len(records.front)} models on the front, of {len(records.candidates)} plans looked at and {built} scored."
    ]
    if not records.complete:
        told.append("The search was stopped before its end: what was measured until then is shown.")
    fastest = records.front.dropna(subset=["speedup"]).nlargest(1, "speedup")
    for row in fastest.itertuples():
        how = "measured" if pd.notna(row.measured_ms) else "predicted"
        told.append(f"The fastest runs {row.speedup:.2f}x as fast as the original ({how}).")
    return escape(" ".join(told))


def _front_section(records: Records) -> str:
    columns: list[tuple[str, str, Cell]] = [
        ("model", "id", _text), ("score", "score", _number(4)), ("± std. error", "score_stderr", _number(4)),
        ("test score", "test_score", _number(4)), ("measured ms", "measured_ms", _number(3)),
        ("predicted ms", "latency_ms", _number(3)), ("from", "latency_low_ms", _number(3)),
        ("to", "latency_high_ms", _number(3)), ("speed-up", "speedup", _times), ("size", "size_bytes", _size),
        ("parameters", "params", _count), ("MACs", "macs", _count), ("file", "artifact", _link),
    ]  # fmt: skip
    marked = records.front["measured_ms"].notna() & ~records.front["measured_ms"].between(
        records.front["latency_low_ms"], records.front["latency_high_ms"]
    )
    note = "<p class=note>Shaded rows: the measured latency lies outside the interval that was predicted.</p>"
    return _html(front_figure(records)) + _table(records.front, columns, marked) + (note if marked.any() else "")


def _decisions_section(records: Records) -> str:
    figure = decisions_figure(records)
    if figure is None:
        return f"<p>No front model changes anything.</p>{_left_out(records)}"
    told = "<p>Rows are layers and channel groups, columns the front models, fastest first.</p>"
    return f"{told}{_html(figure)}{_left_out(records)}"


def _left_out(records: Records) -> str:
    """What would not have made the device faster, the worst first."""
    if not records.slowing:
        return ""
    worst = sorted(records.slowing, key=lambda option: -option.factor)[:SLOWING_ROWS]
    frame = pd.DataFrame([asdict(option) for option in worst])
    columns: list[tuple[str, str, Cell]] = [
        ("decision", "decision", _text), ("option", "value", _text), ("time, at best", "factor", _times),
    ]  # fmt: skip
    told = (
        f"<p>{len(records.slowing)} options were left out before the search, since no device was predicted to get "
        "faster by them; beside the next milder option a model with one takes:</p>"
    )
    return told + _table(frame, columns)


def _prediction_section(records: Records) -> str:
    figure = prediction_figure(records)
    doubts = "".join(f"<p>{escape(doubt)}</p>" for doubt in records.baseline.doubts) if records.baseline else ""
    if figure is None:
        return f"<p>Nothing was measured: every latency here is a prediction.</p>{doubts}"
    known = records.candidates.dropna(subset=["measured_ms"])
    error = ((known["latency_ms"] - known["measured_ms"]).abs() / known["measured_ms"]).mean()
    inside = known["measured_ms"].between(known["latency_low_ms"], known["latency_high_ms"]).mean()
    told = f"{len(known)} measured models: mean absolute error {error:.1%}, {inside:.0%} inside the stated interval."
    return f"<p>{escape(told)}</p>{doubts}{_html(figure)}{_lessons(records)}"


def _lessons(records: Records) -> str:
    """How the predictor's error went as the search timed models and learnt from them."""
    if not records.lessons:
        return ""
    frame = pd.DataFrame([asdict(lesson) for lesson in records.lessons])
    columns: list[tuple[str, str, Cell]] = [
        ("profile", "profile", _text), ("models timed", "models", _count), ("mean error before", "error", _percent),
        ("inside the interval", "covered", _percent),
    ]  # fmt: skip
    told = "<p>Lots of models as they were timed, each before the predictor learnt from it:</p>"
    return told + _table(frame, columns)


def _comparison_section(records: Records) -> str:
    """What `compare` found, if it was asked."""
    found = records.comparison
    if found is None:
        return ""
    chosen = [
        {"device": name, "original_ms": 1e3 * found.originals[name].seconds, "how": found.originals[name].origin}
        | ({"id": row.id, "score": row.score, "ms": 1e3 * row.seconds} if row else {})
        for name, row in found.chosen.items()
    ]
    frame = pd.DataFrame(chosen, columns=["device", "id", "score", "ms", "original_ms", "how"])
    columns: list[tuple[str, str, Cell]] = [
        ("device", "device", _text), ("model", "id", _text), ("score", "score", _number(4)), ("ms", "ms", _number(3)),
        ("original, rewritten ms", "original_ms", _number(3)), ("how known", "how", _text),
    ]  # fmt: skip
    asked = f"losing at most {found.max_drop:g}" + (f" within {found.budget_ms:g} ms" if found.budget_ms else "")
    return (
        f"<p>{found.models} models of this run, priced by other hardware profiles; nothing was measured there. The "
        f"fastest model of each device, {escape(asked)}:</p>"
        + _table(frame, columns)
        + "<p>Rank correlation of all models' latencies:</p>" + _matrix(found.profiles, found.spearman, "{:.3f}")
        + "<p>Time lost by deploying the model chosen for one device (rows) on another (columns):</p>"
        + _matrix(found.profiles, found.time_lost, "{:+.1%}")
        + "<p>Share of the hypervolume lost by using the front of one device (rows) on another (columns):</p>"
        + _matrix(found.profiles, found.regret, "{:.1%}")
        + "".join(f"<p class=note>{escape(note)}.</p>" for note in found.notes)
        + _html(comparison_figure(found))
    )  # fmt: skip


def _matrix(names: Sequence[str], values: Mapping[str, Mapping[str, float | None]], shown: str) -> str:
    frame = pd.DataFrame([{"": a, **{b: values[a][b] for b in names}} for a in names])
    columns: list[tuple[str, str, Cell]] = [("", "", _text), *((b, b, _known(shown.format)) for b in names)]
    return _table(frame, columns)


def _time_section(records: Records) -> str:
    figure = time_figure(records)
    return "" if figure is None else f"<p>Seconds that each stage of the search took.</p>{_html(figure)}"


def _origins_section(records: Records) -> str:
    tested = records.front["test_score"].notna().any()
    split = (
        "The test split was looked at once, for the front only, after all choices were made."
        if tested
        else "There was no test split: the front was chosen and scored on the same data, so its scores are optimistic."
    )
    samples = sorted({card.validation.samples for card in records.cards.values()})
    how_many = f" on {', '.join(f'{n:,}' for n in samples)} samples" if samples else ""
    points = [
        f"Scores are those of the exported files, run by the runtime itself{how_many}; ± is one standard error.",
        split,
        *_rewriting(records),
        "Measured latencies are medians over rounds in which a model and the original, as plainly exported, ran in "
        "turn in one process on one core; the speed-up is the ratio of the two. Milliseconds of another process may "
        "differ by 10 to 20 %, the ratio by far less.",
        "Predicted latencies come from a hardware profile and the model's shapes; 'from' and 'to' are their interval.",
        *_environments(records),
    ]
    return "<ul>" + "".join(f"<li>{escape(point)}</li>" for point in points) + "</ul>"


def _rewriting(records: Records) -> list[str]:
    baseline = records.baseline
    if baseline is None or baseline.rewritten is None:
        return []
    share = baseline.latency.seconds / baseline.rewritten.seconds
    return [f"Exact rewrites of the graph alone bring {share:.2f}x; the rest of every speed-up is compression's."]


def _environments(records: Records) -> list[str]:
    found = {", ".join(f"{k} {v}" for k, v in sorted(card.environment.items())) for card in records.cards.values()}
    return [f"Measured on: {text}." for text in sorted(found) if text]


def _settings_section(records: Records) -> str:
    rows = "".join(f"<tr><td>{escape(key)}</td><td>{escape(value)}</td></tr>" for key, value in _flat(records.settings))
    return f"<div class=wide><table>{rows}</table></div>"


def _flat(settings: Any, prefix: str = "") -> list[tuple[str, str]]:
    if not isinstance(settings, dict):
        return [(prefix, str(settings))]
    return [pair for key, value in settings.items() for pair in _flat(value, f"{prefix}.{key}" if prefix else key)]


def _table(
    rows: pd.DataFrame, columns: Sequence[tuple[str, str, Cell]], marked: "pd.Series[bool] | None" = None
) -> str:
    shaded = [False] * len(rows) if marked is None else marked
    head = "".join(f"<th>{escape(title)}</th>" for title, _, _ in columns)
    body = "".join(
        f"<tr{' class=marked' if mark else ''}>"
        + "".join(f"<td>{cell(row[name])}</td>" for _, name, cell in columns)
        + "</tr>"
        for (_, row), mark in zip(rows.iterrows(), shaded, strict=True)
    )
    return f"<div class=wide><table><thead><tr>{head}</tr></thead><tbody>{body}</tbody></table></div>"


def _known(show: Cell) -> Cell:
    return lambda value: "-" if pd.isna(value) else show(value)


def _number(digits: int) -> Cell:
    return _known(lambda value: f"{value:.{digits}f}")


_text = _known(lambda value: escape(str(value)))
_times = _known(lambda value: f"{value:.2f}x")
_size = _known(lambda value: f"{value / 1000:,.0f} kB")
_percent = _known(lambda value: f"{value:.1%}")
_count = _known(lambda value: f"{value:,.0f}")
_link = _known(lambda value: f'<a href="{escape(str(value), quote=True)}">{escape(str(value))}</a>')


def _html(figure: go.Figure) -> str:
    html: str = figure.to_html(full_html=False, include_plotlyjs=False, config={"displaylogo": False})
    return html


_PAGE = Template("""<!doctype html>
<html lang="en"><head><meta charset="utf-8"><meta name="viewport" content="width=device-width">
<title>$title</title>
<style>
body { font: 16px/1.5 system-ui, sans-serif; color: #212529; max-width: 1100px; margin: 2rem auto; padding: 0 1rem }
h1 { font-size: 1.5rem } h2 { font-size: 1.15rem; margin-top: 2.5rem; border-bottom: 1px solid #dee2e6 }
table { border-collapse: collapse; font-size: .85rem; font-variant-numeric: tabular-nums }
th, td { text-align: right; padding: .25rem .6rem; border-bottom: 1px solid #e9ecef; white-space: nowrap }
th:first-child, td:first-child, td:last-child { text-align: left }
.marked td { background: #fbe9e7 } .note { font-size: .85rem } .wide { overflow-x: auto }
</style>
<script>$plotly</script></head>
<body><h1>$title</h1><p>$summary</p>$body</body></html>
""")
