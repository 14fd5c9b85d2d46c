"""Format options, numbers, times, sizes, lists and tables for people."""

from __future__ import annotations

import math
import os
import re
from collections import Counter
from collections.abc import Iterable, Mapping, Sequence
from dataclasses import dataclass

from rich.box import SIMPLE_HEAD
from rich.console import Console
from rich.filesize import pick_unit_and_suffix
from rich.table import Table
from rich.text import Text

from jepa.utils.run_status import State, Status

DEFAULT = "(default)"  # value of an option that a run does not set and its config.yaml does not have
DEFAULT_WIDTH = 160  # characters of a line if the output is no terminal
MAX_TEXT = 24  # characters to which a text is cut, or the room that is kept for one that may be folded

STATES: tuple[State, ...] = ("done", "running", "queued", "preempted", "stopped", "failed", "damaged")


def short_names(keys: Iterable[str]) -> dict[str, str]:
    """Return key -> its shortest unambiguous ending: "optimizer.lr" -> "lr"."""
    parts = {key: re.split(r"([./])", key) for key in keys}  # words and separators
    short = {}
    for key, own in parts.items():
        others = [other[::2] for name, other in parts.items() if name != key]
        words = own[::2]
        used = next((n for n in range(1, len(words)) if all(o[-n:] != words[-n:] for o in others)), len(words))
        short[key] = "".join(own[1 - 2 * used :])
    return short


def number(value: float | None, digits: int = 4) -> str:
    """Return a number with so many digits, or all of its integer part up to a million; "" for None."""
    if value is None:
        return ""
    return f"{value:.0f}" if 10**digits <= abs(value) < 1e7 else f"{value:.{digits}g}"


def padded(value: float | None) -> str:
    """Return a number with trailing zeros, which align a column."""
    return number(value) if value is None or not 1e-3 <= abs(value) < 1e4 else f"{value:#.4g}".rstrip(".")


def with_error(mean: float, half: float | None) -> str:
    """Return a mean and half the width of its interval, to two digits of the latter: "0.973 ± 0.0042"."""
    if half is None:
        return number(mean)
    if not half > 0:
        return f"{number(mean)} ± 0"
    decimals = 1 - math.floor(math.log10(half))
    if decimals < 0 or decimals > 8 or abs(mean) >= 1e6:
        return f"{mean:.4g} ± {half:.2g}"
    return f"{mean:.{decimals}f} ± {half:.{decimals}f}"


def duration(seconds: float | None) -> str:
    """Return seconds in their two largest units: "0.4 s", "3 min 05 s", "2 h 05 min", "3 d 04 h"; "" for None."""
    if seconds is None or not math.isfinite(seconds):
        return ""
    if seconds < 9.95:
        return f"{max(0.0, seconds):.1f} s"
    rounded = round(seconds)
    for size, unit, lower_size, lower in ((86400, "d", 3600, "h"), (3600, "h", 60, "min"), (60, "min", 1, "s")):
        if rounded >= size:
            return f"{rounded // size} {unit} {rounded % size // lower_size:02d} {lower}"
    return f"{rounded} s"


def progress(status: Status) -> str:
    """Return "50/100"; "" before the first step."""
    if status.step is None:
        return ""
    return f"{status.step}/{status.max_steps}" if status.max_steps else f"{status.step}"


def shortened(text: str, length: int) -> str:
    """Return the first line of a text, cut to a length."""
    line = text.strip().splitlines()[0] if text.strip() else ""
    return line if len(line) <= length else line[: length - 1].rstrip() + "…"


def option(value: str) -> str:
    """Return an option's value, with drawn numbers cut to four digits: "0.0016051911" -> "0.001605"."""
    return number(float(value)) if len(value) > 8 and re.fullmatch(r"-?\d*\.\d+(e-?\d+)?", value) else value


def options(overrides: Mapping[str, str], names: Mapping[str, str] | None = None) -> str:
    """Return "lr=0.001 loss=mse", without options left at their default. names: short ones."""
    names = names or {}
    return " ".join(f"{names.get(key, key)}={option(value)}" for key, value in overrides.items() if value != DEFAULT)


def count_states(states: Sequence[State]) -> str:
    """Return "5 runs: 3 done, 2 failed"."""
    counts = Counter(states)
    return f"{plural(len(states), 'run')}: {', '.join(f'{counts[s]} {s}' for s in STATES if counts[s])}"


def plural(count: int, noun: str) -> str:
    """Return "1 run", "2 runs"."""
    return f"{count} {noun}" if count == 1 else f"{count} {noun}s"


def joined(items: Sequence[str], limit: int | None = None) -> str:
    """Return "a", "a and b", "a, b and c"; with a limit "a, b and 3 more"."""
    if limit is not None and len(items) > limit:
        items = [*items[:limit], f"{len(items) - limit} more"]
    return items[0] if len(items) == 1 else f"{', '.join(items[:-1])} and {items[-1]}"


def shape_text(shape: Sequence[int]) -> str:
    """Return "3 x 224 x 224"."""
    return " x ".join(map(str, shape))


def shapes_text(shapes: Sequence[Sequence[int]]) -> str:
    """Return shapes with equal ones counted: "2 of 64 x 128, scalar"."""
    counts = Counter(shape_text(shape) or "scalar" for shape in shapes)
    return ", ".join(f"{count} of {shape}" if count > 1 else shape for shape, count in counts.items())


def binary_size(size: float) -> str:
    """Return bytes in a fitting unit: "1.5 GiB"."""
    unit, suffix = pick_unit_and_suffix(int(size), ["B", "KiB", "MiB", "GiB", "TiB"], 1024)
    return f"{size / unit:,.{0 if unit == 1 else 1}f} {suffix}"


def si_prefix(value: float) -> str:
    """Return a number with an SI prefix, to stand before a unit: "1.5 G"."""
    unit, prefix = pick_unit_and_suffix(int(value), ["", "k", "M", "G", "T", "P", "E", "Z"], 1000)
    return f"{value / unit:.3g} {prefix}"


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
        return shortened(self.cells[row], MAX_TEXT) if self.is_text and not self.folds else self.cells[row]

    def width(self, rows: int) -> int:
        """Return the characters that the first rows need."""
        longest = max(len(self.shown(row)) for row in range(rows))
        return max(len(self.heading), min(longest, MAX_TEXT) if self.folds else longest)


def terminal() -> Console:
    """Return a console as wide as the terminal, or of DEFAULT_WIDTH where there is none."""
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
