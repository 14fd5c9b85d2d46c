"""Future masks: the last share of a series is predicted from the steps before it."""

from __future__ import annotations

import math
from collections.abc import Sequence

import torch
from torch import Tensor

from jepa.masks.hidden_tokens import HiddenTokensMask, possible_lengths
from jepa.types import Grid


class FutureMask(HiddenTokensMask):
    """Masker whose context is the past and whose target the future, on grids whose last axis is time.

    target_share: share of the time steps (tokens along the last axis) to hide, rounded, at least one hidden and one
        seen; or [least, most], from which each sample's share is drawn uniformly.
    num_masks: independent masks per sample, each of which is another view of it; equal for a fixed share.

    On a grid of several axes, such as (channels, time), the same steps are hidden in every row. Steps of padding do not
    count.
    """

    def __init__(self, *, target_share: float | Sequence[float] = 0.4, num_masks: int = 1) -> None:
        super().__init__(num_masks=num_masks)
        self.shares = [target_share] * 2 if isinstance(target_share, (int, float)) else list(target_share)
        if len(self.shares) != 2 or not 0 < self.shares[0] <= self.shares[1] < 1:
            raise ValueError(
                f"model.mask.target_share={target_share}: expected a share between 0 and 1, or [least, most]"
            )
        self.exact = self.shares[0] == self.shares[1]

    def sizes(self, grid: Grid, padded: bool) -> tuple[int, int]:
        """Return the most tokens that are seen and hidden. Raise ValueError for a single time step."""
        *others, steps = grid
        if steps < 2:
            raise ValueError(
                f"a future needs at least 2 tokens along time, got a grid of {grid}: use smaller patches "
                "(model.encoder.stem.patch_size) or longer windows (data.window_size)"
            )
        lengths = possible_lengths(steps, padded)
        least, most = (hidden_steps(lengths, share) for share in self.shares)
        return math.prod(others) * int((lengths - least).max()), math.prod(others) * int(most.max())

    def hide(self, real: Tensor, generator: torch.Generator) -> Tensor:
        least, most = self.shares
        share = least + (most - least) * torch.rand(len(real), device=real.device, generator=generator)
        rows = real.view(len(real), -1, real.shape[-1])  # (B, rows, steps)
        steps = rows.any(dim=1)
        count = steps.sum(dim=1)
        seen = count - hidden_steps(count, share)
        hidden = (steps.cumsum(dim=1) > seen[:, None]) & steps
        return hidden.unsqueeze(1).expand_as(rows).reshape(real.shape)


def hidden_steps(lengths: Tensor, share: Tensor | float) -> Tensor:
    """Return how many steps of samples of these lengths are hidden; none of a single one."""
    return (lengths * share).round().long().clamp(min=1).minimum((lengths - 1).clamp(min=0))
