"""Schedules that begin with a warm-up; their conventions are those of `jepa.optim.schedules`.

A warm-up or decay is given in epochs, steps or samples, in one of them at most.
"""

from __future__ import annotations

import math
from dataclasses import dataclass
from typing import Literal

from jepa.optim.durations import Duration
from jepa.optim.schedules import check_stretch, half_cosine
from jepa.types import RunLength, Schedule


@dataclass(frozen=True, kw_only=True)
class Warmup:
    """A straight line from start to where the schedule stands at the end of the warm-up, then the schedule.

    The schedule's own clock begins with the run, not with the end of the warm-up. Give the warm-up in epochs, steps
    or samples, not in two of them; without any there is none.
    """

    schedule: Schedule
    start: float = 0.0
    warmup_epochs: float | None = None
    warmup_steps: int | None = None
    warmup_samples: int | None = None

    def __post_init__(self) -> None:
        warmup_of(self)

    def __call__(self, step: float, run_length: RunLength) -> float:
        """The value after `step` steps."""
        warmup = self.warmup(run_length)
        if step < warmup:
            return self.start + (self.schedule(warmup, run_length) - self.start) * step / warmup
        return self.schedule(step, run_length)

    def warmup(self, run_length: RunLength) -> int:
        """Length of the warm-up in steps."""
        return self.warmup_duration.whole(run_length)

    @property
    def warmup_duration(self) -> Duration:
        """Length of the warm-up."""
        return warmup_of(self)


@dataclass(frozen=True, kw_only=True)
class WarmupCosine:
    """A straight line from start to peak over the warm-up, then half a cosine to final.

    Give the warm-up in epochs, steps or samples, not in two of them; without any there is none. One that is longer
    than the run never reaches its peak, as when a long recipe is cut short by trainer.max_steps.
    """

    peak: float
    start: float = 0.0
    final: float = 0.0
    warmup_epochs: float | None = None
    warmup_steps: int | None = None
    warmup_samples: int | None = None
    stretch: float = 1.0

    def __post_init__(self) -> None:
        check_stretch(self.stretch)
        warmup_of(self)

    def __call__(self, step: float, run_length: RunLength) -> float:
        """The value after `step` steps."""
        warmup, total = self.warmup(run_length), run_length.max_steps * self.stretch
        if step < warmup:
            return self.start + (self.peak - self.start) * step / warmup
        return half_cosine(self.peak, self.final, min(1.0, (step - warmup) / max(1.0, total - warmup)))

    def warmup(self, run_length: RunLength) -> int:
        """Length of the warm-up in steps."""
        return self.warmup_duration.whole(run_length)

    @property
    def warmup_duration(self) -> Duration:
        """Length of the warm-up."""
        return warmup_of(self)


@dataclass(frozen=True, kw_only=True)
class WarmupStableDecay:
    """A straight line from start to peak over the warm-up, the peak for most of the run, then down to final.

    The decay fills the end of the (stretched) run; one that would begin within the warm-up begins at its end, so
    that decay_share=1 with shape "linear" is a warm-up and a straight line. Without a decay the peak stays. The
    stable part does not know how long the run is, so a run can be prolonged from a checkpoint before the decay
    (Hu et al. 2024, arXiv 2404.06395).

    Give warm-up and decay in epochs, steps or samples (the decay also as a share of the run), not in two of them.

    shape: of the decay over its share s from 0 to 1: "linear" 1 - s, "cosine" half a cosine, "sqrt" 1 - sqrt(s)
        (Hägele et al. 2024, arXiv 2405.18392, there the best of them).
    """

    peak: float
    start: float = 0.0
    final: float = 0.0
    warmup_epochs: float | None = None
    warmup_steps: int | None = None
    warmup_samples: int | None = None
    decay_epochs: float | None = None
    decay_steps: int | None = None
    decay_samples: int | None = None
    decay_share: float | None = None
    shape: Literal["linear", "cosine", "sqrt"] = "linear"
    stretch: float = 1.0

    def __post_init__(self) -> None:
        check_stretch(self.stretch)
        warmup_of(self)
        decay_of(self)
        if self.shape not in ("linear", "cosine", "sqrt"):
            raise ValueError(f"shape={self.shape!r}: expected linear, cosine or sqrt")

    def __call__(self, step: float, run_length: RunLength) -> float:
        """The value after `step` steps."""
        warmup, total = self.warmup(run_length), run_length.max_steps * self.stretch
        if step < warmup:
            return self.start + (self.peak - self.start) * step / warmup
        begin = max(warmup, total - self.decay_duration.whole(run_length, self.stretch))
        if step <= begin or begin >= total:
            return self.peak
        share = min(1.0, (step - begin) / (total - begin))
        if self.shape == "cosine":
            return half_cosine(self.peak, self.final, share)
        return self.peak + (self.final - self.peak) * (math.sqrt(share) if self.shape == "sqrt" else share)

    def warmup(self, run_length: RunLength) -> int:
        """Length of the warm-up in steps."""
        return self.warmup_duration.whole(run_length)

    @property
    def warmup_duration(self) -> Duration:
        """Length of the warm-up."""
        return warmup_of(self)

    @property
    def decay_duration(self) -> Duration:
        """Length of the decay."""
        return decay_of(self)


def warmup_of(schedule: Warmup | WarmupCosine | WarmupStableDecay) -> Duration:
    """The warm-up of a schedule that has one. Raises ValueError for a negative one and for two units."""
    return Duration(
        name="warmup",
        epochs=schedule.warmup_epochs,
        steps=schedule.warmup_steps,
        samples=schedule.warmup_samples,
    )


def decay_of(schedule: WarmupStableDecay) -> Duration:
    """The decay at the end of a schedule. Raises ValueError for a negative one and for two units."""
    return Duration(
        name="decay",
        epochs=schedule.decay_epochs,
        steps=schedule.decay_steps,
        samples=schedule.decay_samples,
        share=schedule.decay_share,
    )
