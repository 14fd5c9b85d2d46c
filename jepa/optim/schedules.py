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

from jepa.types import RunLength, Schedule
from jepa.utils.errors import check_choice


@dataclass(frozen=True, kw_only=True)
class Duration:
    """A length of training in one unit; in none it is 0.

    name: what the keys begin with, "warmup" for warmup_epochs, warmup_steps and warmup_samples; for messages.
    share: of the whole run, 0 to 1.

    Raises ValueError for a negative length and for more than one unit.
    """

    name: str
    epochs: float | None = None
    steps: float | None = None
    samples: float | None = None
    share: float | None = None

    def __post_init__(self) -> None:
        units = {unit: getattr(self, unit) for unit in ("epochs", "steps", "samples", "share")}
        given = {f"{self.name}_{unit}": value for unit, value in units.items() if value is not None}
        if len(given) > 1:
            shown = " and ".join(f"{key}={value}" for key, value in given.items())
            raise ValueError(f"{shown}: give one of them, not both, and set the others to null")
        for key, value in given.items():
            if not 0 <= value < math.inf:
                raise ValueError(f"{key}={value}: expected a length of at least 0, or null for none")
        if self.share is not None and self.share > 1:
            raise ValueError(f"{self.name}_share={self.share}: expected a share of the run between 0 and 1")

    def exact(self, run_length: RunLength, stretch: float = 1.0) -> float:
        """The length in steps, which need not be whole; a share is one of the stretched run."""
        if self.epochs is not None:
            return self.epochs * run_length.steps_per_epoch
        if self.samples is not None:
            return self.samples / run_length.batch_size
        if self.share is not None:
            return self.share * run_length.max_steps * stretch
        return self.steps or 0

    def whole(self, run_length: RunLength, stretch: float = 1.0) -> int:
        """The length in whole steps, rounded to the nearest."""
        return round(self.exact(run_length, stretch))


@dataclass(frozen=True, kw_only=True)
class Constant:
    """The same value at every step."""

    value: float

    def __call__(self, step: float, run_length: RunLength) -> float:
        return self.value


@dataclass(frozen=True, kw_only=True)
class Linear:
    """A straight line from start to final over the run. Raises ValueError for a stretch that would end it at once."""

    start: float
    final: float
    stretch: float = 1.0

    def __post_init__(self) -> None:
        check_stretch(self.stretch)

    def __call__(self, step: float, run_length: RunLength) -> float:
        return self.start + (self.final - self.start) * progress(step, run_length, self.stretch)


@dataclass(frozen=True, kw_only=True)
class Cosine(Linear):
    """Half a cosine from start to final over the run."""

    def __call__(self, step: float, run_length: RunLength) -> float:
        return half_cosine(self.start, self.final, progress(step, run_length, self.stretch))


@dataclass(frozen=True, kw_only=True)
class Ramp:
    """`start` until step begin_step, then a straight line to `final` at end_step, which stays.

    V-JEPA 2.1 lets the weight of its dense loss rise so, between steps 15,000 and 30,000 (arXiv 2603.14482).
    Raises ValueError unless 0 <= begin_step < end_step.
    """

    start: float
    final: float
    begin_step: int = 0
    end_step: int = 1

    def __post_init__(self) -> None:
        if not 0 <= self.begin_step < self.end_step:
            raise ValueError(f"got begin_step={self.begin_step}, end_step={self.end_step}, expected 0 <= begin < end")

    def __call__(self, step: float, run_length: RunLength) -> float:
        share = (step - self.begin_step) / (self.end_step - self.begin_step)
        return self.start + (self.final - self.start) * min(1.0, max(0.0, share))


@dataclass(frozen=True, kw_only=True)
class AveragingMomentum:
    """The momentum of an average of weights: (1 + step) / (10 + step), until that is `final`.

    So the average forgets where it began, however short the run is: at any step it spans about the last tenth of it.
    """

    final: float

    def __call__(self, step: float, run_length: RunLength) -> float:
        return min(self.final, (1 + step) / (10 + step))


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
        check_choice("unit", self.unit, ("epochs", "steps", "samples"))
        if not 0 < self.step_size < math.inf:
            raise ValueError(f"step_size={self.step_size}: expected a number of {self.unit} above 0")
        if not 0 < self.gamma < math.inf:
            raise ValueError(f"gamma={self.gamma}: expected a factor above 0, such as 0.1")

    def __call__(self, step: float, run_length: RunLength) -> float:
        size = Duration(name="step_size", **{self.unit: self.step_size}).exact(run_length)
        return self.start * self.gamma ** math.floor(step / size + 1e-9)  # rounding must not delay a drop


@dataclass(frozen=True, kw_only=True)
class AfterWarmup:
    """A straight line from start to the peak over the warm-up, then what a subclass says.

    The warm-up is given in epochs, steps or samples, in one of them at most; without any there is none. One that is
    longer than the run never reaches the peak, as when a long recipe is cut short by trainer.max_steps.

    Raises ValueError for a negative warm-up and for two units.
    """

    start: float = 0.0
    warmup_epochs: float | None = None
    warmup_steps: int | None = None
    warmup_samples: int | None = None

    def __post_init__(self) -> None:
        _ = self.warmup_duration  # which checks it

    def __call__(self, step: float, run_length: RunLength) -> float:
        warmup = self.warmup(run_length)
        if step < warmup:
            return self.start + (self.peak_at(warmup, run_length) - self.start) * step / warmup
        return self.after(warmup, step, run_length)

    def peak_at(self, warmup: int, run_length: RunLength) -> float:
        """The value at the end of the warm-up."""
        return self.peak

    def after(self, warmup: int, step: float, run_length: RunLength) -> float:
        """The value after `step` steps, at or behind the end of the warm-up."""
        raise NotImplementedError

    def warmup(self, run_length: RunLength) -> int:
        """Length of the warm-up in steps."""
        return self.warmup_duration.whole(run_length)

    @property
    def warmup_duration(self) -> Duration:
        """Length of the warm-up."""
        units = {"epochs": self.warmup_epochs, "steps": self.warmup_steps, "samples": self.warmup_samples}
        return Duration(name="warmup", **units)


@dataclass(frozen=True, kw_only=True)
class Warmup(AfterWarmup):
    """Up to where the schedule stands at the end of the warm-up, then the schedule, whose clock begins with the run."""

    schedule: Schedule

    def peak_at(self, warmup: int, run_length: RunLength) -> float:
        return self.schedule(warmup, run_length)

    def after(self, warmup: int, step: float, run_length: RunLength) -> float:
        return self.schedule(step, run_length)


@dataclass(frozen=True, kw_only=True)
class WarmupCosine(AfterWarmup):
    """Up to the peak, then half a cosine to final."""

    peak: float
    final: float = 0.0
    stretch: float = 1.0

    def __post_init__(self) -> None:
        super().__post_init__()
        check_stretch(self.stretch)

    def after(self, warmup: int, step: float, run_length: RunLength) -> float:
        total = run_length.max_steps * self.stretch
        return half_cosine(self.peak, self.final, min(1.0, (step - warmup) / max(1.0, total - warmup)))


@dataclass(frozen=True, kw_only=True)
class WarmupStableDecay(AfterWarmup):
    """Up to the peak, there for most of the run, then down to final.

    The decay fills the end of the (stretched) run; one that would begin within the warm-up begins at its end, so
    that decay_share=1 with shape "linear" is a warm-up and a straight line. Without a decay the peak stays. The
    stable part does not know how long the run is, so a run can be prolonged from a checkpoint before the decay
    (Hu et al. 2024, arXiv 2404.06395).

    The decay is given in epochs, steps, samples or as a share of the run, in one of them at most.

    shape: of the decay over its share s from 0 to 1: "linear" 1 - s, "cosine" half a cosine, "sqrt" 1 - sqrt(s)
        (Hägele et al. 2024, arXiv 2405.18392, there the best of them).
    """

    peak: float
    final: float = 0.0
    decay_epochs: float | None = None
    decay_steps: int | None = None
    decay_samples: int | None = None
    decay_share: float | None = None
    shape: Literal["linear", "cosine", "sqrt"] = "linear"
    stretch: float = 1.0

    def __post_init__(self) -> None:
        super().__post_init__()
        check_stretch(self.stretch)
        _ = self.decay_duration
        check_choice("shape", self.shape, ("linear", "cosine", "sqrt"))

    def after(self, warmup: int, step: float, run_length: RunLength) -> float:
        total = run_length.max_steps * self.stretch
        begin = max(warmup, total - self.decay_duration.whole(run_length, self.stretch))
        if step <= begin or begin >= total:
            return self.peak
        share = min(1.0, (step - begin) / (total - begin))
        if self.shape == "cosine":
            return half_cosine(self.peak, self.final, share)
        return self.peak + (self.final - self.peak) * (math.sqrt(share) if self.shape == "sqrt" else share)

    @property
    def decay_duration(self) -> Duration:
        """Length of the decay."""
        units = {"epochs": self.decay_epochs, "steps": self.decay_steps, "samples": self.decay_samples}
        return Duration(name="decay", share=self.decay_share, **units)


@dataclass(frozen=True, kw_only=True)
class Changed:
    """A schedule whose values or clock a subclass changes; its warm-up is that of the schedule."""

    schedule: Schedule

    @property
    def warmup_duration(self) -> Duration | None:
        """Length of the schedule's warm-up, if it has one."""
        return getattr(self.schedule, "warmup_duration", None)


@dataclass(frozen=True, kw_only=True)
class NextStep(Changed):
    """A schedule that is advanced before it is used: the first update gets its value at step 1."""

    def __call__(self, step: float, run_length: RunLength) -> float:
        return self.schedule(step + 1, run_length)


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
