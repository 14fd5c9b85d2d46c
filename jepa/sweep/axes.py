"""Where the values of an option stand on an axis from 0 to 1: evenly, by size, or by the logarithm of that."""

from __future__ import annotations

import math
from collections.abc import Sequence
from dataclasses import dataclass

from jepa.sweep.collect import as_number, canonical, natural
from jepa.sweep.importance import logarithmic
from jepa.sweep.wording import number

FEW = 6
"""So many different values have a tick each."""

APART = 0.06
"""How far two ticks are apart at least."""


@dataclass(frozen=True)
class Axis:
    """positions: of the values, in their order. ticks: position and text. Numbers rise upwards; words are sorted."""

    name: str
    positions: list[float]
    ticks: list[tuple[float, str]]
    is_log: bool = False


def axis_of(name: str, values: Sequence[str]) -> Axis:
    """The axis of these values: of numbers where all are, else of words."""
    figures = [as_number(value) for value in values]
    if any(figure is None for figure in figures):
        words = sorted({canonical(value) for value in values}, key=natural)
        places = {word: _share(index, 0, len(words) - 1) for index, word in enumerate(words)}
        ticks = _apart([(place, word) for word, place in places.items()])
        return Axis(name, [places[canonical(value)] for value in values], ticks)
    is_log = logarithmic(figures)
    scale = math.log10 if is_log else float
    low, high = scale(min(figures)), scale(max(figures))
    different = sorted(set(figures))
    if len(different) > FEW:
        inner = [10**point for point in _round(low, high, 1)] if is_log else _round(low, high, _step(low, high))
        different = [different[0], *inner, different[-1]]
    ticks = _apart([(_share(scale(figure), low, high), number(figure)) for figure in different])
    return Axis(name, [_share(scale(figure), low, high) for figure in figures], ticks, is_log)


def _share(value: float, low: float, high: float) -> float:
    """Where a value stands between two others; in the middle where they are one."""
    return (value - low) / (high - low) if high > low else 0.5


def _step(low: float, high: float) -> float:
    """A round step of which three to six go between two numbers."""
    power = 10 ** math.floor(math.log10((high - low) / 3))
    return max(power * size for size in (1, 2, 5) if 3 * power * size <= high - low)


def _round(low: float, high: float, step: float) -> list[float]:
    """The multiples of a step between two numbers."""
    return [step * index for index in range(math.ceil(low / step), math.floor(high / step) + 1)]


def _apart(ticks: list[tuple[float, str]]) -> list[tuple[float, str]]:
    """Ticks without those that would overlap; the first and the last stay."""
    kept: list[tuple[float, str]] = []
    for position, text in ticks:
        if not kept or position - kept[-1][0] >= APART:
            kept.append((position, text))
        elif (position, text) == ticks[-1] and len(kept) > 1:
            kept[-1] = (position, text)
    return kept
