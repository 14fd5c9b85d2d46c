"""A leaderboard as one HTML file that needs no network: sentences, figures and tables."""

from __future__ import annotations

import time
from collections.abc import Sequence
from pathlib import Path

from markupsafe import Markup

from jepa.report import leaderboard_plots as plots
from jepa.report.formatting import Column, options
from jepa.report.html_page import render
from jepa.report.leaderboard import Leaderboard
from jepa.report.leaderboard_summary import summary
from jepa.report.leaderboard_tables import row_kind, run_columns, setting_columns
from jepa.utils.files import write_text
from jepa.utils.read_data import printable

CONTROLS = {"displaylogo": False, "responsive": True, "modeBarButtonsToRemove": ["select2d", "lasso2d"]}

FIGURES = (
    (plots.pareto, "Objectives against each other", "Each dot is a run; move the mouse over it to see its options."),
    (
        plots.settings,
        "Settings over their seeds",
        "Best mean first. Intervals are Student's; a single seed has none, and the widest are cut at the edge. "
        "Overlapping intervals are not the test: the table below has the test of the best setting against each other.",
    ),
    (
        plots.parallel_coordinates,
        "Options and metric",
        "A line for each run, from the worst (yellow) to the best (blue); grey: under way, collapsed or failed, "
        "drawn no lower than the worst of the others. Drag along an axis to select runs, drag its name to move it.",
    ),
    (
        plots.importance,
        "What the metric depends on",
        "Share of the metric's variance that depends on an option, by permutation in a random forest, on runs that it "
        "was not fitted to. An interaction counts for each of its options, and noise for none.",
    ),
    (
        plots.curves,
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
        figure = draw(board)
        if figure is not None:
            part = figure.to_html(include_plotlyjs=False, full_html=False, div_id=draw.__name__, config=CONTROLS)
            sections.append(
                (heading, note, Markup(part), shown(setting_columns(board) if draw is plots.settings else []))
            )
    columns = run_columns(board, write_seconds=lambda value: "" if value is None else f"{value:.1f} s")
    return render(
        "leaderboard.html",
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
