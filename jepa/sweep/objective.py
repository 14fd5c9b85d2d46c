"""What a sweep optimises: one or more metrics of a run, which way is better, and what a bad run counts as."""

from __future__ import annotations

import difflib
import math
from collections.abc import Mapping, Sequence
from dataclasses import dataclass

from jepa.utils.errors import UserError
from jepa.utils.metric_direction import DEFAULT_METRICS, Direction, direction_of
from jepa.utils.run_status import is_collapse

WORST: dict[Direction, float] = {"maximize": 0.0, "minimize": 1e9}
"""What a failed run counts as unless told otherwise. Finite, as samplers and plots want it: accuracies, ranks and
recalls are never below 0."""


@dataclass(frozen=True)
class Objective:
    """What a run is worth to a sweep.

    metrics: the names asked for; empty for the first of `defaults` that the run has. directions: one for each.
    failed_values: what a failed run counts as, one for each. collapsed_counts: whether a run that the monitor finds
    collapsed is worth what it measured, or as much as a failed one.
    """

    metrics: tuple[str, ...]
    directions: tuple[Direction, ...]
    failed_values: tuple[float, ...]
    collapsed_counts: bool = False
    defaults: tuple[str, ...] = DEFAULT_METRICS

    @classmethod
    def of(
        cls,
        metrics: str | Sequence[str] | None,
        direction: str | Sequence[str] | None = None,
        failed_value: float | Sequence[float] | None = None,
        collapsed: str = "failed",
        evaluated: bool = True,
    ) -> Objective:
        """From what a configuration says: `optimized_metric`, `sweep.{direction, failed_value, collapsed}`.

        evaluated: whether the run has an evaluation, without which the first default cannot come.

        Raises UserError for a word that is none of those expected, or another number of values than of metrics.
        """
        names = (metrics,) if isinstance(metrics, str) else () if metrics is None else metrics
        if not isinstance(names, Sequence) or not all(isinstance(name, str) for name in names):
            raise UserError(f"optimized_metric={metrics}: expected the name of a metric, or a list of names")
        if len(set(names)) < len(names):
            raise UserError(f"optimized_metric={metrics}: a metric is given twice")
        names, defaults = tuple(names), DEFAULT_METRICS if evaluated else DEFAULT_METRICS[1:]
        count = max(1, len(names))
        directions = _one_each("sweep.direction", direction, count) or [
            direction_of(name) for name in names or defaults[:1]
        ]
        if wrong := [word for word in directions if word not in WORST]:
            raise UserError(f"sweep.direction={wrong[0]}: expected maximize, minimize, or null (by the metric's name)")
        if collapsed not in ("failed", "measured"):
            raise UserError(f"sweep.collapsed={collapsed}: expected failed (as bad as a failed run) or measured")
        values = _one_each("sweep.failed_value", failed_value, count) or [WORST[word] for word in directions]
        try:
            failed_values = tuple(map(float, values))
        except (TypeError, ValueError) as error:
            raise UserError(f"sweep.failed_value={failed_value}: expected a number, or one for each metric") from error
        return cls(names, tuple(directions), failed_values, collapsed == "measured", defaults)

    def measured(self, metrics: Mapping[str, float], verdict: str | None = None) -> dict[str, float]:
        """What a finished run is worth, by metric; empty where nothing was asked for and nothing came.

        verdict: the collapse monitor's. Raises UserError for a metric that was asked for and is not among them.
        """
        names = self.metrics or tuple(name for name in self.defaults if name in metrics)[:1]
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
        names = tuple(names) or self.metrics or self.defaults[:1]
        if not self.metrics and names != self.defaults[:1]:  # a run without labels, found out at its end
            return {names[0]: WORST[direction_of(names[0])]}
        return dict(zip(names, self.failed_values))


def evaluates(evaluation: Mapping[str, object] | None) -> bool:
    """Whether the `evaluation` of a configuration is ever due."""
    return any((evaluation or {}).get(key) for key in ("at_end", "every_epochs", "every_steps"))


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
