"""The one predicate of when something periodic happens, and what a period is."""

from __future__ import annotations

import math

from jepa.types import RunLength


def due(step: int, every: float | None) -> bool:
    """Whether a multiple of `every` steps (need not be whole) was reached with this step; never for None."""
    return every is not None and math.floor(step / every) > math.floor((step - 1) / every)


def period(name: str, epochs: float | None, steps: int | None, run_length: RunLength) -> float | None:
    """Steps between two events given in epochs or in steps, which win; None when neither is given.

    Raises ValueError when the period is not positive.
    """
    if (epochs is not None and epochs <= 0) or (steps is not None and steps < 1):
        raise ValueError(f"{name}_every_epochs and {name}_every_steps must be positive, or null for never")
    if steps is not None or epochs is None:
        return steps
    return epochs * run_length.steps_per_epoch
