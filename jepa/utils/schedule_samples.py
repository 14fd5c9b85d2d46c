"""Samples of a schedule before the length of the run is known, to check its values."""

from __future__ import annotations

from jepa.types import RunLength, Schedule

EXAMPLE_RUN = RunLength(max_steps=10_000, steps_per_epoch=100, batch_size=64)
"""100 epochs, longer than the usual warm-up."""


def sample_schedule(schedule: Schedule) -> list[float]:
    """Return the values of a schedule over EXAMPLE_RUN, four per epoch."""
    return [schedule(step, EXAMPLE_RUN) for step in range(0, EXAMPLE_RUN.max_steps + 1, 25)]
