"""Where a run is: everything that changes from step to step besides weights, optimizer and random numbers."""

from __future__ import annotations

from collections.abc import Mapping
from dataclasses import dataclass, field
from typing import Any

from jepa.types import RunLength


@dataclass
class RunState:
    """The state of a run, the same on every rank but for `stop_requested`."""

    step: int = 0  # optimizer steps made
    train_seconds: float = 0.0  # spent on them, over all restarts
    metrics: dict[str, float] = field(default_factory=dict)  # the last value of each
    rollbacks: list[dict[str, Any]] = field(default_factory=list)  # those made, each with `from`, `to` and `reason`
    pending: bool = False  # what is due at this step is still to be measured, as a run that was stopped leaves it
    stop_reason: str | None = None  # why the run ends before its last step; None while it goes on

    # Not kept in checkpoints:
    stop_requested: str | None = None  # what a callback of this rank asked for
    rollback_reason: str | None = None  # why to go back after this step
    signal: int = 0  # what all ranks have agreed on in the last step, as is save_requested
    save_requested: bool = False
    skipped_steps: int = 0  # in a row, for overflow in fp16

    @property
    def lr_factor(self) -> float:
        """What the scheduled learning rate is multiplied by: a half for each rollback."""
        return 0.5 ** len(self.rollbacks)

    def early_end(self, run_length: RunLength) -> str | None:
        """Return the last line of a run that ends before its last step; None for one that reaches it."""
        if self.stop_reason is None or self.step >= run_length.max_steps:
            return None
        return f"ended at step {self.step} of {run_length.max_steps}: {self.stop_reason}"

    def state_dict(self) -> dict[str, Any]:
        """Return what a checkpoint keeps, under its names there."""
        return {
            "step": self.step,
            "train_seconds": self.train_seconds,
            "pending": self.pending,
            "ended": self.stop_reason,
            "metrics": dict(self.metrics),
            "rollbacks": list(self.rollbacks),
        }

    def load_state_dict(self, content: Mapping[str, Any]) -> None:
        """Restore what `state_dict` returned; old checkpoints lack some of it."""
        self.step, self.pending, self.stop_reason = content["step"], content["pending"], content["ended"]
        self.train_seconds = content.get("train_seconds", 0.0)
        self.metrics, self.rollbacks = dict(content["metrics"]), list(content.get("rollbacks", []))
