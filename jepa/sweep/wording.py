"""How options, numbers and times are written for people."""

from __future__ import annotations

import math
import re
from collections import Counter
from collections.abc import Iterable, Mapping, Sequence

LONGEST = 8
"""Characters of a number that is shown as it was given."""

COUNTED_STATES = ("done", "running", "queued", "preempted", "stopped", "failed")
"""In the order they are counted in."""


def short_names(keys: Iterable[str]) -> dict[str, str]:
    """Key -> as few of its last parts as tell it from the others: "optimizer.lr" -> "lr"."""
    parts = {key: re.split(r"[./]", key) for key in keys}
    short = {}
    for key, own in parts.items():
        others = [other for name, other in parts.items() if name != key]
        used = next((n for n in range(1, len(own) + 1) if all(o[-n:] != own[-n:] for o in others)), len(own))
        short[key] = ".".join(own[-used:]) if used < len(own) else key
    return short


def number(value: float | None, digits: int = 4) -> str:
    """A figure in so many digits; nothing for None."""
    return "" if value is None else f"{value:.{digits}g}"


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
    """Seconds in the two largest units: "4 s", "3 min 05 s", "2 h 05 min", "3 d 04 h"; nothing for None."""
    if seconds is None or not math.isfinite(seconds):
        return ""
    whole = max(0, round(seconds))
    for size, unit, lower_size, lower in ((86400, "d", 3600, "h"), (3600, "h", 60, "min"), (60, "min", 1, "s")):
        if whole >= size:
            return f"{whole // size} {unit} {whole % size // lower_size:02d} {lower}"
    return f"{whole} s"


def shortened(text: str, length: int) -> str:
    """The first line of a text, cut to a length."""
    line = text.strip().splitlines()[0] if text.strip() else ""
    return line if len(line) <= length else line[: length - 1].rstrip() + "…"


def options(overrides: Mapping[str, str], names: Mapping[str, str] | None = None) -> str:
    """Options on a line: "lr=0.001 loss=mse". names: short ones."""
    names = names or {}
    return " ".join(f"{names.get(key, key)}={option(value)}" for key, value in overrides.items())


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
