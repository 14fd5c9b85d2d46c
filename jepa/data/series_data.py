"""Time series for training and evaluation: windows of labelled series, or of long series split by time."""

from __future__ import annotations

import logging
from collections.abc import Callable, Sequence
from dataclasses import dataclass, replace
from functools import partial
from typing import Any, ClassVar, Literal

import torch
from torch import Tensor
from torch.nn import functional as F

from jepa.data.augment import SeriesAugment
from jepa.data.data_module import DataModule, Reading, read_source
from jepa.data.series_windows import ForecastWindows, WindowSamples, normalised, span
from jepa.data.sources.series_tables import SeriesSplits, Timeline
from jepa.data.sources.splits import KnownSamples, Splits, first_few, keep_aside
from jepa.data.stream import LARGEST_INPUT, Request, wrong_values
from jepa.types import Batch
from jepa.utils.errors import DataError, UserError, check_at_least
from jepa.utils.random import generator

log = logging.getLogger("jepa")


@dataclass(kw_only=True, eq=False)
class SeriesData(DataModule):
    """Batches of series (C, T) float32: windows, z-scored; NaN is missing or padding.

    source: called as source(root=root), and name=name where there is one; returns `SeriesSplits`.
    window_size: steps of a sample; None takes whole series, padded at the end. stride: steps between windows.
    split_channels: each channel of a window is a sample of its own, (1, T), as in PatchTST (arXiv 2211.14730).
    z_score: of each channel, by mean and std: one for each, one for all, or "auto", of the training split.
    normalise: of each window and channel on top, "last": subtract the last value; "window": also divide by the
        deviation, from the mean; "none". Done before the network, in which hidden tokens would leave a trace.
    augment: how training views are made. channels, length: what the data must have; None takes what is found.

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
    mean: float | Sequence[float] | Literal["auto"] = "auto"
    std: float | Sequence[float] | Literal["auto"] = "auto"
    normalise: Literal["none", "last", "window"] = "none"
    augment: SeriesAugment | None = None
    channels: int | None = None
    length: int | None = None

    def __post_init__(self) -> None:
        super().__post_init__()
        window_size = self.window_size
        check_at_least("data", 1, stride=self.stride, window_size=window_size)
        source = read_source(self.source, root=self.root, name=self.name)
        if self.score_on == "validation":
            source = series_on_validation(source)
        self.timelines, lines, train, test = [*source.timelines], [*source.lines], source.train, source.test
        if self.timelines:
            if window_size is None:
                raise ValueError("data.window_size=null: expected the steps of a window, as series are long")
            self.timelines, short = long_enough(self.timelines, window_size, self.root)
            lines += [f"left out, as too short for data.window_size={window_size}: {first_few(short)}"] if short else []
            self.timelines = [without_wrong_values(each, self.root, self.max_bad_share) for each in self.timelines]
            train, test = (
                [each.values[:, span(each, side, window_size)] for each in self.timelines]
                for side in ("train", self.score_on)
            )
        sides = {"train": train, "test": test}
        wrong = {side: dict(source.wrong.get(side, {})) for side in sides}
        for side, series in sides.items() if not self.timelines else ():
            wrong[side] |= wrong_series(series)
        whole = [series for number, series in enumerate(train) if number not in wrong["train"]]
        if not whole:
            raise DataError(f"{self.root}: no series of the training split can be used: {wrong['train'][0]}")
        self.level, self.scale = self._statistics(whole) if self.z_score else (torch.zeros(1, 1), torch.ones(1, 1))
        steps = window_size or max(series.shape[1] for series in [*train, *test])
        found = {"channels": 1 if self.split_channels else len(train[0]), "length": steps}
        for key, size in found.items():
            if getattr(self, key) not in (None, size):
                raise DataError(f"data.{key}={getattr(self, key)}, but the data has {size}: set data.{key}=null")
        scaled = {side: [(each - self.level) / self.scale for each in series] for side, series in sides.items()}
        make = partial(WindowSamples, window_size=steps, stride=self.stride, split_channels=self.split_channels)
        splits = [
            make(
                series=series,
                labels=labels,
                wrong=wrong_series(series) | wrong[side],
                name=f"{side} series of {self.root if self.name is None else self.name}",
            )
            for (side, series), labels in zip(scaled.items(), (source.train_labels, source.test_labels))
        ]
        if self.timelines and self.timelines[0].truth is not None:
            parts = ("train", self.score_on)
            truths = [[each.truth[span(each, part, steps)] for each in self.timelines] for part in parts]
            known = [partial(samples.truth, truth) for samples, truth in zip(splits, truths)]
            splits = [KnownSamples(*each, source.truth_names) for each in zip(splits, known)]
        columns = {"source.columns": list(self.timelines[0].names)} if self.timelines else {}
        self.setup(
            Splits(*splits, source.class_names, tuple(lines)),
            prepare=self.prepare_sample,
            input_shape=(found["channels"], steps),
            found=found | {"mean": self.level.flatten().tolist(), "std": self.scale.flatten().tolist()} | columns,
        )

    def _statistics(self, series: Sequence[Tensor]) -> tuple[Tensor, Tensor]:
        """Mean and deviation (C, 1). Raises DataError for given ones of another number of channels."""
        found = []
        for name, computed in zip(("mean", "std"), statistics(series)):
            given = getattr(self, name)
            values = computed if given == "auto" else torch.tensor(given, dtype=torch.float32).view(-1, 1)
            if (count := len(values)) not in (1, channels := len(computed)):
                raise DataError(f"data.{name} has {count} values, the data {channels} channels: set data.{name}=auto")
            found.append(values.expand(channels, 1))
        return found[0], found[1]

    def prepare_sample(self, window: Tensor, random: torch.Generator | None) -> Tensor:
        """One window (C, T), as it is or as a random view of it, normalised; batches are made like that."""
        if random is not None and self.augment is not None:
            window = self.augment.apply(window[None], *self.augment.draw(1, tuple(window.shape), random))[0]
        return normalised(window, self.normalise)[0]

    def windows(
        self, split: Literal["train", "validation", "test"], *, horizon: int, column: str | None = None
    ) -> ForecastWindows | None:
        """All windows of a part with the `horizon` steps that follow, for forecasts; None for labelled series.

        The look-back of a window may reach into the part before; what is forecast never does. column: the channel that
        is forecast, None for all. Raises DataError for a part that is too short, UserError for a column that is none.
        """
        if not self.timelines:
            return None
        names = self.timelines[0].names
        if column is not None and (self.split_channels or column not in names):
            expected = "data.split_channels=false" if self.split_channels else f"a channel: {first_few(names)}"
            raise UserError(f"evaluation.probes.forecast.column={column}: expected {expected}")
        target = None if column is None else names.index(column)
        split = self.score_on if split == "test" else split
        steps = self.spec.input_shape[1]
        values = [(each.values[:, span(each, split, steps)] - self.level) / self.scale for each in self.timelines]
        if (most := max(each.shape[1] for each in values)) < steps + horizon:
            few = f"the {split} part of the series has {most} steps with its look-back, too few for a window of {steps}"
            needs = f"(data.window_size) and a horizon of {horizon} (evaluation.probes.forecast.horizons)"
            raise DataError(f"{few} {needs}")
        return ForecastWindows(
            values=values,
            window_size=steps,
            horizon=horizon,
            period=self.timelines[0].period,
            split_channels=self.split_channels,
            normalise=self.normalise,
            target=target,
            unit=None if target is None else float(self.scale[target]),
        )

    def raw_features(self, x: Tensor, size: int) -> Tensor:
        """Windows (b, C, T) as features (b, C * min(T, size)): means of what is observed, 0 where nothing is."""
        seen = (~x.isnan()).to(x.dtype)
        steps = min(x.shape[2], size)
        sums, counts = (F.adaptive_avg_pool1d(each, steps) for each in (x.nan_to_num(0.0), seen))
        return (sums / counts.clamp(min=1e-6)).flatten(1)

    def make_batch(self, request: Request, reading: Reading) -> Batch:
        bad: dict[str, str] = {}
        samples = self.splits[reading.split]

        def read(index: int) -> tuple[Tensor, int | None, Tensor | None]:
            window, label = samples[index]
            return window, label, self.make_truth(reading.truth, index, window, reading) if reading.truth else None

        made = (self.read_or_next(read, index, bad, reading) for index in request.indices)
        windows, labels, truths = zip(*made)
        x = torch.stack(windows)  # (b, C, T)
        views = (reading.views or self.views) if self.gives_views(reading) else 1
        x = x.repeat_interleave(views, dim=0)
        if reading.seed is not None and self.augment is not None:
            randoms = (generator("cpu", reading.seed, "augment", counter) for counter in request.counters)
            drawn = [self.augment.draw(views, tuple(x.shape[1:]), random) for random in randoms]
            x = self.augment.apply(x, *(torch.cat(each) for each in zip(*drawn)))
        x = normalised(x, self.normalise)[0]
        batch = {"views": x.unflatten(0, (-1, views))} if self.gives_views(reading) else {"x": x}
        batch |= {"truth": list(truths)} if reading.truth else {}
        return self.with_labels(batch | {"bad": bad}, labels)


def series_on_validation(source: SeriesSplits) -> SeriesSplits:
    """Labelled series whose test series are of the training series, see `keep_aside`; long ones as they are."""
    if source.timelines:
        return replace(source, lines=(*source.lines, "scored on the validation part (data.score_on=validation)"))
    numbers = [part.tolist() for part in keep_aside(len(source.train), source.train_labels)]
    found: dict[str, Any] = {"wrong": {}}
    for side, chosen in zip(("train", "test"), numbers):
        found[side] = [source.train[number] for number in chosen]
        found["wrong"][side] = {
            place: source.wrong["train"][number]
            for place, number in enumerate(chosen)
            if number in source.wrong.get("train", {})
        }
        if source.train_labels is not None:
            found[f"{side}_labels"] = [source.train_labels[number] for number in chosen]
    line = f"scored on {len(found['test']):,} series kept aside from training (data.score_on=validation)"
    return replace(source, lines=(*source.lines, line), **found)


def long_enough(timelines: Sequence[Timeline], window_size: int, root: str) -> tuple[list[Timeline], list[str]]:
    """Return the timelines whose parts are all long enough, and the paths of others. Raise DataError for none."""
    longest = max(timelines, key=lambda timeline: timeline.ends)
    first, second, last = longest.ends
    if first < window_size:
        few = f"the training part has {first} rows, fewer than data.window_size={window_size}"
        raise DataError(f"{root}: {few}: use shorter ones")
    if second <= first or last <= second:
        raise DataError(f"{root} has {longest.values.shape[1]} rows, too few for a training, validation and test part")
    fits = [window_size <= each.ends[0] < each.ends[1] < each.ends[2] for each in timelines]
    kept = [each for each, fit in zip(timelines, fits) if fit]
    return kept, [each.path for each, fit in zip(timelines, fits) if not fit]


def wrong_series(series: Sequence[Tensor]) -> dict[int, str]:
    """Number -> why a series cannot be used: for values that are infinite or beyond LARGEST_INPUT."""
    found = ((number, wrong_values({"series": each}, nan_is_missing=True)) for number, each in enumerate(series))
    return {number: problem for number, problem in found if problem}


def without_wrong_values(timeline: Timeline, root: str, max_bad_share: float) -> Timeline:
    """The timeline with NaN for infinite or too large values, with a warning. Raise DataError for too many."""
    wrong = timeline.values.abs() > LARGEST_INPUT
    count, total = int(wrong.any(dim=0).sum()), wrong.shape[1]
    if not count:
        return timeline
    channel, step = wrong.nonzero()[0].tolist()
    first = f"column {timeline.names[channel]!r} holds {float(timeline.values[channel, step]):g} in row {step + 1}"
    told = f"{timeline.path or root}: {first}; {count} of {total} rows hold infinite values, or such beyond "
    told += f"{LARGEST_INPUT:g}"
    if count > max_bad_share * total:
        more = f"more than data.max_bad_share={max_bad_share:g}"
        raise DataError(f"{told}, {more}: mend them, or mark what is missing as NaN")
    log.warning("%s, which are taken for missing", told)
    return replace(timeline, values=timeline.values.masked_fill(wrong, float("nan")))


def statistics(series: Sequence[Tensor]) -> tuple[Tensor, Tensor]:
    """Mean and standard deviation (C, 1) of each channel over all steps there are; of a constant channel 1."""
    found = []
    for channel in range(len(series[0])):
        values = torch.cat([each[channel] for each in series]).double()
        values = values[~values.isnan()]
        mean, std = (float(values.mean()), float(values.std(correction=0))) if len(values) else (0.0, 1.0)
        found.append((mean, std if std > 1e-8 * (1 + abs(mean)) else 1.0))
    return torch.tensor(found).unsqueeze(-1).unbind(dim=1)
