"""Shards that scripts/pack.py has written, read by their index: no sample is listed in memory.

A packed folder holds tar archives, `train-000000.tar` and so on, for each split the memory-mapped `train_index.npy`, a
row of `COLUMNS` for each sample, and `train_names.npy`, the names one after another, and index.json.
"""

from __future__ import annotations

import io
import math
import os
import tarfile
from collections.abc import Callable, Sequence
from pathlib import Path
from typing import Any, Literal, NamedTuple

import numpy as np
from torch import Tensor

from jepa.data.sources.decoders import Choose, VideoFile, _check_clip, _stack, decode_image
from jepa.data.sources.image_files import size_of, to_rgb_bytes
from jepa.data.sources.sound_files import SoundFile, SoundPieces, require_soundfile
from jepa.data.sources.splits import Splits
from jepa.data.sources.tar_files import MOST_BYTES, ArchiveSamples, Part, check_places, members_of, read_at
from jepa.data.stream import UnreadableSample
from jepa.utils.errors import DataError, UserError, first_line
from jepa.utils.lazy_import import require
from jepa.utils.read_data import open_regular, parse_json, read_bytes

VERSION = 1
INDEX, MOST_INDEX = "index.json", 2**28
COLUMNS = ("shard", "start", "size", "label", "name_end")
"""Numbers of a sample, int64: number of its shard, its first byte there and its bytes, label or -1, end of its name."""
NAMES = {"train": "train", "test": "val"}  # of the splits in names of files
Kind = Literal["image", "audio", "video"]


def read_packed(root: str, *, piece_seconds: float | None = None) -> tuple[Kind, Splits]:
    """The kind and the samples of a packed folder. piece_seconds: of sounds, see `audio_folder`.

    Raises DataError for a folder that is not one, shards that are missing or of another size, and a damaged index.
    """
    folder = Path(root)
    if not (folder / INDEX).is_file():
        problem = f"holds no {INDEX}" if folder.is_dir() else "is not a folder"
        how = f"write one with: python scripts/pack.py data=image_folder data.root=<pictures> output={root}"
        raise DataError(f"data.root={root} {problem}; {how} (pictures in shards of others are for data=imagenet)")
    try:
        index = parse_json(read_bytes(folder / INDEX, MOST_INDEX), folder / INDEX)
        if index["version"] != VERSION:
            raise ValueError(f"it is of version {index['version']}, expected {VERSION}")
        kind, classes = index["kind"], index["classes"]
        if kind not in KINDS or not (classes is None or all(isinstance(name, str) for name in classes)):
            raise ValueError(f"it holds {kind!r}, expected {', '.join(KINDS)}, and names of classes")
        if kind == "audio":
            require_soundfile()  # before training reads the first file
        train, test = (_split(folder, split, index["splits"][split]["shards"], kind, classes) for split in NAMES)
    except DataError:
        raise
    except Exception as error:  # NumPy raises many kinds for a damaged file
        reason = f"{type(error).__name__}: {first_line(error)}" if not isinstance(error, UserError) else str(error)
        raise DataError(f"data.root={root}: its index is damaged ({reason}): copy or pack it again") from error
    lines: tuple[str, ...] = ()
    if piece_seconds is not None:
        if kind != "audio" or piece_seconds <= 0:
            expected = f"null for what is no sound, here {kind}" if kind != "audio" else "seconds above 0, or null"
            raise ValueError(f"data.piece_seconds={piece_seconds}: expected {expected}")
        files = len(train) + len(test)
        train, test = (SoundPieces(each, piece_seconds) for each in (train, test))
        lines = (f"{files:,} files of sound in {len(train) + len(test):,} pieces of {piece_seconds:g} s",)
    return kind, Splits(train, test, class_names=None if classes is None else tuple(classes), lines=lines)


def _split(folder: Path, split: str, shards: list[list[Any]], kind: Kind, classes: list[str] | None) -> PackedSamples:
    """The samples of a split; shards: [name, bytes]. Raises any error for a damaged index."""
    for name, size in shards:
        if os.path.basename(name) != name:
            raise ValueError(f"it names {name!r}, which lies elsewhere")
        found = os.path.getsize(folder / name) if (folder / name).is_file() else None
        if found != size:
            problem = "is missing" if found is None else f"has {found:,} bytes, expected {size:,}"
            raise DataError(f"{folder / name} {problem}: copy it again, or pack the data again")
    rows, names = (_mapped(folder / f"{NAMES[split]}_{part}.npy") for part in ("index", "names"))
    kinds = (rows.dtype.str[1:], rows.shape[1:], names.dtype.str[1:], names.ndim)
    if kinds != ("i8", (len(COLUMNS),), "u1", 1) or not len(rows):
        raise ValueError(f"the arrays of {NAMES[split]} are of other kinds")
    check_places(rows[:, :3], [size for _, size in shards])
    labels, ends = rows[:, 3], rows[:, 4]
    if labels.min() < -1 or labels.max() >= max(1, len(classes or ())):
        raise ValueError(f"it holds labels from {labels.min()} to {labels.max()} of {len(classes or ())} classes")
    if ends[0] < 0 or (ends[1:] < ends[:-1]).any() or ends[-1] > len(names):
        raise ValueError("its names are out of place")
    return PackedSamples([str(folder / name) for name, _ in shards], rows, names, classes is not None, kind)


def _mapped(path: Path) -> np.ndarray:
    open_regular(path, 2**62).close()  # which a pipe is not
    return np.load(path, mmap_mode="r", allow_pickle=False)


class PackedSamples(ArchiveSamples):
    """Samples by the rows of an index; names: uint8, one after another."""

    def __init__(
        self, archives: Sequence[str], rows: np.ndarray, names: np.ndarray, labelled: bool, kind: Kind
    ) -> None:
        super().__init__(archives, rows[:, :3], rows[:, 3] if labelled else None, *KINDS[kind])
        self.rows, self.names = rows, names

    def name(self, index: int) -> str:
        start = self.rows[index - 1, 4] if index else 0
        return os.fsdecode(self.names[start : self.rows[index, 4]].tobytes())


class PackedVideo(VideoFile):
    """A video file that is a part of an archive."""

    def __init__(self, part: Part, name: str) -> None:
        require("av", extra="video", purpose="reading video")
        vars(self).update(part=part, name=name)

    @property
    def path(self) -> io.BufferedReader:
        """The file from its beginning, a new one each time as FFmpeg keeps its own place in it."""
        return io.BufferedReader(Part(self.part.whole, self.part.start, self.part.size))

    def read(self, choose: Choose) -> Tensor:
        try:
            return super().read(choose)
        except UnreadableSample as error:
            raise UnreadableSample(self.name, error.reason) from error


class PackedFrames(NamedTuple):
    """The frames of a video, in their order, in an archive that is a part of another one."""

    part: Part
    name: str

    def read(self, choose: Choose) -> Tensor:
        """The chosen frames, uint8 (T, 3, H, W)."""
        whole, start, size = self.part.whole, self.part.start, self.part.size
        try:
            members = [(at, member) for member, at in members_of(whole, start, size, self.name)]
        except DataError as error:
            raise UnreadableSample(self.name, first_line(error)) from error
        if not members:
            raise UnreadableSample(self.name, "it holds no frames")
        numbers, frames = list(choose(len(members), None)), {}
        for number in set(numbers):
            at, member = members[number]
            image = decode_image(io.BytesIO(read_at(whole, min(member.size, MOST_BYTES), at)), self.name)
            _check_clip(self.name, math.prod(size_of(image)), len(numbers))
            frames[number] = to_rgb_bytes(image, self.name)
        return _stack([frames[number] for number in numbers], self.name)


def open_packed_video(file: io.BufferedReader, name: str) -> PackedVideo | PackedFrames:
    is_archive = file.read(tarfile.BLOCKSIZE)[257:262] == b"ustar"
    return (PackedFrames if is_archive else PackedVideo)(file.raw, name)


KINDS: dict[str, tuple[Callable[..., Any], int | None]] = {
    "image": (decode_image, None),
    "audio": (SoundFile, 2**20),
    "video": (open_packed_video, -1),
}
"""How samples of a kind are read: decode and most_in_memory of `ArchiveSamples`."""
