"""What a sweep optimises: one or more metrics of a run, their directions, and the values of a failed run."""

from __future__ import annotations

import difflib
import math
from collections.abc import Mapping, Sequence
from dataclasses import dataclass

from jepa.utils.errors import UserError
from jepa.utils.metric_direction import DEFAULT_METRICS, Direction, direction_of
from jepa.utils.run_status import is_collapse

FAILED_VALUE: dict[Direction, float] = {"maximize": 0.0, "minimize": 1e9}
"""Default value of a failed run. Finite, as samplers and plots need it; accuracies and ranks are never below 0."""


@dataclass(frozen=True)
class SweepObjective:
    """The metrics that a sweep optimises.

    metrics: names; empty for the first of `defaults` that the run has. directions, failed_values: one for each.
    keep_collapsed: a collapsed run keeps its measured values instead of counting as failed.
    """

    metrics: tuple[str, ...]
    directions: tuple[Direction, ...]
    failed_values: tuple[float, ...]
    keep_collapsed: bool = False
    defaults: tuple[str, ...] = DEFAULT_METRICS

    @classmethod
    def of(
        cls,
        metrics: str | Sequence[str] | None,
        direction: str | Sequence[str] | None = None,
        failed_value: float | Sequence[float] | None = None,
        collapsed: str = "failed",
        evaluated: bool = True,
    ) -> SweepObjective:
        """Return the objective of `optimized_metric` and `sweep.{direction, failed_value, collapsed}`.

        evaluated: whether the run has an evaluation; without one the last default metric alone is measured.

        Raise UserError for an unknown word, or if the number of values is not the number of metrics.
        """
        names = (metrics,) if isinstance(metrics, str) else () if metrics is None else metrics
        if not isinstance(names, Sequence) or not all(isinstance(name, str) for name in names):
            raise UserError(f"optimized_metric={metrics}: expected the name of a metric, or a list of names")
        if len(set(names)) < len(names):
            raise UserError(f"optimized_metric={metrics}: a metric is given twice")
        names, defaults = tuple(names), DEFAULT_METRICS if evaluated else DEFAULT_METRICS[-1:]
        count = max(1, len(names))
        directions = _one_each("sweep.direction", direction, count) or [
            direction_of(name) for name in names or defaults[:1]
        ]
        if wrong := [word for word in directions if word not in FAILED_VALUE]:
            raise UserError(f"sweep.direction={wrong[0]}: expected maximize, minimize, or null (by the metric's name)")
        if collapsed not in ("failed", "measured"):
            raise UserError(f"sweep.collapsed={collapsed}: expected failed (as bad as a failed run) or measured")
        values = _one_each("sweep.failed_value", failed_value, count) or [FAILED_VALUE[word] for word in directions]
        try:
            failed_values = tuple(map(float, values))
        except (TypeError, ValueError) as error:
            raise UserError(f"sweep.failed_value={failed_value}: expected a number, or one for each metric") from error
        return cls(names, tuple(directions), failed_values, collapsed == "measured", defaults)

    def measured(self, metrics: Mapping[str, float], verdict: str | None = None) -> dict[str, float]:
        """Return the values of a finished run by metric; empty if none was asked for and it has no default metric.

        verdict: the collapse monitor's. Raise UserError if a metric that was asked for was not measured.
        """
        names = self.metrics or tuple(name for name in self.defaults if name in metrics)[:1]
        for name in names:
            if name not in metrics:
                close = difflib.get_close_matches(name, metrics, n=1)
                hint = f"did you mean {close[0]}?" if close else f"there are {', '.join(sorted(metrics)) or 'none'}"
                raise UserError(f"optimized_metric={name} was not among the metrics of the run: {hint}")
        failed = self.failed(names)
        if not self.keep_collapsed and is_collapse(verdict):
            return failed
        values = {name: float(metrics[name]) for name in names}
        return {name: value if math.isfinite(value) else failed[name] for name, value in values.items()}

    def failed(self, names: Sequence[str] = ()) -> dict[str, float]:
        """Return the values of a failed run by metric."""
        names = tuple(names) or self.metrics or self.defaults[:1]
        if not self.metrics and names != self.defaults[:1]:  # it turned out to have no labels
            return {names[0]: FAILED_VALUE[direction_of(names[0])]}
        return dict(zip(names, self.failed_values))


def evaluates(evaluation: Mapping[str, object] | None) -> bool:
    """Return whether the `evaluation` of a configuration is ever due."""
    if not evaluation:
        return False
    return bool(evaluation.get("at_end", True) or evaluation.get("every_epochs") or evaluation.get("every_steps"))


def as_returned(values: Mapping[str, float]) -> float | tuple[float, ...] | None:
    """Return values as Hydra's sweepers expect them: a number, a tuple of several, or None."""
    numbers = tuple(values.values())
    return (numbers or (None,))[0] if len(numbers) < 2 else numbers


def _one_each(key: str, value: object, count: int) -> list | None:
    if value is None:
        return None
    values = list(value) if isinstance(value, Sequence) and not isinstance(value, str) else [value] * count
    if len(values) != count:
        raise UserError(f"{key}={value}: got {len(values)} values for {count} of optimized_metric, expected one each")
    return values
