"""The masks of a step: sampled once for the global batch, then sliced for each rank and micro-batch."""

from __future__ import annotations

import math
from collections.abc import Callable
from typing import Any

import torch
from torch import Tensor

from jepa.types import Grid, Mask, Masker, StepRandomness


class MaskSampler:
    """Sample the masks of a step's global batch with a masker and cache them until the next step.

    weight: (mask, N) -> (B, M, P) weights of the target tokens of the global batch, or None for equal weights; N is the
        number of tokens of the grid. None: no weights.
    """

    def __init__(self, masker: Masker, weight: Callable[[Mask, int], Tensor | None] | None = None) -> None:
        self.masker, self.weight = masker, weight
        self._cache: tuple[tuple, list[Mask], list[Tensor | None]] | None = None

    def __call__(
        self, rng: StepRandomness, *, views: int, grid: Grid, device: torch.device, valid: Tensor | None = None
    ) -> dict[str, Any]:
        """Return {"masks", "target_weights"} of the samples of `rng`, the `views` of a sample adjacent.

        valid (count * views, N) bool: False at padding. A masker consumes the same random numbers with and without
        padding, so that the masks of a sample never depend on the rank or micro-batch that samples them.
        """
        size = rng.total * views
        local = slice(rng.samples.start * views, rng.samples.stop * views)
        if valid is not None:
            global_valid = valid.new_ones(size, valid.shape[1])  # the other ranks' padding is unknown and not needed
            global_valid[local] = valid
            masks = self.masker(size, grid, valid=global_valid, generator=rng.generator(valid.device, "mask"))
            masks = [mask[local] for mask in masks]
            return {"masks": masks, "target_weights": self._weights(masks, grid)}
        key = (rng.seed, rng.step, size, grid, device)
        if self._cache is None or self._cache[0] != key:  # the micro-batches of a step share one sample
            masks = self.masker(size, grid, generator=rng.generator(device, "mask"))
            self._cache = key, masks, self._weights(masks, grid)
        _, masks, weights = self._cache
        return {
            "masks": [mask[local] for mask in masks],
            "target_weights": [None if weight is None else weight[local] for weight in weights],
        }

    def _weights(self, masks: list[Mask], grid: Grid) -> list[Tensor | None]:
        return [None if self.weight is None else self.weight(mask, math.prod(grid)) for mask in masks]
