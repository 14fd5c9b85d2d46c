"""Time series for training and evaluation: windows of labelled series, or of one long series split by time."""

from __future__ import annotations

from collections.abc import Callable, Sequence
from dataclasses import dataclass
from typing import ClassVar, Literal

import torch
from torch import Tensor
from torch.nn import functional as F

from jepa.data.data_module import DataModule, Reading, check_counts, read_source
from jepa.data.series_augment import SeriesAugment
from jepa.data.sources.series_tables import SeriesSplits, Timeline
from jepa.data.sources.splits import Splits
from jepa.data.stream import Request
from jepa.types import Batch
from jepa.utils.errors import DataError
from jepa.utils.random import generator


@dataclass(kw_only=True, eq=False)
class SeriesData(DataModule):
    """Batches of series (C, T) float32: windows, z-scored; NaN is missing or padding.

    source: called as source(root=root), and name=name where there is one; returns `SeriesSplits`.
    window_size: steps of a sample; None takes whole series, padded at the end to the longest.
        stride: steps between the windows of a series. Windows of a labelled series have its label.
    split_channels: each channel of a window is a sample of its own, (1, T), as in PatchTST (arXiv 2211.14730).
    z_score: subtract each channel's mean and divide by its deviation, both of the training split, less missing values.
    normalise: of each window and channel on top, "last": subtract the last value there is; "window": subtract the mean
        and divide by the deviation; "none". This is done before the network, in which hidden tokens would leave a
        trace.
    augment: how training views are made; None leaves them as in evaluation.
    channels, length: what the data must have; None takes what is found.

    Raises DataError also for data that is too short or of other channels.
    """

    nan_is_missing: ClassVar[bool] = True

    source: Callable[..., SeriesSplits]
    root: str
    name: str | None = None
    window_size: int | None = None
    stride: int = 1
    split_channels: bool = False
    z_score: bool = True
    normalise: Literal["none", "last", "window"] = "none"
    augment: SeriesAugment | None = None
    channels: int | None = None
    length: int | None = None

    def __post_init__(self) -> None:
        super().__post_init__()
        window_size = self.window_size
        check_counts(stride=self.stride, **({} if window_size is None else {"window_size": window_size}))
        source = read_source(self.source, root=self.root, name=self.name)
        self.timeline = source.timeline
        train, test = source.train, source.test
        if self.timeline is not None:
            if window_size is None:
                raise ValueError("data.window_size=null: expected the steps of a window, as there is one long series")
            check_parts(self.timeline, window_size, self.root)
            train, test = part(self.timeline, "train", window_size), part(self.timeline, "test", window_size)
        self.mean, self.std = statistics(train) if self.z_score else (torch.zeros(1, 1), torch.ones(1, 1))
        steps = window_size or max(series.shape[1] for series in [*train, *test])
        found = {"channels": 1 if self.split_channels else len(train[0]), "length": steps}
        for key, size in found.items():
            if getattr(self, key) not in (None, size):
                raise DataError(f"data.{key}={getattr(self, key)}, but the data has {size}: set data.{key}=null")
        splits = [
            WindowSamples(
                [(each - self.mean) / self.std for each in series],
                labels,
                window_size=steps,
                stride=self.stride,
                split_channels=self.split_channels,
            )
            for series, labels in ((train, source.train_labels), (test, source.test_labels))
        ]
        self.setup(
            Splits(*splits, source.class_names),
            prepare=self.prepare_sample,
            input_shape=(found["channels"], steps),
            found=found,
        )

    def prepare_sample(self, window: Tensor, random: torch.Generator | None) -> Tensor:
        """One window (C, T), as it is or as a random view of it, normalised; batches are made like that."""
        if random is not None and self.augment is not None:
            drawn = self.augment.draw(1, tuple(window.shape), random)
            window = self.augment.apply(window[None], *drawn)[0]
        return normalised(window, self.normalise)[0]

    def windows(self, split: Literal["train", "validation", "test"], *, horizon: int) -> ForecastWindows | None:
        """All windows of a part with the `horizon` steps that follow, for forecasts; None for data without a timeline.

        The look-back of a window may reach into the part before; what is forecast never does. Raises DataError for a
        part that is too short.
        """
        if self.timeline is None:
            return None
        steps = self.spec.input_shape[1]
        values = (part(self.timeline, split, steps)[0] - self.mean) / self.std
        if values.shape[1] < steps + horizon:
            raise DataError(
                f"the {split} part of the series has {values.shape[1]} steps with its look-back, too few for a window "
                f"of {steps} (data.window_size) and a horizon of {horizon} (evaluation.probes.forecast.horizons)"
            )
        return ForecastWindows(
            values,
            window_size=steps,
            horizon=horizon,
            period=self.timeline.period,
            split_channels=self.split_channels,
            normalise=self.normalise,
        )

    def raw_features(self, x: Tensor, size: int) -> Tensor:
        """Windows (b, C, T) as features (b, C * min(T, size)): means of what is observed, 0 where nothing is."""
        seen = (~x.isnan()).to(x.dtype)
        steps = min(x.shape[2], size)
        sums, counts = (F.adaptive_avg_pool1d(each, steps) for each in (x.nan_to_num(0.0), seen))
        return (sums / counts.clamp(min=1e-6)).flatten(1)

    def make_batch(self, request: Request, reading: Reading) -> Batch:
        """See `DataModule.make_batch`; the views of all windows are made at once."""
        windows, labels = zip(*(self.splits[reading.split][index] for index in request.indices))
        x = torch.stack(windows)  # (b, C, T)
        views = (reading.views or self.views) if self.gives_views(reading) else 1
        x = x.repeat_interleave(views, dim=0)
        if reading.seed is not None and self.augment is not None:
            randoms = (generator("cpu", reading.seed, "augment", counter) for counter in request.counters)
            drawn = [self.augment.draw(views, tuple(x.shape[1:]), random) for random in randoms]
            x = self.augment.apply(x, *(torch.cat(each) for each in zip(*drawn)))
        x = normalised(x, self.normalise)[0]
        batch = {"views": x.unflatten(0, (-1, views))} if self.gives_views(reading) else {"x": x}
        return self.with_labels(batch, labels)


class WindowSamples:
    """Windows of several series (C, T_i) and their labels, as samples (window, label); all in memory.

    A series that is shorter than the window is padded with NaN at its end.
    """

    def __init__(
        self,
        series: Sequence[Tensor],
        labels: Sequence[int] | None,
        *,
        window_size: int,
        stride: int,
        split_channels: bool,
    ) -> None:
        self.window_size = window_size
        self.series = [F.pad(each, (0, max(0, window_size - each.shape[1])), value=float("nan")) for each in series]
        self.labels = labels
        self.split_channels = split_channels
        self.channels = len(series[0]) if split_channels else 1
        self.places = [
            (number, start)
            for number, each in enumerate(self.series)
            for start in range(0, each.shape[1] - window_size + 1, stride)
        ]

    def __len__(self) -> int:
        return len(self.places) * self.channels

    def __getitem__(self, index: int) -> tuple[Tensor, int | None]:
        place, channel = divmod(index, self.channels)
        number, start = self.places[place]
        window = self.series[number][:, start : start + self.window_size]
        window = window[channel : channel + 1] if self.split_channels else window
        return window, None if self.labels is None else self.labels[number]


@dataclass(frozen=True)
class ForecastWindows:
    """Windows of a z-scored series (C, T) with what follows them: n = `len` windows, each of C samples or one.

    period: steps of a season, None where that is not known.
    """

    values: Tensor
    window_size: int
    horizon: int
    period: int | None
    split_channels: bool
    normalise: str

    def __len__(self) -> int:
        return self.values.shape[1] - self.window_size - self.horizon + 1

    def __getitem__(self, index: Tensor) -> tuple[Tensor, Tensor, Tensor, Tensor, Tensor]:
        """Of some windows: x as the network gets it, what follows, both z-scored windows' level and scale, the window.

        x and window (b, C, T), future (b, C, horizon), level and scale (b, C, 1): x = (window - level) / scale, b being
        the number of windows, times the channels where these are split.
        """
        steps = torch.arange(self.window_size + self.horizon)
        both = self.values[:, index[:, None] + steps].transpose(0, 1)  # (n, C, T + horizon)
        if self.split_channels:
            both = both.flatten(0, 1).unsqueeze(1)
        window, future = both.split([self.window_size, self.horizon], dim=2)
        x, level, scale = normalised(window, self.normalise)
        return x, future, level, scale, window


def part(timeline: Timeline, split: str, lookback: int) -> list[Tensor]:
    """The steps of a part, and before it as many of the part before as a look-back takes."""
    number = ("train", "validation", "test").index(split)
    first = 0 if number == 0 else max(0, timeline.ends[number - 1] - lookback)
    return [timeline.values[:, first : timeline.ends[number]]]


def check_parts(timeline: Timeline, window_size: int, root: str) -> None:
    """Raise DataError when the training part is shorter than a window, or another part is empty."""
    first, second, last = timeline.ends
    if first < window_size:
        raise DataError(
            f"{root}: the training part has {first} rows, fewer than data.window_size={window_size}: use shorter ones"
        )
    if second <= first or last <= second:
        raise DataError(f"{root} has {timeline.values.shape[1]} rows, too few for a training, validation and test part")


def statistics(series: Sequence[Tensor]) -> tuple[Tensor, Tensor]:
    """Mean and standard deviation (C, 1) of each channel over all steps there are; of a constant channel 1."""
    means, stds = [], []
    for channel in range(len(series[0])):
        values = torch.cat([each[channel] for each in series]).double()
        values = values[~values.isnan()]
        mean = values.mean() if len(values) else torch.zeros((), dtype=torch.float64)
        std = values.std(correction=0) if len(values) else torch.ones((), dtype=torch.float64)
        means.append(mean)
        stds.append(std if std > 1e-8 * (1 + mean.abs()) else torch.ones_like(std))
    return torch.stack(means).float()[:, None], torch.stack(stds).float()[:, None]


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
