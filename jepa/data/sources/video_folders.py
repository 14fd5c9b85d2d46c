"""Videos on disk: class folders of video files or of folders of frames, or a CSV that lists them."""

from __future__ import annotations

import csv as csv_module
import os
from pathlib import Path

from jepa.data.sources.class_folders import FileKind, find_splits, hold_out_of_classes
from jepa.data.sources.decoders import VIDEO_EXTENSIONS, is_image_file, open_video
from jepa.data.sources.splits import FileSamples, Splits, check_fraction, first_few
from jepa.utils.errors import DataError

LOOKED_AT = 50
"""Entries of a CSV of which at least one must exist; to look at all of a large one would take minutes."""

Listed = list[tuple[str, str | None]]
"""Paths and class names of a split."""


def is_frame_folder(folder: str) -> bool:
    """Whether a folder directly holds image files."""
    with os.scandir(folder) as entries:
        return any(is_image_file(entry.name) for entry in entries)


VIDEOS = FileKind(name="videos", extensions=VIDEO_EXTENSIONS, decode=open_video, is_sample_folder=is_frame_folder)


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

    Without a CSV, see `find_splits` for the layouts.
    csv: a file, relative to root if there is one. With a header: csv_path is the column of the path, or a pattern of
        columns in braces ("{class}/{clip}"), relative to root or else to the CSV's folder; csv_label that of the class,
        where there is one; csv_split that of the split, train or one of val, test, valid, validation, where there is
        one. Without a header: lines of a path and a number, apart by a space or comma, as the published V-JEPA code
        reads them.
    Raises DataError for what is missing, empty, or fits none of these.
    """
    check_fraction("data.source.val_fraction", val_fraction)
    if csv is None:
        if root is None:
            raise DataError("data.root is not set: give a folder of videos, or a list of them with data.csv=<file>")
        return find_splits(root, VIDEOS, val_fraction=val_fraction, split_seed=split_seed)
    folder = None if root is None else Path(root)
    if folder is not None and not folder.is_dir():
        raise DataError(f"data.root={root} is not a folder; give the one that the paths in data.csv are relative to")
    where = f"data.csv={csv}"
    train, test = _read_csv(folder, Path(os.path.expanduser(csv)), csv_path, csv_label, csv_split)
    if test is None:
        groups: dict[str | None, list[str]] = {}
        for path, label in train:
            groups.setdefault(label, []).append(path)
        parts = hold_out_of_classes(groups, val_fraction, split_seed, where)
        train, test = ([(path, label) for label, paths in part.items() for path in paths] for part in parts)
    return _splits(train, test, where)


def _splits(train: Listed, test: Listed, where: str) -> Splits:
    for name, listed in (("train", train), ("test", test)):
        if not listed:
            raise DataError(f"{where}: the {name} split holds no videos")
    if train[0][1] is None:
        return Splits(*(FileSamples("", [p for p, _ in listed], None, open_video) for listed in (train, test)))
    names = sorted({label for _, label in train}, key=lambda name: (len(name), name) if name.isdecimal() else (0, name))
    if unknown := sorted({str(label) for _, label in test} - set(names)):
        raise DataError(
            f"{where}: the classes {first_few(unknown)} are in the test split only; train has {first_few(names)}"
        )
    if len(names) == 1:
        raise DataError(f"{where}: all videos are of one class ({names[0]}), nothing to classify: give two or more")
    index = {name: number for number, name in enumerate(names)}
    parts = [
        FileSamples("", [path for path, _ in listed], [index[label] for _, label in listed], open_video)
        for listed in (train, test)
    ]
    return Splits(*parts, class_names=tuple(names))


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
        if side not in ("train", *VIDEOS.test_folders):
            raise DataError(
                f"data.csv={name}, line {number}: the split is {side!r}, expected train or one of "
                f"{list(VIDEOS.test_folders)}"
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
