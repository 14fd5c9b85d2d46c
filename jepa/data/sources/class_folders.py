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
from jepa.data.sources.splits import FileSamples, Splits, check_fraction, first_few, hold_out
from jepa.utils.errors import DataError

Groups = dict[str, list[str]]
"""Class name -> paths, both sorted; {"": paths} without class folders."""


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
    train_folder = folder / "train" if (folder / "train").is_dir() else folder
    train = _read_classes(train_folder, kind)
    names = None if "" in train else tuple(train)
    if names is not None and len(names) == 1:
        raise DataError(
            f"{train_folder} holds one class folder only ({names[0]}), nothing to classify: give two or more, "
            f"or train without labels on the files themselves with data.root={train_folder / names[0]}"
        )
    apart = [folder / name for name in kind.test_folders if train_folder != folder and (folder / name).is_dir()]
    test_folder = apart[0] if apart else train_folder
    if not apart:
        train, test = hold_out_of_classes(train, val_fraction, split_seed, str(train_folder))
    elif names is None:
        test = {"": _all_files(test_folder, kind)}
    else:
        test = _test_classes(test_folder, kind, names)
    return Splits(
        train=_samples(train_folder, train, names, kind),
        test=_samples(test_folder, test, names, kind),
        class_names=names,
    )


def hold_out_of_classes(groups: Groups, fraction: float, seed: int, where: str) -> tuple[Groups, Groups]:
    """Train and test paths of each class. A class of one sample stays in train, one of more has both."""
    train, test = {}, {}
    for number, (name, paths) in enumerate(groups.items()):
        kept, held = hold_out(len(paths), fraction, seed, number)
        train[name], test[name] = [paths[i] for i in kept], [paths[i] for i in held]
    if not any(test.values()):
        raise DataError(f"{where} has no class with two samples, so none can be kept aside for the test split")
    return train, test


def _samples(folder: Path, groups: Groups, names: Sequence[str] | None, kind: FileKind) -> FileSamples:
    paths = [path for group in groups.values() for path in group]
    labels: list[int] | None = None if names is None else []
    for name, group in groups.items() if names is not None else ():
        labels += [names.index(name)] * len(group)
    return FileSamples(folder, paths, labels, kind.decode)


def _read_classes(folder: Path, kind: FileKind) -> Groups:
    """The samples of a split's folder, relative to it."""
    with os.scandir(folder) as entries:
        visible = sorted((e for e in entries if not e.name.startswith(".")), key=lambda entry: entry.name)
    loose = [entry.name for entry in visible if kind.matches(entry)]
    classes = [name for name in (e.name for e in visible if e.is_dir()) if name not in loose]
    groups = {name: sorted(_walk(folder, name, kind)) for name in classes}
    empty = [name for name, paths in groups.items() if not paths]
    if loose and len(empty) < len(classes):
        raise DataError(
            f"{folder} holds {len(loose)} {kind.name} ({first_few(loose)}) beside the folders {first_few(classes)}; "
            f"move the {kind.name} into class folders, or the folders away to train without labels"
        )
    if loose:
        return {"": loose}
    if len(empty) == len(classes):
        inside = f", neither do its folders {first_few(classes)}" if classes else ""
        frames = " or folders of frames" if kind.is_sample_folder is not None else ""
        raise DataError(f"{folder} holds no {kind.name} ({', '.join(kind.extensions)}){frames}{inside}")
    if empty:
        raise DataError(f"{folder}: no {kind.name} in the class folders {first_few(empty)}; fill or remove them")
    return groups


def _all_files(folder: Path, kind: FileKind) -> list[str]:
    paths = sorted(_walk(folder, "", kind))
    if not paths:
        raise DataError(f"{folder} holds no {kind.name} ({', '.join(kind.extensions)})")
    return paths


def _test_classes(folder: Path, kind: FileKind, names: Sequence[str]) -> Groups:
    groups = _read_classes(folder, kind)
    if "" in groups:
        raise DataError(
            f"{folder} holds {len(groups[''])} {kind.name} but no class folders; expected {folder.name}/<class>/<file> "
            f"with the classes of train/ ({first_few(names)}): move each into the folder of its class (ImageNet's "
            "validation images come in one flat folder, too)"
        )
    if unknown := sorted(set(groups) - set(names)):
        raise DataError(f"{folder}: the classes {first_few(unknown)} are not in train/, which has {first_few(names)}")
    return groups


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
