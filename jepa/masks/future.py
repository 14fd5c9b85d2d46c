"""Future masks: the last share of a series is predicted from the steps before it."""

from __future__ import annotations

from collections.abc import Sequence

import torch
from torch import Tensor

from jepa.masks.token_indices import mask_from_hidden
from jepa.types import Grid, Mask
from jepa.utils.errors import check_at_least


class FutureMask:
    """Masker whose context is the past and whose target the future, on grids whose last axis is time.

    target_share: share of the time steps (tokens along the last axis) to hide, rounded, at least one hidden and one
        seen; or [least, most], from which each sample's share is drawn uniformly.
    num_masks: independent masks per sample, each of which is another view of it; equal for a fixed share.

    On a grid of several axes, such as (channels, time), the same steps are hidden in every row. Steps of padding do not
    count.
    """

    def __init__(self, *, target_share: float | Sequence[float] = 0.4, num_masks: int = 1) -> None:
        shares = [target_share] * 2 if isinstance(target_share, (int, float)) else list(target_share)
        if len(shares) != 2 or not 0 < shares[0] <= shares[1] < 1:
            raise ValueError(
                f"model.mask.target_share={target_share}: expected a share between 0 and 1, or [least, most]"
            )
        check_at_least("model.mask", 1, num_masks=num_masks)
        self.shares = shares
        self.num_masks = num_masks

    def __call__(
        self,
        batch_size: int,
        grid: Grid,
        *,
        valid: Tensor | None = None,
        generator: torch.Generator | None = None,
    ) -> list[Mask]:
        """Return `num_masks` masks with one target block (B, 1, P) each. valid (B, N) bool: False at padding.

        Raises ValueError when the grid has a single time step.
        """
        *others, steps = grid
        rows = torch.Size(others).numel()
        if steps < 2:
            raise ValueError(
                f"a future needs at least 2 tokens along time, got a grid of {grid}: use smaller patches "
                "(model.encoder.stem.patch_size) or longer windows (data.window_size)"
            )
        device = torch.device("cpu") if generator is None else generator.device
        real = torch.ones(batch_size, steps, dtype=torch.bool, device=device)
        if valid is not None:
            real = valid.unflatten(1, (rows, steps)).any(dim=1)  # (B, steps)
        lengths = torch.arange(1 if valid is not None else steps, steps + 1)
        target_size = rows * int(self._hidden(lengths, self.shares[1]).max())
        context_size = rows * int((lengths - self._hidden(lengths, self.shares[0])).max())
        masks = []
        for _ in range(self.num_masks):
            least, most = self.shares
            share = least + (most - least) * torch.rand(batch_size, device=device, generator=generator)
            count = real.sum(dim=1)
            first = count - self._hidden(count, share)
            hidden = (real.cumsum(dim=1) - 1 >= first[:, None]) & real
            hidden = hidden[:, None].expand(-1, rows, -1).flatten(1)  # (B, N)
            masks.append(
                mask_from_hidden(
                    hidden, valid, context_size=context_size, target_size=max(1, target_size), generator=generator
                )
            )
        return masks

    @staticmethod
    def _hidden(lengths: Tensor, share: Tensor | float) -> Tensor:
        """Return how many steps of samples of these lengths are hidden; none of a single one."""
        return (lengths * share).round().long().clamp(min=1).minimum((lengths - 1).clamp(min=0))
