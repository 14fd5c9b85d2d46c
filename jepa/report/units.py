"""Format shapes, bytes and large numbers."""

from __future__ import annotations

from collections import Counter
from collections.abc import Sequence


def shape_text(shape: Sequence[int]) -> str:
    """Return "3 x 224 x 224"."""
    return " x ".join(map(str, shape))


def shapes_text(shapes: Sequence[Sequence[int]]) -> str:
    """Return shapes with equal ones counted: "2 of 64 x 128, 4 scalars"."""
    texts = []
    for shape, count in Counter(map(shape_text, shapes)).items():
        if shape:
            texts.append(f"{count} of {shape}" if count > 1 else shape)
        else:
            texts.append(f"{count} scalars" if count > 1 else "scalar")
    return ", ".join(texts)


def binary_size(size: float) -> str:
    """Return bytes in a fitting unit: "1.5 GiB"."""
    for unit in ("B", "KiB", "MiB", "GiB"):
        if size < 1024:
            return f"{size:.0f} B" if unit == "B" else f"{size:.1f} {unit}"
        size /= 1024
    return f"{size:,.1f} TiB"


def si_prefix(value: float) -> str:
    """Return a number with an SI prefix, to stand before a unit: "1.5 G"."""
    for prefix in ("", "k", "M", "G", "T", "P", "E"):
        if value < 1000:
            return f"{value:.3g} {prefix}"
        value /= 1000
    return f"{value:,.0f} Z"
