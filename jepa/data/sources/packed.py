"""Shards that scripts/pack.py has written, read by their index: no sample is listed in memory.

A packed folder holds tar archives, `train-000000.tar` and so on, index.json, and for each split the arrays of `Members`
to be memory-mapped, `train_names.npy`, `train_labels.npy` and `train_places.npy`.
"""

from __future__ import annotations

import io
import math
import os
import tarfile
import zlib
from collections.abc import Callable
from pathlib import Path
from typing import Any

import numpy as np
from torch import Tensor

from jepa.data.sources.decoders import Choose, VideoFile, _check_clip, _stack, decode_image, open_video
from jepa.data.sources.image_files import size_of, to_rgb_bytes
from jepa.data.sources.sound_files import SoundFile, require_soundfile
from jepa.data.sources.splits import FileSamples, Splits
from jepa.data.sources.tar_files import MOST_BYTES, Members, Part, TarSamples, members_of, read_at
from jepa.data.stream import UnreadableSample
from jepa.utils.errors import DataError, first_line
from jepa.utils.read_data import open_regular, parse_json, read_bytes

VERSION = 1
INDEX, MOST_INDEX = "index.json", 2**24
NAMES = {"train": "train", "test": "val"}  # of the splits in names of files


def read_packed(root: str) -> tuple[str, Splits]:
    """The kind and the samples of a packed folder. Raises DataError for another one, damaged shards or index."""
    folder = Path(root).expanduser()
    if not (folder / INDEX).is_file():
        problem = f"holds no {INDEX}" if folder.is_dir() else "is not a folder"
        how = f"write one with: python scripts/pack.py data=image_folder data.root=<pictures> output={root}"
        raise DataError(f"data.root={root} {problem}; {how} (pictures in shards of others are for data=imagenet)")
    try:
        index = parse_json(read_bytes(folder / INDEX, MOST_INDEX), folder / INDEX)
        kind, classes = index["kind"], index["classes"]
        if (index["version"], kind in KINDS) != (VERSION, True):
            raise ValueError(f"it is of version {index['version']} and of {kind}, expected {VERSION} and {[*KINDS]}")
        names = None if classes is None else tuple(map(str, classes))
        samples = [_split(folder, split, index["splits"][split], kind, names) for split in NAMES]
    except DataError:
        raise
    except Exception as error:  # NumPy raises many kinds for a damaged file
        reason = f"{type(error).__name__}: {first_line(error)}"
        raise DataError(f"data.root={root}: its index is damaged ({reason}): copy or pack it again") from error
    if kind == "audio":
        require_soundfile()  # before training reads the first file
    return kind, Splits(*samples, class_names=names)


def checksum(values: np.ndarray) -> int:
    """Of an array of the index: without it those of another pack would give its samples wrong labels."""
    return zlib.crc32(np.ascontiguousarray(values).view(np.uint8))


def _split(folder: Path, split: str, about: dict[str, Any], kind: str, classes: tuple[str, ...] | None) -> TarSamples:
    """The samples of a split; about: its shards as [name, bytes], and checksums of its arrays by name.

    Raises DataError for shards, any error for a damaged index.
    """
    shards = about["shards"]
    for name, size in shards:
        if os.path.basename(name) != name:
            raise ValueError(f"it names {name!r}, which lies elsewhere")
        if (found := os.path.getsize(folder / name) if (folder / name).is_file() else 0) != size:
            problem = f"has {found:,} bytes, expected {size:,}" if found else "is missing"
            raise DataError(f"{folder / name} {problem}: copy it again, or pack the data again")
    arrays = []
    for name in ("names", "labels", "places"):
        path = folder / f"{NAMES[split]}_{name}.npy"
        open_regular(path, 2**62).close()  # which a pipe is not
        arrays.append(np.load(path, mmap_mode="r", allow_pickle=False).view(np.ndarray))
    members = Members(tuple(str(folder / name) for name, _ in shards), *arrays)
    members.check([size for _, size in shards], "i")
    if ((labels := members.labels) < -1).any() or (labels >= len(classes or "-")).any():
        raise ValueError(f"it holds labels beyond its {len(classes or ()):,} classes")
    for name, stored in about.get("checksums", {}).items():  # packs of before have none
        if checksum(getattr(members, name)) != stored:
            raise ValueError(f"{NAMES[split]}_{name}.npy is damaged, or of another pack")
    samples = TarSamples(slice(None), None if classes is None else labels, members=members, decode=KINDS[kind][0])
    samples.most_in_memory = KINDS[kind][1]
    return samples


class PackedVideo(VideoFile):
    """A video that is a part of an archive: a file, or an archive of its frames in their order."""

    def __init__(self, file: io.BufferedReader, name: str) -> None:
        vars(self).update(part=file.raw, name=name)

    @property
    def path(self) -> io.BufferedReader:
        """The file from its beginning, a new one each time as FFmpeg keeps its own place in it."""
        return io.BufferedReader(Part(self.part.whole, self.part.start, self.part.size))

    def read(self, choose: Choose) -> Tensor:
        try:
            if self.path.read(tarfile.BLOCKSIZE)[257:262] == b"ustar":
                return self._read_frames(choose)
            self.__post_init__()
            return super().read(choose)
        except (UnreadableSample, DataError) as error:
            raise UnreadableSample(self.name, getattr(error, "reason", first_line(error))) from error

    def _read_frames(self, choose: Choose) -> Tensor:
        whole = self.part.whole
        members = [(at, member) for member, at in members_of(whole, self.part.start, self.part.size, self.name)]
        if not members:
            raise UnreadableSample(self.name, "it holds no frames")
        numbers, frames = list(choose(len(members), None)), {}
        for number in set(numbers):
            at, member = members[number]
            image = decode_image(io.BytesIO(read_at(whole, min(member.size, MOST_BYTES), at)), member.name)
            _check_clip(self.name, math.prod(size_of(image)), len(numbers))  # each, as their sizes may differ
            frames[number] = to_rgb_bytes(image, member.name)
        return _stack([frames[number] for number in numbers], self.name)


KIND_OF_DECODE = {decode_image: "image", SoundFile: "audio", open_video: "video"}
"""`decode` of the samples that can be packed -> their kind."""
KINDS: dict[str, tuple[Callable[..., Any], int | None]] = {
    "image": (decode_image, None),
    "audio": (SoundFile, 2**20),
    "video": (PackedVideo, -1),
}
"""How packed samples are read: decode and most_in_memory of `TarSamples`. `jepa.data.packed` makes the data."""


def kind_of(samples: Any) -> str | None:
    """Return the kind of samples in files or archives; None for what cannot be packed."""
    return KIND_OF_DECODE.get(samples.decode) if type(samples) in (FileSamples, TarSamples) else None
