"""Schedules: pure functions of the step, called as `schedule(step, horizon)`.

The learning rate and weight decay of update u are taken at step u (from 1); a target's momentum at the number of
updates made before (from 0). Both as in the published I-JEPA code. `stretch` makes a schedule run as if training
were that much longer (published as `ipe_scale`), so that it ends before its own end.
"""

from __future__ import annotations

import math
from dataclasses import dataclass

from jepa.types import Horizon


@dataclass(frozen=True, kw_only=True)
class Constant:
    """The same value at every step."""

    value: float

    def __call__(self, step: float, horizon: Horizon) -> float:
        """The value."""
        return self.value


@dataclass(frozen=True, kw_only=True)
class Linear:
    """A straight line from start to final over the run."""

    start: float
    final: float
    stretch: float = 1.0

    def __post_init__(self) -> None:
        check_stretch(self.stretch)

    def __call__(self, step: float, horizon: Horizon) -> float:
        """The value after `step` steps."""
        return self.start + (self.final - self.start) * progress(step, horizon, self.stretch)


@dataclass(frozen=True, kw_only=True)
class Cosine:
    """Half a cosine from start to final over the run."""

    start: float
    final: float
    stretch: float = 1.0

    def __post_init__(self) -> None:
        check_stretch(self.stretch)

    def __call__(self, step: float, horizon: Horizon) -> float:
        """The value after `step` steps."""
        return half_cosine(self.start, self.final, progress(step, horizon, self.stretch))


@dataclass(frozen=True, kw_only=True)
class WarmupCosine:
    """A straight line from start to peak over the warm-up, then half a cosine to final.

    Give the warm-up in epochs or in steps, not both; without either there is none. One that is longer than the run
    never reaches its peak, as when a long recipe is cut short by trainer.max_steps.
    """

    peak: float
    start: float = 0.0
    final: float = 0.0
    warmup_epochs: float | None = None
    warmup_steps: int | None = None
    stretch: float = 1.0

    def __post_init__(self) -> None:
        check_stretch(self.stretch)
        if self.warmup_epochs is not None and self.warmup_steps is not None:
            raise ValueError("give scheduler.warmup_epochs or scheduler.warmup_steps, not both")

    def __call__(self, step: float, horizon: Horizon) -> float:
        """The value after `step` steps."""
        warmup, total = self.warmup(horizon), horizon.max_steps * self.stretch
        if step < warmup:
            return self.start + (self.peak - self.start) * step / warmup
        return half_cosine(self.peak, self.final, min(1.0, (step - warmup) / max(1.0, total - warmup)))

    def warmup(self, horizon: Horizon) -> float:
        """Length of the warm-up in steps."""
        if self.warmup_epochs is not None:
            return round(self.warmup_epochs * horizon.steps_per_epoch)
        return self.warmup_steps or 0


def progress(step: float, horizon: Horizon, stretch: float) -> float:
    """Share of the stretched run that lies behind, at most 1."""
    return min(1.0, step / (horizon.max_steps * stretch))


def half_cosine(start: float, final: float, share: float) -> float:
    """start at share 0, final at 1, along half a cosine."""
    return final + (start - final) * 0.5 * (1 + math.cos(math.pi * share))


def check_stretch(stretch: float) -> None:
    """Raise ValueError for a stretch that would end a schedule at once."""
    if stretch <= 0:
        raise ValueError(f"stretch must be positive, got {stretch}")
