"""The Free Spoken Digit Dataset, from a folder of recordings or an archive."""

from __future__ import annotations

import os
import re
from pathlib import Path
from typing import Literal

from jepa.data.sources.download import download_file, read_archive
from jepa.data.sources.sound_files import SoundFile, require_soundfile
from jepa.data.sources.splits import FileSamples, Splits, number_classes
from jepa.utils.errors import DataError

FSDD_URL = "https://github.com/Jakobovski/free-spoken-digit-dataset/archive/refs/heads/master.tar.gz"
FSDD_NAME = re.compile(r"(?P<digit>[0-9])_(?P<speaker>[a-z]+)_(?P<index>[0-9]+)\.wav")
FSDD_TEST = 5  # recordings 0 .. 4 of every digit by every speaker are the official test split.


def fsdd(*, root: str, label: Literal["digit", "speaker"] = "digit", download: bool = True) -> Splits:
    """Free Spoken Digit Dataset (Jackson et al.): digits 0 .. 9, six speakers, 50 recordings each, 8 kHz.

    root: a folder with the files <digit>_<speaker>_<index>.wav at any depth or with fsdd.tar.xz or the project's own
    archive in it, or such an archive itself, which is held in memory. Where there is none of these it is downloaded;
    the archive is that of the present state and has no published check sum.
    label: what the classes are. Splits are the official ones, recordings 0 .. 4 to test.
    Raises DataError when nothing is there and nothing can be had, or the archive is damaged.
    """
    if label not in ("digit", "speaker"):
        raise ValueError(f"data.label={label!r} is neither digit nor speaker")
    require_soundfile()  # before training reads the first file
    place = Path(root)
    paths, contents = _recordings(place), None
    if not paths:
        place = place if place.is_file() else _find_archive(place, download=download)
        contents = read_archive(place, lambda name: _parse(name) is not None)
        paths = list(contents)
    if not paths:
        raise DataError(f"{place} holds no files <digit>_<speaker>_<index>.wav: it is another archive")
    names = tuple(sorted({_parse(path)[label] for path in paths}))
    index, lines = number_classes(names, (), where=f"data.root={root}")
    splits = {}
    for split, wanted in (("train", f"from {FSDD_TEST}"), ("test", f"0 to {FSDD_TEST - 1}")):
        chosen = [path for path in sorted(paths) if (int(_parse(path)["index"]) < FSDD_TEST) == (split == "test")]
        if not chosen:
            raise DataError(f"{place} holds no recordings of index {wanted}, the {split} split: get all of its files")
        labels = None if index is None else [index[_parse(path)[label]] for path in chosen]
        splits[split] = FileSamples(chosen, labels, SoundFile, folder=place, contents=contents)
    return Splits(**splits, class_names=None if index is None else names, lines=lines)


def _parse(path: str) -> re.Match[str] | None:
    return FSDD_NAME.fullmatch(os.path.basename(path))


def _recordings(folder: Path) -> list[str]:
    return [str(path.relative_to(folder)) for path in folder.rglob("*.wav") if _parse(path.name)]


def _find_archive(root: Path, *, download: bool) -> Path:
    archives = [path for pattern in ("fsdd*.tar*", "free-spoken-digit*.tar*") for path in root.glob(pattern)]
    if archives:
        return min(archives)
    target = root / "free-spoken-digit-dataset.tar.gz"
    wanted = [
        "the recordings (0_george_0.wav, ...)",
        "or an archive of them (fsdd.tar.xz), to which data.root may point",
    ]
    name = "the Free Spoken Digit Dataset"
    download_file(target, urls=[FSDD_URL], md5=None, allowed=download, name=name, root=root, wanted=wanted)
    return target
