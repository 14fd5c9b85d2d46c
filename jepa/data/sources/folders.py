"""Folders of image files, with or without class folders."""

from __future__ import annotations

import os
import struct
import warnings
from collections.abc import Iterator, Sequence
from pathlib import Path

import numpy as np
import torch
from PIL import Image, ImageOps

from jepa.data.sources.base import Splits
from jepa.data.stream import UnreadableSample
from jepa.utils.errors import DataError
from jepa.utils.random import generator

EXTENSIONS = (".jpg", ".jpeg", ".png", ".webp", ".bmp")
TEST_NAMES = ("val", "test", "valid", "validation")
# What Pillow's decoders raise on damaged files; a SyntaxError is its word for a broken PNG.
DECODE_ERRORS = (OSError, ValueError, SyntaxError, EOFError, struct.error, Image.DecompressionBombError)


class ImageFiles:
    """Image files and their labels; items are (PIL image, label).

    paths: below `root`. labels: one for each path, or None. Items raise UnreadableSample when the file cannot
    be decoded, is empty, cut off or far too large (Pillow's guard against decompression bombs).
    """

    def __init__(self, root: Path, paths: Sequence[str], labels: Sequence[int] | None) -> None:
        self.root = str(root)
        # One block of bytes: workers would copy a million strings by touching their reference counts.
        self.paths = np.array([os.fsencode(path) for path in paths])
        self.labels = None if labels is None else np.array(labels)

    def __len__(self) -> int:
        return len(self.paths)

    def __getitem__(self, index: int) -> tuple[Image.Image, int | None]:
        path = os.path.join(self.root, os.fsdecode(self.paths[index].item()))
        try:
            image = _decode(path)
        except DECODE_ERRORS as error:
            reason = "the file is empty" if _is_empty(path) else f"{type(error).__name__}: {error}"
            raise UnreadableSample(path, reason) from error
        return image, None if self.labels is None else int(self.labels[index])


def image_folder(*, root: str, val_fraction: float = 0.1, split_seed: int = 0) -> Splits:
    """Images in JPEG, PNG, WebP or BMP files below root; hidden and other files are ignored, links followed.

    One of these layouts; below a class folder, files may lie at any depth:
    - train/<class>/ and val/<class>/ (or test, valid, validation);
    - <class>/ or train/<class>/ alone: a share `val_fraction` of each class, drawn by `split_seed`, is the
      test split;
    - files without class folders, in root or in train/ (and val/): data without labels.
    Raises DataError for a folder that is missing, empty, that fits none of these, or that has a single class.
    """
    if not 0 < val_fraction < 1:
        raise ValueError(f"val_fraction={val_fraction} is not between 0 and 1, both excluded")
    folder = Path(root)
    if not folder.is_dir():
        raise DataError(f"data.root={root} is not a folder; give one that holds train/ and val/, or class folders")
    train_folder = folder / "train" if (folder / "train").is_dir() else folder
    test_folder = None
    if train_folder != folder:
        test_folder = next((folder / name for name in TEST_NAMES if (folder / name).is_dir()), None)
    train = _read_classes(train_folder)
    if train and len(train) == 1:
        (name,) = train
        raise DataError(
            f"{train_folder} holds one class folder only ({name}), nothing to classify: give two or more, "
            f"or train without labels on the files themselves with data.root={train_folder / name}"
        )
    names = tuple(train) if train else None
    train_groups = train or {"": _all_files(train_folder)}
    if test_folder is None:
        train_groups, test_groups = _split(train_groups, val_fraction, split_seed, train_folder)
        test_folder = train_folder
    elif names is None:
        test_groups = {"": _all_files(test_folder)}
    else:
        test_groups = _test_classes(test_folder, names)
    return Splits(
        train=_image_files(train_folder, train_groups, names),
        test=_image_files(test_folder, test_groups, names),
        class_names=names,
    )


def _decode(path: str) -> Image.Image:
    with warnings.catch_warnings():
        warnings.simplefilter("ignore")  # a file is readable or not; oddities in its metadata are no news
        with Image.open(path) as image:
            image.load()
            # Photographs say in their EXIF data how the camera was held.
            ImageOps.exif_transpose(image, in_place=True)
            return image


def _is_empty(path: str) -> bool:
    return os.path.isfile(path) and os.path.getsize(path) == 0


def _image_files(folder: Path, groups: dict[str, list[str]], names: Sequence[str] | None) -> ImageFiles:
    paths = [path for group in groups.values() for path in group]
    if names is None:
        return ImageFiles(folder, paths, None)
    index = {name: i for i, name in enumerate(names)}
    return ImageFiles(folder, paths, [index[name] for name, group in groups.items() for _ in group])


def _read_classes(folder: Path) -> dict[str, list[str]] | None:
    """Class name -> files, relative to `folder`, both sorted; None if the folder holds no class folders."""
    with os.scandir(folder) as entries:
        visible = [entry for entry in entries if not entry.name.startswith(".")]
    classes = sorted(entry.name for entry in visible if entry.is_dir())
    loose = sum(_is_image(entry) for entry in visible)
    if not classes:
        return None
    if loose:
        raise DataError(
            f"{folder} holds {loose} images beside the folders {_few(classes)}; move the images into class "
            "folders, or the folders away to train without labels"
        )
    files = {name: sorted(_walk(folder, name)) for name in classes}
    empty = [name for name, paths in files.items() if not paths]
    if len(empty) == len(classes):
        raise DataError(f"{folder} holds no images ({', '.join(EXTENSIONS)}), neither do its folders {_few(empty)}")
    if empty:
        raise DataError(f"{folder}: no images in the class folders {_few(empty)}; fill or remove them")
    return files


def _all_files(folder: Path) -> list[str]:
    files = sorted(_walk(folder, ""))
    if not files:
        raise DataError(f"{folder} holds no images ({', '.join(EXTENSIONS)})")
    return files


def _test_classes(folder: Path, names: Sequence[str]) -> dict[str, list[str]]:
    groups = _read_classes(folder)
    if groups is None:
        found = len(_all_files(folder))
        raise DataError(
            f"{folder} holds {found} images but no class folders; expected {folder.name}/<class>/<image> "
            f"with the classes of train/ ({_few(names)}). ImageNet's validation images come in one flat "
            "folder: move each into the folder of its class"
        )
    unknown = sorted(set(groups) - set(names))
    if unknown:
        raise DataError(f"{folder}: the classes {_few(unknown)} are not in train/, which has {_few(names)}")
    return groups


def _split(
    groups: dict[str, list[str]], fraction: float, seed: int, folder: Path
) -> tuple[dict[str, list[str]], dict[str, list[str]]]:
    """Train and test files of each class. A class of one file stays in train, one of more has both."""
    train, test = {}, {}
    for number, (name, files) in enumerate(groups.items()):
        count = min(max(round(fraction * len(files)), 1), len(files) - 1)
        order = torch.randperm(len(files), generator=generator("cpu", seed, "split", number)).tolist()
        test[name] = [files[i] for i in sorted(order[:count])]
        train[name] = [files[i] for i in sorted(order[count:])]
    if not any(test.values()):
        raise DataError(f"{folder} has no class with two images, so none can be kept aside for the test split")
    return train, test


def _walk(root: Path, below: str, parents: frozenset[tuple[int, int]] = frozenset()) -> Iterator[str]:
    """Image files at any depth below root/below, relative to root."""
    status = os.stat(root / below)
    place = (status.st_dev, status.st_ino)
    if place in parents:  # a link back to a folder above
        return
    with os.scandir(root / below) as entries:
        for entry in entries:
            path = os.path.join(below, entry.name)
            if entry.name.startswith("."):
                continue
            if entry.is_dir():
                yield from _walk(root, path, parents | {place})
            elif _is_image(entry):
                yield path


def _is_image(entry: os.DirEntry[str]) -> bool:
    # is_file last: the type of a link costs a system call.
    return entry.name.lower().endswith(EXTENSIONS) and not entry.name.startswith(".") and entry.is_file()


def _few(names: Sequence[str]) -> str:
    shown = ", ".join(list(names)[:5])
    return shown if len(names) <= 5 else f"{shown}, ... ({len(names)} in all)"
