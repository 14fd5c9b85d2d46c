"""A leaderboard as one HTML file that needs no network: sentences, figures and tables."""

from __future__ import annotations

import html
import time
from collections.abc import Sequence
from pathlib import Path

from plotly.offline import get_plotlyjs

from jepa.report import leaderboard_plots as plots
from jepa.report.formatting import Column, options
from jepa.report.leaderboard import Leaderboard
from jepa.report.leaderboard_summary import summary
from jepa.report.leaderboard_tables import row_kind, run_columns, setting_columns
from jepa.utils.files import write_text
from jepa.utils.read_data import printable

STYLE = """
body { font: 15px/1.5 system-ui, sans-serif; color: #1f2933; margin: 0 auto; padding: 1.5rem 2rem 4rem;
  max-width: 78rem }
h1 { font-size: 1.5rem; margin: 0; overflow-wrap: anywhere } h2 { font-size: 1.15rem; margin: 2.2rem 0 .3rem }
p.note { color: #616e7c; margin: .1rem 0 .6rem } li { margin: .25rem 0; overflow-wrap: anywhere }
div.wide { overflow-x: auto } div.tall { max-height: 90vh; overflow-y: auto } div.figure { min-width: 560px }
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
  const body = head.closest("table").tBodies[0], text = row => row.cells[head.cellIndex].textContent;
  const down = head.classList.contains("up"), parse = head.classList.contains("number") ? parseFloat : Number;
  head.parentNode.querySelectorAll("th").forEach(other => other.classList.remove("up", "down"));
  head.classList.add(down ? "down" : "up");
  const compare = (a, b) => {
    if (a === "" || b === "") return (a === "") - (b === "");           // empty cells stay at the end
    const difference = parse(a) - parse(b);
    return (down ? -1 : 1) * (isNaN(difference) ? a.localeCompare(b, undefined, {numeric: true}) : difference);
  };
  [...body.rows].sort((a, b) => compare(text(a), text(b))).forEach(row => body.append(row));
});
"""

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
        "A line for each run, from the worst (yellow) to the best (dark blue); grey: under way, collapsed or failed, "
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
    title = html.escape(f"Leaderboard of {printable(board.folder.resolve().name, keep='')}")
    shared = html.escape(options(board.runs[0].shared))
    same = f" The same in all runs: <code>{shared}</code>." if shared and len(board.runs) > 1 else ""
    sections = []
    for draw, heading, note in FIGURES:
        figure = draw(board)
        if figure is not None:
            part = figure.to_html(include_plotlyjs=False, full_html=False, div_id=draw.__name__, config=CONTROLS)
            table = _html_table(setting_columns(board)) if draw is plots.settings else ""
            sections.append(
                f'<h2>{heading}</h2><p class="note">{note}</p>'
                f'<div class="wide"><div class="figure">{part}</div></div>{table}'
            )
    sentences = "".join(f"<li>{html.escape(line)}</li>" for line in summary(board))
    columns = run_columns(board, write_seconds=lambda value: "" if value is None else f"{value:.1f} s")
    return f"""<!DOCTYPE html>
<html lang="en"><head><meta charset="utf-8"><title>{title}</title>
<meta name="viewport" content="width=device-width">
<style>{STYLE}</style><script>{get_plotlyjs()}</script></head><body>
<h1>{title}</h1>
<p class="note">By {html.escape(board.metric)} ({board.direction}), as of {time.strftime("%Y-%m-%d %H:%M")}.{same}</p>
<ul>{sentences}</ul>
{"".join(sections)}
<h2>Runs</h2><p class="note">Click on a heading to sort.</p>
{_html_table(columns, [row_kind(board, run) for run in board.runs])}
<script>{SORT}</script></body></html>
"""


def _html_table(columns: Sequence[Column], kinds: Sequence[str] | None = None) -> str:
    """Return a table that a click sorts, without empty columns. kinds: CSS classes of its rows."""
    columns = [column for column in columns if any(column.cells)]
    classes = ["" if column.is_text else ' class="number"' for column in columns]
    head = "".join(f"<th{name}>{html.escape(column.heading)}</th>" for column, name in zip(columns, classes))
    rows = []
    for row, kind in enumerate(kinds or [""] * len(columns[0].cells)):
        cells = "".join(f"<td{name}>{html.escape(column.cells[row])}</td>" for column, name in zip(columns, classes))
        rows.append(f'<tr class="{kind}">{cells}</tr>')
    return f'<div class="wide tall"><table><thead><tr>{head}</tr></thead><tbody>{"".join(rows)}</tbody></table></div>'
