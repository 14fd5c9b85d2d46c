"""Tables for a terminal: columns of low priority are left out if a line has no room."""

from __future__ import annotations

import math
import os
from collections.abc import Sequence
from dataclasses import dataclass

from rich.box import SIMPLE_HEAD
from rich.console import Console
from rich.table import Table
from rich.text import Text

from jepa.report.formatting import joined, shortened

DEFAULT_WIDTH = 160  # characters of a line if the output is no terminal
MAX_TEXT = 24  # characters to which a text is cut, or the room that is kept for one that may be folded


@dataclass(frozen=True, eq=False)
class Column:
    """cells: one text for each row. priority: columns with the lowest are left out first; infinite: never."""

    heading: str
    cells: list[str]
    is_text: bool = False
    priority: float = math.inf

    @property
    def folds(self) -> bool:
        """Whether a cell may go over several lines: texts that must be shown in full."""
        return self.is_text and self.priority == math.inf

    def shown(self, row: int) -> str:
        """Return a cell as a terminal shows it."""
        return shortened(self.cells[row], MAX_TEXT) if self.is_text and not self.folds else self.cells[row]

    def width(self, rows: int) -> int:
        """Return the characters that the first rows need."""
        longest = max(len(self.shown(row)) for row in range(rows))
        return max(len(self.heading), min(longest, MAX_TEXT) if self.folds else longest)


def terminal() -> Console:
    """Return the console of the terminal."""
    console = Console()
    return console if console.is_terminal or "COLUMNS" in os.environ else Console(width=DEFAULT_WIDTH)


def rich_table(
    columns: Sequence[Column], width: int, *, styles: Sequence[str], title: str = "", limit: int | None = None
) -> Table:
    """Return a rich table of the first `limit` rows that fits into `width` characters. styles: one for each row."""
    rows = len(styles) if limit is None else min(limit, len(styles))
    columns = [column for column in columns if any(column.cells)]
    kept = list(columns)
    while 1 + sum(3 + column.width(rows) for column in kept) > width:
        lowest = min(reversed(kept), key=lambda column: column.priority)
        if lowest.priority == math.inf:
            break
        kept.remove(lowest)
    notes = [f"and {len(styles) - rows} more: limit={len(styles)}"] if rows < len(styles) else []
    if left_out := [column.heading for column in columns if column not in kept]:
        notes.append(f"no room for {joined(left_out, 3)}")
    above, below = Text(title, "table.title"), Text("; ".join(notes), "table.caption")  # as text, not markup
    table = Table(box=SIMPLE_HEAD, title=above or None, caption=below or None)
    for column in kept:
        justify = "left" if column.is_text else "right"
        table.add_column(Text(column.heading), justify=justify, overflow="fold", no_wrap=not column.folds)
    for row, style in enumerate(styles[:rows]):
        table.add_row(*(Text(column.shown(row)) for column in kept), style=style)
    return table
