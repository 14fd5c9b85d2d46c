"""Tables for a terminal, of the columns for which a line has room."""

from __future__ import annotations

import math
import os
from collections.abc import Callable, Sequence
from dataclasses import dataclass
from typing import TYPE_CHECKING

from jepa.sweep.wording import first, number, shortened

if TYPE_CHECKING:
    from rich.console import Console
    from rich.table import Table

WIDTH = 160
"""Characters of a line where no terminal says."""

LONGEST = 24
"""Characters of a word that may be cut, and room that is made for what can be folded."""


@dataclass(frozen=True, eq=False)
class Column:
    """cells: a text for each row. keys: what the rows are sorted by: numbers in full, "" where there is nothing.

    is_text: whether these are words and not numbers. worth: columns with the least are left out first where a line has
    no room for all.
    """

    heading: str
    cells: list[str]
    keys: list[str]
    is_text: bool = False
    worth: float = math.inf


def words(heading: str, cells: Sequence[str], worth: float = math.inf) -> Column:
    """A column of words."""
    return Column(heading, list(cells), list(cells), is_text=True, worth=worth)


def numbers(
    heading: str,
    values: Sequence[float | None],
    write: Callable[[float | None], str] = number,
    worth: float = math.inf,
) -> Column:
    """A column of numbers. write: gives their text."""
    keys = ["" if value is None or math.isnan(value) else repr(value) for value in values]
    return Column(heading, [write(value) for value in values], keys, worth=worth)


def console() -> Console:
    """The terminal, or what stands in for one."""
    from rich.console import Console

    found = Console()
    return found if found.is_terminal or "COLUMNS" in os.environ else Console(width=WIDTH)


def drawn(
    columns: Sequence[Column],
    width: int,
    *,
    styles: Sequence[str],
    title: str | None = None,
    limit: int | None = None,
) -> Table:
    """A rich table of the first rows, with what fits into a line. styles: of the rows."""
    from rich.box import SIMPLE_HEAD
    from rich.table import Table
    from rich.text import Text

    shown = len(styles) if limit is None else min(limit, len(styles))
    columns = [column for column in columns if any(column.cells)]
    kept = fitting(columns, shown, width)
    notes = [f"and {len(styles) - shown} more: limit={len(styles)}"] if shown < len(styles) else []
    if left_out := [column.heading for column in columns if column not in kept]:
        notes.append(f"no room for {first(left_out, 3)}")
    table = Table(box=SIMPLE_HEAD, title=title, caption="; ".join(notes) or None)
    for column in kept:
        justify = "left" if column.is_text else "right"
        table.add_column(Text(column.heading), justify=justify, overflow="fold", no_wrap=not can_fold(column))
    for row, style in enumerate(styles[:shown]):
        table.add_row(*(Text(in_terminal(column, row)) for column in kept), style=style)
    return table


def fitting(columns: Sequence[Column], rows: int, width: int) -> list[Column]:
    """The columns that fit into a line, the least worth and the last left out first; those of infinite worth stay."""
    kept = list(columns)

    def room() -> int:
        return 1 + sum(3 + room_of(column, rows) for column in kept)

    while room() > width:
        least = min(reversed(kept), key=lambda column: column.worth)
        if least.worth == math.inf:
            break
        kept.remove(least)
    return kept


def room_of(column: Column, rows: int) -> int:
    """Characters that a column needs for its first rows."""
    longest = max(len(in_terminal(column, row)) for row in range(rows))
    return max(len(column.heading), min(longest, LONGEST) if can_fold(column) else longest)


def in_terminal(column: Column, row: int) -> str:
    """A cell as a terminal shows it, with words cut that are not worth all of their room."""
    cell = column.cells[row]
    return shortened(cell, LONGEST) if column.is_text and column.worth < math.inf else cell


def can_fold(column: Column) -> bool:
    """Whether a cell may go over several lines: words of which nothing may be lost."""
    return column.is_text and column.worth == math.inf
