"""What all models share: the step from a batch to named losses, the masks of a step, and batches of several views."""

from __future__ import annotations

import inspect
import math
from collections.abc import Callable
from typing import Any

from torch import Tensor, nn

from jepa.models.targets import Target, TeacherTarget
from jepa.types import Batch, Mask, Masker, RunLength, Schedule, StepRandomness
from jepa.utils.tensors import token_valid


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

    @property
    def teachers(self) -> dict[str, dict[str, str]]:
        """The frozen teachers, which no checkpoint holds: name in the model -> their source and fingerprint."""
        found = {name: m for name, m in self.named_modules() if isinstance(m, TeacherTarget)}
        return {name: {"source": m.source, "fingerprint": m.fingerprint} for name, m in found.items()}

    def update_target(self, step: int, run_length: RunLength, *, skip: Tensor | None = None) -> dict[str, float]:
        """Update the target from the encoder after `step` earlier updates; return values to log.

        skip: leave it as it is where this is 1.0, a scalar on its device.
        """
        target = getattr(self, "target", None)
        options = {} if skip is None else {"skip": skip}
        return {} if target is None else target.update(self.encoder, step, run_length, **options)

    @property
    def skips_updates(self) -> bool:
        """Whether `update_target` takes `skip`, of this model and those in it; one of a user may not."""
        updates = [m.update_target for m in self.modules() if isinstance(m, JEPA)]
        updates += [m.update for m in self.modules() if isinstance(m, Target)]
        return all("skip" in inspect.signature(update).parameters for update in updates)


class MaskSampler:
    """Sample the masks of a step's global batch once, and slice them for each rank and micro-batch.

    weight: (mask, N) -> (B, M, P) weights of the target tokens of the global batch, or None for equal weights; N is the
        number of tokens of the grid. None: no weights. stream: of the step's random numbers.
    """

    def __init__(
        self,
        masker: Masker,
        weight: Callable[[Mask, int], Tensor | None] | None = None,
        stream: str = "mask",
    ) -> None:
        self.masker, self.weight, self.stream = masker, weight, stream
        self._cache: tuple[tuple, list[Mask], list[Tensor | None]] | None = None

    def __call__(self, encoder: nn.Module, x: Tensor, rng: StepRandomness, views: int = 1) -> dict[str, Any]:
        """Return {"masks", "target_weights"} of inputs x, the samples of `rng`, the `views` of a sample adjacent."""
        grid, valid = tuple(encoder.grid(x)), token_valid(encoder, x)
        size = rng.total * views
        local = slice(rng.samples.start * views, rng.samples.stop * views)
        global_valid = None
        if valid is not None:  # the padding of other ranks is unknown; a masker draws the same numbers for any padding
            global_valid = valid.new_ones(size, valid.shape[1])
            global_valid[local] = valid
        key = (rng.seed, rng.step, size, grid, x.device)
        if valid is not None or self._cache is None or self._cache[0] != key:  # shared by the micro-batches of a step
            masks = self.masker(size, grid, valid=global_valid, generator=rng.generator(x.device, self.stream))
            weights = [None if self.weight is None else self.weight(mask, math.prod(grid)) for mask in masks]
            self._cache = key, masks, weights
        _, masks, weights = self._cache
        return {
            "masks": [mask[local] for mask in masks],
            "target_weights": [None if weight is None else weight[local] for weight in weights],
        }


def flatten_views(batch: Batch, name: str = "views") -> tuple[Tensor, int]:
    """Return the batch's inputs (B * V, C, *S), the views of a sample adjacent, and V. name: views, or local_views."""
    if name in batch:
        return batch[name].flatten(0, 1), batch[name].shape[1]
    return batch["x"], 1


def views_first(pooled: Tensor, views: int) -> Tensor:
    """Return (masks * V, B, D) of (masks, B * V, D), in which the views of a sample are adjacent."""
    return pooled.unflatten(1, (-1, views)).transpose(1, 2).flatten(0, 1)


def check_no_collapse(target: nn.Module, loss: nn.Module, allow_collapse: bool) -> None:
    """Raise ValueError if neither target nor loss prevents collapse, unless it is allowed."""
    if not (target.prevents_collapse or loss.prevents_collapse or allow_collapse):
        raise ValueError(
            f"{type(target).__name__} with the loss terms {loss.term_names} collapses to a constant: "
            "add a term that prevents it (loss.terms.sigreg), use model/target=ema, "
            "or set model.allow_collapse=true to watch it happen"
        )
