"""What a sweep optimises: one or more metrics of a run, which way is better, and what a bad run counts as."""

from __future__ import annotations

import difflib
import math
from collections.abc import Mapping, Sequence
from dataclasses import dataclass

from jepa.utils.errors import UserError
from jepa.utils.metrics import Direction, direction_of
from jepa.utils.status import is_collapse

DEFAULT_METRICS = ("eval/trained/linear", "val/loss")
"""What is optimised where nothing else is asked for: the first of these that a run has."""

WORST: dict[Direction, float] = {"maximize": 0.0, "minimize": 1e9}
"""What a failed run counts as unless told otherwise. Finite, as samplers and plots want it: accuracies, ranks and
recalls are never below 0."""


@dataclass(frozen=True)
class Objective:
    """What a run is worth to a sweep.

    metrics: the names asked for; empty for the first of `DEFAULT_METRICS` that the run has. directions: one for each.
    failed_values: what a failed run counts as, one for each. collapsed_counts: whether a run that the monitor finds
    collapsed is worth what it measured, or as much as a failed one.
    """

    metrics: tuple[str, ...]
    directions: tuple[Direction, ...]
    failed_values: tuple[float, ...]
    collapsed_counts: bool = False

    @classmethod
    def of(
        cls,
        metrics: str | Sequence[str] | None,
        direction: str | Sequence[str] | None = None,
        failed_value: float | Sequence[float] | None = None,
        collapsed: str = "failed",
    ) -> Objective:
        """From what a configuration says: `optimized_metric`, `sweep.{direction, failed_value, collapsed}`.

        Raises UserError for a word that is none of those expected, or another number of values than of metrics.
        """
        names = (metrics,) if isinstance(metrics, str) else tuple(metrics or ())
        count = max(1, len(names))
        directions = _one_each("sweep.direction", direction, count) or [
            direction_of(name) for name in names or DEFAULT_METRICS[:1]
        ]
        if wrong := [word for word in directions if word not in WORST]:
            raise UserError(f"sweep.direction={wrong[0]}: expected maximize, minimize, or null (by the metric's name)")
        if collapsed not in ("failed", "measured"):
            raise UserError(f"sweep.collapsed={collapsed}: expected failed (as bad as a failed run) or measured")
        values = _one_each("sweep.failed_value", failed_value, count) or [WORST[word] for word in directions]
        return cls(names, tuple(directions), tuple(map(float, values)), collapsed == "measured")

    def measured(self, metrics: Mapping[str, float], verdict: str | None = None) -> dict[str, float]:
        """What a finished run is worth, by metric; empty where nothing was asked for and nothing came.

        verdict: the collapse monitor's. Raises UserError for a metric that was asked for and is not among them.
        """
        names = self.metrics or tuple(name for name in DEFAULT_METRICS if name in metrics)[:1]
        for name in names:
            if name not in metrics:
                close = difflib.get_close_matches(name, metrics, n=1)
                hint = f"did you mean {close[0]}?" if close else f"there are {', '.join(sorted(metrics)) or 'none'}"
                raise UserError(f"optimized_metric={name} was not among the metrics of the run: {hint}")
        if not self.collapsed_counts and is_collapse(verdict):
            return self.bad(names)
        values = {name: float(metrics[name]) for name in names}
        bad = self.bad(names)
        return {name: value if math.isfinite(value) else bad[name] for name, value in values.items()}

    def bad(self, names: Sequence[str] = ()) -> dict[str, float]:
        """What a failed run counts as, by metric."""
        names = tuple(names) or self.metrics or DEFAULT_METRICS[:1]
        if names == DEFAULT_METRICS[1:] and not self.metrics:  # a run without labels, found out at its end
            return {names[0]: WORST[direction_of(names[0])]}
        return dict(zip(names, self.failed_values))


def as_returned(values: Mapping[str, float]) -> float | tuple[float, ...] | None:
    """The values as Hydra's sweepers take them: a number, several, or None."""
    numbers = tuple(values.values())
    return (numbers or (None,))[0] if len(numbers) < 2 else numbers


def _one_each(key: str, value: object, count: int) -> list | None:
    """One setting for each metric. Raises UserError for another number of them."""
    if value is None:
        return None
    values = list(value) if isinstance(value, Sequence) and not isinstance(value, str) else [value] * count
    if len(values) != count:
        raise UserError(f"{key}={value}: got {len(values)} values for {count} of optimized_metric, expected one each")
    return values
