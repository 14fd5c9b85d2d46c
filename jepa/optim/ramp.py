"""A line between two steps, flat before and after."""

from __future__ import annotations

from dataclasses import dataclass

from jepa.types import RunLength


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
        """The value after `step` steps."""
        share = (step - self.begin_step) / (self.end_step - self.begin_step)
        return self.start + (self.final - self.start) * min(1.0, max(0.0, share))
