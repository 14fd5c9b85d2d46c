"""Looking at a schedule before the length of the run is known, to refuse what would go wrong in the middle of it."""

from __future__ import annotations

from jepa.types import RunLength, Schedule

EXAMPLE_RUN = RunLength(max_steps=10_000, steps_per_epoch=100, batch_size=64)
"""A run of 100 epochs, long enough for the warm-ups in use."""


def sample_schedule(schedule: Schedule) -> list[float]:
    """Values of a schedule from the start to the end of a made-up run of 100 epochs, four to the epoch."""
    return [schedule(step, EXAMPLE_RUN) for step in range(0, EXAMPLE_RUN.max_steps + 1, 25)]
