"""Durations given in epochs, steps, samples or as a share of the run, which become steps once the run is known."""

from __future__ import annotations

from dataclasses import dataclass

from jepa.types import RunLength


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
            if not 0 <= value < float("inf"):
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
