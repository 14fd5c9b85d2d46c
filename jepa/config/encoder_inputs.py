"""Pictures, clips, texts, sounds and series as users have them, made the inputs that an encoder gets in evaluation."""

from __future__ import annotations

import logging
import os
from collections.abc import Callable, Iterator, Mapping, Sequence
from dataclasses import dataclass, field
from numbers import Real
from os import PathLike
from typing import Any

import numpy as np
import torch
from PIL import Image, ImageOps
from torch import Tensor

from jepa.data import AudioData, ImageData, SeriesData, TextData, VideoData
from jepa.data.data_module import DataModule, Reading
from jepa.data.series_windows import span
from jepa.data.sources.decoders import TensorVideo, decode_image, open_video
from jepa.data.sources.image_files import image_of, of_pillow
from jepa.data.sources.series_tables import series_table, warn_once
from jepa.data.sources.sound_files import SoundFile, SoundPart, SoundTensor, piece_spans
from jepa.data.sources.text_tables import NOT_UTF8, is_utf8
from jepa.data.sources.time_table import TimeTable
from jepa.data.stream import UnfitSample, UnreadableSample, blamed, wrong_values
from jepa.utils.errors import UserError

log = logging.getLogger("jepa")

Place = dict[str, Any]
"""Where in its item an input lies: {"start": in seconds of a sound or steps of a series, "channel": of a series}."""

EVALUATION = Reading("test", seed=None, views=None, bad_limit=0)
LOUDEST = 256.0  # beyond it a waveform of floats holds the numbers of a 16-bit file, and not [-1, 1]
FAR = 100.0  # standard deviations from the mean beyond which pictures in memory are likely to have other units


@dataclass(frozen=True)
class Inputs:
    """How the inputs of one modality are made.

    data: makes them, as in evaluation. tables: by which settings of `series_csv` the run has read its tables.
    """

    data: DataModule
    tables: Mapping[str, Any] = field(default_factory=dict)

    @property
    def kind(self) -> Kind:
        """What items may be."""
        return next(kind for base, kind in KINDS.items() if isinstance(self.data, base))

    def items(self, given: Any) -> list[Any]:
        """Return one or many items as a list. Raise UserError for arrays of other axes than items have."""
        axes = self.kind.axes
        if getattr(given, "ndim", 0) == 1 and getattr(given.dtype, "kind", "") in ("O", "U"):  # a column of a table
            given = given.tolist()
        if isinstance(given, (np.ndarray, Tensor)):
            if given.ndim in axes:
                return [given]
            if axes == (1,) and given.ndim == 2 and given.shape[1] <= 8:
                raise UserError(f"got an array of shape {tuple(given.shape)}: give a sound of channels as (wave, rate)")
            if given.ndim == max(axes, default=0) + 1:
                return list(given)
            expected = " or ".join(map(str, axes)) or "no"
            raise UserError(f"got an array of shape {tuple(given.shape)}, expected {expected} axes")
        return [given] if is_sound(given) or not isinstance(given, (list, tuple)) else list(given)

    def prepare(
        self, item: Any, name: str = "the input", *, pieces: bool = False, stride: float | None = None
    ) -> list[tuple[Place, Tensor]]:
        """Return the inputs (C, *S), or ids (L,), of an item: one, or all of its pieces or channels.

        name: of an item that is no path, for messages. pieces, stride: see `Encoder`.

        Raise UserError for an item of another kind, and UnreadableSample for one that is damaged or empty.
        """
        name = os.fspath(item) if isinstance(item, (str, PathLike)) and self.kind.paths else name
        if self.kind.paths and isinstance(item, (str, PathLike)) and os.path.isdir(item) and not self.kind.folders:
            raise UserError(f"{name} is a folder: give its files, or python scripts/extract.py ... input={name}")
        try:
            value = self.kind.value(item, name, self)
            made = [(place, self.tensor(part, name)) for place, part in self.split(value, name, pieces, stride)]
        except UnfitSample as error:
            many = "; an array of many pictures has 4 axes" if getattr(item, "ndim", 0) == 3 else ""
            raise UserError(f"{name}: {error}{many}") from None
        except Exception as error:
            raise UnreadableSample(*blamed(error, name)) from error
        is_array = isinstance(self.data, ImageData) and isinstance(item, (np.ndarray, Tensor))
        if is_array and float(made[0][1].abs().max()) > FAR:
            log.warning(
                "%s: values of %s up to %g are far from those of training (mean %s, std %s): only uint8 and uint16 are "
                "scaled to [0, 1], all others are taken as they are",
                *(name, item.dtype, item.max(), self.data.mean, self.data.std),
            )
        return made

    def tensor(self, value: Any, name: str) -> Tensor:
        """Return the input of what a source gives. Raise UnreadableSample for values that no input may hold."""
        x = self.data.make_inputs(value, 0, EVALUATION)["x"]
        if problem := wrong_values({"input": x}, nan_is_missing=self.data.nan_is_missing):
            raise UnreadableSample(name, problem)
        if x.is_floating_point() and bool(x.isnan().all()):
            raise UnreadableSample(name, "it holds nothing but missing values")
        return x

    def split(self, value: Any, name: str, pieces: bool, stride: float | None) -> Iterator[tuple[Place, Any]]:
        """Return the parts of a value, with their places: all of it, its pieces, its channels."""
        self.check_stride(stride)
        if stride is not None and not pieces:
            raise UserError(f"stride={stride}: expected with pieces=True")
        if isinstance(self.data, SeriesData):
            return self.windows(value, name, pieces, stride)
        if pieces and not isinstance(self.data, AudioData):
            raise UserError("pieces are for sounds and series")
        return sound_pieces(value, self.data.seconds, stride) if pieces else iter([({}, value)])

    def check_stride(self, stride: float | None) -> None:
        """Raise UserError for a stride that is no number of seconds, or of steps of a series."""
        unit = "whole number of steps" if isinstance(self.data, SeriesData) else "number of seconds"
        number = isinstance(stride, Real) and 0 < stride < float("inf")
        if stride is not None and not (number and (stride == int(stride) or unit[0] == "n")):
            raise UserError(f"stride={stride}: expected a {unit} above 0")

    def table(self, item: Any, name: str) -> TimeTable:
        """Return a table, by its path or in memory, read as in training."""
        table = series_table(os.fspath(item) if isinstance(item, (str, PathLike)) else item, **self.tables)
        for note in table.notes:
            warn_once(f"{name}: {note}")
        return table

    def windows(self, series: Tensor, name: str, pieces: bool, stride: float | None) -> Iterator[tuple[Place, Tensor]]:
        """Yield the windows of a scaled series (C, T), and where channels are samples of their own each of these."""
        steps = self.data.spec.input_shape[1]
        if series.shape[1] < steps or (series.shape[1] > steps and not pieces):
            every = (
                f"give pieces=True for every window of {steps} steps, .mean(dim=0) of these for one vector, or the last"
            )
            advice = every if series.shape[1] > steps else "fill up with NaN, missing"
            expected = f"expected {(len(series), steps)}: channels, steps"
            raise UserError(f"{advice}: {name} is a series of shape {tuple(series.shape)}, {expected}")
        for start in self.starts(series, stride):
            for channel in range(self.channels(series)):
                place, window = self.window(series, start, channel)
                yield place if pieces else {}, window

    def starts(self, series: Tensor, stride: float | None) -> range:
        """Return where the windows of a series (C, T) begin."""
        steps = self.data.spec.input_shape[1]
        return range(0, series.shape[1] - steps + 1, int(stride or steps))

    def channels(self, series: Tensor) -> int:
        """Return how many inputs a window of a series (C, T) makes."""
        return len(series) if self.data.split_channels else 1

    def window(self, series: Tensor, start: int, channel: int) -> tuple[Place, Tensor]:
        """Return a window of a series, or one channel of it, and its place."""
        window = series[:, start : start + self.data.spec.input_shape[1]]
        if self.data.split_channels:
            return {"start": start, "channel": channel}, window[channel : channel + 1]
        return {"start": start}, window


def series_place(data: SeriesData, split: str, index: int) -> tuple[int, int, int]:
    """Return the number of the series of a sample, its first step there, and its channel where these are split."""
    samples = data.splits[split]
    window, channel = divmod(index, samples.channels)
    number, start = samples.places[window]
    if data.timelines:  # of which a split is a part
        side = data.score_on if split == "test" else split
        start += span(data.timelines[number], side, data.spec.input_shape[1]).start
    return number, start, channel


def sound_pieces(
    sound: SoundFile | tuple[Tensor, int], seconds: float, stride: float | None
) -> Iterator[tuple[Place, SoundPart]]:
    """Yield the pieces of a sound, see `piece_spans`."""
    stored = SoundTensor(*sound) if isinstance(sound, tuple) else sound
    for start, length in piece_spans(stored.frames, stored.rate, seconds, stride):
        yield {"start": start / stored.rate}, SoundPart(stored, start, length)


def is_sound(item: Any) -> bool:
    """Whether an item is a waveform and its rate."""
    return isinstance(item, tuple) and len(item) == 2 and sum(isinstance(each, Real) for each in item) == 1


def as_picture(item: Any, name: str, inputs: Inputs) -> Image.Image | Tensor:
    """Return a path, PIL image or array as `read_image` gives pictures. Raise UserError for other things."""
    if isinstance(item, (str, PathLike)):
        return decode_image(str(item))
    if isinstance(item, Image.Image):
        return of_pillow(ImageOps.exif_transpose(item), item.format, name)
    return image_of(as_tensor(item, name, "a picture", "a path, PIL image or array").numpy(), name)


def as_clip(item: Any, name: str, inputs: Inputs) -> Any:
    """Return a path or uint8 frames (T, h, w, C) as a video to be read. Raise UserError for other things."""
    if isinstance(item, (str, PathLike)):
        return open_video(str(item))
    frames = as_tensor(item, name, "a clip", "a path or uint8 frames (T, h, w, C)")
    if frames.dtype != torch.uint8 or frames.ndim != 4 or frames.shape[-1] not in (1, 3):
        raise UserError(
            f"{name}: a clip of {frames.dtype} {tuple(frames.shape)}: expected uint8 frames (T, h, w, C), C 1 or 3"
        )
    return TensorVideo(frames.permute(0, 3, 1, 2))


def as_text(item: Any, name: str, inputs: Inputs) -> str:
    """Return a text as it is. Raise UserError for what is no str, UnreadableSample for an empty or broken one."""
    if not isinstance(item, str):
        raise UserError(f"{name}: a text is {type(item).__name__}, expected str")
    if not (item.strip() and is_utf8(item)):
        raise UnreadableSample(name, NOT_UTF8 if item.strip() else "the text is empty")
    return item


def as_sound(item: Any, name: str, inputs: Inputs) -> SoundFile | tuple[Tensor, int]:
    """Return a path as a file of sound, a waveform as (float32 (t,), rate). Raise UserError for others."""
    if isinstance(item, (str, PathLike)):
        return SoundFile(str(item))
    wave, rate = item if is_sound(item) else (item, inputs.data.sample_rate)
    if isinstance(wave, Real):
        wave, rate = rate, wave  # as scipy.io.wavfile.read gives them
    wave = as_tensor(wave, name, "a sound", "a path, a waveform (t,) or (waveform, rate)")
    if not (0 < rate < float("inf") and rate == int(rate)):
        raise UserError(f"{name}: a rate of {rate}, expected whole Hz above 0")
    if wave.ndim not in (1, 2) or wave.dtype == torch.bool:
        expected = "numbers (t,), (t, channels) or (channels, t)"
        raise UserError(f"{name}: a sound of {wave.dtype} {tuple(wave.shape)}, expected {expected}")
    if not wave.is_floating_point():
        info = torch.iinfo(wave.dtype)
        middle = (info.max + 1) // 2 if info.min == 0 else 0
        wave = (wave.double() - middle) / (info.max + 1 - middle)
    wave = wave.float()
    if not bool(wave.isfinite().all()):  # NaN would pass for padding
        raise UnreadableSample(name, "it holds samples that are NaN or infinite")
    if (most := float(wave.abs().max())) > LOUDEST:
        raise UserError(f"{name}: a waveform of floats up to {most:g}, expected [-1, 1], or int16 as files have it")
    if wave.ndim == 2:
        wave = wave.mean(dim=int(wave.shape[1] < wave.shape[0]))  # the shorter axis is that of the channels
    return wave, int(rate)


def as_series(item: Any, name: str, inputs: Inputs) -> Tensor:
    """Return a series (C, T), scaled as in training."""
    data = inputs.data
    if hasattr(item, "to_frame"):  # a column of pandas
        item = item.to_frame()
    if isinstance(item, (str, PathLike)) or hasattr(item, "columns"):
        item = inputs.table(item, name)
    if isinstance(item, TimeTable):
        names = list(item.numbers.columns)
        series = torch.from_numpy(item.numbers.to_numpy(dtype=np.float32).T.copy())
        if len(series) != len(data.level):
            raise UserError(
                f"{name} has {len(names)} columns of numbers ({', '.join(names[:9])}), the run was trained on "
                f"{len(data.level)}: choose them by data.source.columns=[...], in the order of training"
            )
    else:
        series = as_tensor(item, name, "a series", "a table (path or DataFrame) or an array (C, T)").float()
    series = series[None] if series.ndim == 1 else series
    if series.ndim != 2 or len(series) != (channels := len(data.level) if data.z_score else len(series)):
        shape = (channels, data.spec.input_shape[1]) if series.ndim == 2 else data.spec.input_shape
        raise UserError(f"{name}: a series of shape {tuple(series.shape)}, expected {shape}: channels, steps")
    return (series - data.level) / data.scale


def as_tensor(item: Any, name: str, what: str, expected: str) -> Tensor:
    """Return an array or tensor as a tensor on the CPU. Raise UserError for any other, for none and for no numbers."""
    if not isinstance(item, (np.ndarray, Tensor)):
        raise UserError(f"{name}: {what} is {type(item).__name__}, expected {expected}")
    if item.dtype.is_complex if isinstance(item, Tensor) else item.dtype.kind not in "biuf":
        raise UserError(f"{name}: an array of {item.dtype}, expected numbers")
    if 0 in item.shape:
        raise UserError(f"{name}: {what} of shape {tuple(item.shape)} is empty")
    if isinstance(item, np.ndarray):  # of any order of bytes and axes
        kind = np.float64 if item.dtype == np.longdouble else item.dtype.newbyteorder("=")
        return torch.from_numpy(np.array(item, kind, order="C"))
    return item.detach().cpu().float() if item.is_floating_point() else item.detach().cpu()


@dataclass(frozen=True)
class Kind:
    """What the items of a modality may be.

    name: in the plural. value: makes of an item what sources give. axes: of a single item that is an array. forms: in
    words. settings: those of the data that say how a single sample becomes an input. paths: whether a str is a path.
    folders: whether it may be one of a folder.
    """

    name: str
    value: Callable[[Any, str, Inputs], Any]
    axes: Sequence[int]
    forms: str
    settings: Sequence[str]
    paths: bool = True
    folders: bool = False


OF_PICTURES = ("image_size", "channels", "mean", "std", "interpolation")
KINDS = {
    ImageData: Kind(
        "pictures", as_picture, (2, 3), "paths, PIL images, arrays (h, w), (h, w, C) or (C, h, w)", OF_PICTURES
    ),
    VideoData: Kind(
        "clips",
        as_clip,
        (4,),
        "paths of videos or folders of frames, uint8 frames (T, h, w, C)",
        (*OF_PICTURES, "num_frames", "frame_stride", "fps", "short_videos"),
        folders=True,
    ),
    TextData: Kind("texts", as_text, (), "str", ("tokenizer", "vocab_size", "max_length"), paths=False),
    AudioData: Kind(
        "sounds",
        as_sound,
        (1,),
        "paths, (waveform, rate in Hz), waveforms (t,) at data.sample_rate",
        ("sample_rate", "seconds", "spectrogram"),
    ),
    SeriesData: Kind(
        "series",
        as_series,
        (1, 2),
        "paths of tables, DataFrames, arrays (C, T) in the units of training",
        ("window_size", "z_score", "normalise", "mean", "std", "split_channels"),
    ),
}
