"""Files in folders, with or without class folders: images, sounds and videos; and lists of videos."""

from __future__ import annotations

import os
import statistics
from collections import Counter
from collections.abc import Callable, Iterator, Mapping
from dataclasses import dataclass, replace
from functools import partial
from pathlib import Path
from typing import Any

from jepa.data.sources.decoders import decode_image, is_frame_file, open_video
from jepa.data.sources.image_files import IMAGE_EXTENSIONS
from jepa.data.sources.sound_files import SoundFile, in_pieces, length_of, require_soundfile, with_label_tracks
from jepa.data.sources.splits import FileSamples, Listed, Splits, check_fraction, first_few, sort_classes, split_listed
from jepa.data.sources.video_lists import read_list
from jepa.utils.errors import DataError


@dataclass(frozen=True, kw_only=True)
class FileKind:
    """A kind of samples in folders. name: in the plural, for messages. decode: makes the input of a path.

    frames: whether a folder of pictures, frames of a video, is one, too. beside: endings of files that belong to
    samples. test_folders: names of the test split's.
    """

    name: str
    extensions: tuple[str, ...]
    decode: Callable[[str], Any]
    frames: bool = False
    beside: tuple[str, ...] = ()
    test_folders: tuple[str, ...] = ("val", "test", "valid", "validation")

    def matches(self, entry: os.DirEntry[str]) -> bool:
        if self.frames and entry.is_dir():
            return any(is_frame_file(name) for name in os.listdir(entry.path))
        # is_file last: the type of a link costs a system call.
        return entry.name.lower().endswith(self.extensions) and entry.is_file()


LONG_SOUND = 60  # seconds of a file of which a clip shows little
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


def image_folder(*, root: str, val_fraction: float = 0.1, split_seed: int = 0, labels: bool = True) -> Splits:
    """Images in files that end with one of IMAGE_EXTENSIONS below root; see `find_splits` for layouts and arguments."""
    return find_splits(root, IMAGES, val_fraction=val_fraction, split_seed=split_seed, labels=labels)


def audio_folder(
    *,
    root: str,
    val_fraction: float = 0.1,
    split_seed: int = 0,
    labels: bool = True,
    piece_seconds: float | None = None,
    label_tracks: bool = False,
) -> Splits:
    """Sounds in WAV, FLAC, Ogg, MP3 or AIFF files below root; see `find_splits` for layouts and arguments.

    piece_seconds: cuts each file into samples of that length; all pieces of a file are in the same split.
    label_tracks: read what each frame is from the .txt file beside each sound (`with_label_tracks`), for `DenseProbe`.
    """
    require_soundfile()  # before training reads the first file
    kind = replace(SOUNDS, beside=(".txt",)) if label_tracks else SOUNDS
    files = find_splits(root, kind, val_fraction=val_fraction, split_seed=split_seed, labels=labels)
    splits = in_pieces(files, piece_seconds, "data.source.piece_seconds")
    if label_tracks:
        splits = with_label_tracks(splits, [files.train, files.test])
    if piece_seconds is None:
        lengths = [length_of(files.train.describe(number)) for number in range(min(5, len(files.train)))]
        usual = statistics.median(frames / rate for frames, rate in lengths)
        line = f"files of {usual:.0f} s are one sample each: data.source.piece_seconds=10 cuts them into many"
        return replace(splits, lines=(*splits.lines, line)) if usual > LONG_SOUND else splits
    return splits


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
    labels: bool = True,
) -> Splits:
    """Videos below root (see `find_splits`), or those that a CSV lists: files, or folders that directly hold frames.

    csv: a file, relative to root if there is one. With a header: csv_path is the column of the path, or a pattern of
        columns ("{class}/{clip}"), relative to root or else to the CSV's folder; csv_label that of the class, if any;
        csv_split, if any, that of the split: train, or one of val, test, valid, validation. Without a header: lines of
        a path and a label, as the published V-JEPA code reads them, or of a path alone; see `read_list`.
    allow_outside: whether the CSV's paths may leave root, or else its own folder, by .., as absolute paths or by links.
    Raises DataError for what is missing, empty, or fits none of these.
    """
    check_fraction("data.source.val_fraction", val_fraction)
    if csv is None:
        if root is None:
            raise DataError("data.root is not set: give a folder of videos, or a list of them with data.csv=<file>")
        return find_splits(root, VIDEOS, val_fraction=val_fraction, split_seed=split_seed, labels=labels)
    if root is not None and not os.path.isdir(root):
        raise DataError(f"data.root={root} is not a folder; give the one that the paths in data.csv are relative to")
    where, columns = f"data.csv={csv}", {"path": csv_path, "label": csv_label, "split": csv_split}
    csv, names = os.path.expanduser(csv), VIDEOS.test_folders
    train, test = read_list(root, csv, columns, test_names=names, allow_outside=allow_outside)
    if not train or test == []:
        raise DataError(f"{where}: the {'test' if train else 'train'} split holds no videos")
    classes = sort_classes(name for _, name in train if name) if labels else []
    make = partial(FileSamples, decode=open_video)
    return split_listed(train, test, make, classes=classes, fraction=val_fraction, seed=split_seed, where=where)


def find_splits(root: str, kind: FileKind, *, val_fraction: float, split_seed: int, labels: bool = True) -> Splits:
    """Samples in files below root; links are followed, hidden files ignored, and others counted in `Splits.lines`.

    One of these layouts; below a class folder, samples may lie at any depth:
    - train/<class>/ and val/<class>/ (or test, valid, validation);
    - <class>/ or train/<class>/ alone: a share `val_fraction` of each class, drawn by `split_seed`, is the test split;
    - samples without class folders, in root or in train/ (and val/), or in a single one: data without labels.

    labels: False takes all samples without labels, wherever they lie.
    Raises DataError for a folder that is missing, empty, or that fits none of these.
    """
    check_fraction("data.source.val_fraction", val_fraction)
    folder = Path(root)
    if not folder.is_dir():
        wanted = f"train/ and {kind.test_folders[0]}/, or class folders"
        raise DataError(f"data.root={root} is not a folder; give one that holds {wanted}")
    train_part = "train" if (folder / "train").is_dir() else ""
    others: Counter[str] = Counter()
    train = list_samples(folder, train_part, kind, others, flat=not labels)
    classes = sorted({name for _, name in train if name is not None})
    test_part = next((name for name in kind.test_folders if train_part and (folder / name).is_dir()), None)
    labelled = len(classes) > 1
    test = None if test_part is None else list_samples(folder, test_part, kind, others, flat=not labelled)
    if labelled and test is not None and test[0][1] is None:
        imagenet = "; data=imagenet also reads the flat one of ImageNet" if kind is IMAGES else ""
        problem = f"{folder / test_part} holds {len(test)} {kind.name} but no class folders"
        expected = f"{test_part}/<class>/<file> with the classes of train/ ({first_few(classes)})"
        raise DataError(f"{problem}; expected {expected}: move each into the folder of its class{imagenet}")
    make, where = partial(FileSamples, decode=kind.decode, folder=folder), f"data.root={root}"
    split = {"fraction": val_fraction, "seed": split_seed, "lines": [f"{where}: {line}" for line in left_out(others)]}
    return split_listed(train, test, make, classes=classes, where=where, **split)


def left_out(others: Mapping[str, int]) -> list[str]:
    """Return what the first lines of a run say of files left out; others: ending -> how many."""
    counted = ", ".join(f"{count:,} {ending or 'without ending'}" for ending, count in sorted(others.items()))
    return [f"{counted} left out"] if counted else []


def list_samples(root: Path, part: str, kind: FileKind, others: Counter[str], *, flat: bool = False) -> Listed:
    """The samples of root/part by class folder, sorted; flat: as one group. others: counts other files by ending."""
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
        beside = f"({first_few(loose)}) beside the folders {first_few(sorted(first.difference(loose)))}"
        advice = f"move the {kind.name} into class folders, or take all without labels: data.source.labels=false"
        raise DataError(f"{folder} holds {len(loose)} {kind.name} {beside}; {advice}")
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
        for entry in (entry for entry in entries if not entry.name.startswith(".")):
            path = os.path.join(below, entry.name)
            if kind.matches(entry):
                yield path
            elif entry.is_dir():
                yield from _walk(root, path, kind, others, parents | {place})
            elif not entry.name.lower().endswith(kind.beside):
                others[os.path.splitext(entry.name)[1].lower()] += 1
