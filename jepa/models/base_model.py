"""What a model offers the training loop: one call from a batch to named losses."""

from __future__ import annotations

from typing import Any

from torch import Tensor, nn

from jepa.types import Batch, RunLength, Schedule, StepRandomness


class JEPA(nn.Module):
    """The step of a joint-embedding predictive architecture.

    A subclass sets `encoder`, `loss` (latents -> named losses) and, where it has one, `target`, and defines `prepare`
    and `forward`. The loss is a submodule, so that its heads are trained and saved with the model.
    """

    encoder: nn.Module
    loss: nn.Module

    def training_step(self, batch: Batch, rng: StepRandomness) -> dict[str, Tensor]:
        """Return {"loss": ..., "loss/<term>": ...} of a batch on the device: draw masks, encode, predict, compare.

        rng: where this step's random choices come from; the batch is the slice of the global batch that it names.
        """
        return self.loss(self({**self.prepare(batch, rng), "rng": rng}))

    def prepare(self, batch: Batch, rng: StepRandomness) -> Batch:
        """Return the batch with `rng` and what is drawn from it, such as masks."""
        raise NotImplementedError

    def forward(self, batch: Batch) -> Any:
        """Return the latents of a prepared batch, which the loss takes."""
        raise NotImplementedError

    def set_step(self, step: int, run_length: RunLength) -> dict[str, float]:
        """Put in force what the loss schedules after `step` updates; return values to log."""
        return self.loss.set_step(step, run_length)

    @property
    def momentum_schedule(self) -> Schedule | None:
        """The target's momentum as it is applied, called as `schedule(step, run_length)`; None without one."""
        return getattr(getattr(self, "target", None), "momentum_at", None)

    def update_target(self, step: int, run_length: RunLength) -> dict[str, float]:
        """Let the target follow the encoder; `step` counts the updates made before. Return values to log."""
        target = getattr(self, "target", None)
        return {} if target is None else target.update(self.encoder, step, run_length)
