"""Windows of series: labelled ones, ones of which every step is known, and those of forecasts."""

from __future__ import annotations

from collections.abc import Mapping, Sequence

import torch
from torch import Tensor
from torch.nn import functional as F

from jepa.data.sources.series_tables import Timeline
from jepa.data.stream import UnreadableSample


class WindowSamples:
    """Windows of several series (C, T_i) and their labels, as samples (window, label); all in memory.

    A series that is shorter than the window is padded with NaN at its end. wrong: number -> why a series cannot be
    used; its windows raise UnreadableSample. name: of the series, for messages.
    """

    def __init__(
        self,
        series: Sequence[Tensor],
        labels: Sequence[int] | None,
        *,
        wrong: Mapping[int, str],
        name: str,
        window_size: int,
        stride: int,
        split_channels: bool,
    ) -> None:
        self.window_size = window_size
        self.series = [F.pad(each, (0, max(0, window_size - each.shape[1])), value=float("nan")) for each in series]
        self.labels = labels
        self.wrong, self.name = wrong, name
        self.split_channels = split_channels
        self.channels = len(series[0]) if split_channels else 1
        self.places = [
            (number, start)
            for number, each in enumerate(self.series)
            for start in range(0, each.shape[1] - window_size + 1, stride)
        ]

    def __len__(self) -> int:
        return len(self.places) * self.channels

    def describe(self, index: int) -> str:
        """The number of a window's series, from 0."""
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


class ForecastWindows:
    """Windows of z-scored series (C, T_i) with what follows them: n = `len` windows, each of C samples or one.

    Those that more steps follow come first, so that the windows of a longer horizon are the first ones of a shorter.
    period: steps of a season, None where that is not known.
    """

    def __init__(
        self,
        values: Sequence[Tensor],
        *,
        window_size: int,
        horizon: int,
        period: int | None,
        split_channels: bool,
        normalise: str,
    ) -> None:
        self.window_size, self.horizon, self.period = window_size, horizon, period
        self.split_channels, self.normalise = split_channels, normalise
        counts = [max(0, each.shape[1] - window_size - horizon + 1) for each in values]
        starts = torch.cat([torch.arange(count) for count in counts])
        follow = torch.cat([torch.arange(count, 0, -1) for count in counts])
        before = torch.tensor([0, *(each.shape[1] for each in values[:-1])]).cumsum(0)  # steps of the series before
        firsts = starts + before.repeat_interleave(torch.tensor(counts))
        self.firsts = firsts[follow.argsort(descending=True, stable=True)]
        self.values = torch.cat(list(values), dim=1)

    def __len__(self) -> int:
        return len(self.firsts)

    def __getitem__(self, index: Tensor) -> tuple[Tensor, Tensor, Tensor, Tensor, Tensor]:
        """Of some windows: x as the network gets it, what follows, both z-scored windows' level and scale, the window.

        x and window (b, C, T), future (b, C, horizon), level and scale (b, C, 1): x = (window - level) / scale, b being
        the number of windows, times the channels where these are split.
        """
        steps = torch.arange(self.window_size + self.horizon)
        both = self.values[:, self.firsts[index][:, None] + steps].transpose(0, 1)  # (n, C, T + horizon)
        if self.split_channels:
            both = both.flatten(0, 1).unsqueeze(1)
        window, future = both.split([self.window_size, self.horizon], dim=2)
        x, level, scale = normalised(window, self.normalise)
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
        level = filled.gather(-1, last)
        return window - level, level, one
    count = seen.sum(dim=-1, keepdim=True).clamp(min=1)
    level = filled.sum(dim=-1, keepdim=True) / count
    deviation = ((filled - level) * seen).square().sum(dim=-1, keepdim=True).div(count).sqrt()
    scale = torch.where(deviation > 1e-5, deviation, one)
    return (window - level) / scale, level, scale
