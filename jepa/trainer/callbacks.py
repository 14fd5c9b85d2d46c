"""Callbacks: they watch a run and may ask it to stop; they never change weights, gradients or batches."""

from __future__ import annotations

import difflib
import math
from collections.abc import Mapping
from dataclasses import dataclass
from typing import TYPE_CHECKING, Any, Literal

from jepa.utils.errors import UserError

if TYPE_CHECKING:
    from jepa.trainer.trainer import Trainer


class Callback:
    """Watches a run; a subclass overrides the methods it needs. Called on every rank alike.

    Order: `load_state_dict` where the run goes on from a checkpoint, `begin`, then per step `step_end` and one
    `measured` for each set of metrics, last `end`. `trainer.stop(reason)` ends the run after the step, or before
    the first one when called in `begin`.
    """

    def begin(self, trainer: Trainer) -> None:
        """Called when the run starts or resumes, after `trainer.step` steps, and after a rollback."""

    def step_end(self, trainer: Trainer) -> None:
        """Called after a step, which `trainer.step` counts."""

    def measured(self, trainer: Trainer, metrics: Mapping[str, float]) -> None:
        """Called with the metrics of a training step, a validation, a probe or an evaluation, one call for each.

        They are plain floats, the same on every rank.
        """

    def end(self, trainer: Trainer) -> None:
        """Called at the end of the run, not where it is interrupted or fails."""

    def state_dict(self) -> dict[str, Any]:
        """Return what a checkpoint keeps: plain values and tensors."""
        return {}

    def load_state_dict(self, state: Mapping[str, Any]) -> None:
        """Restore what `state_dict` returned."""


@dataclass(kw_only=True, eq=False)
class EarlyStopping(Callback):
    """Ends the run when a metric has not improved for `patience` measurements of it in a row.

    A value that is not a number is never better.

    Raises ValueError for settings out of range, and UserError when the metric cannot come: at the start where
    nothing of its kind is measured, else with the first metrics of its kind that come without it.
    """

    monitor: str = "val/loss"  # name of the metric
    patience: int = 10
    min_delta: float = 0.0  # what a value must be better by than the best to count, in its units
    mode: Literal["min", "max"] = "min"  # whether less or more is better

    def __post_init__(self) -> None:
        if self.patience < 1 or self.min_delta < 0 or self.mode not in ("min", "max"):
            raise ValueError(
                f"got patience={self.patience}, min_delta={self.min_delta}, mode={self.mode!r}, expected patience >= "
                "1, min_delta >= 0 and mode 'min' or 'max'"
            )
        self._who = f"early stopping watches monitor={self.monitor}"
        self.best: float | None = None
        self.best_step, self.waited = 0, 0
        self._seen: set[str] = set()

    def begin(self, trainer: Trainer) -> None:
        """Check that the metric can come; stop at once where the run had been stopped by it before."""
        check_is_measured(trainer, self.monitor, self._who, "monitor=train/loss")
        self._stop_if_due(trainer)

    def measured(self, trainer: Trainer, metrics: Mapping[str, float]) -> None:
        self._seen |= metrics.keys()
        if self.monitor in metrics:
            value = metrics[self.monitor]
            if self._is_better(value):
                self.best, self.best_step, self.waited = value, trainer.step, 0
            else:
                self.waited += 1
            self._stop_if_due(trainer)
        elif not self._came:
            check_name(metrics, self.monitor, self._who)

    def end(self, trainer: Trainer) -> None:
        """Warn when the metric never came in a complete run."""
        if not self._came and trainer.step >= trainer.run_length.max_steps:
            came = ", ".join(sorted(self._seen)) or "none"
            trainer.say(f"early stopping never saw monitor={self.monitor}; the metrics that came are: {came}")

    def state_dict(self) -> dict[str, Any]:
        return {name: getattr(self, name) for name in ("monitor", "mode", "best", "best_step", "waited")}

    def load_state_dict(self, state: Mapping[str, Any]) -> None:
        """Restore the state, unless it is of another metric or mode."""
        if (state["monitor"], state["mode"]) == (self.monitor, self.mode):
            self.best, self.best_step, self.waited = state["best"], state["best_step"], state["waited"]

    @property
    def _came(self) -> bool:
        return self.best_step > 0 or self.waited > 0

    def _is_better(self, value: float) -> bool:
        if self.best is None:
            return not math.isnan(value)
        sign = 1 if self.mode == "min" else -1
        return sign * value < sign * self.best - self.min_delta

    def _stop_if_due(self, trainer: Trainer) -> None:
        if self.waited >= self.patience:
            best = f"{self.best:.4g} at step {self.best_step}" if self.best is not None else "never a number"
            trainer.stop(
                f"{self.monitor} has not improved for {self.waited} measurements (best: {best}; "
                f"patience={self.patience})"
            )


MEASURED_EVERY = {
    "val": ("validate", "trainer.validate_every_epochs=1"),
    "eval": ("evaluate", "evaluation=frozen evaluation.every_epochs=10"),
    "online": ("probe", "evaluation=frozen evaluation.online_every_epochs=5"),
}
"""Kind of metric -> the one of the trainer's `every` at which it is measured, and options that set it."""


def check_is_measured(trainer: Trainer, metric: str, who: str, other: str) -> None:
    """Raise UserError when nothing of a metric's kind is measured during the run.

    who: who asks for it, how. other: what to ask for instead.
    """
    interval, remedy = MEASURED_EVERY.get(family(metric), (None, None))
    if interval == "probe" and getattr(trainer.evaluation, "online", None) is not None:
        return
    if interval is not None and getattr(trainer.every, interval) is None:
        raise UserError(
            f"{who}, which is not measured during this run: set {remedy}, or watch another metric, such as {other}"
        )


def check_name(metrics: Mapping[str, float], metric: str, who: str) -> None:
    """Raise UserError when metrics of a metric's kind have come without it. who: who asks for it, how."""
    names = sorted(name for name in metrics if family(name) == family(metric))
    if not names or (family(metric) == "train" and "train/loss" not in names):
        return
    close = difflib.get_close_matches(metric, names, n=1)
    hint = f"did you mean {close[0]}?" if close else f"there are {', '.join(names)}"
    raise UserError(f"{who}, which was not among the metrics: {hint}")


def family(name: str) -> str:
    """Return what a metric is measured with: "val", "eval", "online", or "train" for all that comes with a step."""
    kind = name.partition("/")[0]
    return kind if kind in MEASURED_EVERY else "train"
