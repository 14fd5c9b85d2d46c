"""Spans of time on a grid of (channels, time), in each channel by itself or in all at once."""

from __future__ import annotations

import torch
from torch import Tensor

from jepa.masks.span import SpanMask
from jepa.masks.token_indices import mask_from_hidden
from jepa.types import Grid, Mask


class TimeSpanMask(SpanMask):
    """`SpanMask` of series: on a grid (channels, time) no span crosses from the end of a channel into the next.

    share_channels: hide the same steps in every channel, so that nothing can be copied from one to another; False draws
        for each channel by itself. A grid of one axis leaves nothing to share. The other arguments are those of
        `SpanMask`.
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
        lines = batch_size if self.share_channels else batch_size * rows
        real = torch.ones(lines, steps, dtype=torch.bool, device=device)
        if valid is not None:
            real = valid.unflatten(1, (rows, steps))  # (B, rows, steps)
            real = real.any(dim=1) if self.share_channels else real.flatten(0, 1)
        lengths = torch.arange(1 if valid is not None else steps, steps + 1)
        spans, span = self._spans(lengths)
        hidden_most = rows * int((spans * span).max())
        seen_most = rows * int((lengths - spans * span).max())
        masks = []
        for _ in range(self.num_masks):
            hidden = self._hide(real, int(spans.max()), generator)
            hidden = hidden[:, None].expand(-1, rows, -1) if self.share_channels else hidden.unflatten(0, (-1, rows))
            masks.append(
                mask_from_hidden(
                    hidden.flatten(1),
                    valid,
                    context_size=seen_most,
                    target_size=max(1, hidden_most),
                    generator=generator,
                )
            )
        return masks
