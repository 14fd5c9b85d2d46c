"""A leaderboard as one HTML file that needs no network: sentences, tables and those figures that show something."""

from __future__ import annotations

import html
import math
import time
from collections.abc import Sequence
from pathlib import Path
from typing import Any

import numpy as np
import plotly.graph_objects as go
from markupsafe import Markup
from plotly.colors import sample_colorscale

from jepa.report.formatting import Column, number, options, shortened
from jepa.report.html_page import blank_figure, render
from jepa.report.leaderboard import Leaderboard
from jepa.report.leaderboard_summary import summary
from jepa.report.leaderboard_tables import row_kind, run_columns, setting_columns
from jepa.report.run_files import curve
from jepa.report.runs import CURVES, Run
from jepa.report.sweep_statistics import is_logarithmic, positions_of
from jepa.utils.files import write_text
from jepa.utils.read_data import printable

INK, ACCENT, GREY = "#1f2933", "#0b6e99", "#b8bfc6"
COLOURS = ["#f2b134", "#d1495b", "#4a67c8"]  # from the worst to the best run
FENCE = 1.5  # runs this many interquartile ranges below the worse quartile (Tukey) all have the worst colour

MAX_SETTINGS, MAX_POINTS, MAX_TICKS, MAX_LABEL = 30, 60_000, 25, 60
WIDTH_OF_AXIS = 110
AXIS = {"gridcolor": "rgba(128,128,128,0.25)", "zerolinecolor": "rgba(128,128,128,0.5)", "automargin": True}
CONTROLS = {"displaylogo": False, "responsive": True, "modeBarButtonsToRemove": ["select2d", "lasso2d"]}
CATEGORIES = {"type": "category", "autorange": "reversed", "automargin": True}


def parallel_coordinates(board: Leaderboard) -> go.Figure | None:
    """Draw a line for each run over its options and the metric, whose best value is on top."""
    runs = [run for run in board.runs if run.value(board.metric) is not None]
    columns = {key: [run.overrides[key] for run in runs] for key in board.options}
    columns = {key: values for key, values in columns.items() if len(set(values)) > 1}
    if len(runs) < 2 or not columns:
        return None
    # The values that failed runs count as would leave no room for the others.
    counted = [run.value(board.metric) for run in runs if run.counts(board.metric)]
    values = np.array([run.value(board.metric) for run in runs])
    values = values.clip(min(counted), max(counted)) if counted else values
    ends = [values.min(), values.max()] if np.ptp(values) else [values[0] - 1, values[0] + 1]
    dimensions = [
        _word_axis("run", range(len(runs)), [run.folder for run in runs]) | {"range": [len(runs) - 1, 0]},
        *(_option_axis(board.names[key], values) for key, values in columns.items()),
        {"label": board.metric, "values": values.tolist(), "tickformat": ".4g"}
        | {"range": ends if board.direction == "maximize" else ends[::-1]},
    ]
    shares = _shares(board)
    line = {
        "color": [shares.get(run.folder, -1.0) for run in runs],
        "colorscale": list(zip((0.0, 0.4, 0.5, 0.75, 1.0), [GREY, GREY, *COLOURS])),
        "cmin": -1,
        "cmax": 1,
    }
    figure = _figure(460).add_parcoords(dimensions=dimensions, line=line)
    width = WIDTH_OF_AXIS * len(dimensions) if len(dimensions) > 9 else None
    return figure.update_layout(margin={"t": 50, "b": 20, "l": 80, "r": 110}, width=width)


def curves(board: Leaderboard) -> go.Figure | None:
    """Draw the metric over the steps, or a loss if the metric is measured at the end only; a line for each run."""
    most = min(1000, MAX_POINTS // len(board.runs))
    for metric in dict.fromkeys((board.metric, *CURVES)):
        found = [(run, curve(run.path, metric, most)) for run in board.runs]
        if any(len(points) > 1 for _, points in found):
            break
    else:
        return None
    figure, shares = _figure(420), _shares(board)
    for run, points in reversed(found):
        colour = sample_colorscale(COLOURS, shares[run.folder])[0] if run.folder in shares else GREY
        figure.add_scatter(
            x=[step for step, _ in points],
            y=[value for _, value in points],
            mode="lines" if len(points) > 1 else "markers",
            line={"color": colour, "width": 1.5, "dash": "dot" if run.bad else "solid"},
            name=html.escape(run.folder, quote=False),
            hovertext=_hover(board, run),
            hoverinfo="text",
        )
    figure.update_xaxes(title="step", rangemode="tozero")
    figure.update_yaxes(
        title=html.escape(metric, quote=False), **_scale([value for _, points in found for _, value in points])
    )
    return figure


def importance(board: Leaderboard) -> go.Figure | None:
    """Draw a bar for each option: the share of the metric's variance that depends on it."""
    if not board.importances:
        return None
    labels, shares = [_label(key) for key in board.importances], list(board.importances.values())
    look = {"marker_color": ACCENT, "texttemplate": "%{x:.0%}", "textposition": "outside", "cliponaxis": False}
    figure = _figure(90 + 34 * len(shares)).add_bar(x=shares, y=labels, orientation="h", hoverinfo="skip", **look)
    figure.update_xaxes(title="share of the variance", range=[0, 1.12 * max(0.1, *shares)], tickformat=".0%")
    return figure.update_yaxes(CATEGORIES)


def settings(board: Leaderboard) -> go.Figure | None:
    """Draw each setting's mean with its interval over the dots of its seeds; None if no setting has two."""
    shown = [setting for setting in board.settings if setting.values][:MAX_SETTINGS]
    if not any(len(setting.values) > 1 for setting in shown):
        return None
    names = [options(s.options, board.names) or f"run {s.runs[0].folder}" for s in shown]
    labels = [_label(f"{place}.  {name}") for place, name in enumerate(names, 1)]  # the place makes them unique
    dots = [(value, label, seed) for s, label in zip(shown, labels) for seed, value in s.values.items()]
    values, means = np.array([value for value, _, _ in dots]), np.array([setting.mean for setting in shown])
    halves = np.array([setting.half or 0.0 for setting in shown])
    figure = _figure(100 + 32 * len(labels), legend=True)
    figure.add_scatter(
        x=values,
        y=[label for _, label, _ in dots],
        mode="markers",
        marker={"color": GREY, "size": 8, "line": {"color": "#7b8794", "width": 1}},
        name="a seed",
        hovertext=[html.escape(f"seed {seed}: {number(value)}", quote=False) for value, _, seed in dots],
        hoverinfo="text",
    )
    figure.add_scatter(
        x=means,
        y=labels,
        error_x={"type": "data", "array": halves, "color": ACCENT, "thickness": 2},
        mode="markers",
        marker={"color": ACCENT, "size": 10, "symbol": "diamond"},
        name="mean and 95 % interval",
        hovertext=[f"{number(setting.mean)}, {len(setting.values)} seeds" for setting in shown],
        hoverinfo="text",
    )
    # Intervals over two seeds can be hundreds of times as wide as the values.
    low, high = values.min(), values.max()
    room = high - low or abs(high) or 1.0
    ends = np.clip([(means - halves).min(), (means + halves).max()], low - room, high + room)
    left, right = min(low, ends[0]), max(high, ends[1])
    figure.update_xaxes(title=html.escape(board.metric, quote=False), range=[left - 0.1 * room, right + 0.1 * room])
    return figure.update_yaxes(CATEGORIES)


def pareto(board: Leaderboard) -> go.Figure | None:
    """Draw the first two objectives of each run and their Pareto front; None for a single objective."""
    runs = [run for run in board.runs if all(run.counts(name) for name in board.objectives)]
    if len(board.objectives) < 2 or not runs:
        return None
    across, up = list(board.objectives)[:2]
    front = sorted(board.front, key=lambda run: run.value(across))
    figure = _figure(480, legend=True)
    for group, mode, name, colour in (
        ([run for run in runs if run not in front], "markers", "beaten in both by another", GREY),
        (front, "lines+markers+text", "Pareto front", ACCENT),
    ):
        figure.add_scatter(
            x=[run.value(across) for run in group],
            y=[run.value(up) for run in group],
            mode=mode,
            marker={"color": colour, "size": 10},
            line={"color": colour, "dash": "dot"},
            text=[_label(run.folder, 16) for run in group],
            textposition="top center",
            name=name,
            hovertext=[_hover(board, run) for run in group],
            hoverinfo="text",
        )
    for update, name in ((figure.update_xaxes, across), (figure.update_yaxes, up)):
        better = "more" if board.objectives[name] == "maximize" else "less"
        update(
            title=f"{html.escape(name, quote=False)} ({better} is better)", **_scale([run.value(name) for run in runs])
        )
    return figure


def _figure(height: int, legend: bool = False) -> go.Figure:
    return blank_figure(
        height,
        template="plotly_white",
        xaxis=AXIS,
        yaxis=AXIS,
        font={"family": "system-ui, sans-serif", "size": 13, "color": INK},
        margin={"t": 30, "b": 50, "l": 60, "r": 30},
        showlegend=legend,
        legend={"orientation": "h", "x": 0, "y": 1, "yanchor": "bottom"},
        hovermode="closest",
        hoverlabel={"align": "left"},
    )


def _option_axis(label: str, values: Sequence[str]) -> dict[str, Any]:
    """Return an axis of the parallel coordinates: words by name, numbers by size or by their logarithm."""
    positions, words, is_log = positions_of(values)
    if words:
        return _word_axis(label, positions.tolist(), words)
    ticks = np.unique(positions)
    if len(ticks) > 6:
        ticks = np.linspace(positions.min(), positions.max(), 5)
    texts = [number(float(tick)) for tick in (10**ticks if is_log else ticks)]
    label = f"{label} (log)" if is_log else label
    return {"label": label, "values": positions.tolist(), "tickvals": ticks.tolist(), "ticktext": texts}


def _word_axis(label: str, positions: Sequence[int], words: Sequence[str]) -> dict[str, Any]:
    """Return an axis of words, of which at most MAX_TICKS are written."""
    ticks = range(0, len(words), -(-len(words) // MAX_TICKS))
    texts = [_label(words[tick], 16) for tick in ticks]
    return {"label": label, "values": list(positions), "tickvals": list(ticks), "ticktext": texts}


def _shares(board: Leaderboard) -> dict[str, float]:
    """Return run -> its place between the worst value, 0, and the best, 1, of the runs that count."""
    counted = [run for run in board.runs if run.counts(board.metric)]
    if not counted:
        return {}
    signed = np.array([run.value(board.metric) for run in counted]) * (1 if board.direction == "maximize" else -1)
    low, high = np.quantile(signed, (0.25, 0.75))
    worst = max(signed.min(), low - FENCE * (high - low)) if high > low else signed.min()
    scale = signed.max() - worst
    values = ((signed - worst) / scale).clip(0, 1) if scale > 0 else np.ones(len(signed))
    return dict(zip((run.folder for run in counted), values.tolist()))


def _scale(values: Sequence[float]) -> dict[str, object]:
    """Return the type of an axis of these values."""
    if not is_logarithmic(values):
        return {"type": "linear"}
    return {"type": "log", "dtick": 1 if math.log10(max(values) / min(values)) > 4 else "D2", "exponentformat": "e"}


def _hover(board: Leaderboard, run: Run) -> str:
    lines = [f"run {run.folder}: {run.state}" + (f", {run.status.verdict}" if run.collapsed else "")]
    lines += [f"{key}={value}" for key, value in run.overrides.items()]
    lines += [f"{name}: {number(run.value(name))}" for name in board.objectives]
    return "<br>".join(_label(line, 90) for line in lines)


def _label(text: str, length: int = MAX_LABEL) -> str:
    return html.escape(shortened(text, length), quote=False)


FIGURES = (
    (pareto, "Objectives against each other", "Each dot is a run; move the mouse over it to see its options."),
    (
        settings,
        "Settings over their seeds",
        "Best mean first. Intervals are Student's; a single seed has none, and the widest are cut at the edge. "
        "Overlapping intervals are not the test: the table below has the test of the best setting against each other.",
    ),
    (
        parallel_coordinates,
        "Options and metric",
        "A line for each run, from the worst (yellow) to the best (blue); grey: under way, collapsed or failed, "
        "drawn no lower than the worst of the others. Drag along an axis to select runs, drag its name to move it.",
    ),
    (
        importance,
        "What the metric depends on",
        "Share of the metric's variance that depends on an option, by permutation in a random forest, on runs that it "
        "was not fitted to. An interaction counts for each of its options, and noise for none.",
    ),
    (
        curves,
        "Curves",
        "A line for each run, coloured by the final metric as above; dotted: collapsed or failed.",
    ),
)


def write_page(board: Leaderboard, path: Path) -> None:
    """Write the page. Raise UserError if that fails."""
    write_text(path, page(board), "html")


def page(board: Leaderboard) -> str:
    """Return the leaderboard as an HTML page."""
    shared = options(board.runs[0].shared) if len(board.runs) > 1 else ""
    sections = []
    for draw, heading, note in FIGURES:
        if (figure := draw(board)) is not None:
            part = figure.to_html(include_plotlyjs=False, full_html=False, div_id=draw.__name__, config=CONTROLS)
            sections.append((heading, note, Markup(part), shown(setting_columns(board) if draw is settings else [])))
    columns = run_columns(board, write_seconds=lambda value: "" if value is None else f"{value:.1f} s")
    return render(
        "leaderboard_page.html",
        title=f"Leaderboard of {printable(board.folder.resolve().name, keep='')}",
        board=board,
        date=time.strftime("%Y-%m-%d %H:%M"),
        shared=shared,
        sentences=summary(board),
        sections=sections,
        columns=shown(columns),
        kinds=[row_kind(board, run) for run in board.runs],
    )


def shown(columns: Sequence[Column]) -> list[Column]:
    """Return the columns that are not empty."""
    return [column for column in columns if any(column.cells)]
