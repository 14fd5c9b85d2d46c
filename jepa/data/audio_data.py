"""Sound for training and evaluation: waveforms of one length, padded with NaN, built by `conf/data/*.yaml`."""

from __future__ import annotations

import inspect
import math
from collections.abc import Callable, Sequence
from dataclasses import dataclass
from functools import partial
from typing import ClassVar

import numpy as np
import torch
from torch import Tensor
from torch.nn import functional as F

from jepa.data.data_module import DataModule, Reading
from jepa.data.sources.sound_files import Sound, SoundFile, SoundTensor
from jepa.data.sources.splits import Splits
from jepa.utils.errors import check_at_least
from jepa.utils.lazy_import import require
from jepa.utils.log_mel import LogMel

RESAMPLING_MARGIN = 0.05  # seconds that are read before and after a part of a sound that is resampled


@dataclass(frozen=True, kw_only=True)
class SoundAugment:
    """How a training clip is changed; every choice uniform and independent. Raises ValueError for values outside these.

    crop: (least, most) share of the clip that is kept. speed: (least, most) factor of speed and pitch. shift: the clip
    starts up to this share of data.seconds later, after silence, as far as there is room. gain: up to so many decibels
    either way. tilt: a filter y[t] = x[t] - a x[t - 1], a in [-tilt, tilt]. noise: white noise at a random level of
    these two, in decibels below the clip's own; None for none.
    """

    crop: Sequence[float] = (1.0, 1.0)
    speed: Sequence[float] = (1.0, 1.0)
    shift: float = 0.0
    gain: float = 0.0
    tilt: float = 0.0
    noise: Sequence[float] | None = None

    def __post_init__(self) -> None:
        for name, most in (("crop", 1.0), ("speed", 4.0)):
            low, high = getattr(self, name)
            if not 0 < low <= high <= most:
                raise ValueError(f"data.augment.{name}={[low, high]}: expected [least, most] above 0, up to {most:g}")
        if not 0 <= self.shift < 1 or not 0 <= self.tilt < 1 or self.gain < 0:
            got = f"shift={self.shift}, tilt={self.tilt}, gain={self.gain}"
            raise ValueError(f"data.augment: got {got}; expected the first two in [0, 1), gain in decibels from 0")
        if self.noise is not None and not (len(self.noise) == 2 and self.noise[0] <= self.noise[1]):
            raise ValueError(f"data.augment.noise={list(self.noise)}: expected [least, most] decibels below the clip")

    def draw(self, random: torch.Generator) -> list[float]:
        """The random numbers behind a clip, in [0, 1); as many whatever the settings are."""
        return torch.rand(8, generator=random).tolist()

    def span(self, total: int, draws: Sequence[float]) -> tuple[int, int, float]:
        """Of a sound of `total` samples: the first that is kept, how many are, and how much faster they are played."""
        kept = max(1, round(total * between(self.crop, draws[0])))
        return int((total - kept + 1) * draws[1]), kept, between(self.speed, draws[2])

    def __call__(self, wave: Tensor, length: int, draws: Sequence[float], random: torch.Generator) -> Tensor:
        """The changed waveform (t,) of what `span` keeps, t >= 1; length: samples of data.seconds."""
        if (speed := between(self.speed, draws[2])) != 1:
            size = max(1, round(len(wave) / speed))
            wave = F.interpolate(wave[None, None], size=size, mode="linear", align_corners=False)[0, 0]
        if self.tilt:
            wave = wave - (2 * draws[3] - 1) * self.tilt * F.pad(wave[:-1], (1, 0))
        if self.gain:
            wave = wave * 10 ** ((2 * draws[4] - 1) * self.gain / 20)
        room = min(int(self.shift * length), length - len(wave))
        if room > 0:
            wave = F.pad(wave, (int((room + 1) * draws[5]), 0))
        if self.noise is not None:
            level = wave.square().mean().sqrt() * 10 ** (-between(self.noise, draws[6]) / 20)
            wave = wave + level * torch.randn(len(wave), generator=random)
        return wave


def prepare_sound(
    sound: Sound | SoundFile,
    random: torch.Generator | None,
    *,
    sample_rate: int,
    length: int,
    augment: SoundAugment | None = None,
) -> Tensor:
    """Return a sound as x (1, length): resampled, cropped (at random, or its centre) or padded with NaN."""
    stored = SoundTensor(*sound) if isinstance(sound, tuple) else sound
    total = resampled_length(stored, sample_rate)
    start, kept, speed = 0, total, 1.0
    augment = None if random is None else augment
    if augment is not None:
        draws = augment.draw(random)
        start, kept, speed = augment.span(total, draws)
    if (spare := round(kept / speed) - length) > 0:
        first = spare // 2 if random is None else int(torch.randint(spare + 1, (), generator=random))
        kept = math.ceil(length * speed)
        start = min(start + int(first * speed), total - kept)
    wave = read_part(stored, start, kept, sample_rate)
    if augment is not None:
        wave = augment(wave, length, draws, random)
    return F.pad(wave, (0, length - len(wave)), value=float("nan")).unsqueeze(0)


def resampled_length(stored: SoundFile | SoundTensor, sample_rate: int) -> int:
    """Samples of a stored sound at another rate."""
    return max(1, (2 * stored.frames * sample_rate + stored.rate) // (2 * stored.rate))  # as soxr rounds


def read_part(stored: SoundFile | SoundTensor, start: int, count: int, sample_rate: int) -> Tensor:
    """Read `count` samples from `start` on, or those left, at sample_rate. Raise ValueError without any."""
    if stored.rate == sample_rate:
        return stored.read(start, count)
    # The part begins and ends where samples of both rates fall together, and is wider than the filter's reach.
    common = math.gcd(stored.rate, sample_rate)
    of_file, of_part = stored.rate // common, sample_rate // common
    margin = math.ceil(RESAMPLING_MARGIN * common)
    first = max(0, start // of_part - margin)
    last = -(-(start + count) // of_part) + margin
    wave = resample(stored.read(first * of_file, (last - first) * of_file), stored.rate, sample_rate)
    wave = wave[start - first * of_part :][:count]
    if not len(wave):
        raise ValueError(f"the sound ends before sample {start} at {sample_rate} Hz")
    return wave


@dataclass(kw_only=True, eq=False)
class AudioData(DataModule):
    """Batches of sound, x (B, 1, T) float32, T = sample_rate * seconds, NaN where a clip has ended.

    source: called as source(root=root), or source() without a root, with label= if it is set, the labels that are the
        classes; returns `Splits` of files of sound, or (waveform (t,) float32, sample rate).
    sample_rate: to which all are resampled. seconds: length of x. spectrogram: the front end of the encoder.
    augment: how training clips are changed; None: longer ones are only cropped at random.
    """

    nan_is_missing: ClassVar[bool] = True

    source: Callable[..., Splits]
    root: str | None = None
    sample_rate: int
    seconds: float
    spectrogram: LogMel
    augment: SoundAugment | None = None
    label: str | None = None

    def __post_init__(self) -> None:
        super().__post_init__()
        check_at_least("data", 1, sample_rate=self.sample_rate)
        length = round(self.sample_rate * self.seconds)
        if length < (hop := self.spectrogram.hop_length):
            problem = f"{length} samples at {self.sample_rate} Hz, less than data.spectrogram.hop_length={hop}"
            raise ValueError(f"data.seconds={self.seconds} is {problem}: use longer clips")
        if (rate := self.spectrogram.sample_rate) != self.sample_rate:
            raise ValueError(f"data.spectrogram.sample_rate={rate} differs from data.sample_rate={self.sample_rate}")
        if self.label is not None and "label" not in inspect.signature(self.source).parameters:
            raise ValueError(f"data.label={self.label!r}: these files have one kind of labels only: set it to null")
        splits = self.read_splits(self.source, root=self.root, label=self.label)
        prepare = partial(prepare_sound, sample_rate=self.sample_rate, length=length, augment=self.augment)
        self.setup(splits, prepare=prepare, input_shape=(1, length))

    def make_truth(self, what: str, index: int, value: Sound, reading: Reading) -> Tensor:
        """The class of each frame of the spectrogram, by the label at its centre; -1 where the clip has ended."""
        total, length = resampled_length(value, self.sample_rate), self.spec.input_shape[1]
        places = torch.arange(0, length, self.spectrogram.hop_length) + max(0, total - length) // 2
        truth = self.splits[reading.split].truth(places.double() / self.sample_rate, value)
        return truth.masked_fill(places >= total, -1)

    def raw_picture(self, x: Tensor) -> Tensor:
        """The log-mel picture (b, 1, mel_bins, frames) whose patches are the raw input of a token."""
        return self.spectrogram.to(x.device)(x).unsqueeze(1)

    def raw_features(self, x: Tensor, size: int) -> Tensor:
        """Mean of each mel band over a clip, (b, mel_bins); `size` has no meaning here."""
        return self.spectrogram.to(x.device).band_means(x)


def resample(wave: Tensor, rate: int, sample_rate: int) -> Tensor:
    """Return a waveform (t,) of `rate` Hz at `sample_rate` Hz."""
    if rate == sample_rate:
        return wave
    soxr = require("soxr", extra="audio", purpose="resampling sound")
    # One that is shorter than a sample at the new rate would leave nothing.
    changed = soxr.resample(wave.numpy(), rate, sample_rate).astype(np.float32)
    return torch.from_numpy(changed) if len(changed) else wave[:1]


def between(pair: Sequence[float], draw: float) -> float:
    """Return the number that lies at `draw`, from 0 to 1, between the two of a pair."""
    return pair[0] + (pair[1] - pair[0]) * draw
