"""Videos on disk: class folders of video files or of folders of frames, or a CSV that lists them."""

from __future__ import annotations

import csv as csv_module
import os
from collections.abc import Iterator, Sequence
from pathlib import Path

import torch

from jepa.data.sources.base import Splits
from jepa.data.sources.clips import Video, is_frame_folder, is_video_file, open_video
from jepa.data.sources.folders import TEST_NAMES
from jepa.utils.errors import DataError
from jepa.utils.random import generator

LOOKED_AT = 50
"""Entries of a CSV of which at least one must exist; to look at all of a large one would take minutes."""

Listed = list[tuple[str, str | None]]
"""Paths and class names of a split."""


class VideoPaths:
    """Videos by path and their labels; items are (video, label), and reading is left to the video."""

    def __init__(self, paths: Sequence[str], labels: Sequence[int] | None) -> None:
        self.paths = list(paths)
        self.labels = None if labels is None else list(labels)

    def __len__(self) -> int:
        return len(self.paths)

    def __getitem__(self, index: int) -> tuple[Video, int | None]:
        return open_video(self.paths[index]), None if self.labels is None else self.labels[index]


def video_folder(
    *,
    root: str | None = None,
    csv: str | None = None,
    csv_path: str = "path",
    csv_label: str = "label",
    csv_split: str = "split",
    val_fraction: float = 0.1,
    split_seed: int = 0,
) -> Splits:
    """Videos below root, or those that a CSV lists. A video is a file, or a folder that directly holds its frames.

    Without a CSV, one of these layouts; below a class folder videos may lie at any depth:
    - train/<class>/ and val/<class>/ (or test, valid, validation);
    - <class>/ or train/<class>/ alone: a share `val_fraction` of each class, drawn by `split_seed`, is the test split;
    - videos without class folders, in root or in train/ (and val/): data without labels.

    csv: a file, relative to root if there is one. With a header: csv_path is the column of the path, or a pattern of
        columns in braces ("{class}/{clip}"), relative to root or else to the CSV's folder; csv_label that of the class,
        where there is one; csv_split that of the split, train or one of the names above, where there is one. Without a
        header: lines of a path and a number, apart by a space or comma, as the published V-JEPA code reads them.
    Raises DataError for what is missing, empty, or fits none of these.
    """
    if not 0 < val_fraction < 1:
        raise ValueError(f"val_fraction={val_fraction} is not between 0 and 1, both excluded")
    if root is None and csv is None:
        raise DataError("data.root is not set: give a folder of videos, or a list of them with data.csv=<file>")
    folder = None if root is None else Path(os.path.expanduser(root))
    if folder is not None and not folder.is_dir():
        raise DataError(f"data.root={root} is not a folder; give one that holds train/ and test/, or class folders")
    if csv is not None:
        train, test = _read_csv(folder, Path(os.path.expanduser(csv)), csv_path, csv_label, csv_split)
        where = f"data.csv={csv}"
    else:
        train, test = _read_folders(folder)
        where = str(folder)
    if test is None:
        train, test = _split(train, val_fraction, split_seed, where)
    return _splits(train, test, where)


def _splits(train: Listed, test: Listed, where: str) -> Splits:
    for name, listed in (("train", train), ("test", test)):
        if not listed:
            raise DataError(f"{where}: the {name} split holds no videos")
    labelled = train[0][1] is not None
    if not labelled:
        return Splits(VideoPaths([p for p, _ in train], None), VideoPaths([p for p, _ in test], None))
    names = sorted({label for _, label in train}, key=lambda name: (len(name), name) if name.isdecimal() else (0, name))
    if unknown := sorted({str(label) for _, label in test} - set(names)):
        raise DataError(f"{where}: the classes {_few(unknown)} are in the test split only; train has {_few(names)}")
    if len(names) == 1:
        raise DataError(f"{where}: all videos are of one class ({names[0]}), nothing to classify: give two or more")
    index = {name: number for number, name in enumerate(names)}
    parts = [VideoPaths([p for p, _ in listed], [index[label] for _, label in listed]) for listed in (train, test)]
    return Splits(*parts, class_names=tuple(names))


def _read_folders(root: Path) -> tuple[Listed, Listed | None]:
    train_folder = root / "train" if (root / "train").is_dir() else root
    train = _read_classes(train_folder)
    test_folder = next((root / n for n in TEST_NAMES if (root / n).is_dir()), None) if train_folder != root else None
    if test_folder is None:
        return train, None
    test = _read_classes(test_folder)
    if (train[0][1] is None) != (test[0][1] is None):
        with_classes, without = (train_folder, test_folder) if test[0][1] is None else (test_folder, train_folder)
        raise DataError(f"{with_classes} holds class folders and {without} none: sort both alike")
    return train, test


def _read_classes(folder: Path) -> Listed:
    """Videos of a split's folder, sorted, with their classes where it holds class folders."""
    with os.scandir(folder) as entries:
        visible = sorted((e for e in entries if not e.name.startswith(".")), key=lambda entry: entry.name)
    loose = [e.path for e in visible if e.is_file() and is_video_file(e.name)]
    folders = [e for e in visible if e.is_dir()]
    loose += [e.path for e in folders if is_frame_folder(e.path)]
    classes = [e for e in folders if e.path not in set(loose)]
    videos = {e.name: sorted(_walk(e.path)) for e in classes}
    if not loose and not any(videos.values()):
        raise DataError(
            f"{folder} holds no videos: expected files such as .mp4, .avi, .mov, .mkv, .webm, or folders of frames in "
            ".jpg or .png, in class folders or not"
        )
    if not loose:
        if empty := [name for name, found in videos.items() if not found]:
            raise DataError(f"{folder}: no videos in the class folders {_few(empty)}; fill or remove them")
        return [(path, name) for name, found in videos.items() for path in found]
    if any(videos.values()):
        raise DataError(
            f"{folder} holds {len(loose)} videos ({_few([os.path.basename(p) for p in loose])}) beside the folders "
            f"{_few(list(videos))}; move the videos into class folders, or the folders away to train without labels"
        )
    return [(path, None) for path in sorted(loose)]


def _walk(folder: str, parents: frozenset[tuple[int, int]] = frozenset()) -> Iterator[str]:
    """Videos at any depth below a folder; one that holds frames is a video itself."""
    status = os.stat(folder)
    place = (status.st_dev, status.st_ino)
    if place in parents:  # a link back to a folder above
        return
    if is_frame_folder(folder):
        yield folder
        return
    with os.scandir(folder) as entries:
        for entry in entries:
            if entry.name.startswith("."):
                continue
            if entry.is_dir():
                yield from _walk(entry.path, parents | {place})
            elif is_video_file(entry.name):
                yield entry.path


def _read_csv(root: Path | None, name: Path, path: str, label: str, split: str) -> tuple[Listed, Listed | None]:
    """The training and test videos of a CSV; None for the test videos where it has no column of splits."""
    file = name if root is None or name.is_absolute() or name.is_file() else root / name
    if not file.is_file():
        raise DataError(f"data.csv={name}: there is no file {file}")
    base = root if root is not None else file.parent
    lines = [line for line in file.read_text(encoding="utf-8-sig").splitlines() if line.strip()]
    if not lines:
        raise DataError(f"data.csv={name} is empty")
    if (plain := _headless(lines)) is not None:
        listed = [(str(base / path), label) for path, label in plain]
        _check_some_exist(listed, name, base)
        return listed, None
    rows = list(csv_module.DictReader(lines, delimiter=max(",;\t", key=lines[0].count)))
    columns = [column for column in rows[0] if column] if rows else []
    if not rows:
        raise DataError(f"data.csv={name} has a header and no rows")
    pattern = path if "{" in path else "{" + path + "}"
    parts: dict[str, Listed] = {"train": [], "test": []}
    for number, row in enumerate(rows, start=2):
        try:
            place = pattern.format_map(row)
        except (KeyError, ValueError, IndexError) as error:
            raise DataError(
                f"data.csv={name} has the columns {', '.join(columns)}, but data.csv_path={path} asks for {error}: "
                f"give the column of the path, such as data.csv_path={columns[0]}, or a pattern of columns in braces"
            ) from None
        side = row.get(split) if split in columns else "train"
        if side not in ("train", *TEST_NAMES):
            raise DataError(
                f"data.csv={name}, line {number}: the split is {side!r}, expected train or one of {list(TEST_NAMES)}"
            )
        parts["train" if side == "train" else "test"].append(
            (str(base / place), row[label] if label in columns else None)
        )
    if label != "label" and label not in columns:
        raise DataError(f"data.csv={name} has no column {label!r} (data.csv_label); it has {', '.join(columns)}")
    _check_some_exist(parts["train"] + parts["test"], name, base)
    return parts["train"], parts["test"] if split in columns else None


def _headless(lines: list[str]) -> list[tuple[str, str]] | None:
    """Paths and labels of a file without a header, whose lines end with a number; None of any other."""
    pairs = []
    for line in lines:
        path, apart, label = line.strip().rpartition(" ")
        if not apart or not label.isdecimal():
            path, apart, label = line.strip().rpartition(",")
        if not apart or not label.strip().isdecimal() or "," in path:
            return None
        pairs.append((path.strip(), label.strip()))
    return pairs


def _check_some_exist(listed: Listed, name: Path, base: Path) -> None:
    if not any(os.path.exists(path) for path, _ in listed[:LOOKED_AT]):
        raise DataError(
            f"data.csv={name}: none of its first {min(len(listed), LOOKED_AT)} videos exists, the first is "
            f"{listed[0][0]}: its paths are taken from {base} (data.root), by the pattern data.csv_path"
        )


def _split(listed: Listed, fraction: float, seed: int, where: str) -> tuple[Listed, Listed]:
    """Train and test videos of each class. A class of one video stays in train, one of more has both."""
    train, test = [], []
    for number, name in enumerate(dict.fromkeys(label for _, label in listed)):
        own = [entry for entry in listed if entry[1] == name]
        count = min(max(round(fraction * len(own)), 1), len(own) - 1)
        order = torch.randperm(len(own), generator=generator("cpu", seed, "split", number)).tolist()
        test += [own[i] for i in sorted(order[:count])]
        train += [own[i] for i in sorted(order[count:])]
    if not test:
        raise DataError(f"{where} has no class with two videos, so none can be kept aside for the test split")
    return train, test


def _few(names: Sequence[str]) -> str:
    shown = ", ".join(list(names)[:5])
    return shown if len(names) <= 5 else f"{shown}, ... ({len(names)} in all)"
