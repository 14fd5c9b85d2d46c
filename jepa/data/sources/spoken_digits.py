"""The Free Spoken Digit Dataset, from a folder of recordings or an archive."""

from __future__ import annotations

import io
import os
import re
import tarfile
from collections.abc import Iterator, Sequence
from pathlib import Path
from typing import Literal

from jepa.data.sources.decoders import Sound, decode_sound, require_soundfile
from jepa.data.sources.download import download_file
from jepa.data.sources.splits import Splits
from jepa.data.stream import UnreadableSample
from jepa.utils.errors import DataError

FSDD_URL = "https://github.com/Jakobovski/free-spoken-digit-dataset/archive/refs/heads/master.tar.gz"
FSDD_NAME = re.compile(r"(?P<digit>[0-9])_(?P<speaker>[a-z]+)_(?P<index>[0-9]+)\.wav")
FSDD_TEST = 5
"""Recordings 0 .. 4 of every digit by every speaker are the official test split."""


class SoundsInMemory:
    """Sound files (name, content), decoded once and held in memory, and labels; items are (sound, label)."""

    def __init__(self, files: Sequence[tuple[str, bytes]], labels: Sequence[int]) -> None:
        self.labels = list(labels)
        self.sounds: list[Sound | UnreadableSample] = []
        for name, content in files:
            try:
                self.sounds.append(decode_sound(io.BytesIO(content), name))
            except UnreadableSample as error:
                self.sounds.append(error)

    def __len__(self) -> int:
        return len(self.sounds)

    def __getitem__(self, index: int) -> tuple[Sound, int]:
        sound = self.sounds[index]
        if isinstance(sound, UnreadableSample):
            raise sound
        return sound, self.labels[index]


def fsdd(*, root: str, label: Literal["digit", "speaker"] = "digit", download: bool = True) -> Splits:
    """Free Spoken Digit Dataset (Jackson et al.): digits 0 .. 9, six speakers, 50 recordings each, 8 kHz.

    root: a folder with the files <digit>_<speaker>_<index>.wav at any depth or with fsdd.tar.xz or the project's own
    archive in it, or such an archive itself; held in memory. Where there is none of these it is downloaded; the
    archive is that of the present state and has no published check sum.
    label: what the classes are. Splits are the official ones, recordings 0 .. 4 to test.
    Raises DataError when nothing is there and nothing can be had, or the archive is damaged.
    """
    if label not in ("digit", "speaker"):
        raise ValueError(f"data.label={label!r} is neither digit nor speaker")
    require_soundfile()  # before training reads the first file
    place = _fsdd_place(Path(root), download=download)
    try:
        files = sorted(_fsdd_folder(place) if place.is_dir() else _fsdd_archive(place))
    except (tarfile.TarError, EOFError, OSError) as error:
        reason = str(error).partition("\n")[0].rstrip(": ")  # tarfile lists every compression it tried
        raise DataError(f"{place} is not a complete tar archive ({reason}); get it again") from error
    parsed = [(FSDD_NAME.fullmatch(os.path.basename(name)), (name, content)) for name, content in files]
    names = tuple(sorted({match[label] for match, _ in parsed}))
    splits = {}
    for split, tests in (("train", False), ("test", True)):
        chosen = [(match, file) for match, file in parsed if (int(match["index"]) < FSDD_TEST) == tests]
        splits[split] = SoundsInMemory([file for _, file in chosen], [names.index(match[label]) for match, _ in chosen])
        if not chosen:
            wanted = f"0 to {FSDD_TEST - 1}" if tests else f"from {FSDD_TEST}"
            raise DataError(f"{place} holds no recordings of index {wanted}, the {split} split: get all of its files")
    return Splits(train=splits["train"], test=splits["test"], class_names=names)


def _fsdd_place(root: Path, *, download: bool) -> Path:
    """The folder of recordings or the archive."""
    if root.is_file():
        return root
    if root.is_dir():
        if next(_fsdd_folder(root), None) is not None:
            return root
        archives = [path for pattern in ("fsdd*.tar*", "free-spoken-digit*.tar*") for path in root.glob(pattern)]
        if archives:
            return sorted(archives)[0]
    target = root / "free-spoken-digit-dataset.tar.gz"
    wanted = [
        "the recordings (0_george_0.wav, ...)",
        "or an archive of them (fsdd.tar.xz), to which data.root may point",
    ]
    name = "the Free Spoken Digit Dataset"
    download_file(target, urls=[FSDD_URL], md5=None, allowed=download, name=name, root=root, wanted=wanted)
    return target


def _fsdd_folder(folder: Path) -> Iterator[tuple[str, bytes]]:
    for path in folder.rglob("*.wav"):
        if FSDD_NAME.fullmatch(path.name):
            yield str(path), path.read_bytes()


def _fsdd_archive(path: Path) -> Iterator[tuple[str, bytes]]:
    empty = True
    with tarfile.open(path) as archive:
        for member in archive:
            if member.isfile() and FSDD_NAME.fullmatch(os.path.basename(member.name)):
                empty = False
                yield f"{path}/{member.name}", archive.extractfile(member).read()
    if empty:
        raise DataError(f"{path} holds no files <digit>_<speaker>_<index>.wav: it is another archive")
