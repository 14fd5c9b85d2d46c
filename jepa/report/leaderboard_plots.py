"""The figures of a leaderboard's page, with plotly. A function returns None if its figure would show nothing."""

from __future__ import annotations

import html
import math
from collections.abc import Sequence
from typing import Any

import numpy as np
import plotly.graph_objects as go
from plotly.colors import sample_colorscale

from jepa.report.formatting import number, options, shortened
from jepa.report.leaderboard import Leaderboard
from jepa.report.option_importance import is_logarithmic
from jepa.report.run_files import curve
from jepa.report.runs import Run, as_number, canonical, natural_key

INK, ACCENT, GREY = "#1f2933", "#0b6e99", "#b8bfc6"
COLOURS = ("#f2b134", "#d1495b", "#2b2d6e")
"""From the worst to the best run."""

FENCE = 1.5
"""Runs this many interquartile ranges below the worse quartile (Tukey) all have the worst colour."""

CURVES = ("val/loss", "train/loss")
"""Drawn over the steps if the metric itself is measured at the end only."""

MAX_SETTINGS = 30
MAX_POINTS = 60_000
MAX_LABEL = 60
MAX_TICKS = 25
WIDTH_OF_AXIS = 110


def parallel_coordinates(board: Leaderboard) -> go.Figure | None:
    """Draw a line for each run over its options and the metric, whose best value is on top."""
    runs = [run for run in board.runs if run.value(board.metric) is not None]
    columns = {key: [run.overrides[key] for run in runs] for key in board.options}
    columns = {key: values for key, values in columns.items() if len(set(values)) > 1}
    if len(runs) < 2 or not columns:
        return None
    # The values that failed runs count as would leave no room for the others.
    counted = [run.value(board.metric) for run in runs if run.counts(board.metric)]
    values = [run.value(board.metric) for run in runs]
    values = np.clip(values, min(counted), max(counted)).tolist() if counted else values
    ends = [min(values), max(values)] if min(values) < max(values) else [values[0] - 1, values[0] + 1]
    places = list(range(0, len(runs), -(-len(runs) // MAX_TICKS)))
    names = [shortened(runs[place].folder, 16) for place in places]
    last = {"label": board.metric, "values": values, "tickformat": ".4g"}
    dimensions = [
        {"label": "run", "values": list(range(len(runs))), "range": [len(runs) - 1, 0]}
        | {"tickvals": places, "ticktext": names},
        *(_dimension(board.names[key], values) for key, values in columns.items()),
        last | {"range": ends if board.direction == "maximize" else ends[::-1]},
    ]
    shares = _shares(board)
    colours = [GREY, GREY, *COLOURS]
    figure = _figure(460)
    figure.add_parcoords(
        dimensions=dimensions,
        line={
            "color": [-1.0 if shares[run.folder] is None else shares[run.folder] for run in runs],
            "colorscale": list(zip((0.0, 0.4, 0.5, 0.75, 1.0), colours)),
            "cmin": -1,
            "cmax": 1,
        },
    )
    figure.update_layout(margin={"t": 50, "b": 20, "l": 80, "r": 110})
    if len(dimensions) > 9:
        figure.update_layout(width=WIDTH_OF_AXIS * len(dimensions))
    return figure


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
        share = shares[run.folder]
        colour = GREY if share is None else sample_colorscale(list(COLOURS), share)[0]
        figure.add_scatter(
            x=[step for step, _ in points],
            y=[value for _, value in points],
            mode="lines" if len(points) > 1 else "markers",
            line={"color": colour, "width": 1.5, "dash": "dot" if run.bad else "solid"},
            name=html.escape(run.folder),
            hovertext=_hover(board, run),
            hoverinfo="text",
        )
    figure.update_xaxes(title="step", rangemode="tozero")
    figure.update_yaxes(title=html.escape(metric), **_scale([value for _, points in found for _, value in points]))
    return figure


def importance(board: Leaderboard) -> go.Figure | None:
    """Draw a bar for each option: the share of the metric's variance that depends on it."""
    if not board.importances:
        return None
    shares = dict(reversed(board.importances.items()))
    figure = _figure(90 + 34 * len(shares))
    figure.add_bar(
        x=list(shares.values()),
        y=[_label(key) for key in shares],
        orientation="h",
        marker={"color": ACCENT},
        text=[f"{share:.0%}" for share in shares.values()],
        textposition="outside",
        cliponaxis=False,
        hoverinfo="skip",
    )
    figure.update_xaxes(title="share of the variance", range=[0, 1.12 * max(0.1, *shares.values())], tickformat=".0%")
    figure.update_yaxes(type="category", automargin=True)
    return figure


def settings(board: Leaderboard) -> go.Figure | None:
    """Draw each setting's mean with its interval over the dots of its seeds; None if no setting has two."""
    shown = [setting for setting in board.settings if setting.estimate is not None][:MAX_SETTINGS]
    if not any(len(setting.values) > 1 for setting in shown):
        return None
    names = [options(s.options, board.names) or f"run {s.runs[0].folder}" for s in shown]
    labels = [_label(f"{place}.  {name}") for place, name in enumerate(names, 1)]  # the place makes them unique
    dots = [(value, label, seed) for s, label in zip(shown, labels) for seed, value in s.values.items()]
    means, halves = [s.estimate.mean for s in shown], [s.estimate.half or 0.0 for s in shown]
    figure = _figure(100 + 32 * len(labels))
    figure.add_scatter(
        x=[value for value, _, _ in dots],
        y=[label for _, label, _ in dots],
        mode="markers",
        marker={"color": GREY, "size": 8, "line": {"color": "#7b8794", "width": 1}},
        name="a seed",
        hovertext=[html.escape(f"seed {seed}: {number(value)}") for value, _, seed in dots],
        hoverinfo="text",
    )
    figure.add_scatter(
        x=means,
        y=labels,
        error_x={"type": "data", "array": halves, "color": ACCENT, "thickness": 2},
        mode="markers",
        marker={"color": ACCENT, "size": 10, "symbol": "diamond"},
        name="mean and 95 % interval",
        hovertext=[f"{number(s.estimate.mean)}, {s.estimate.count} seeds" for s in shown],
        hoverinfo="text",
    )
    # Intervals over two seeds can be hundreds of times as wide as the values.
    low, high = min(value for value, _, _ in dots), max(value for value, _, _ in dots)
    room = high - low or abs(high) or 1.0
    left = min(mean - half for mean, half in zip(means, halves))
    right = max(mean + half for mean, half in zip(means, halves))
    ends = [max(min(low, left) - 0.1 * room, low - room), min(max(high, right) + 0.1 * room, high + room)]
    figure.update_xaxes(title=html.escape(board.metric), range=ends)
    figure.update_yaxes(type="category", autorange="reversed", automargin=True)
    return _with_legend(figure)


def pareto(board: Leaderboard) -> go.Figure | None:
    """Draw the first two objectives of each run and their Pareto front; None for a single objective."""
    runs = [run for run in board.runs if all(run.counts(name) for name in board.objectives)]
    if len(board.objectives) < 2 or not runs:
        return None
    across, up = list(board.objectives)[:2]
    front = sorted(board.front, key=lambda run: run.value(across))
    figure = _figure(480)
    for group, name, style in (
        (
            [run for run in runs if run not in front],
            "beaten in both by another",
            {"marker": {"color": GREY, "size": 9}},
        ),
        (front, "Pareto front", {"marker": {"color": ACCENT, "size": 11}, "line": {"color": ACCENT, "dash": "dot"}}),
    ):
        figure.add_scatter(
            x=[run.value(across) for run in group],
            y=[run.value(up) for run in group],
            mode="lines+markers+text" if group is front else "markers",
            text=[html.escape(shortened(run.folder, 16)) for run in group],
            textposition="top center",
            name=name,
            hovertext=[_hover(board, run) for run in group],
            hoverinfo="text",
            **style,
        )
    for update, name in ((figure.update_xaxes, across), (figure.update_yaxes, up)):
        better = "more" if board.objectives[name] == "maximize" else "less"
        update(title=f"{html.escape(name)} ({better} is better)", **_scale([run.value(name) for run in runs]))
    return _with_legend(figure)


def _figure(height: int) -> go.Figure:
    figure = go.Figure()
    figure.update_layout(
        height=height,
        template="plotly_white",
        font={"family": "system-ui, sans-serif", "size": 13, "color": INK},
        margin={"t": 30, "b": 50, "l": 60, "r": 30},
        showlegend=False,
        hovermode="closest",
        hoverlabel={"align": "left"},
    )
    return figure


def _with_legend(figure: go.Figure) -> go.Figure:
    return figure.update_layout(showlegend=True, legend={"orientation": "h", "x": 0, "y": 1, "yanchor": "bottom"})


def _dimension(label: str, values: Sequence[str]) -> dict[str, Any]:
    """Return an axis of the parallel coordinates: words by name, numbers by size or by their logarithm."""
    numbers = [as_number(value) for value in values]
    if any(value is None for value in numbers):
        words = sorted({canonical(value) for value in values}, key=natural_key)
        ticks = list(range(0, len(words), -(-len(words) // MAX_TICKS)))
        texts = [html.escape(shortened(words[tick], 16)) for tick in ticks]
        return {
            "label": label,
            "values": [words.index(canonical(v)) for v in values],
            "tickvals": ticks,
            "ticktext": texts,
        }
    is_log = is_logarithmic(numbers)
    positions = np.log10(numbers) if is_log else np.array(numbers)
    ticks = np.unique(positions)
    if len(ticks) > 6:
        ticks = np.linspace(positions.min(), positions.max(), 5)
    texts = [number(float(tick)) for tick in (10**ticks if is_log else ticks)]
    label = f"{label} (log)" if is_log else label
    return {"label": label, "values": positions.tolist(), "tickvals": ticks.tolist(), "ticktext": texts}


def _shares(board: Leaderboard) -> dict[str, float | None]:
    """Return run -> its place between the worst value, 0, and the best, 1; None if it does not count."""
    values = {run.folder: run.value(board.metric) for run in board.runs if run.counts(board.metric)}
    shares: dict[str, float | None] = dict.fromkeys(run.folder for run in board.runs)
    if not values:
        return shares
    signed = np.array(list(values.values())) * (1 if board.direction == "maximize" else -1)
    low, high = np.quantile(signed, (0.25, 0.75))
    worst = max(signed.min(), low - FENCE * (high - low)) if high > low else signed.min()
    scale = signed.max() - worst
    return shares | {
        folder: float(np.clip((value - worst) / scale, 0, 1)) if scale > 0 else 1.0
        for folder, value in zip(values, signed)
    }


def _scale(values: Sequence[float]) -> dict[str, object]:
    """Return the type of an axis of these values."""
    if not is_logarithmic(values):
        return {"type": "linear"}
    return {"type": "log", "dtick": 1 if math.log10(max(values) / min(values)) > 4 else "D2", "exponentformat": "e"}


def _hover(board: Leaderboard, run: Run) -> str:
    lines = [f"run {run.folder}: {run.state}" + (f", {run.verdict}" if run.collapsed else "")]
    lines += [f"{key}={value}" for key, value in run.overrides.items()]
    lines += [f"{name}: {number(run.value(name))}" for name in board.objectives]
    return "<br>".join(html.escape(shortened(line, 90)) for line in lines)


def _label(text: str) -> str:
    return html.escape(shortened(text, MAX_LABEL))
