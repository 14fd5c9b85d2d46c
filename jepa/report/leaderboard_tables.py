"""A leaderboard in a terminal and as files: tables of the runs and of the settings, sentences, CSV and HTML."""

from __future__ import annotations

import csv
import importlib.util
import io
import math
from collections.abc import Callable, Mapping, Sequence
from pathlib import Path

from rich.console import Group

from jepa.report.formatting import (
    Column,
    duration,
    number,
    option,
    padded,
    progress,
    rich_table,
    shortened,
    terminal,
    with_error,
)
from jepa.report.leaderboard import Leaderboard
from jepa.report.leaderboard_summary import summary
from jepa.report.runs import SEED, Run
from jepa.utils.files import write_text
from jepa.utils.read_data import printable

STYLES = {"bad": "red", "open": "dim", "": ""}


def show(board: Leaderboard, csv_path: Path, page_path: Path, limit: int | None) -> None:
    """Print the first `limit` runs, the settings and the findings, and write all runs as CSV and as an HTML page.

    Without plotly the page is left out, and a line says so. Raise UserError if a file cannot be written.
    """
    console = terminal()
    console.print(tables(board, console.width, limit))
    write_csv(board, csv_path)
    written = [str(csv_path), f"{page_path.name} is not written, as it needs plotly: pip install 'jepa[report]'"]
    if importlib.util.find_spec("plotly") is not None:
        from jepa.report.leaderboard_page import write_page

        write_page(board, page_path)
        written[1] = str(page_path)
    for line in (*summary(board), *written):
        console.print(printable(line), markup=False, highlight=False, soft_wrap=True)


def write_csv(board: Leaderboard, path: Path) -> None:
    """Write all runs with all options and metrics in full precision. Raise UserError if that fails."""
    rows, text = board.rows(), io.StringIO(newline="")
    writer = csv.DictWriter(text, list(dict.fromkeys(name for row in rows for name in row)))
    writer.writeheader()
    writer.writerows(rows)
    write_text(path, text.getvalue(), "csv")


def tables(board: Leaderboard, width: int, limit: int | None = None) -> Group:
    """Return the first `limit` runs, and the settings, as rich tables. width: of a line."""
    title = f"{board.metric}, {'more' if board.direction == 'maximize' else 'less'} is better"
    styles = [STYLES[row_kind(board, run)] for run in board.runs]
    found = [rich_table(run_columns(board), width, styles=styles, title=title, limit=limit)]
    if columns := setting_columns(board):
        styles = [""] * len(columns[0].cells)
        found.append(rich_table(columns, width, styles=styles, title="settings over their seeds", limit=limit))
    return Group(*found)


def run_columns(board: Leaderboard, write_seconds: Callable[[float | None], str] = duration) -> list[Column]:
    """Return the columns of the table of runs. write_seconds: of durations."""
    runs, metrics = board.runs, []
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
        Column("steps", [progress(run.status) for run in runs], priority=0),
        Column("state", [state_text(run) for run in runs], is_text=True),
    ]


def setting_columns(board: Leaderboard) -> list[Column]:
    """Return the columns of the settings that have a value, best first; none if no setting has two seeds."""
    settings = [setting for setting in board.settings if setting.values]
    if not any(len(setting.values) > 1 for setting in settings):
        return []
    compared = board.comparisons
    intervals = ["" if c.p is None else f"{number(c.low, 3)} to {number(c.high, 3)}" for c in compared]
    failed = [setting.bad for setting in settings]
    return [
        Column("place", [str(place) for place in range(1, len(settings) + 1)]),
        *option_columns(board, [setting.options for setting in settings]),
        Column(f"{board.names[board.metric]} ± 95%", [with_error(s.mean, s.half) for s in settings]),
        Column("seeds", [str(len(setting.values)) for setting in settings]),
        Column("failed", [str(count) if any(failed) else "" for count in failed]),
        Column("behind", ["", *(number(c.lead, 3) for c in compared)]),
        Column("95% interval", ["", *intervals], priority=0),
        Column("p (Holm)", ["", *(number(c.corrected, 2) for c in compared)]),
    ]


def option_columns(board: Leaderboard, rows: Sequence[Mapping[str, str]]) -> list[Column]:
    """Return a column for each option; those that matter most have the highest priority."""
    columns = []
    for key in rows[0]:
        priority = 1.5 if key == SEED else 2 + board.importances.get(key, 0.0)
        columns.append(Column(board.names[key], [option(row[key]) for row in rows], is_text=True, priority=priority))
    return columns


def row_kind(board: Leaderboard, run: Run) -> str:
    """Return "bad" for a failed or collapsed run, "open" for one without a final value, else ""."""
    return "bad" if run.bad or run.state == "damaged" else "" if run.counts(board.metric) else "open"


def state_text(run: Run) -> str:
    """Return a run's state, the collapse monitor's verdict if that is bad, and the reason."""
    verdict = f", {run.status.verdict}" if run.collapsed else ""
    reason = f": {run.status.reason}" if run.status.reason else ""
    return shortened(f"{run.state}{verdict}{reason}", 60)
