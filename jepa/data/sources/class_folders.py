"""Folders of images or sounds, with or without class folders; `video_folders` finds videos in the same layouts."""

from __future__ import annotations

import os
from collections.abc import Callable, Iterator, Sequence
from dataclasses import dataclass
from pathlib import Path
from typing import Any

from jepa.data.sources.decoders import (
    IMAGE_EXTENSIONS,
    SOUND_EXTENSIONS,
    decode_image,
    decode_sound,
    require_soundfile,
)
from jepa.data.sources.splits import FileSamples, Splits, check_fraction, first_few, hold_out, number_classes
from jepa.utils.errors import DataError

Listed = list[tuple[str, str | None]]
"""Path and class of each sample of a split; None in data without labels."""


@dataclass(frozen=True, kw_only=True)
class FileKind:
    """A kind of samples in folders. name: in the plural, for messages. decode: makes the input of a path.

    is_sample_folder: whether a folder is a sample itself, as one that holds the frames of a video; None: never.
    test_folders: names of the folder of the test split, the first that is there.
    """

    name: str
    extensions: tuple[str, ...]
    decode: Callable[[str], Any]
    is_sample_folder: Callable[[str], bool] | None = None
    test_folders: tuple[str, ...] = ("val", "test", "valid", "validation")

    def matches(self, entry: os.DirEntry[str]) -> bool:
        """Whether an entry of a folder is a sample."""
        if self.is_sample_folder is not None and entry.is_dir():
            return self.is_sample_folder(entry.path)
        # is_file last: the type of a link costs a system call.
        return entry.name.lower().endswith(self.extensions) and entry.is_file()


IMAGES = FileKind(name="images", extensions=IMAGE_EXTENSIONS, decode=decode_image)
SOUNDS = FileKind(
    name="sound files",
    extensions=SOUND_EXTENSIONS,
    decode=decode_sound,
    test_folders=("test", "val", "valid", "validation"),
)


def image_folder(*, root: str, val_fraction: float = 0.1, split_seed: int = 0) -> Splits:
    """Images in JPEG, PNG, WebP or BMP files below root; see `find_splits` for the layouts."""
    return find_splits(root, IMAGES, val_fraction=val_fraction, split_seed=split_seed)


def audio_folder(*, root: str, val_fraction: float = 0.1, split_seed: int = 0) -> Splits:
    """Sounds in WAV, FLAC, Ogg, MP3 or AIFF files below root; see `find_splits` for the layouts."""
    require_soundfile()  # before training reads the first file
    return find_splits(root, SOUNDS, val_fraction=val_fraction, split_seed=split_seed)


def find_splits(root: str, kind: FileKind, *, val_fraction: float, split_seed: int) -> Splits:
    """Samples in files below root; hidden and other files are ignored, links followed.

    One of these layouts; below a class folder, samples may lie at any depth:
    - train/<class>/ and val/<class>/ (or test, valid, validation);
    - <class>/ or train/<class>/ alone: a share `val_fraction` of each class, drawn by `split_seed`, is the test split;
    - samples without class folders, in root or in train/ (and val/): data without labels.
    Raises DataError for a folder that is missing, empty, that fits none of these, or that has a single class.
    """
    check_fraction("data.source.val_fraction", val_fraction)
    folder = Path(root)
    if not folder.is_dir():
        raise DataError(
            f"data.root={root} is not a folder; give one that holds train/ and {kind.test_folders[0]}/, or class "
            "folders"
        )
    train_part = "train" if (folder / "train").is_dir() else ""
    train = _list_samples(folder, train_part, kind)
    classes = sorted({name for _, name in train if name is not None})
    test_part = next((name for name in kind.test_folders if train_part and (folder / name).is_dir()), None)
    test = None if test_part is None else _list_samples(folder, test_part, kind, flat=not classes)
    if classes and test is not None and test[0][1] is None:
        raise DataError(
            f"{folder / test_part} holds {len(test)} {kind.name} but no class folders; expected "
            f"{test_part}/<class>/<file> with the classes of train/ ({first_few(classes)}): move each into the "
            "folder of its class (ImageNet's validation images come in one flat folder, too)"
        )
    return split_files(
        train,
        test,
        kind.decode,
        classes=classes,
        folder=folder,
        fraction=val_fraction,
        seed=split_seed,
        where=f"data.root={root}",
        unlabelled=f"data.root={folder / train_part / classes[0]}" if classes else None,
    )


def split_files(
    train: Listed,
    test: Listed | None,
    decode: Callable[[str], Any],
    *,
    classes: Sequence[str],
    folder: str | Path = "",
    fraction: float,
    seed: int,
    where: str,
    unlabelled: str | None = None,
) -> Splits:
    """Samples of files. Without a test split, a `fraction` of each class is kept aside; a single sample stays in train.

    classes: in the order of their labels, empty for files without. folder: that the paths are relative to.
    where, unlabelled: for messages, see `number_classes`.
    """
    index = None
    if classes:
        index = number_classes(classes, {name for _, name in test or []}, where=where, unlabelled=unlabelled)
    if test is None:
        groups: dict[str | None, Listed] = {}
        for sample in train:
            groups.setdefault(sample[1], []).append(sample)
        train, test = [], []
        for number, group in enumerate(groups.values()):
            kept, held = hold_out(group, fraction, seed, number)
            train += kept
            test += held
        if not test:
            raise DataError(f"{where} has no class with two samples, so none can be kept aside for the test split")
    samples = []
    for part in (train, test):
        labels = None if index is None else [index[name] for _, name in part]
        samples.append(FileSamples([path for path, _ in part], labels, decode, folder=folder))
    return Splits(*samples, class_names=tuple(classes) or None)


def _list_samples(root: Path, part: str, kind: FileKind, *, flat: bool = False) -> Listed:
    """The samples of the folder root/part by class folder, sorted; flat: as one group, whatever their folders."""
    folder = root / part
    paths = sorted(_walk(folder, "", kind))
    loose = [path for path in paths if os.sep not in path]
    first = {path.partition(os.sep)[0] for path in paths}
    with os.scandir(folder) as entries:
        folders = sorted(entry.name for entry in entries if entry.is_dir() and not entry.name.startswith("."))
    empty = [name for name in folders if name not in first]
    if not paths:
        inside = f", neither do its folders {first_few(folders)}" if folders else ""
        frames = " or folders of frames" if kind.is_sample_folder is not None else ""
        raise DataError(f"{folder} holds no {kind.name} ({', '.join(kind.extensions)}){frames}{inside}")
    if not flat and 0 < len(loose) < len(paths):
        classes = sorted(first.difference(loose))
        raise DataError(
            f"{folder} holds {len(loose)} {kind.name} ({first_few(loose)}) beside the folders {first_few(classes)}; "
            f"move the {kind.name} into class folders, or the folders away to train without labels"
        )
    if flat or loose:
        return [(os.path.join(part, path), None) for path in paths]
    if empty:
        raise DataError(f"{folder}: no {kind.name} in the class folders {first_few(empty)}; fill or remove them")
    listed = [(os.path.join(part, path), path.partition(os.sep)[0]) for path in paths]
    return sorted(listed, key=lambda sample: (sample[1], sample[0]))


def _walk(root: Path, below: str, kind: FileKind, parents: frozenset[tuple[int, int]] = frozenset()) -> Iterator[str]:
    """Samples at any depth below root/below, relative to root."""
    status = os.stat(root / below)
    place = (status.st_dev, status.st_ino)
    if place in parents:  # a link back to a folder above
        return
    with os.scandir(root / below) as entries:
        for entry in entries:
            path = os.path.join(below, entry.name)
            if entry.name.startswith("."):
                continue
            if kind.matches(entry):
                yield path
            elif entry.is_dir():
                yield from _walk(root, path, kind, parents | {place})
