"""Time span masks on a grid of (channels, time), the same for all channels or one for each."""

from __future__ import annotations

import torch
from torch import Tensor

from jepa.masks.span import SpanMask
from jepa.masks.token_indices import mask_from_hidden
from jepa.types import Grid, Mask


class TimeSpanMask(SpanMask):
    """`SpanMask` of series: on a grid (channels, time) no span crosses from one channel into the next.

    share_channels: hide the same steps in every channel, so that none can be copied from another; False draws spans for
        each channel. The other arguments are those of `SpanMask`.
    """

    def __init__(
        self, *, mask_ratio: float = 0.6, mask_length: int = 1, num_masks: int = 1, share_channels: bool = False
    ) -> None:
        super().__init__(mask_ratio=mask_ratio, mask_length=mask_length, num_masks=num_masks)
        self.share_channels = share_channels

    def __call__(
        self,
        batch_size: int,
        grid: Grid,
        *,
        valid: Tensor | None = None,
        generator: torch.Generator | None = None,
    ) -> list[Mask]:
        """As `SpanMask`; raises ValueError for fewer than two steps along time."""
        if len(grid) == 1:
            return super().__call__(batch_size, grid, valid=valid, generator=generator)
        *others, steps = grid
        rows = torch.Size(others).numel()
        if steps < 2:
            raise ValueError(f"masks need at least 2 tokens along time, got a grid of {grid}: use smaller patches")
        device = torch.device("cpu") if generator is None else generator.device
        sequences = batch_size if self.share_channels else batch_size * rows
        real = torch.ones(sequences, steps, dtype=torch.bool, device=device)
        if valid is not None:
            real = valid.unflatten(1, (rows, steps))  # (B, rows, steps)
            real = real.any(dim=1) if self.share_channels else real.flatten(0, 1)
        lengths = torch.arange(1 if valid is not None else steps, steps + 1)
        spans, span = self._spans(lengths)
        max_hidden = rows * int((spans * span).max())
        max_seen = rows * int((lengths - spans * span).max())
        masks = []
        for _ in range(self.num_masks):
            hidden = self._hide(real, int(spans.max()), generator)
            hidden = hidden[:, None].expand(-1, rows, -1) if self.share_channels else hidden.unflatten(0, (-1, rows))
            masks.append(
                mask_from_hidden(
                    hidden.flatten(1),
                    valid,
                    context_size=max_seen,
                    target_size=max(1, max_hidden),
                    generator=generator,
                )
            )
        return masks
