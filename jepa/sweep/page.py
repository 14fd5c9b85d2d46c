"""A leaderboard as one HTML file that needs no network: conclusions, table and figures."""

from __future__ import annotations

import html
import math
import time
from typing import TYPE_CHECKING

import plotly.io
from plotly.offline import get_plotlyjs

from jepa.sweep import figures
from jepa.sweep.collect import Run, as_number
from jepa.sweep.leaderboard import shown_value
from jepa.sweep.wording import options

if TYPE_CHECKING:
    import plotly.graph_objects as go

    from jepa.sweep.leaderboard import Leaderboard

WIDTH_OF_AXIS = 120
"""Pixels that an axis of the parallel coordinates has at least; wider than the page they scroll."""

STYLE = """
body { font: 15px/1.5 system-ui, sans-serif; color: #1f2933; margin: 0 auto; padding: 1.5rem 2rem 4rem;
  max-width: 78rem }
h1 { font-size: 1.5rem; margin: 0; overflow-wrap: anywhere } h2 { font-size: 1.15rem; margin: 2.2rem 0 .3rem }
p.note { color: #616e7c; margin: .1rem 0 .6rem } li { margin: .25rem 0; overflow-wrap: anywhere }
div.wide { overflow-x: auto }
table { border-collapse: collapse; font-size: 13px; font-variant-numeric: tabular-nums }
th, td { padding: .3rem .7rem; border-bottom: 1px solid #e4e7eb; text-align: left; vertical-align: top }
td { max-width: 24rem; overflow-wrap: break-word } td.number { text-align: right; white-space: nowrap }
th { cursor: pointer; position: sticky; top: 0; background: #f5f7fa; white-space: nowrap }
th.up::after { content: " ▴" } th.down::after { content: " ▾" }
tr.bad td { color: #b42318; background: #fef3f2 } tr.open td { color: #7b8794 }
code { font-size: 13px; overflow-wrap: anywhere }
"""

SORT = """
document.querySelectorAll("th").forEach((head, column) => head.onclick = () => {
  const body = document.querySelector("tbody"), down = head.classList.contains("up");
  document.querySelectorAll("th").forEach(other => other.classList.remove("up", "down"));
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
        "Best mean first. Intervals are Student's; a lone seed has none. Whether they overlap is not the test: that is "
        "in the sentences above.",
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
        "Permutation importance in a random forest fitted to the runs that came to their end.",
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
            drawn = _drawn(figure, len(board.options) + 1 if draw is figures.parallel else 1, draw.__name__)
            sections.append(f'<h2>{heading}</h2><p class="note">{note}</p><div class="wide">{drawn}</div>')
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
{_table(board)}
<script>{SORT}</script></body></html>
"""


def _drawn(figure: go.Figure, axes: int, name: str) -> str:
    """A figure as a part of the page, at least as wide as its axes need."""
    part = plotly.io.to_html(
        figure,
        include_plotlyjs=False,
        full_html=False,
        div_id=name,
        config={"displaylogo": False, "responsive": True, "modeBarButtonsToRemove": ["select2d", "lasso2d"]},
    )
    return f'<div style="min-width: {WIDTH_OF_AXIS * axes}px">{part}</div>'


def _table(board: Leaderboard) -> str:
    """All runs, with the same columns as in the terminal."""
    head = "".join(f"<th>{html.escape(text)}</th>" for text in board.headings())
    rows = []
    for run in board.runs:
        kind = "bad" if run.state == "failed" or run.collapsed else "" if run.counts(board.metric) else "open"
        cells = zip(board.cells(run), _sort_keys(board, run), board.is_text())
        rows.append(f'<tr class="{kind}">{"".join(_cell(*cell) for cell in cells)}</tr>')
    return f'<div class="wide"><table><thead><tr>{head}</tr></thead><tbody>{"".join(rows)}</tbody></table></div>'


def _cell(text: str, key: str, is_text: bool) -> str:
    style = "" if is_text else ' class="number"'
    return f'<td{style} data-key="{html.escape(key)}">{html.escape(text)}</td>'


def _sort_keys(board: Leaderboard, run: Run) -> list[str]:
    """What the cells of a run are sorted by: numbers in full, times in seconds."""
    place = board.place(run)
    values = [shown_value(run, name) for name in board.columns()]
    given = [text if as_number(text) is None else repr(as_number(text)) for text in run.overrides.values()]
    figures_ = ["" if value is None or math.isnan(value) else repr(value) for value in values]
    cost = ["" if value is None else repr(value) for value in (run.seconds, run.status.step)]
    return ["" if place is None else str(place), run.folder, *given, *figures_, *cost, run.state]
