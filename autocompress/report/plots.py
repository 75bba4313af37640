"""The report's figures, each a Plotly figure made from a run's records."""

from collections.abc import Sequence
from typing import Any

import pandas as pd
import plotly.graph_objects as go

from autocompress.compression.methods import method_of
from autocompress.compression.methods.method import Label
from autocompress.compression.plan import Plan
from autocompress.report.compare import Comparison
from autocompress.report.records import Records
from autocompress.search.engine import Baseline

MEASURED, PREDICTED, OTHERS, ORIGINAL = "#0b6e4f", "#c8553d", "#b8bec6", "#1d3557"
UNTOUCHED, UNTOUCHED_COLOUR = "as it was", "#f1f3f5"
WIDTH_Z = 1.96
"""A score's bar spans a 95 % interval under the normal approximation."""


def front_figure(records: Records) -> go.Figure:
    """Score over latency: the front with both intervals, everything else that was scored, and the original."""
    figure = _figure("latency in ms", "score on the validation split")
    front = set(records.front["id"])
    others = records.candidates.query("status == 'complete'")
    others = others[~others["id"].isin(front)]
    figure.add_scatter(
        x=others["measured_ms"].fillna(others["latency_ms"]), y=others["score"], mode="markers", name="others",
        marker={"color": OTHERS, "size": 6}, text=others["id"], hovertemplate=_HOVER,
    )  # fmt: skip
    measured = records.front[records.front["measured_ms"].notna()]
    predicted = records.front[records.front["measured_ms"].isna()]
    _front_trace(figure, measured, "measured_ms", "front, measured", MEASURED)
    _front_trace(figure, predicted, "latency_ms", "front, predicted only", PREDICTED)
    if records.baseline is not None:
        _original_trace(figure, records.baseline)
    return figure


def prediction_figure(records: Records) -> go.Figure | None:
    """Measured over predicted latency with the stated intervals; None if nothing was measured."""
    known = records.candidates[records.candidates["measured_ms"].notna()]
    if known.empty:
        return None
    outside = ~known["measured_ms"].between(known["latency_low_ms"], known["latency_high_ms"])
    figure = _figure("predicted ms", "measured ms")
    edge = [known[["latency_low_ms", "measured_ms"]].min().min(), known[["latency_high_ms", "measured_ms"]].max().max()]
    figure.add_scatter(x=edge, y=edge, mode="lines", name="exact", line={"color": OTHERS, "dash": "dot"})
    for name, rows, colour in (("inside", known[~outside], MEASURED), ("outside", known[outside], PREDICTED)):
        if rows.empty:
            continue
        figure.add_scatter(
            x=rows["latency_ms"], y=rows["measured_ms"], mode="markers", name=f"{name} the stated interval",
            text=rows["id"], marker={"color": colour}, hovertemplate=_HOVER,
            error_x=_asymmetric(rows, "latency_ms", "latency_low_ms", "latency_high_ms"),
        )  # fmt: skip
    return figure


def decisions_figure(records: Records) -> go.Figure | None:
    """What every front model does with every layer and channel group: one column per model, fastest first."""
    plans = [records.plans[key] for key in records.front["id"]]
    targets = list(dict.fromkeys(step.target for plan in plans for step in plan.steps))
    if not targets:
        return None
    labels = [[_labels(plan, target) for plan in plans] for target in targets]
    colours = {UNTOUCHED: UNTOUCHED_COLOUR} | {_kind(found): _colour(found) for row in labels for found in row}
    kinds = sorted(colours, key=lambda kind: (kind != UNTOUCHED, kind))
    figure = go.Figure(
        go.Heatmap(
            z=[[kinds.index(_kind(found)) for found in row] for row in labels],
            text=[[_words(found) for found in row] for row in labels],
            x=list(records.front["id"]),
            y=targets,
            zmin=-0.5,
            zmax=len(kinds) - 0.5,
            xgap=1,
            ygap=1,
            colorscale=_steps([colours[kind] for kind in kinds]),
            texttemplate="%{text}",
            hovertemplate="%{y}<br>%{x}: %{text}<extra></extra>",
            colorbar={"tickvals": list(range(len(kinds))), "ticktext": kinds},
        )
    )
    figure.update_layout(template="plotly_white", height=160 + 18 * len(targets), margin={"t": 20, "l": 160})
    figure.update_yaxes(autorange="reversed", type="category", tickfont={"size": 10})
    figure.update_xaxes(type="category", tickfont={"size": 10})
    return figure


def time_figure(records: Records) -> go.Figure | None:
    """Seconds that each stage of the search took; None if the run did not keep them."""
    spent = {stage: seconds for stage, seconds in records.stage_seconds.items() if seconds > 0}
    if not spent:
        return None
    figure = _figure("seconds", "")
    stages = [stage.replace("_", " ") for stage in spent]
    figure.add_bar(x=list(spent.values()), y=stages, orientation="h", marker={"color": MEASURED})
    figure.update_layout(height=120 + 40 * len(spent))
    figure.update_yaxes(autorange="reversed")
    return figure


def comparison_figure(found: Comparison) -> go.Figure:
    """The front on every device, against the speed-up there: how far the devices agree on what is worth having."""
    figure = _figure("speed-up over the original after exact rewrites, predicted", "score on the validation split")
    for name, rows in found.fronts.items():
        speedups = [found.originals[name].seconds / row.seconds for row in rows]
        figure.add_scatter(
            x=speedups, y=[row.score for row in rows], mode="lines+markers", name=name, text=[row.id for row in rows],
            line={"shape": "hv"}, hovertemplate=_HOVER,
        )  # fmt: skip
    return figure


def decisions(plan: Plan, target: str) -> tuple[str, str]:
    """The kind of everything a plan decides about a target, and the decisions in words."""
    found = _labels(plan, target)
    return _kind(found), _words(found)


def _labels(plan: Plan, target: str) -> list[Label]:
    return [method_of(type(step.config)).label(step.config) for step in plan.steps if step.target == target]


def _words(labels: Sequence[Label]) -> str:
    return ", ".join(label.words for label in labels)


def _telling(labels: Sequence[Label]) -> list[Label]:
    """The labels that make up the kind: one that stands alone, or one of each kind."""
    alone = [label for label in labels if label.alone]
    return alone[:1] or list({label.kind: label for label in labels if label.kind}.values())


def _kind(labels: Sequence[Label]) -> str:
    return ", ".join(label.kind for label in _telling(labels)) or UNTOUCHED


def _colour(labels: Sequence[Label]) -> str:
    """The mean of the kinds' colours, darker the more there are."""
    telling = _telling(labels)
    if not telling:
        return UNTOUCHED_COLOUR
    parts = [[int(label.colour[at : at + 2], 16) for at in (1, 3, 5)] for label in telling]
    darker = 0.85 ** (len(parts) - 1)
    return "#" + "".join(f"{round(darker * sum(channel) / len(parts)):02x}" for channel in zip(*parts, strict=True))


_HOVER = "%{text}<br>%{x:.3f} ms, %{y:.4f}<extra></extra>"


def _front_trace(figure: go.Figure, rows: pd.DataFrame, x: str, name: str, colour: str) -> None:
    if rows.empty:
        return
    low, high = ("measured_low_ms", "measured_high_ms") if x == "measured_ms" else ("latency_low_ms", "latency_high_ms")
    figure.add_scatter(
        x=rows[x], y=rows["score"], mode="lines+markers", name=name, text=rows["id"], hovertemplate=_HOVER,
        line={"color": colour, "shape": "hv"}, marker={"color": colour, "size": 9},
        error_x=_asymmetric(rows, x, low, high) if {low, high} <= set(rows.columns) else None,
        error_y={"type": "data", "array": rows["score_stderr"] * WIDTH_Z, "thickness": 1},
    )  # fmt: skip


def _asymmetric(rows: pd.DataFrame, middle: str, low: str, high: str) -> dict[str, Any]:
    above, below = rows[high] - rows[middle], rows[middle] - rows[low]
    return {"type": "data", "symmetric": False, "array": above, "arrayminus": below, "thickness": 1}


def _original_trace(figure: go.Figure, baseline: Baseline) -> None:
    """The original as plainly exported and, where it was timed, after the exact rewrites that are no compression."""
    points = [("original, measured", baseline.latency, "star")]
    if baseline.rewritten is not None:
        points.append(("original, exactly rewritten", baseline.rewritten, "star-open"))
    for name, latency, symbol in points:
        figure.add_scatter(
            x=[latency.seconds * 1e3], y=[baseline.score.value], mode="markers", name=name, text=[name],
            marker={"color": ORIGINAL, "size": 13, "symbol": symbol}, hovertemplate=_HOVER,
        )  # fmt: skip


def _figure(x: str, y: str) -> go.Figure:
    figure = go.Figure()
    figure.update_layout(
        template="plotly_white", height=460, margin={"t": 20}, xaxis_title=x, yaxis_title=y,
        legend={"orientation": "h", "y": -0.2},
    )  # fmt: skip
    return figure


def _steps(colours: Sequence[str]) -> list[tuple[float, str]]:
    """A colour scale of equal bands without blending."""
    count = len(colours)
    return [(edge / count, colour) for i, colour in enumerate(colours) for edge in (i, i + 1)]
