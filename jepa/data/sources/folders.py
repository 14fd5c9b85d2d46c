"""Files in folders, with or without class folders: images, sounds and videos; and lists of videos."""

from __future__ import annotations

import csv as csv_module
import os
import re
from collections import Counter
from collections.abc import Callable, Iterator, Mapping, Sequence
from dataclasses import dataclass, replace
from pathlib import Path
from typing import Any

from jepa.data.sources.decoders import decode_image, is_frame_file, open_video
from jepa.data.sources.image_files import IMAGE_EXTENSIONS
from jepa.data.sources.listed_paths import check_inside
from jepa.data.sources.sound_files import SoundFile, require_soundfile
from jepa.data.sources.splits import (
    FileSamples,
    Splits,
    check_fraction,
    first_few,
    hold_out,
    number_classes,
    sort_classes,
)
from jepa.utils.errors import DataError

LOOKED_AT = 50
"""Entries of a CSV of which at least one must exist; to look at all of a large one would take minutes."""

PUBLISHED_LINE = re.compile(r"(?P<path>.+?)(?: +|, *)(?P<label>[0-9]+)")
"""Of a list without a header."""

Listed = list[tuple[str, str | None]]
"""Path and class of each sample of a split; None in data without labels."""


@dataclass(frozen=True, kw_only=True)
class FileKind:
    """A kind of samples in folders. name: in the plural, for messages. decode: makes the input of a path.

    frames: whether a folder that directly holds pictures, the frames of a video, is a sample, too.
    test_folders: names of the folder of the test split, the first that is there.
    """

    name: str
    extensions: tuple[str, ...]
    decode: Callable[[str], Any]
    frames: bool = False
    test_folders: tuple[str, ...] = ("val", "test", "valid", "validation")

    def matches(self, entry: os.DirEntry[str]) -> bool:
        """Whether an entry of a folder is a sample."""
        if self.frames and entry.is_dir():
            return any(is_frame_file(name) for name in os.listdir(entry.path))
        # is_file last: the type of a link costs a system call.
        return entry.name.lower().endswith(self.extensions) and entry.is_file()


IMAGES = FileKind(name="images", extensions=IMAGE_EXTENSIONS, decode=decode_image)
SOUNDS = FileKind(
    name="sound files",
    extensions=(".wav", ".flac", ".ogg", ".mp3", ".aiff", ".aif"),
    decode=SoundFile,
    test_folders=("test", "val", "valid", "validation"),
)
VIDEOS = FileKind(
    name="videos",
    extensions=(".mp4", ".m4v", ".mov", ".avi", ".mkv", ".webm", ".mpg", ".mpeg", ".ts", ".wmv", ".flv", ".gif"),
    decode=open_video,
    frames=True,
)


def image_folder(*, root: str, val_fraction: float = 0.1, split_seed: int = 0) -> Splits:
    """Images in files that end with one of IMAGE_EXTENSIONS below root; see `find_splits` for the layouts."""
    return find_splits(root, IMAGES, val_fraction=val_fraction, split_seed=split_seed)


def audio_folder(*, root: str, val_fraction: float = 0.1, split_seed: int = 0) -> Splits:
    """Sounds in WAV, FLAC, Ogg, MP3 or AIFF files below root; see `find_splits` for the layouts."""
    require_soundfile()  # before training reads the first file
    return find_splits(root, SOUNDS, val_fraction=val_fraction, split_seed=split_seed)


def video_folder(
    *,
    root: str | None = None,
    csv: str | None = None,
    csv_path: str = "path",
    csv_label: str = "label",
    csv_split: str = "split",
    allow_outside: bool = False,
    val_fraction: float = 0.1,
    split_seed: int = 0,
) -> Splits:
    """Videos below root, or those that a CSV lists. A video is a file, or a folder that directly holds its frames.

    Without a CSV, see `find_splits` for the layouts.
    csv: a file, relative to root if there is one. With a header: csv_path is the column of the path, or a pattern of
        columns ("{class}/{clip}"), relative to root or else to the CSV's folder; csv_label that of the class, if any;
        csv_split, if any, that of the split: train, or one of val, test, valid, validation. Without a header: lines of
        a path and a number, apart by a space or comma, as the published V-JEPA code reads them.
    allow_outside: whether the CSV's paths may leave root, or else its own folder, by .., as absolute paths or by links.
    Raises DataError for what is missing, empty, or fits none of these.
    """
    check_fraction("data.source.val_fraction", val_fraction)
    if csv is None:
        if root is None:
            raise DataError("data.root is not set: give a folder of videos, or a list of them with data.csv=<file>")
        return find_splits(root, VIDEOS, val_fraction=val_fraction, split_seed=split_seed)
    if root is not None and not os.path.isdir(root):
        raise DataError(f"data.root={root} is not a folder; give the one that the paths in data.csv are relative to")
    where = f"data.csv={csv}"
    train, test = _read_csv(root, os.path.expanduser(csv), csv_path, csv_label, csv_split, allow_outside)
    if not train or test == []:
        raise DataError(f"{where}: the {'test' if train else 'train'} split holds no videos")
    classes = sort_classes(name for _, name in train if name is not None)
    return split_files(train, test, open_video, classes, val_fraction, split_seed, where=where)


def find_splits(root: str, kind: FileKind, *, val_fraction: float, split_seed: int) -> Splits:
    """Samples in files below root; links are followed, hidden files ignored, and others counted in `Splits.lines`.

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
    others: Counter[str] = Counter()
    train = _list_samples(folder, train_part, kind, others)
    classes = sorted({name for _, name in train if name is not None})
    test_part = next((name for name in kind.test_folders if train_part and (folder / name).is_dir()), None)
    test = None if test_part is None else _list_samples(folder, test_part, kind, others, flat=not classes)
    if classes and test is not None and test[0][1] is None:
        raise DataError(
            f"{folder / test_part} holds {len(test)} {kind.name} but no class folders; expected "
            f"{test_part}/<class>/<file> with the classes of train/ ({first_few(classes)}): move each into the "
            "folder of its class (ImageNet's validation images come in one flat folder, too)"
        )
    unlabelled = f"data.root={folder / train_part / classes[0]}" if classes else None
    where = f"data.root={root}"
    splits = split_files(
        train, test, kind.decode, classes, val_fraction, split_seed, folder=folder, where=where, unlabelled=unlabelled
    )
    return replace(splits, lines=tuple(f"{where}: {line}" for line in left_out(others)))


def left_out(others: Mapping[str, int]) -> list[str]:
    """Say how many files of each ending were left out, as "60 .svg left out"; nothing where there are none."""
    counted = [f"{count:,} {ending or 'without ending'}" for ending, count in sorted(others.items())]
    return [f"{', '.join(counted)} left out"] if counted else []


def split_files(
    train: Listed,
    test: Listed | None,
    decode: Callable[[str], Any],
    classes: Sequence[str],
    fraction: float,
    seed: int,
    *,
    folder: str | Path = "",
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


def _list_samples(root: Path, part: str, kind: FileKind, others: Counter[str], *, flat: bool = False) -> Listed:
    """The samples of the folder root/part by class folder, sorted; flat: as one group, whatever their folders.

    others: counts the files that are no samples, by ending.
    """
    folder = root / part
    paths = sorted(_walk(folder, "", kind, others))
    loose = [path for path in paths if os.sep not in path]
    first = {path.partition(os.sep)[0] for path in paths}
    with os.scandir(folder) as entries:
        folders = sorted(entry.name for entry in entries if entry.is_dir() and not entry.name.startswith("."))
    empty = [name for name in folders if name not in first]
    if not paths:
        inside = f", neither do its folders {first_few(folders)}" if folders else ""
        frames = " or folders of frames" if kind.frames else ""
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


def _walk(
    root: Path, below: str, kind: FileKind, others: Counter[str], parents: frozenset[tuple[int, int]] = frozenset()
) -> Iterator[str]:
    """Samples at any depth below root/below, relative to root; other files are counted by ending in `others`."""
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
                yield from _walk(root, path, kind, others, parents | {place})
            else:
                others[os.path.splitext(entry.name)[1].lower()] += 1


def _read_csv(
    root: str | None, name: str, path: str, label: str, split: str, allow_outside: bool
) -> tuple[Listed, Listed | None]:
    """The training and test videos of a CSV; None for the test videos where it has no column of splits."""
    where = f"data.csv={name}"
    file = Path(name) if root is None or os.path.isfile(name) else Path(root, name)
    if not file.is_file():
        raise DataError(f"{where}: there is no file {file}")
    base = file.parent if root is None else Path(root)
    try:
        lines = [line for line in file.read_text(encoding="utf-8-sig").splitlines() if line.strip()]
        rows = csv_module.DictReader(lines, restval="", delimiter=max(",;\t", key=lines[0].count)) if lines else ()
        rows = list(rows)
    except (OSError, ValueError, MemoryError, csv_module.Error) as error:
        raise DataError(f"{where} is no list that can be read ({type(error).__name__}: {error})") from error
    if not lines:
        raise DataError(f"{where} is empty")
    parts: dict[str, Listed] = {"train": [], "test": []}
    if all(matches := [PUBLISHED_LINE.fullmatch(line.strip()) for line in lines]):
        parts["train"] = [(str(base / match["path"]), match["label"]) for match in matches]
        _check_paths([*enumerate(parts["train"], start=1)], where, base, allow_outside)
        return parts["train"], None
    if not rows:
        raise DataError(f"{where} has a header and no rows")
    columns = [column for column in rows[0] if column]
    if label != "label" and label not in columns:
        raise DataError(f"{where} has no column {label!r} (data.csv_label); it has {', '.join(columns)}")
    numbered = []
    pattern = path if "{" in path else "{" + path + "}"
    for number, row in enumerate(rows, start=2):
        try:
            place = str(base / pattern.format_map(row))
        except (KeyError, ValueError, IndexError) as error:
            raise DataError(
                f"{where} has the columns {', '.join(columns)}, but data.csv_path={path} asks for {error}: "
                f"give the column of the path, such as data.csv_path={columns[0]}, or a pattern of columns in braces"
            ) from None
        side = row.get(split) if split in columns else "train"
        if side not in ("train", *VIDEOS.test_folders):
            raise DataError(
                f"{where}, line {number}: the split is {side!r}, expected train or one of {list(VIDEOS.test_folders)}"
            )
        if row.get(label) == "":
            raise DataError(f"{where}, line {number}: the label is empty")
        parts["train" if side == "train" else "test"].append((place, row.get(label)))
        numbered.append((number, (place, row.get(label))))
    _check_paths(numbered, where, base, allow_outside)
    return parts["train"], parts["test"] if split in columns else None


def _check_paths(
    numbered: Sequence[tuple[int, tuple[str, str | None]]], where: str, base: Path, allow_outside: bool
) -> None:
    """Raise DataError for listed videos that leave the folder, or do not exist; numbered: (line, (path, class))."""
    if not allow_outside:
        check_inside(((f"{where}, line {number}", path) for number, (path, _) in numbered), base)
    if not any(os.path.exists(path) for _, (path, _) in numbered[:LOOKED_AT]):
        raise DataError(
            f"{where}: none of its first {min(len(numbered), LOOKED_AT)} videos exists, the first is "
            f"{numbered[0][1][0]}: its paths are taken from {base} (data.root), by the pattern data.csv_path"
        )
