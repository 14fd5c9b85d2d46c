"""Colours of the runs by the metric, the same in every figure of a leaderboard."""

from __future__ import annotations

import html
import math
from typing import TYPE_CHECKING

import numpy as np
import plotly.graph_objects as go
from plotly.colors import sample_colorscale

if TYPE_CHECKING:
    from jepa.sweep.leaderboard import Leaderboard

SCALE = ("#f2b134", "#d1495b", "#2b2d6e")
"""From the worst to the best run; all three stand out from white and from grey."""

GREY = "#b8bfc6"

FENCE = 1.5
"""Interquartile ranges beyond the worse quartile (Tukey's fence), from where all runs have the worst colour."""


def colour_range(board: Leaderboard) -> tuple[float, float] | None:
    """The values that get the worst and the best colour; None without runs that count."""
    values = sorted(run.value(board.metric) for run in board.runs if run.counts(board.metric))
    if not values:
        return None
    low, high = np.quantile(values, (0.25, 0.75))
    reach = FENCE * (high - low) if high > low else math.inf
    if board.direction == "maximize":
        return max(values[0], float(low - reach)), values[-1]
    return min(values[-1], float(high + reach)), values[0]


def colours_of(board: Leaderboard) -> dict[str, str]:
    """Run -> colour, by its value; grey for those that do not count."""
    span = colour_range(board)
    found = {}
    for run in board.runs:
        if span is None or not run.counts(board.metric):
            found[run.folder] = GREY
            continue
        worst, best = span
        share = (run.value(board.metric) - worst) / (best - worst) if best != worst else 1.0
        found[run.folder] = sample_colorscale(list(SCALE), min(1.0, max(0.0, share)))[0]
    return found


def colour_bar(figure: go.Figure, board: Leaderboard) -> None:
    """What the colours mean."""
    span = colour_range(board)
    if span is None or span[0] == span[1]:
        return
    low, high = min(span), max(span)
    scale = list(SCALE) if span[0] < span[1] else list(reversed(SCALE))
    figure.add_scatter(
        x=[None],
        y=[None],
        mode="markers",
        hoverinfo="skip",
        marker={
            "color": [low],
            "colorscale": [[index / (len(scale) - 1), colour] for index, colour in enumerate(scale)],
            "cmin": low,
            "cmax": high,
            "showscale": True,
            "colorbar": {"title": {"text": html.escape(board.metric), "side": "right"}, "thickness": 12},
        },
    )
