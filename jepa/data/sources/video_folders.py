"""Videos on disk: class folders of video files or of folders of frames, or a CSV that lists them."""

from __future__ import annotations

import csv as csv_module
import os
import re
from pathlib import Path

from jepa.data.sources.class_folders import FileKind, Listed, find_splits, split_files
from jepa.data.sources.decoders import VIDEO_EXTENSIONS, is_image_file, open_video
from jepa.data.sources.splits import Splits, check_fraction, sort_classes
from jepa.utils.errors import DataError

LOOKED_AT = 50
"""Entries of a CSV of which at least one must exist; to look at all of a large one would take minutes."""


PUBLISHED_LINE = re.compile(r"(?P<path>.+?)(?: +|, *)(?P<label>[0-9]+)")
"""Of a list without a header."""


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
    if not train or test == []:
        raise DataError(f"{where}: the {'test' if train else 'train'} split holds no videos")
    return split_files(
        train,
        test,
        open_video,
        classes=sort_classes(name for _, name in train if name is not None),
        fraction=val_fraction,
        seed=split_seed,
        where=where,
    )


def _read_csv(root: Path | None, name: Path, path: str, label: str, split: str) -> tuple[Listed, Listed | None]:
    """The training and test videos of a CSV; None for the test videos where it has no column of splits."""
    where = f"data.csv={name}"
    file = name if root is None or name.is_absolute() or name.is_file() else root / name
    if not file.is_file():
        raise DataError(f"{where}: there is no file {file}")
    base = root if root is not None else file.parent
    lines = [line for line in file.read_text(encoding="utf-8-sig").splitlines() if line.strip()]
    if not lines:
        raise DataError(f"{where} is empty")
    parts: dict[str, Listed] = {"train": [], "test": []}
    if all(matches := [PUBLISHED_LINE.fullmatch(line.strip()) for line in lines]):
        parts["train"] = [(str(base / match["path"]), match["label"]) for match in matches]
        _check_some_exist(parts["train"], where, base)
        return parts["train"], None
    rows = list(csv_module.DictReader(lines, restval="", delimiter=max(",;\t", key=lines[0].count)))
    if not rows:
        raise DataError(f"{where} has a header and no rows")
    columns = [column for column in rows[0] if column]
    if label != "label" and label not in columns:
        raise DataError(f"{where} has no column {label!r} (data.csv_label); it has {', '.join(columns)}")
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
    _check_some_exist(parts["train"] + parts["test"], where, base)
    return parts["train"], parts["test"] if split in columns else None


def _check_some_exist(listed: Listed, where: str, base: Path) -> None:
    if not any(os.path.exists(path) for path, _ in listed[:LOOKED_AT]):
        raise DataError(
            f"{where}: none of its first {min(len(listed), LOOKED_AT)} videos exists, the first is {listed[0][0]}: "
            f"its paths are taken from {base} (data.root), by the pattern data.csv_path"
        )
