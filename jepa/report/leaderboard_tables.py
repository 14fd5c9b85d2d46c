"""The columns of a leaderboard: a row for each run and, if seeds repeat them, for each setting."""

from __future__ import annotations

import math
from collections.abc import Callable, Mapping, Sequence
from typing import TYPE_CHECKING

from jepa.report.formatting import duration, number, option, padded, progress, shortened, with_error
from jepa.report.leaderboard import Leaderboard
from jepa.report.runs import SEED, Run
from jepa.report.terminal_table import Column, rich_table

if TYPE_CHECKING:
    from rich.console import Group

STYLES = {"bad": "red", "open": "dim", "": ""}


def tables(board: Leaderboard, limit: int | None = None, width: int | None = None) -> Group:
    """Return the first `limit` runs, and the settings, as rich tables. width: of a line; None: the terminal's."""
    from rich.console import Console, Group

    width = Console().width if width is None else width
    title = f"{board.metric}, {'more' if board.direction == 'maximize' else 'less'} is better"
    styles = [STYLES[row_kind(board, run)] for run in board.runs]
    found = [rich_table(run_columns(board), width, styles=styles, title=title, limit=limit)]
    if columns := setting_columns(board):
        styles = [""] * len(columns[0].cells)
        found.append(rich_table(columns, width, styles=styles, title="settings over their seeds", limit=limit))
    return Group(*found)


def run_columns(board: Leaderboard, write_seconds: Callable[[float | None], str] = duration) -> list[Column]:
    """Return the columns of the runs."""
    runs, statuses = board.runs, [run.status for run in board.runs]
    metrics = []
    for index, metric in enumerate(board.shown_metrics):
        # A failed run has what it measured, not what it counts as.
        values = [run.value(metric) if run.counts(metric) else run.metrics.get(metric) for run in runs]
        priority = math.inf if metric in board.objectives else 1 - index / 100
        metrics.append(Column(board.names[metric], [padded(value) for value in values], priority=priority))
    return [
        Column("place", [number(board.places.get(run.path)) for run in runs]),
        Column("run", [run.folder for run in runs], is_text=True),
        *option_columns(board, [run.overrides for run in runs]),
        *metrics,
        Column("time", [write_seconds(run.seconds) for run in runs], priority=1),
        Column("steps", [progress(status.step, status.max_steps) for status in statuses], priority=0),
        Column("state", [state_text(run) for run in runs], is_text=True),
    ]


def setting_columns(board: Leaderboard) -> list[Column]:
    """Return the columns of the settings that have a value, best first; none if no setting has two seeds."""
    settings = [setting for setting in board.settings if setting.estimate is not None]
    if not any(setting.estimate.count > 1 for setting in settings):
        return []
    estimates, compared = [setting.estimate for setting in settings], board.comparisons
    intervals = ["" if c.p is None else f"{number(c.low, 3)} to {number(c.high, 3)}" for c in compared]
    columns = [
        Column("place", [str(place) for place in range(1, len(settings) + 1)]),
        *option_columns(board, [setting.options for setting in settings]),
        Column(f"{board.names[board.metric]} ± 95%", [with_error(e.mean, e.half) for e in estimates]),
        Column("seeds", [str(e.count) for e in estimates]),
        Column("failed", [str(setting.bad) for setting in settings]),
        Column("behind", ["", *(number(c.lead, 3) for c in compared)]),
        Column("95% interval", ["", *intervals], priority=0),
        Column("p (Holm)", ["", *(number(c.corrected, 2) for c in compared)]),
    ]
    return [column for column in columns if column.heading != "failed" or any(s.bad for s in settings)]


def option_columns(board: Leaderboard, rows: Sequence[Mapping[str, str]]) -> list[Column]:
    """Return a column for each option; those that matter most have the highest priority."""
    columns = []
    for key in rows[0]:
        priority = 1.5 if key == SEED else 2 + board.importances.get(key, 0.0)
        columns.append(Column(board.names[key], [option(row[key]) for row in rows], is_text=True, priority=priority))
    return columns


def row_kind(board: Leaderboard, run: Run) -> str:
    """Return "bad" for a failed or collapsed run, "open" for one without a final value, else ""."""
    return "bad" if run.bad else "" if run.counts(board.metric) else "open"


def state_text(run: Run) -> str:
    """Return a run's state, the collapse monitor's verdict if that is bad, and the reason."""
    verdict = f", {run.verdict}" if run.collapsed else ""
    reason = f": {run.status.reason}" if run.status.reason else ""
    return shortened(f"{run.state}{verdict}{reason}", 60)
