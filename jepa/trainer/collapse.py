"""What the loop does with the collapse monitor: which steps it sees, and what its verdict asks for.

A rollback is made by `jepa.trainer.checkpoints.Checkpoints.roll_back`."""

from __future__ import annotations

import contextlib
from collections.abc import Mapping
from contextlib import AbstractContextManager
from dataclasses import dataclass
from typing import Any, Literal

import torch
from torch import nn

from jepa.distributed.collectives import get_world_size
from jepa.types import RunLength


@dataclass(frozen=True)
class Finding:
    """What the monitor has found in a step.

    metrics: to log. changed: the verdict is another than before. message: for a person, None without news.
    action: what is asked for about a bad verdict, and reason, why.
    """

    metrics: dict[str, float]
    changed: bool
    message: str | None
    action: Literal["stop", "rollback"] | None
    reason: str


class CollapseWatch:
    """The collapse monitor in the loop; without a monitor nothing is ever due."""

    def __init__(self, monitor: Any | None, run_length: RunLength) -> None:
        self.monitor, self._run_length = monitor, run_length

    def due(self, step: int) -> bool:
        """Whether the monitor looks at the step with this number, from 1."""
        return self.monitor is not None and self.monitor.due(step, self._run_length)

    def watching(self, step: int, model: nn.Module) -> AbstractContextManager:
        """Return a context for the forward passes of the step with this number."""
        if not self.due(step):
            return contextlib.nullcontext()
        return self.monitor.watching(model, get_world_size())

    def measure(self, model: nn.Module, step: int, values: Mapping[str, float], device: torch.device) -> Finding:
        """Return what was found in the step just watched. values: of the step, the same on every rank."""
        before = self.monitor.verdict.name
        metrics = self.monitor.measure(model, step, values, device)
        verdict = self.monitor.verdict
        return Finding(
            metrics,
            changed=verdict.name != before,
            message=self._message(step, before),
            action=self._action(),
            reason=f"{verdict.name}: {verdict.evidence}",
        )

    def _message(self, step: int, before: str) -> str | None:
        """News of the verdict; that a run turned out healthy is none."""
        verdict = self.monitor.verdict
        nothing_seen = verdict.name == "unknown" and not self.monitor.history
        if verdict.name == before:
            return f"collapse monitor: {verdict.evidence}" if nothing_seen and step == 1 else None
        if before == "unknown" and not verdict.is_bad and not nothing_seen:
            return None
        return f"collapse monitor at step {step}: {verdict.name}: {verdict.evidence}"

    def _action(self) -> Literal["stop", "rollback"] | None:
        verdict, on_collapse = self.monitor.verdict, self.monitor.on_collapse
        if not verdict.is_bad or on_collapse == "warn":
            return None
        return "rollback" if on_collapse == "rollback" and verdict.is_curable else "stop"
