"""Files of sound, of which only the asked part is read, the label tracks beside them, and the Free Spoken Digits."""

from __future__ import annotations

import contextlib
import os
import re
from collections.abc import Iterator, Mapping, Sequence
from dataclasses import dataclass, replace
from functools import partial
from itertools import pairwise
from pathlib import Path
from types import ModuleType
from typing import Literal

import numpy as np
import torch
from torch import Tensor

from jepa.data.sources.decoders import File, readable
from jepa.data.sources.download import download_file, read_archive
from jepa.data.sources.splits import FileSamples, KnownSamples, Splits, first_few, number_classes, sort_classes
from jepa.data.stream import UnreadableSample
from jepa.utils.errors import DataError, check_choice
from jepa.utils.lazy_import import require

HIGHEST_RATE = 2_000_000  # Hz; sound of higher rates is taken for a damaged header
MOST_FRAMES = 2**50  # a header that claims more does not know
BLOCK = 2**21  # values that are decoded at a time, before channels are averaged: 8 MiB


def require_soundfile() -> ModuleType:
    """Return the module soundfile. Raise UserError with the extra to install if it is missing."""
    return require("soundfile", extra="audio", purpose="reading sound")


class SoundFile:
    """A sound that libsndfile reads; opened, of which only the header is read.

    rate: in Hz. frames: how many samples each channel has, as the file claims. name: of the sample in errors, None for
    the file's. Raises UnreadableSample for what is no file of sound, and for claims that make no sense.
    """

    def __init__(self, file: File, name: str | None = None) -> None:
        soundfile = require_soundfile()
        with readable(file, name, soundfile.SoundFileError) as self.name, _silent_stderr():
            if isinstance(file, (str, Path)):
                open(file, "rb").close()  # whose errors say what is wrong; libsndfile's is "System error"
            self._file = soundfile.SoundFile(file)
        self.rate, self.frames = int(self._file.samplerate), int(self._file.frames)
        if self.frames < 1:
            raise UnreadableSample(self.name, "it holds no samples")
        if self.frames > MOST_FRAMES or not 0 < self.rate <= HIGHEST_RATE:
            raise UnreadableSample(self.name, f"its header claims {self.frames} samples at {self.rate} Hz")

    def read(self, start: int = 0, count: int | None = None) -> Tensor:
        """Return the samples from `start` on, at most `count`: (t,) float32 in [-1, 1], channels averaged, t >= 1.

        Raises UnreadableSample where none can be decoded, and for samples that are NaN or infinite.
        """
        left = self.frames - start if count is None else count
        block, parts = max(1, BLOCK // self._file.channels), []
        damage = require_soundfile().SoundFileError
        with readable(None, self.name, damage), _silent_stderr():
            try:
                self._file.seek(start)
            except damage:
                left = 0
            while left > 0 and len(samples := self._file.read(min(left, block), dtype="float32", always_2d=True)):
                parts.append(torch.from_numpy(samples.mean(axis=1)))
                left -= len(samples)
        if not parts:
            raise UnreadableSample(self.name, f"it ends before sample {start:,}, its header claims {self.frames:,}")
        wave = torch.cat(parts)
        if not bool(wave.isfinite().all()):  # files of floats may hold them, and NaN would pass for padding
            raise UnreadableSample(self.name, "it holds samples that are NaN or infinite")
        return wave


@contextlib.contextmanager
def _silent_stderr() -> Iterator[None]:
    """A context without messages of C code: libmpg123 prints one for each frame before a place in an MP3 file."""
    kept = os.dup(2)
    try:
        with open(os.devnull, "wb") as nowhere:
            os.dup2(nowhere.fileno(), 2)
        yield
    finally:
        os.dup2(kept, 2)
        os.close(kept)


class SoundTensor:
    """A sound in memory: a waveform (t,) float32 and its rate in Hz; read as a `SoundFile`."""

    def __init__(self, wave: Tensor, rate: int) -> None:
        self.wave, self.rate, self.frames = wave, rate, len(wave)

    def read(self, start: int = 0, count: int | None = None) -> Tensor:
        return self.wave[start:][:count]


@dataclass(frozen=True)
class SoundPart:
    """`frames` samples of another sound, from its sample `start` on; read as a `SoundFile`."""

    whole: SoundFile | SoundTensor
    start: int
    frames: int

    @property
    def rate(self) -> int:
        return self.whole.rate

    def read(self, start: int = 0, count: int | None = None) -> Tensor:
        """Return the samples from `start` on, at most `count`; what is asked for may reach beyond the part."""
        return self.whole.read(self.start + start, self.frames - start if count is None else count)


def piece_spans(frames: int, rate: int, seconds: float, stride: float | None = None) -> list[tuple[int, int]]:
    """Return (start, length) in samples of the pieces of a sound, one every `stride` seconds, else one after another.

    A last one shorter than half a piece is left out, unless it is the only one, as is what the piece before holds.
    """
    length, step = max(1, round(seconds * rate)), max(1, round((stride or seconds) * rate))
    starts = range(0, frames, step)
    kept = [at for at in starts if at == 0 or (2 * (frames - at) >= length and at - step + length < frames)]
    return [(start, min(length, frames - start)) for start in kept]


class SoundPieces:
    """Files of sound in pieces (`piece_spans`), labelled as their files; an unreadable one is one bad sample."""

    def __init__(self, files: FileSamples, seconds: float) -> None:
        self.files = files
        places = []
        for number in range(len(files)):
            frames, rate = length_of(*files.file(number, files.describe(number)))
            places += [(number, rate, *span) for span in piece_spans(frames, rate, seconds) or [(0, 0)]]
        self.places = np.array(places, dtype=np.int64).reshape(-1, 4)  # number of the file, rate, start, length
        self.wholes = self.places[:, 0]

    def __len__(self) -> int:
        return len(self.places)

    def describe(self, index: int) -> str:
        number, rate, start, _ = self.places[index].tolist()
        return f"{self.files.describe(number)}, from {start / rate:g} s"

    def __getitem__(self, index: int) -> tuple[SoundPart, int | None]:
        number, _, start, length = self.places[index].tolist()
        sound, label = self.files[number]
        return SoundPart(sound, start, length), label


def in_pieces(splits: Splits, seconds: float | None, key: str) -> Splits:
    """Return the splits with each file in pieces, and a line that counts them; None: as they are."""
    if seconds is None:
        return splits
    if seconds <= 0:
        raise ValueError(f"{key}={seconds}: expected seconds above 0, or null")
    train, test = (SoundPieces(files, seconds) for files in (splits.train, splits.test))
    files, pieces = len(splits.train) + len(splits.test), len(train) + len(test)
    line = f"{files:,} files of sound in {pieces:,} pieces of {seconds:g} s"
    return replace(splits, train=train, test=test, lines=(*splits.lines, line))


def length_of(file: File, name: str | None = None) -> tuple[int, int]:
    """Return the samples of a file of sound, as its header says, and its rate; (0, 1) for one that cannot be read."""
    try:
        sound = SoundFile(file, name)
    except UnreadableSample:
        return 0, 1
    return sound.frames, sound.rate


Sound = SoundFile | SoundPart | tuple[Tensor, int]
"""What sources of sound give: a file, or a waveform (t,) float32 in [-1, 1] and its rate in Hz."""
FSDD_URL = "https://github.com/Jakobovski/free-spoken-digit-dataset/archive/refs/heads/master.tar.gz"
FSDD_NAME = re.compile(r"(?P<digit>[0-9])_(?P<speaker>[a-z]+)_(?P<index>[0-9]+)\.wav")
FSDD_TEST = 5  # recordings 0 .. 4 of every digit by every speaker are the official test split.


def fsdd(*, root: str, label: Literal["digit", "speaker"] = "digit", download: bool = True) -> Splits:
    """Free Spoken Digit Dataset (Jackson et al.): digits 0 .. 9, six speakers, 50 recordings each, 8 kHz.

    root: a folder with the files <digit>_<speaker>_<index>.wav at any depth, or with an archive of them, or this,
    which is held in memory. Else it is downloaded, and has no published check sum. label: what the classes are.
    Splits are the official ones, recordings 0 .. 4 to test. Raises DataError for nothing there, and a damaged archive.
    """
    check_choice("data.label", label, ("digit", "speaker"))
    require_soundfile()  # before training reads the first file
    place = Path(root)
    paths, contents = [str(path.relative_to(place)) for path in place.rglob("*.wav") if _parse(path.name)], None
    if not paths:
        place = place if place.is_file() else _find_archive(place, download=download)
        contents = read_archive(place, lambda name: _parse(name) is not None)
        paths = list(contents)
    if not paths:
        raise DataError(f"{place} holds no files <digit>_<speaker>_<index>.wav: it is another archive")
    names = tuple(sorted({_parse(path)[label] for path in paths}))
    index, lines = number_classes(names, (), where=f"data.root={root}")
    splits = {}
    for split, wanted in (("train", f"from {FSDD_TEST}"), ("test", f"0 to {FSDD_TEST - 1}")):
        chosen = [path for path in sorted(paths) if (int(_parse(path)["index"]) < FSDD_TEST) == (split == "test")]
        if not chosen:
            raise DataError(f"{place} holds no recordings of index {wanted}, the {split} split: get all of its files")
        labels = None if index is None else [index[_parse(path)[label]] for path in chosen]
        splits[split] = FileSamples(chosen, labels, SoundFile, folder=place, contents=contents)
    return Splits(**splits, class_names=None if index is None else names, lines=lines)


def _parse(path: str) -> re.Match[str] | None:
    return FSDD_NAME.fullmatch(os.path.basename(path))


def _find_archive(root: Path, *, download: bool) -> Path:
    if archives := [*root.glob("fsdd*.tar*"), *root.glob("free-spoken-digit*.tar*")]:
        return min(archives)
    target, name = root / "free-spoken-digit-dataset.tar.gz", "the Free Spoken Digit Dataset"
    wanted = ["the recordings (0_george_0.wav, ...)", "or an archive of them (fsdd.tar.xz), as data.root, too"]
    download_file(target, urls=[FSDD_URL], md5=None, allowed=download, name=name, root=root, wanted=wanted)
    return target


NONE = "none"  # what is under no label
TOLERANCE = 1e-3  # seconds by which labels that are drawn side by side may overlap

Label = tuple[float, float, str]


def with_label_tracks(splits: Splits, files: Sequence[FileSamples]) -> Splits:
    """Return splits of files of sound, or of pieces of them, with the class of each time by a/b.txt beside a/b.wav.

    Raises DataError where no sound has one or nothing is labelled, and for broken ones.
    """
    paths = [samples.describe(number) for samples in files for number in range(len(samples))]
    tracks = {path: read_label_track(os.path.splitext(path)[0] + ".txt") for path in paths}
    lacking = sum(track is None for track in tracks.values())
    names = sort_classes({name for track in tracks.values() for *_, name in track or ()} - {NONE})
    if not names:
        what = "no sound has a label track beside it" if lacking == len(paths) else "the label tracks are empty"
        raise DataError(
            f"data.source.label_tracks=true, but {what}: expected for {paths[0]} the file "
            f"{os.path.splitext(paths[0])[0]}.txt with lines of start, end (seconds) and label, as of Audacity"
        )
    line = f"label tracks: {len(names)} classes and {NONE}, {first_few(names)}"
    line += f"; {lacking} of {len(paths)} sounds have none, which evaluation=dense leaves out" if lacking else ""
    known = partial(classes_at, tracks, (NONE, *names)), (NONE, *names)
    train, test = (KnownSamples(samples, *known) for samples in (splits.train, splits.test))
    return replace(splits, train=train, test=test, lines=(*splits.lines, line))


def classes_at(
    tracks: Mapping[str, list[Label] | None], names: Sequence[str], times: Tensor, sound: SoundFile | SoundPart
) -> Tensor:
    """Return the class (n,) at times (n,) of a sound, in seconds; -1 for a sound without a label track."""
    whole, start = (sound.whole, sound.start / sound.rate) if isinstance(sound, SoundPart) else (sound, 0)
    track, times = tracks[whole.name], times + start
    classes = torch.full(times.shape, -1 if track is None else 0)
    for begin, end, name in track or ():
        classes[(begin <= times) & (times < end)] = names.index(name)
    return classes


def read_label_track(path: str) -> list[Label] | None:
    """Return the labels of a file in order; None where there is no such file.

    Raises DataError for lines that are no labels, and for different labels at the same time.
    """
    try:
        with open(path, encoding="utf-8-sig") as file:
            lines = file.read().splitlines()
    except FileNotFoundError:
        return None
    except (OSError, UnicodeDecodeError) as error:
        raise DataError(f"{path} cannot be read as a label track in UTF-8: {error}") from error
    track = []
    for number, line in enumerate(lines, start=1):
        if not line.strip() or line.startswith("\\"):  # the band of frequencies of the label above
            continue
        try:
            start, end, name = line.split(None, 2)
            track.append((float(start.replace(",", ".")), float(end.replace(",", ".")), name.strip()))
            if not -1 < track[-1][0] <= track[-1][1] < float("inf"):
                raise ValueError
        except ValueError:
            raise DataError(
                f"{path}: line {number} is {line[:80]!r}, expected a start, an end not before it, both in seconds, and "
                "a label, separated by tabs"
            ) from None
    track = sorted(label for label in track if label[0] < label[1])
    for (_, end, name), (start, _, other) in pairwise(track):
        if start < end - TOLERANCE and name != other:
            raise DataError(
                f"{path}: {name!r} goes on to {end:g} s and {other!r} begins at {start:g} s: a frame has one label "
                "alone, so end the first earlier, or keep each kind of labels in a folder of its own"
            )
    return track
