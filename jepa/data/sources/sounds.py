"""Sound: folders of WAV, FLAC, Ogg or MP3 files with or without class folders, and the Free Spoken Digit Dataset."""

from __future__ import annotations

import io
import os
import re
import tarfile
from collections.abc import Iterator, Sequence
from pathlib import Path
from types import ModuleType
from typing import Literal

import numpy as np
import torch
from torch import Tensor

from jepa.data.sources.base import Splits
from jepa.data.sources.download import fetch
from jepa.data.stream import UnreadableSample
from jepa.utils.errors import DataError
from jepa.utils.lazy_import import require
from jepa.utils.random import generator

EXTENSIONS = (".wav", ".flac", ".ogg", ".mp3", ".aiff", ".aif")
TEST_NAMES = ("test", "val", "valid", "validation")
FSDD_URL = "https://github.com/Jakobovski/free-spoken-digit-dataset/archive/refs/heads/master.tar.gz"
FSDD_NAME = re.compile(r"(?P<digit>[0-9])_(?P<speaker>[a-z]+)_(?P<index>[0-9]+)\.wav")
FSDD_TEST = 5
"""Recordings 0 .. 4 of every digit by every speaker are the official test split."""

Sound = tuple[Tensor, int]
"""A waveform (T,) float32 in [-1, 1], channels averaged, and its sample rate in Hz."""


class SoundFiles:
    """Sound files and their labels; items are (sound, label).

    labels: one for each path, or None. Items raise UnreadableSample for a file that libsndfile cannot decode, and one
    that holds no samples.
    """

    def __init__(self, paths: Sequence[Path], labels: Sequence[int] | None) -> None:
        # One block of bytes: workers would copy a million strings by touching their reference counts.
        self.paths = np.array([os.fsencode(path) for path in paths])
        self.labels = None if labels is None else np.array(labels)

    def __len__(self) -> int:
        return len(self.paths)

    def __getitem__(self, index: int) -> tuple[Sound, int | None]:
        path = os.fsdecode(self.paths[index].item())
        return decode(path, name=path), None if self.labels is None else int(self.labels[index])


class SoundsInMemory:
    """Sound files (name, content), decoded once and held in memory, and labels; items as those of `SoundFiles`."""

    def __init__(self, files: Sequence[tuple[str, bytes]], labels: Sequence[int]) -> None:
        self.labels = list(labels)
        self.sounds: list[Sound | UnreadableSample] = []
        for name, content in files:
            try:
                self.sounds.append(decode(io.BytesIO(content), name=name))
            except UnreadableSample as error:
                self.sounds.append(error)

    def __len__(self) -> int:
        return len(self.sounds)

    def __getitem__(self, index: int) -> tuple[Sound, int]:
        sound = self.sounds[index]
        if isinstance(sound, UnreadableSample):
            raise sound
        return sound, self.labels[index]


def require_soundfile() -> ModuleType:
    """The library that reads files of sound. Raises MissingPackageError without it."""
    return require("soundfile", extra="audio", purpose="reading sound")


def decode(file: str | io.BytesIO, *, name: str) -> Sound:
    """The sound in a file. Raises UnreadableSample."""
    soundfile = require_soundfile()
    try:
        samples, rate = soundfile.read(file, dtype="float32", always_2d=True)
    except (soundfile.SoundFileError, OSError, ValueError) as error:
        reason = str(error).partition(": ")[2] or str(error)
        empty = isinstance(file, str) and os.path.isfile(file) and not os.path.getsize(file)
        raise UnreadableSample(name, "the file is empty" if empty else reason) from error
    if not len(samples):
        raise UnreadableSample(name, "it holds no samples")
    wave = torch.from_numpy(samples.mean(axis=1))
    if not bool(wave.isfinite().all()):  # files of floats may hold them, and NaN would pass for padding
        raise UnreadableSample(name, "it holds samples that are NaN or infinite")
    return wave, int(rate)


def audio_folder(*, root: str, val_fraction: float = 0.1, split_seed: int = 0) -> Splits:
    """Sound files (WAV, FLAC, Ogg, MP3, AIFF) below root; hidden and other files are ignored.

    One of these layouts; below a class folder, files may lie at any depth:
    - train/<class>/ and test/<class>/ (or val, valid, validation);
    - <class>/ or train/<class>/ alone: a share `val_fraction` of each class, drawn by `split_seed`, is the test split;
    - files without class folders, in root or in train/ (and test/): data without labels.
    Raises DataError for a folder that is missing, empty or that fits none of these, and for a single class.
    """
    if not 0 < val_fraction < 1:
        raise ValueError(f"data.source.val_fraction={val_fraction} is not between 0 and 1, both excluded")
    folder = Path(root)
    if not folder.is_dir():
        raise DataError(f"data.root={root} is not a folder; give one that holds train/ and test/, or class folders")
    require_soundfile()  # before training reads the first file
    train_folder = folder / "train" if (folder / "train").is_dir() else folder
    train = _groups(train_folder)
    if len(train) == 1 and "" not in train:
        (name,) = train
        raise DataError(
            f"{train_folder} holds one class folder only ({name}), nothing to classify: give two or more, "
            f"or train without labels on the files themselves with data.root={train_folder / name}"
        )
    apart = [folder / name for name in TEST_NAMES if train_folder != folder and (folder / name).is_dir()]
    if apart:
        test = _groups(apart[0])
        if unlike := sorted(set(test) - set(train)):
            found = ", ".join(unlike[:5]) if unlike != [""] else "no class folders, but files"
            raise DataError(f"{apart[0]} holds {found}; expected the classes of {train_folder}: {_names(train)}")
    else:
        train, test = _held_out(train, val_fraction, split_seed, train_folder)
    names = None if "" in train else tuple(train)
    return Splits(train=_files(train, names), test=_files(test, names), class_names=names)


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
    place = _fsdd_place(Path(root), download=download)
    try:
        files = sorted(_fsdd_folder(place) if place.is_dir() else _fsdd_archive(place))
    except (tarfile.TarError, EOFError, OSError) as error:
        reason = str(error).partition("\n")[0].rstrip(": ")  # tarfile lists every compression it tried
        raise DataError(f"{place} is not a whole tar archive ({reason}); get it anew") from error
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
    reason = "data.source.download=false"
    if download:
        try:
            fetch(target, urls=[FSDD_URL], md5=None)
            return target
        except OSError as error:
            reason = str(error)
    raise DataError(
        f"the Free Spoken Digit Dataset is not in data.root={root} and was not downloaded ({reason}). Put its "
        "recordings there (0_george_0.wav, ...) or an archive of them (fsdd.tar.xz), or point data.root to either"
    )


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


def _groups(folder: Path) -> dict[str, list[Path]]:
    """Class name -> its files, both sorted; {"": files} for a folder without class folders."""
    entries = sorted(path for path in folder.iterdir() if not path.name.startswith("."))
    classes = [path for path in entries if path.is_dir()]
    loose = [path for path in entries if _is_sound(path)]
    if classes and loose:
        raise DataError(
            f"{folder} holds {len(loose)} sound files beside the folders {_names([c.name for c in classes])}; move "
            "them into class folders, or the folders away to train without labels"
        )
    groups = {path.name: sorted(_below(path)) for path in classes} if classes else {"": loose}
    empty = [name for name, files in groups.items() if not files]
    if len(empty) == len(groups):
        where = f", neither do its folders {_names(empty)}" if classes else ""
        raise DataError(f"{folder} holds no sound files ({', '.join(EXTENSIONS)}){where}")
    if empty:
        raise DataError(f"{folder}: no sound files in the class folders {_names(empty)}; fill or remove them")
    return groups


def _below(folder: Path) -> Iterator[Path]:
    for path in folder.rglob("*"):
        if _is_sound(path) and not any(part.startswith(".") for part in path.relative_to(folder).parts):
            yield path


def _is_sound(path: Path) -> bool:
    return path.suffix.lower() in EXTENSIONS and path.is_file()


def _held_out(
    groups: dict[str, list[Path]], fraction: float, seed: int, folder: Path
) -> tuple[dict[str, list[Path]], dict[str, list[Path]]]:
    """Train and test files of each class. A class of one file stays in train, one of more has both."""
    train, test = {}, {}
    for number, (name, files) in enumerate(groups.items()):
        count = min(max(round(fraction * len(files)), 1), len(files) - 1)
        order = torch.randperm(len(files), generator=generator("cpu", seed, "split", number)).tolist()
        test[name] = [files[i] for i in sorted(order[:count])]
        train[name] = [files[i] for i in sorted(order[count:])]
    if not any(test.values()):
        raise DataError(f"{folder} has no class with two files, so none can be kept aside for the test split")
    return train, test


def _files(groups: dict[str, list[Path]], names: Sequence[str] | None) -> SoundFiles:
    paths = [path for files in groups.values() for path in files]
    labels = None if names is None else [names.index(name) for name, files in groups.items() for _ in files]
    return SoundFiles(paths, labels)


def _names(names: Sequence[str]) -> str:
    shown = ", ".join(list(names)[:5]) or "none"
    return shown if len(names) <= 5 else f"{shown}, ... ({len(names)} in all)"
