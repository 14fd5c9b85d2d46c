"""Time span masks on a grid of (channels, time), the same for all channels or one for each."""

from __future__ import annotations

import math

import torch
from torch import Tensor

from jepa.masks.span import SpanMask
from jepa.types import Grid


class TimeSpanMask(SpanMask):
    """`SpanMask` of series: on a grid (channels, time) no span crosses from one channel into the next.

    share_channels: hide the same steps in every channel, so that none can be copied from another; False draws spans for
        each channel. The other arguments are those of `SpanMask`.
    """

    def __init__(
        self,
        *,
        mask_ratio: float = 0.6,
        mask_length: int = 1,
        num_masks: int = 1,
        steps_per_token: int = 1,
        wrap: bool = False,
        share_channels: bool = False,
    ) -> None:
        super().__init__(
            mask_ratio=mask_ratio,
            mask_length=mask_length,
            num_masks=num_masks,
            steps_per_token=steps_per_token,
            wrap=wrap,
        )
        self.share_channels = share_channels

    def sequences(self, grid: Grid) -> int:
        return math.prod(grid[:-1])

    def hide(self, real: Tensor, generator: torch.Generator) -> Tensor:
        channels = real.view(len(real), -1, real.shape[-1])  # (B, channels, time)
        if self.share_channels:
            return super().hide(channels.any(dim=1), generator).unsqueeze(1).expand_as(channels).reshape(real.shape)
        return super().hide(channels.flatten(0, 1), generator).view_as(real)
