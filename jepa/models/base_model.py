"""The base class of models: one call from a batch to named losses."""

from __future__ import annotations

from typing import Any

from torch import Tensor, nn

from jepa.types import Batch, RunLength, Schedule, StepRandomness


class JEPA(nn.Module):
    """The training step of a joint-embedding predictive architecture.

    A subclass sets `encoder`, `loss` (latents -> named losses) and optionally `target`, and defines `prepare` and
    `forward`. The loss is a submodule, so that its heads are trained and saved with the model.
    """

    encoder: nn.Module
    loss: nn.Module

    def training_step(self, batch: Batch, rng: StepRandomness) -> dict[str, Tensor]:
        """Return {"loss": ..., "loss/<term>": ...} of a batch on the device: sample masks, encode, predict, compare.

        rng: the step's random numbers, and which slice of the global batch this batch is.
        """
        return self.loss(self({**self.prepare(batch, rng), "rng": rng}))

    def prepare(self, batch: Batch, rng: StepRandomness) -> Batch:
        """Return the batch with `rng` and what is sampled with it, such as masks."""
        raise NotImplementedError

    def forward(self, batch: Batch) -> Any:
        """Return the latents of a prepared batch, the input of the loss."""
        raise NotImplementedError

    def set_step(self, step: int, run_length: RunLength) -> dict[str, float]:
        """Set the scheduled values of the loss to those after `step` updates; return values to log."""
        return self.loss.set_step(step, run_length)

    @property
    def momentum_schedule(self) -> Schedule | None:
        """The target's momentum after scaling, called as `schedule(step, run_length)`; None without one."""
        return getattr(getattr(self, "target", None), "momentum_at", None)

    def update_target(self, step: int, run_length: RunLength) -> dict[str, float]:
        """Update the target from the encoder after `step` earlier updates; return values to log."""
        target = getattr(self, "target", None)
        return {} if target is None else target.update(self.encoder, step, run_length)


def check_no_collapse(target: nn.Module, loss: nn.Module, allow_collapse: bool) -> None:
    """Raise ValueError if neither target nor loss prevents collapse, unless it is allowed."""
    if not (target.prevents_collapse or loss.prevents_collapse or allow_collapse):
        raise ValueError(
            f"{type(target).__name__} with the loss terms {loss.term_names} collapses to a constant: "
            "add a term that prevents it (loss.terms.sigreg), use model/target=ema, "
            "or set model.allow_collapse=true to watch it happen"
        )
