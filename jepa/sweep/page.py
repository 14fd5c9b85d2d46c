"""A leaderboard as one HTML file that needs no network: conclusions, table and figures."""

from __future__ import annotations

import html
import time
from collections.abc import Sequence
from typing import TYPE_CHECKING

import plotly.io
from plotly.offline import get_plotlyjs

from jepa.sweep import figures
from jepa.sweep.columns import kind_of, run_columns, setting_columns
from jepa.sweep.table import Column
from jepa.sweep.wording import options

if TYPE_CHECKING:
    import plotly.graph_objects as go

    from jepa.sweep.leaderboard import Leaderboard

NARROWEST = 560
"""Pixels that a figure has at least; on a narrower screen it is scrolled. One that needs more says so as its `meta`."""

STYLE = """
body { font: 15px/1.5 system-ui, sans-serif; color: #1f2933; margin: 0 auto; padding: 1.5rem 2rem 4rem;
  max-width: 78rem }
h1 { font-size: 1.5rem; margin: 0; overflow-wrap: anywhere } h2 { font-size: 1.15rem; margin: 2.2rem 0 .3rem }
p.note { color: #616e7c; margin: .1rem 0 .6rem } li { margin: .25rem 0; overflow-wrap: anywhere }
div.wide { overflow-x: auto } div.tall { max-height: 90vh; overflow-y: auto }
table { border-collapse: collapse; font-size: 13px; font-variant-numeric: tabular-nums }
th, td { padding: .3rem .7rem; border-bottom: 1px solid #e4e7eb; text-align: left; vertical-align: top }
td { max-width: 24rem; overflow-wrap: break-word } .number { text-align: right } td.number { white-space: nowrap }
th { cursor: pointer; position: sticky; top: 0; background: #f5f7fa; white-space: nowrap }
th.up::after { content: " ▴" } th.down::after { content: " ▾" }
tr.bad td { color: #b42318; background: #fef3f2 } tr.open td { color: #7b8794 }
code { font-size: 13px; overflow-wrap: anywhere }
@media (max-width: 40rem) { body { padding: 1rem } ul { padding-left: 1.2rem } }
"""

SORT = """
document.querySelectorAll("th").forEach(head => head.onclick = () => {
  const body = head.closest("table").tBodies[0], column = head.cellIndex, down = head.classList.contains("up");
  head.parentNode.querySelectorAll("th").forEach(other => other.classList.remove("up", "down"));
  head.classList.add(down ? "down" : "up");
  const key = row => row.cells[column].dataset.key, sign = down ? -1 : 1;
  const compare = (a, b) => {
    if (a === "" || b === "") return (a === "") - (b === "");           // what is missing stays at the end
    return sign * (isNaN(a) || isNaN(b) ? a.localeCompare(b, undefined, {numeric: true}) : a - b);
  };
  [...body.rows].sort((a, b) => compare(key(a), key(b))).forEach(row => body.append(row));
});
"""

SECTIONS = (
    (figures.pareto, "Objectives against each other", "Each dot a run; the mouse over it tells its options."),
    (
        figures.settings,
        "Settings over their seeds",
        "Best mean first. Intervals are Student's; a lone seed has none, and the widest are cut at the edge. Whether "
        "they overlap is not the test: the table below has that of the best setting against each other one.",
    ),
    (
        figures.parallel,
        "Options and metric",
        "A line for each run, the best one thick; grey: under way, or (dotted) collapsed or failed, whose metric is "
        "drawn no further than the worst of the others.",
    ),
    (
        figures.importance,
        "What the metric depends on",
        "Share of the metric's variance that goes with an option, by permutation in a random forest, on runs that it "
        "has not seen. What two options do together counts for both, and noise for none.",
    ),
    (figures.curves, "On the way", "A line for each run, coloured by the final metric; grey as above."),
)


def page(board: Leaderboard) -> str:
    """The page as HTML."""
    title = f"Leaderboard of {board.folder.resolve().name}"
    shared = options(board.runs[0].shared)
    sentences = "".join(f"<li>{html.escape(line)}</li>" for line in board.conclusions())
    sections = []
    for draw, heading, note in SECTIONS:
        figure = draw(board)
        if figure is not None:
            below = _table(setting_columns(board)) if draw is figures.settings else ""
            sections.append(f'<h2>{heading}</h2><p class="note">{note}</p>{_drawn(figure, draw.__name__)}{below}')
    written = time.strftime("%Y-%m-%d %H:%M")
    same = f" The same in all runs: <code>{html.escape(shared)}</code>." if shared and len(board.runs) > 1 else ""
    return f"""<!DOCTYPE html>
<html lang="en"><head><meta charset="utf-8"><title>{html.escape(title)}</title>
<meta name="viewport" content="width=device-width">
<style>{STYLE}</style><script>{get_plotlyjs()}</script></head><body>
<h1>{html.escape(title)}</h1>
<p class="note">By {html.escape(board.metric)} ({board.direction}), as of {written}.{same}</p>
<ul>{sentences}</ul>
{"".join(sections)}
<h2>Runs</h2><p class="note">A click on a heading sorts.</p>
{_table(run_columns(board), [kind_of(board, run) for run in board.runs])}
<script>{SORT}</script></body></html>
"""


def _drawn(figure: go.Figure, name: str) -> str:
    """A figure as a part of the page."""
    part = plotly.io.to_html(
        figure,
        include_plotlyjs=False,
        full_html=False,
        div_id=name,
        config={"displaylogo": False, "responsive": True, "modeBarButtonsToRemove": ["select2d", "lasso2d"]},
    )
    width = figure.layout.meta or NARROWEST
    return f'<div class="wide"><div style="min-width: {width}px">{part}</div></div>'


def _table(columns: Sequence[Column], kinds: Sequence[str] | None = None) -> str:
    """A table that a click sorts. kinds: classes of its rows."""
    head = "".join(f"<th{_style(column)}>{html.escape(column.heading)}</th>" for column in columns)
    rows = []
    for row, kind in enumerate(kinds or [""] * len(columns[0].cells)):
        cells = "".join(
            f'<td{_style(column)} data-key="{html.escape(column.keys[row])}">{html.escape(column.cells[row])}</td>'
            for column in columns
        )
        rows.append(f'<tr class="{kind}">{cells}</tr>')
    return f'<div class="wide tall"><table><thead><tr>{head}</tr></thead><tbody>{"".join(rows)}</tbody></table></div>'


def _style(column: Column) -> str:
    return "" if column.is_text else ' class="number"'
