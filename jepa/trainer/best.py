"""The table of the best checkpoints by one metric."""

from __future__ import annotations

import math
from collections.abc import Collection
from typing import Any, Literal


class BestCheckpoints:
    """Keeps the k best (value, step) pairs. Raises ValueError for a negative k or an unknown mode."""

    def __init__(self, *, k: int, metric: str, mode: Literal["min", "max"]) -> None:
        if k < 0 or mode not in ("min", "max"):
            raise ValueError(f"got trainer.best_k={k}, trainer.best_mode={mode!r}, expected k >= 0 and 'min' or 'max'")
        self.k, self.metric, self.mode = k, metric, mode
        self.table: list[tuple[float, int]] = []
        self._dropped: list[int] = []

    def offer(self, value: float, step: int) -> bool:
        """Enter a step if it is among the best, drop what it displaces, and return whether it is; NaN never is."""
        if math.isnan(value):
            return False
        ranked = sorted([*self.table, (value, step)], key=self._rank)
        self.table, out = ranked[: self.k], ranked[self.k :]
        self._dropped += [old for _, old in out if old != step]
        return (value, step) in self.table

    def dropped(self) -> list[str]:
        """Names that no longer belong to the best since this was last asked."""
        names = [self.file_name(step) for step in self._dropped]
        self._dropped = []
        return names

    def keep(self, steps: Collection[int]) -> None:
        """Forget all but these steps."""
        self.table = [(value, step) for value, step in self.table if step in steps]

    def state_dict(self) -> dict[str, Any]:
        """The table, for a checkpoint."""
        return {"metric": self.metric, "mode": self.mode, "table": self.table}

    def load_state_dict(self, state: dict[str, Any]) -> None:
        """Restore a table, unless it is of another metric or mode."""
        if (state["metric"], state["mode"]) == (self.metric, self.mode):
            self.table = [(value, step) for value, step in state["table"]]

    @staticmethod
    def file_name(step: int) -> str:
        """Name of the checkpoint of a step, without its suffix."""
        return f"best_{step:08d}"

    def _rank(self, entry: tuple[float, int]) -> tuple[float, int]:
        value, step = entry
        return (value if self.mode == "min" else -value, step)
