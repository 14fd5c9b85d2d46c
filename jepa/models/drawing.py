"""The masks of a step: drawn once for the global batch, of which ranks and micro-batches take their slices."""

from __future__ import annotations

import math
from collections.abc import Callable
from typing import Any

import torch
from torch import Tensor

from jepa.types import Batch, Grid, Mask, Masker, StepRandomness


class MaskDrawer:
    """Calls a masker for the whole batch of a step and remembers what came until another step is asked for.

    weigh: (mask, tokens of the grid) -> (B, M, P) weights of the target tokens of the whole batch, or None.
    """

    def __init__(self, masker: Masker, weigh: Callable[[Mask, int], Tensor | None]) -> None:
        self.masker, self.weigh = masker, weigh
        self._drawn: tuple[tuple, list[Mask], list[Tensor | None]] | None = None

    def __call__(
        self, rng: StepRandomness, *, views: int, grid: Grid, device: torch.device, valid: Tensor | None = None
    ) -> dict[str, Any]:
        """{"masks", "target_weights"} of the draw's samples, `views` of each adjacent.

        valid (count * views, N) bool: False at their padding. A masker draws the same random numbers whatever the
        padding, so that with padding, too, the masks of a sample do not depend on who draws them.
        """
        if valid is not None:
            return self._draw_padded(rng, views, grid, valid)
        key = (rng.seed, rng.step, rng.total * views, grid, device)
        if self._drawn is None or self._drawn[0] != key:  # micro-batches of a step share one draw
            masks = self.masker(rng.total * views, grid, generator=rng.generator(device, "mask"))
            self._drawn = key, masks, [self.weigh(mask, math.prod(grid)) for mask in masks]
        _, masks, weights = self._drawn
        mine = slice(rng.samples.start * views, rng.samples.stop * views)
        return {
            "masks": [mask[mine] for mask in masks],
            "target_weights": [None if weight is None else weight[mine] for weight in weights],
        }

    def _draw_padded(self, rng: StepRandomness, views: int, grid: Grid, valid: Tensor) -> dict[str, Any]:
        mine = slice(rng.samples.start * views, rng.samples.stop * views)
        everyone = valid.new_ones(rng.total * views, valid.shape[1])  # of the others nothing is known, nor used
        everyone[mine] = valid
        drawn = self.masker(len(everyone), grid, valid=everyone, generator=rng.generator(valid.device, "mask"))
        masks = [mask[mine] for mask in drawn]
        return {"masks": masks, "target_weights": [self.weigh(mask, math.prod(grid)) for mask in masks]}


def flatten_views(batch: Batch) -> tuple[Tensor, int]:
    """The batch's inputs (B * V, C, *S), views of a sample adjacent, and V."""
    if "views" in batch:
        return batch["views"].flatten(0, 1), batch["views"].shape[1]
    return batch["x"], 1


def views_first(pooled: Tensor, views: int) -> Tensor:
    """(masks, B * V, D), views of a sample adjacent -> (masks * V, B, D)."""
    return pooled.unflatten(1, (-1, views)).transpose(1, 2).flatten(0, 1)
