"""Random views of time series: crops resampled to full length, scaling, and jitter."""

from __future__ import annotations

from collections.abc import Sequence
from dataclasses import dataclass

import torch
from torch import Tensor


@dataclass(frozen=True, kw_only=True)
class SeriesAugment:
    """Settings of the views of series, in units of z-scored values; 0 or null switches a step off.

    crop: [least, most] share of the steps that is cut out and stretched to full length by linear interpolation, which
        moves and warps time. scale: standard deviation of the factor 1 + s of each channel. offset: that of what is
        added to each channel. jitter: that of noise on each value (Um et al. 2017, arXiv 1706.00527).
    """

    crop: Sequence[float] | None = None
    scale: float = 0.0
    offset: float = 0.0
    jitter: float = 0.0

    def __post_init__(self) -> None:
        if self.crop is not None and (len(self.crop) != 2 or not 0 < self.crop[0] <= self.crop[1] <= 1):
            raise ValueError(f"data.augment.crop={self.crop}: expected [least, most] within (0, 1], or null")
        for name in ("scale", "offset", "jitter"):
            if getattr(self, name) < 0:
                raise ValueError(f"data.augment.{name}={getattr(self, name)} is negative; 0 switches it off")

    def draw(self, views: int, shape: tuple[int, int], random: torch.Generator) -> tuple[Tensor, Tensor, Tensor]:
        """Random numbers (V, 2), (V, 2, C), (V, C, T) of V views of a sample (C, T), whatever the settings are."""
        channels, steps = shape
        place = torch.rand(views, 2, generator=random)
        level = torch.randn(views, 2, channels, generator=random)
        return place, level, torch.randn(views, channels, steps, generator=random)

    def apply(self, x: Tensor, place: Tensor, level: Tensor, noise: Tensor) -> Tensor:
        """Views (R, C, T) of series (R, C, T), NaN staying NaN, by numbers as drawn."""
        if self.crop is not None:
            x = self._crop(x, place)
        if self.scale:
            x = x * (1 + self.scale * level[:, 0, :, None])
        if self.offset:
            x = x + self.offset * level[:, 1, :, None]
        return x + self.jitter * noise if self.jitter else x

    def _crop(self, x: Tensor, place: Tensor) -> Tensor:
        """Cut out and stretch what is not padding at the end; between two of which one is missing is missing."""
        steps = torch.arange(x.shape[2])
        seen = ~x.isnan().all(dim=1)  # (R, T)
        last = (seen * steps).amax(dim=1, keepdim=True)  # (R, 1) last step observed
        least, most = self.crop
        share = least + (most - least) * place[:, :1]
        at = place[:, 1:] * last * (1 - share) + steps * share  # (R, T)
        below = at.floor().long().clamp(max=x.shape[2] - 1)
        above = (below + 1).clamp(max=x.shape[2] - 1)
        part = (at - below)[:, None]  # (R, 1, T)
        left, right = (x.gather(2, index[:, None].expand(-1, x.shape[1], -1)) for index in (below, above))
        mixed = torch.where(part > 0, left + part * (right - left), left)
        return mixed.masked_fill((steps > last)[:, None], float("nan"))
