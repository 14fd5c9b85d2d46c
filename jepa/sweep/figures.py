"""The figures of a leaderboard's page, with plotly. A figure that would show nothing is None."""

from __future__ import annotations

import html
import re
from collections.abc import Sequence
from typing import TYPE_CHECKING

import plotly.graph_objects as go

from jepa.sweep.axes import Axis, axis_of
from jepa.sweep.collect import Run
from jepa.sweep.colours import GREY, colour_bar, colours_of
from jepa.sweep.importance import logarithmic
from jepa.sweep.reading import curve
from jepa.sweep.wording import number, options, shortened

if TYPE_CHECKING:
    from jepa.sweep.leaderboard import Leaderboard

INK, ACCENT = "#1f2933", "#0b6e99"
CURVES = ("val/loss", "train/loss")
"""What is drawn over the steps where the metric itself is measured at the end only."""

MOST_SETTINGS = 30

MOST_POINTS = 60_000
"""Of all curves of a page."""

WIDTH_OF_AXIS = 130
"""Pixels from one axis of the parallel coordinates to the next, at least."""


def parallel(board: Leaderboard) -> go.Figure | None:
    """Parallel coordinates: a line for each run over its options and the metric, the best on top.

    Drawn as plain lines: plotly's own parallel coordinates name no run under the mouse, cannot show the failed ones
    apart, and need WebGL.
    """
    runs = [run for run in board.runs if run.value(board.metric) is not None]
    given = {key: [run.overrides[key] for run in runs] for key in board.options}
    axes = [axis_of(board.names[key], values) for key, values in given.items() if len(set(values)) > 1]
    if len(runs) < 2 or not axes:
        return None
    # What failed runs count as would leave no room for the others; they stand at the worse end.
    values = [run.value(board.metric) for run in runs]
    counted = [run.value(board.metric) for run in runs if run.counts(board.metric)] or values
    axes.append(axis_of(board.metric, [repr(min(max(value, min(counted)), max(counted))) for value in values]))
    figure = _figure(460)
    colours = colours_of(board)
    for index in reversed(range(len(runs))):
        run, sound = runs[index], runs[index].counts(board.metric)
        figure.add_scatter(
            x=list(range(len(axes))),
            y=[axis.positions[index] for axis in axes],
            mode="lines+markers",
            line={"color": colours[run.folder], "width": 4 if index == 0 and sound else 1.5, "dash": _dash(run)},
            marker={"size": 5},
            opacity=0.85 if sound else 0.6,
            **_named(board, run),
        )
    names = [_wrapped(axis.name, 14) + ("<br><i>log</i>" if axis.is_log else "") for axis in axes]
    for index, axis in enumerate(axes):
        _draw_axis(figure, index, names[index], axis)
    edge = 0.5 if len(axes) < 4 else 0.35
    figure.update_xaxes(visible=False, range=[-edge, len(axes) - 1 + edge])
    figure.update_yaxes(visible=False, range=[-0.06, 1.06])
    top = 30 + 18 * max(name.count("<br>") + 1 for name in names)
    figure.update_layout(margin={"t": top, "b": 10, "l": 70, "r": 20}, meta=WIDTH_OF_AXIS * (len(axes) + 1))
    colour_bar(figure, board)
    return figure


def curves(board: Leaderboard) -> go.Figure | None:
    """The metric over the steps, where it is measured on the way, else a loss; a line for each run."""
    found, metric, most = [], board.metric, min(1000, MOST_POINTS // len(board.runs))
    for metric in dict.fromkeys((board.metric, *CURVES)):
        found = [(run, curve(run.path, metric, most)) for run in board.runs]
        if any(len(points) > 1 for _, points in found):
            break
    else:
        return None
    figure, colours = _figure(420), colours_of(board)
    for run, points in reversed(found):
        figure.add_scatter(
            x=[step for step, _ in points],
            y=[value for _, value in points],
            mode="lines" if len(points) > 1 else "markers",
            line={"color": colours[run.folder], "width": 1.5, "dash": _dash(run)},
            **_named(board, run),
        )
    heights = [value for _, points in found for _, value in points]
    figure.update_xaxes(title="step", rangemode="tozero")
    figure.update_yaxes(title=html.escape(metric), **_scaled(heights))
    colour_bar(figure, board)
    return figure


def importance(board: Leaderboard) -> go.Figure | None:
    """A bar for each option: the share of the metric's variance that depends on it."""
    if not board.importances:
        return None
    shares = dict(reversed(board.importances.items()))
    figure = _figure(90 + 34 * len(shares))
    figure.add_bar(
        x=list(shares.values()),
        y=[_wrapped(key) for key in shares],
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
    """Each setting's mean with its interval, over the dots of its seeds; None where no setting has two."""
    shown = [setting for setting in board.settings if setting.estimate is not None][:MOST_SETTINGS]
    if not any(len(setting.values) > 1 for setting in shown):
        return None
    labels = [_wrapped(options(s.options, board.names) or f"run {s.runs[0].folder}") for s in shown]
    labels = [f"{index + 1}.  {label}" for index, label in enumerate(labels)]  # also makes them differ
    figure = _figure(100 + 22 * sum(1 + label.count("<br>") for label in labels) + 10 * len(labels))
    dots = [(value, label, seed) for s, label in zip(shown, labels) for seed, value in s.values.items()]
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
        x=[s.estimate.mean for s in shown],
        y=labels,
        error_x={"type": "data", "array": [s.estimate.half or 0.0 for s in shown], "color": ACCENT, "thickness": 2},
        mode="markers",
        marker={"color": ACCENT, "size": 10, "symbol": "diamond"},
        name="mean and 95 % interval",
        hovertext=[html.escape(f"{number(s.estimate.mean)}, {s.estimate.count} seeds") for s in shown],
        hoverinfo="text",
    )
    # Intervals over two seeds can be hundreds of times as wide as what is measured.
    low, high = min(value for value, _, _ in dots), max(value for value, _, _ in dots)
    room = high - low or abs(high) or 1.0
    lows = [s.estimate.low for s in shown if s.estimate.low is not None]
    highs = [s.estimate.high for s in shown if s.estimate.high is not None]
    figure.update_xaxes(
        title=html.escape(board.metric),
        range=[max(min([low, *lows]) - 0.1 * room, low - room), min(max([high, *highs]) + 0.1 * room, high + room)],
    )
    figure.update_yaxes(type="category", autorange="reversed", automargin=True)
    figure.update_layout(showlegend=True, legend={"orientation": "h", "x": 0, "y": 1, "yanchor": "bottom"})
    return figure


def pareto(board: Leaderboard) -> go.Figure | None:
    """The first two objectives of each run, with the front; None for a single objective."""
    if len(board.objectives) < 2:
        return None
    across, up = list(board.objectives)[:2]
    runs = [run for run in board.runs if all(run.counts(name) for name in board.objectives)]
    if not runs:
        return None
    front = sorted(board.front, key=lambda run: run.value(across))
    figure = _figure(480)
    others = [run for run in runs if run not in front]
    figure.add_scatter(
        x=[run.value(across) for run in others],
        y=[run.value(up) for run in others],
        mode="markers",
        marker={"color": GREY, "size": 9},
        name="beaten in both by another",
        hovertext=[_told(board, run) for run in others],
        hoverinfo="text",
    )
    figure.add_scatter(
        x=[run.value(across) for run in front],
        y=[run.value(up) for run in front],
        mode="lines+markers+text",
        line={"color": ACCENT, "width": 1, "dash": "dot"},
        marker={"color": ACCENT, "size": 11},
        text=[html.escape(shortened(run.folder, 16)) for run in front],
        textposition="top center",
        name="Pareto front",
        hovertext=[_told(board, run) for run in front],
        hoverinfo="text",
    )
    for update, name in ((figure.update_xaxes, across), (figure.update_yaxes, up)):
        spread = [run.value(name) for run in runs]
        arrow = "more" if board.objectives[name] == "maximize" else "less"
        title = f"{html.escape(name)} ({arrow} is better)"
        update(title=title, **_scaled(spread))
    figure.update_layout(showlegend=True, legend={"orientation": "h", "x": 0, "y": 1, "yanchor": "bottom"})
    return figure


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


def _scaled(values: Sequence[float]) -> dict[str, object]:
    """How an axis of these values is spaced."""
    if not logarithmic(values):
        return {"type": "linear"}
    return {"type": "log", "dtick": 1 if max(values) > 1e4 * min(values) else "D2", "exponentformat": "e"}


def _draw_axis(figure: go.Figure, index: int, name: str, axis: Axis) -> None:
    """A vertical axis with its name above and its ticks at the left."""
    figure.add_shape(type="line", x0=index, x1=index, y0=0, y1=1, line={"color": INK, "width": 1}, layer="below")
    figure.add_annotation(
        x=index, y=1, yshift=14, text=f"<b>{name}</b>", showarrow=False, yanchor="bottom", align="center"
    )
    for position, text in axis.ticks:
        figure.add_annotation(
            x=index,
            y=position,
            xshift=-7,
            text=html.escape(shortened(text, 15)),
            showarrow=False,
            xanchor="right",
            font={"size": 11},
            bgcolor="rgba(255,255,255,0.75)",
            borderpad=1,
        )


def _dash(run: Run) -> str:
    return "dot" if run.bad else "solid"


def _named(board: Leaderboard, run: Run) -> dict[str, str]:
    """What a line's name, and the text under the mouse, are."""
    return {"name": html.escape(run.folder), "hovertext": _told(board, run), "hoverinfo": "text"}


def _told(board: Leaderboard, run: Run) -> str:
    """A run with its options and objectives, as plotly's markup."""
    lines = [f"run {run.folder}: {run.state}" + (f", {run.verdict}" if run.collapsed else "")]
    lines += [f"{key}={value}" for key, value in run.overrides.items()]
    lines += [f"{name}: {number(run.value(name))}" for name in board.objectives]
    return "<br>".join(html.escape(shortened(line, 90)) for line in lines)


def _wrapped(text: str, width: int = 44, most: int = 3) -> str:
    """A long label over lines that end at what parts its words, as plotly's markup."""
    lines = [""]
    for part in re.findall(r"[^\s._/,]*[\s._/,]?", text):
        if len(lines[-1]) + len(part.rstrip()) <= width or not lines[-1]:
            lines[-1] += part
        else:
            lines.append(part)
    if len(lines) > most:
        lines[most - 1 :] = [lines[most - 1].rstrip() + " …"]
    return "<br>".join(html.escape(shortened(line, width + 2)) for line in lines)
