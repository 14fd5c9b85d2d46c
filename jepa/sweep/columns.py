"""What a leaderboard's tables show: a row for each run and, where seeds repeat them, for each setting."""

from __future__ import annotations

import math
from collections.abc import Mapping, Sequence
from typing import TYPE_CHECKING

from jepa.sweep.collect import SEED, Run, as_number
from jepa.sweep.table import Column, drawn, numbers, words
from jepa.sweep.wording import duration, number, option, padded, progress, shortened, with_error

if TYPE_CHECKING:
    from rich.console import Group

    from jepa.sweep.leaderboard import Leaderboard


def run_columns(board: Leaderboard) -> list[Column]:
    """A row for each run, in their order."""
    runs, statuses = board.runs, [run.status for run in board.runs]
    columns = [
        numbers("place", [board.places.get(run.path) for run in runs]),
        words("run", [run.folder for run in runs]),
        *option_columns(board, [run.overrides for run in runs]),
    ]
    for index, metric in enumerate(board.shown_metrics):
        worth = math.inf if metric in board.objectives else 1 - index / 100
        columns.append(numbers(board.names[metric], [measured(run, metric) for run in runs], padded, worth))
    return [
        *columns,
        numbers("time", [run.seconds for run in runs], duration, worth=1),
        Column(
            "steps",
            [progress(status.step, status.max_steps) for status in statuses],
            ["" if status.step is None else str(status.step) for status in statuses],
            worth=0,
        ),
        words("state", [outcome(run) for run in runs]),
    ]


def setting_columns(board: Leaderboard) -> list[Column]:
    """A row for each setting that has a value, best first; none where no setting has two seeds."""
    settings = [setting for setting in board.settings if setting.estimate is not None]
    if not any(setting.estimate.count > 1 for setting in settings):
        return []
    found = [None, *board.comparisons]
    spans = ["" if c is None or c.p is None else f"{number(c.low, 3)} to {number(c.high, 3)}" for c in found]
    estimates = [setting.estimate for setting in settings]
    bad = [numbers("failed", [setting.bad for setting in settings])] if any(s.bad for s in settings) else []
    return [
        numbers("place", range(1, len(settings) + 1)),
        *option_columns(board, [setting.options for setting in settings]),
        Column(
            f"{board.names[board.metric]} ± 95%",
            [with_error(e.mean, e.half) for e in estimates],
            [repr(e.mean) for e in estimates],
        ),
        numbers("seeds", [estimate.count for estimate in estimates]),
        *bad,
        numbers("behind", [c and c.lead for c in found], lambda lead: number(lead, 3)),
        Column("95% interval", spans, [repr(c.low) if c and c.p is not None else "" for c in found], worth=0),
        numbers("p (Holm)", [c and c.corrected for c in found], lambda p: number(p, 2)),
    ]


def option_columns(board: Leaderboard, rows: Sequence[Mapping[str, str]]) -> list[Column]:
    """A column for each option of the rows."""
    columns = []
    for key in rows[0]:
        values = [row[key] for row in rows]
        keys = [value if as_number(value) is None else repr(as_number(value)) for value in values]
        worth = 1.5 if key == SEED else 2 + board.importances.get(key, 0.0)
        columns.append(Column(board.names[key], [option(value) for value in values], keys, is_text=True, worth=worth))
    return columns


def tables(board: Leaderboard, limit: int | None = None, width: int | None = None) -> Group:
    """The runs, or the first so many, and the settings, as rich tables. width: of a line; None: the terminal's."""
    from rich.console import Console, Group

    width = Console().width if width is None else width
    way = "more" if board.direction == "maximize" else "less"
    styles = [{"bad": "red", "open": "dim", "": ""}[kind_of(board, run)] for run in board.runs]
    found = [drawn(run_columns(board), width, styles=styles, title=f"{board.metric}, {way} is better", limit=limit)]
    if columns := setting_columns(board):
        styles = [""] * len(columns[0].cells)
        found.append(drawn(columns, width, styles=styles, title="settings over their seeds", limit=limit))
    return Group(*found)


def measured(run: Run, metric: str) -> float | None:
    """What a run has measured, not finite values too; not what it counts as where it went wrong."""
    return run.value(metric) if run.counts(metric) else run.metrics.get(metric)


def kind_of(board: Leaderboard, run: Run) -> str:
    """Whether a run went wrong ("bad"), has no final value ("open"), or neither ("")."""
    return "bad" if run.bad else "" if run.counts(board.metric) else "open"


def outcome(run: Run, length: int = 60) -> str:
    """A run's state, with why, and what the collapse monitor found."""
    found = f", {run.verdict}" if run.collapsed else ""
    reason = f": {run.status.reason}" if run.status.reason else ""
    return shortened(f"{run.state}{found}{reason}", length)
