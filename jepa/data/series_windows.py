"""Windows of series: labelled ones, ones of which every step is known, and those of forecasts."""

from __future__ import annotations

from collections.abc import Mapping, Sequence
from dataclasses import dataclass

import torch
from torch import Tensor
from torch.nn import functional as F

from jepa.data.sources.series_tables import Timeline
from jepa.data.stream import UnreadableSample


@dataclass(kw_only=True, eq=False)
class WindowSamples:
    """Windows of series (C, T_i), padded with NaN at their ends, and their labels, as samples; all in memory.

    wrong: number -> why a series cannot be used; its windows are bad samples. name: of the series, for messages.
    """

    series: Sequence[Tensor]
    labels: Sequence[int] | None
    wrong: Mapping[int, str]
    name: str
    window_size: int
    stride: int
    split_channels: bool

    def __post_init__(self) -> None:
        steps = self.window_size
        self.series = [F.pad(each, (0, max(0, steps - each.shape[1])), value=float("nan")) for each in self.series]
        self.channels = len(self.series[0]) if self.split_channels else 1
        starts = [range(0, each.shape[1] - steps + 1, self.stride) for each in self.series]
        self.places = [(number, start) for number, each in enumerate(starts) for start in each]

    def __len__(self) -> int:
        return len(self.places) * self.channels

    def describe(self, index: int) -> str:
        return f"{self.name}, number {self.places[index // self.channels][0]}"

    def __getitem__(self, index: int) -> tuple[Tensor, int | None]:
        place, channel = divmod(index, self.channels)
        number, start = self.places[place]
        if number in self.wrong:
            raise UnreadableSample(f"{self.describe(index)}, from step {start}", self.wrong[number])
        window = self.series[number][:, start : start + self.window_size]
        window = window[channel : channel + 1] if self.split_channels else window
        return window, None if self.labels is None else self.labels[number]

    def truth(self, truths: Sequence[Tensor], index: int, window: Tensor) -> Tensor:
        """Return what the truths (T_i,) of the series say of each step (T,) of a window."""
        number, start = self.places[index // self.channels]
        return truths[number][start : start + self.window_size]


@dataclass(kw_only=True, eq=False)
class ForecastWindows:
    """Windows of z-scored series (C, T_i) and what follows, those that most follows first.

    period: of a season. target: the channel that is forecast; None: all. unit: its deviation, which z-scores are in.
    """

    values: Sequence[Tensor]
    window_size: int
    horizon: int
    period: int | None
    split_channels: bool
    normalise: str
    target: int | None = None
    unit: float | None = None

    def __post_init__(self) -> None:
        lengths = torch.tensor([0, *(each.shape[1] for each in self.values)])
        counts = (lengths[1:] - self.window_size - self.horizon + 1).clamp(min=0)
        starts = torch.cat([torch.arange(count) for count in counts.tolist()])
        follow = torch.cat([torch.arange(count, 0, -1) for count in counts.tolist()])
        firsts = starts + lengths[:-1].cumsum(0).repeat_interleave(counts)  # after the steps of the series before
        self.firsts = firsts[follow.argsort(descending=True, stable=True)]
        self.values = torch.cat(list(self.values), dim=1)

    def __len__(self) -> int:
        return len(self.firsts)

    def __getitem__(self, index: Tensor) -> tuple[Tensor, Tensor, Tensor, Tensor, Tensor]:
        """Of some windows: x as the network gets it, what follows, both z-scored windows' level and scale, the window.

        x and window (b, C, T), future (b, C, horizon), level and scale (b, C, 1): x = (window - level) / scale, b being
        the number of windows, times the channels where these are split. With a target all but x are of its channel.
        """
        steps = torch.arange(self.window_size + self.horizon)
        both = self.values[:, self.firsts[index][:, None] + steps].transpose(0, 1)  # (n, C, T + horizon)
        if self.split_channels:
            both = both.flatten(0, 1).unsqueeze(1)
        window, future = both.split([self.window_size, self.horizon], dim=2)
        x, level, scale = normalised(window, self.normalise)
        if self.target is not None:
            chosen = slice(self.target, self.target + 1)
            future, level, scale, window = (each[:, chosen] for each in (future, level, scale, window))
        return x, future, level, scale, window


def span(timeline: Timeline, split: str, lookback: int) -> slice:
    """The steps of a part, and before it as many of the part before as a look-back takes."""
    number = ("train", "validation", "test").index(split)
    first = 0 if number == 0 else max(0, timeline.ends[number - 1] - lookback)
    return slice(first, timeline.ends[number])


def normalised(window: Tensor, how: str) -> tuple[Tensor, Tensor, Tensor]:
    """Windows (..., C, T) normalised, and the level and scale (..., C, 1): x = (window - level) / scale."""
    seen = ~window.isnan()
    zero, one = torch.zeros_like(window[..., :1]), torch.ones_like(window[..., :1])
    if how == "none":
        return window, zero, one
    filled = window.nan_to_num(0.0)
    if how == "last":
        last = (seen * torch.arange(window.shape[-1], device=window.device)).amax(dim=-1, keepdim=True)
        return window - (level := filled.gather(-1, last)), level, one
    count = seen.sum(dim=-1, keepdim=True).clamp(min=1)
    level = filled.sum(dim=-1, keepdim=True) / count
    deviation = ((filled - level) * seen).square().sum(dim=-1, keepdim=True).div(count).sqrt()
    scale = torch.where(deviation > 1e-5, deviation, one)
    return (window - level) / scale, level, scale
