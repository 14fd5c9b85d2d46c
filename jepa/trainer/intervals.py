"""How often the loop logs, measures and saves."""

from __future__ import annotations

import math
from dataclasses import dataclass
from typing import Any

from jepa.types import RunLength


@dataclass(frozen=True, kw_only=True)
class Intervals:
    """Steps between two events of each kind, which need not be whole; None is never.

    probe: the online probe. evaluate: the evaluation of frozen features. snapshot: checkpoints that stay.
    """

    log: float = 10
    validate: float | None = None
    probe: float | None = None
    evaluate: float | None = None
    save: float | None = None
    snapshot: float | None = None


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


def make_intervals(
    run_length: RunLength,
    evaluation: Any | None,
    log_every: int,
    *,
    validate: tuple[float | None, int | None],
    save: tuple[float | None, int | None],
    snapshot: tuple[float | None, int | None],
) -> Intervals:
    """Intervals in steps from pairs of (epochs, steps) and those of an evaluation. Raises ValueError as `period`."""
    periods = {"validate": validate, "save": save, "snapshot": snapshot}
    if evaluation is not None:
        periods["evaluation"] = (evaluation.every_epochs, evaluation.every_steps)
        periods["evaluation.online"] = (evaluation.online_every_epochs, evaluation.online_every_steps)
    steps = {name: period(name, *pair, run_length) for name, pair in periods.items()}
    return Intervals(
        log=log_every,
        validate=steps["validate"],
        probe=steps.get("evaluation.online"),
        evaluate=steps.get("evaluation"),
        save=steps["save"],
        snapshot=steps["snapshot"],
    )
