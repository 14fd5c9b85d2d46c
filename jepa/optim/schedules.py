"""Schedules: pure functions of the step, called as `schedule(step, run_length)`.

The loop calls all of them with the number of updates made before, from 0: learning rate, weight decay, loss weights and
a target's momentum. Published code (I-JEPA's and others) advances learning rate and weight decay before it uses them,
and `NextStep` does so here. `stretch` makes a schedule run as if training were that much longer (published as
`ipe_scale`), so that it ends before its own end.
"""

from __future__ import annotations

import math
from dataclasses import dataclass
from typing import Literal

from jepa.optim.durations import Duration
from jepa.types import RunLength, Schedule


@dataclass(frozen=True, kw_only=True)
class NextStep:
    """A schedule that is advanced before it is used: the first update gets its value at step 1."""

    schedule: Schedule

    def __call__(self, step: float, run_length: RunLength) -> float:
        """The schedule's value at step + 1."""
        return self.schedule(step + 1, run_length)

    @property
    def warmup_duration(self) -> Duration | None:
        """Length of the schedule's warm-up, if it has one."""
        return getattr(self.schedule, "warmup_duration", None)


@dataclass(frozen=True, kw_only=True)
class Constant:
    """The same value at every step."""

    value: float

    def __call__(self, step: float, run_length: RunLength) -> float:
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

    def __call__(self, step: float, run_length: RunLength) -> float:
        """The value after `step` steps."""
        return self.start + (self.final - self.start) * progress(step, run_length, self.stretch)


@dataclass(frozen=True, kw_only=True)
class Cosine:
    """Half a cosine from start to final over the run."""

    start: float
    final: float
    stretch: float = 1.0

    def __post_init__(self) -> None:
        check_stretch(self.stretch)

    def __call__(self, step: float, run_length: RunLength) -> float:
        """The value after `step` steps."""
        return half_cosine(self.start, self.final, progress(step, run_length, self.stretch))


@dataclass(frozen=True, kw_only=True)
class Step:
    """start, times gamma after every step_size: start * gamma ** floor(step / step_size).

    step_size: in `unit`; counted from the start of the run, a warm-up before it included (`Warmup`).

    Raises ValueError for a step_size or gamma that is not above 0, and for an unknown unit.
    """

    start: float
    step_size: float
    gamma: float = 0.1
    unit: Literal["epochs", "steps", "samples"] = "epochs"

    def __post_init__(self) -> None:
        if self.unit not in ("epochs", "steps", "samples"):
            raise ValueError(f"unit={self.unit!r}: expected epochs, steps or samples")
        if not 0 < self.step_size < math.inf:
            raise ValueError(f"step_size={self.step_size}: expected a number of {self.unit} above 0")
        if not 0 < self.gamma < math.inf:
            raise ValueError(f"gamma={self.gamma}: expected a factor above 0, such as 0.1")

    def __call__(self, step: float, run_length: RunLength) -> float:
        """The value after `step` steps."""
        size = Duration(name="step_size", **{self.unit: self.step_size}).exact(run_length)
        return self.start * self.gamma ** math.floor(step / size + 1e-9)  # rounding must not delay a drop


def progress(step: float, run_length: RunLength, stretch: float) -> float:
    """Share of the stretched run that lies behind, at most 1."""
    return min(1.0, step / (run_length.max_steps * stretch))


def half_cosine(start: float, final: float, share: float) -> float:
    """start at share 0, final at 1, along half a cosine."""
    return final + (start - final) * 0.5 * (1 + math.cos(math.pi * share))


def check_stretch(stretch: float) -> None:
    """Raise ValueError for a stretch that would end a schedule at once."""
    if not 0 < stretch < math.inf:
        raise ValueError(f"stretch must be positive, got {stretch}: 1.0 ends with the run")
