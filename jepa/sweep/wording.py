"""How options, numbers and times are written for people."""

from __future__ import annotations

import math
import re
from collections import Counter
from collections.abc import Iterable, Mapping, Sequence

DEFAULT = "(default)"
"""Value of an option that a run does not give."""

LONGEST = 8
"""Characters of a number that is shown as it was given."""

FIGURES = 7
"""Digits of the whole part up to which a number is written out."""

COUNTED_STATES = ("done", "running", "queued", "preempted", "stopped", "failed")
"""In the order they are counted in."""


def short_names(keys: Iterable[str]) -> dict[str, str]:
    """Key -> as few of its last parts as tell it from the others: "optimizer.lr" -> "lr"."""
    parts = {key: re.split(r"([./])", key) for key in keys}  # with what parts them
    short = {}
    for key, own in parts.items():
        others = [other[::2] for name, other in parts.items() if name != key]
        words = own[::2]
        used = next((n for n in range(1, len(words)) if all(o[-n:] != words[-n:] for o in others)), len(words))
        short[key] = "".join(own[1 - 2 * used :])
    return short


def number(value: float | None, digits: int = 4) -> str:
    """A figure in so many digits, or as many as its whole part has; nothing for None."""
    if value is None:
        return ""
    return f"{value:.0f}" if 10**digits <= abs(value) < 10**FIGURES else f"{value:.{digits}g}"


def padded(value: float | None) -> str:
    """A figure of a column: noughts at its end keep the points one below another."""
    if value is None or not 1e-3 <= abs(value) < 1e4:
        return number(value)
    return f"{value:#.4g}".rstrip(".")


def with_error(mean: float, half: float | None) -> str:
    """A mean and half its interval, to two digits of the latter: "0.973 ± 0.0042"."""
    if half is None:
        return number(mean)
    if not half > 0:
        return f"{number(mean)} ± 0"
    decimals = 1 - math.floor(math.log10(half))
    if decimals < 0 or decimals > 8 or abs(mean) >= 1e6:
        return f"{mean:.4g} ± {half:.2g}"
    return f"{mean:.{decimals}f} ± {half:.{decimals}f}"


def duration(seconds: float | None) -> str:
    """Seconds in the two largest units: "0.4 s", "3 min 05 s", "2 h 05 min", "3 d 04 h"; nothing for None."""
    if seconds is None or not math.isfinite(seconds):
        return ""
    if seconds < 9.95:
        return f"{max(0.0, seconds):.1f} s"
    whole = round(seconds)
    for size, unit, lower_size, lower in ((86400, "d", 3600, "h"), (3600, "h", 60, "min"), (60, "min", 1, "s")):
        if whole >= size:
            return f"{whole // size} {unit} {whole % size // lower_size:02d} {lower}"
    return f"{whole} s"


def progress(step: int | None, last: int | None) -> str:
    """Where a run is: "50/100"; nothing before the first step."""
    return "" if step is None else f"{step}/{last}" if last else f"{step}"


def shortened(text: str, length: int) -> str:
    """The first line of a text, cut to a length."""
    line = text.strip().splitlines()[0] if text.strip() else ""
    return line if len(line) <= length else line[: length - 1].rstrip() + "…"


def options(overrides: Mapping[str, str], names: Mapping[str, str] | None = None) -> str:
    """Options on a line: "lr=0.001 loss=mse"; those that are left at their default are none. names: short ones."""
    names = names or {}
    given = {key: value for key, value in overrides.items() if value != DEFAULT}
    return " ".join(f"{names.get(key, key)}={option(value)}" for key, value in given.items())


def option(value: str) -> str:
    """The value of an option, the many digits of a number that was drawn cut to four: "0.0016051911" -> "0.001605"."""
    if len(value) <= LONGEST or not re.fullmatch(r"-?\d*\.\d+(e-?\d+)?", value):
        return value
    return number(float(value))


def counted(states: Sequence[str]) -> str:
    """How many runs are in which state: "5 runs: 3 done, 2 failed"."""
    counts = Counter(states)
    parts = [f"{counts[state]} {state}" for state in COUNTED_STATES if counts[state]]
    return f"{plural(len(states), 'run')}: {', '.join(parts)}" if parts else "no runs"


def plural(count: int, noun: str) -> str:
    """ "1 run", "2 runs"."""
    return f"{count} {noun}" if count == 1 else f"{count} {noun}s"


def listed(items: Sequence[str]) -> str:
    """ "a", "a and b", "a, b and c"."""
    return items[0] if len(items) == 1 else f"{', '.join(items[:-1])} and {items[-1]}"


def first(items: Sequence[str], most: int) -> str:
    """ "a, b and 3 more"."""
    return listed([*items[:most], *([f"{len(items) - most} more"] if len(items) > most else [])])
