"""ImageNet (ILSVRC 2012) as people have it: folders, the published archives, Kaggle's files, webdataset shards.

Classes are numbered alike in all of these, by their sorted WordNet numbers (n01440764 is 0), and samples stand in the
order of class folders: by class, then by file name.
"""

from __future__ import annotations

import contextlib
import csv
import io
import os
import re
import shlex
from collections import Counter
from collections.abc import Callable, Iterable, Mapping, Sequence
from dataclasses import dataclass
from functools import partial
from pathlib import Path

from jepa.data.sources.decoders import decode_image
from jepa.data.sources.download import read_archive
from jepa.data.sources.folders import IMAGES, image_folder, left_out, list_samples
from jepa.data.sources.splits import (
    FileSamples,
    Listed,
    Make,
    Splits,
    check_fraction,
    first_few,
    sort_classes,
    split_listed,
)
from jepa.data.sources.tar_files import TarSamples, index_tars
from jepa.utils.errors import DataError, first_line
from jepa.utils.read_data import read_bytes

GROUND_TRUTH, META = "ILSVRC2012_validation_ground_truth.txt", "meta.mat"
DEVKIT = "ILSVRC2012_devkit_t12.tar.gz"
DEVKIT_FOLDERS = ("", "data", "devkit", "devkit/data", "ILSVRC2012_devkit_t12", "ILSVRC2012_devkit_t12/data")
SOLUTION = "LOC_val_solution.csv"
MOST_BYTES = 2**26  # of a file with labels
ClassOf = Callable[[str], str | None]  # name of a picture without its ending -> class; None where it is not known


def validation_labels(folders: Sequence[Path]) -> ClassOf | None:
    """What tells the class of a validation picture, by the first folder with labels; None without. Raises DataError."""
    for folder in folders:
        for place in (folder / name for name in DEVKIT_FOLDERS):
            if (place / GROUND_TRUTH).is_file() and (place / META).is_file():
                return _of_devkit(*(read_bytes(place / file, MOST_BYTES) for file in (GROUND_TRUTH, META)), place)
        for packed in sorted(folder.glob("ILSVRC2012_devkit*.tar*")):
            files = read_archive(packed, lambda name: os.path.basename(name) in (GROUND_TRUTH, META))
            files = {os.path.basename(name): content for name, content in files.items()}
            if len(files) < 2:
                raise DataError(f"{packed} lacks {GROUND_TRUTH} or {META}: get it again")
            return _of_devkit(files[GROUND_TRUTH], files[META], packed)
        if (solution := folder / SOLUTION).is_file():
            return _of_kaggle(read_bytes(solution, MOST_BYTES), solution).get
    return None


def _of_devkit(ground_truth: bytes, meta: bytes, where: Path) -> ClassOf:
    """Line n of the ground truth is the number of the class of picture n, which meta.mat has the WordNet number of."""
    from scipy.io import loadmat  # here, as other data do without it

    try:
        numbers = [int(line) for line in ground_truth.decode().split()]
        synsets = loadmat(io.BytesIO(meta), squeeze_me=True)["synsets"]
        wnids = {int(number): str(wnid) for number, wnid in zip(synsets["ILSVRC2012_ID"], synsets["WNID"])}
        classes = [wnids[number] for number in numbers]
    except Exception as error:  # SciPy raises many kinds for a damaged file
        problem = f"{GROUND_TRUTH} and {META} do not fit ({first_line(error)}): get them again"
        raise DataError(f"{where}: {problem}") from error

    def class_of(name: str) -> str | None:
        number = re.search("[0-9]+$", name)
        place = int(number[0][-9:]) if number else 0
        return classes[place - 1] if 0 < place <= len(classes) else None

    return class_of


def _of_kaggle(content: bytes, where: Path) -> Mapping[str, str]:
    """Picture -> class, the first word of its PredictionString."""
    try:
        rows = csv.DictReader(io.StringIO(content.decode("utf-8-sig")))
        return {row["ImageId"]: row["PredictionString"].split()[0] for row in rows}
    except (ValueError, KeyError, TypeError, AttributeError, IndexError, csv.Error) as error:
        raise DataError(f"{where} is not Kaggle's table of ImageId and PredictionString ({error!r})") from error


KAGGLE = ("ILSVRC/Data/CLS-LOC", "Data/CLS-LOC")
VALIDATION = ("val", "validation", "valid", "test")
ARCHIVES = {"train": "ILSVRC2012_img_train.tar", "test": "ILSVRC2012_img_val.tar"}
WNID = re.compile(r"(?<![a-z0-9])n[0-9]{8}(?![0-9])")  # in the name of a picture, an archive or a folder
NO_CLASS = re.compile("train|val|validation|valid|test|.*devkit.*")  # names of folders
MOST_CLASSES = 100_000  # above the 21,841 of all of ImageNet; larger numbers are no classes


@dataclass(frozen=True)
class Part:
    """A split as found: samples listed with classes (numbered: by number), their names, and what makes the samples."""

    listed: Listed
    name_of: Callable[..., str]
    make: Make
    lines: tuple[str, ...] = ()
    numbered: bool = False


def imagenet(*, root: str, val_fraction: float = 0.1, split_seed: int = 0) -> Splits:
    """ImageNet, or any part of it, below root. Each split is the first of these that is there:

    - class folders, as for `image_folder`; of the validation split also one flat folder, with labels beside it;
    - `ILSVRC2012_img_train.tar` or the archives of the classes in it, `ILSVRC2012_img_val.tar` with labels beside it;
    - other archives of which the name or the folder says the split: webdataset shards, `<name>-000000.tar`, with the
      number or the name of the class in a .cls or .json file, or pictures with the class in their names or folders.
    Labels beside it: the devkit, packed or not, or Kaggle's LOC_val_solution.csv. root may be any folder on the way to
    Kaggle's ILSVRC/Data/CLS-LOC. Without a validation split, a share `val_fraction` of each class is one, drawn by
    `split_seed`. Raises DataError for what is none of these; for Parquet files it names the command that reads them.
    """
    check_fraction("data.source.val_fraction", val_fraction)
    folder = Path(root)
    if not folder.is_dir():
        wanted = f"train/ and val/, or archives such as {ARCHIVES['train']}"
        raise DataError(f"data.root={root} is not a folder; give the one that holds {wanted}")
    place = next((folder / name for name in KAGGLE if (folder / name).is_dir()), folder)
    archives = _archives(place)
    if not archives["train"] and not _has_pictures(place / "train"):
        try:
            return image_folder(root=str(place), val_fraction=val_fraction, split_seed=split_seed)
        except DataError:
            _refuse_others(folder, archives["test"])
            raise
    unpacked = _has_pictures(place / "train", loose=False) or not archives["train"]
    train = _files(place, "train") if unpacked else _packed(place, "train", archives["train"])
    names = {name for _, name in train.listed if name}
    classes = sort_classes(names) if train.numbered else sorted(names)
    test = _test_part(place, archives["test"], flat=len(classes) < 2)
    lines = [*train.lines, *(test.lines if test else ())]
    if test is not None and len(classes) > 1:
        if not any(name for _, name in test.listed):
            count, first = len(test.listed), test.name_of(test.listed[0][0])
            if (test := _labelled(test, folder, place)) is None:
                lines.append(f"{count:,} test pictures without labels left out, the first is {first}")
        if test is not None and train.numbered and test.numbered:
            names |= {name for _, name in test.listed if name}
    if train.numbered and len(classes) > 1:  # numbers stay as they are, where some classes are missing
        classes = tuple(map(str, range(1 + max(map(int, names)))))
    where, parts = f"data.root={root}", (train.listed, test and test.listed, train.make, test and test.make)
    split = {"fraction": val_fraction, "seed": split_seed, "lines": [f"{where}: {line}" for line in lines]}
    return split_listed(*parts, classes=classes, where=where, **split)


def _archives(place: Path) -> dict[str, list[Path]]:
    named: dict[str, list[Path]] = {}
    pictures = _has_pictures(place)
    for folder in (place, *(place / part for part in ("train", *VALIDATION))):
        for path in sorted(folder.glob("[!.]*.tar")) if folder.is_dir() else ():
            words = {*re.findall("[a-z]+", path.stem.lower()), "" if folder == place else folder.name}
            split = next((part for part in ("train", *VALIDATION) if part in words), "")
            if path.name in ARCHIVES.values():
                named.setdefault(path.name, []).append(path)
            elif not path.name.startswith("ILSVRC2012_img_") and (split or not pictures):  # else of another thing
                kind = "classes" if WNID.fullmatch(path.stem) else "shards"
                named.setdefault(f"{kind} {split}", []).append(path)
    orders = {
        "train": [ARCHIVES["train"], *(f"{kind} {part}" for part in ("train", "") for kind in ("classes", "shards"))],
        "test": [ARCHIVES["test"], *(f"{kind} {part}" for kind in ("classes", "shards") for part in VALIDATION)],
    }
    return {split: next((named[key] for key in keys if key in named), []) for split, keys in orders.items()}


def _has_pictures(folder: Path, *, loose: bool = True) -> bool:
    """Whether a folder holds folders that may be classes, or `loose` pictures."""
    if not folder.is_dir():
        return False
    endings = IMAGES.extensions if loose else ()
    with os.scandir(folder) as entries:
        for entry in entries:
            is_class = not NO_CLASS.fullmatch(entry.name) and entry.is_dir()
            if not entry.name.startswith(".") and (is_class or entry.name.lower().endswith(endings)):
                return True
    return False


def _test_part(place: Path, archives: Sequence[Path], *, flat: bool) -> Part | None:
    name = next((name for name in IMAGES.test_folders if _has_pictures(place / name)), None)
    if name is None and not archives:
        name = next((name for name in IMAGES.test_folders if (place / name).is_dir()), None)
    if name is not None:
        return _files(place, name, flat=flat)
    return _packed(place, "test", archives) if archives else None


def _files(place: Path, name: str, *, flat: bool = False) -> Part:
    others: Counter[str] = Counter()
    listed = list_samples(place, name, IMAGES, others, flat=flat)
    if not flat and all(of is None and WNID.search(Path(path).stem) for path, of in listed):
        listed = _sorted(((path, _wnid_in(Path(path).stem)) for path, _ in listed), str)
    return Part(listed, str, partial(FileSamples, decode=decode_image, folder=place), tuple(left_out(others)))


def _packed(place: Path, split: str, archives: Sequence[Path]) -> Part:
    members, lines = index_tars(archives, place / f".jepa_index_{split}.npz")
    if not len(members):
        raise DataError(f"{first_few(archives)} in {archives[0].parent}: there are no pictures in it")
    stored = (members.names.tolist(), members.labels.tolist())
    names, labels = ([text.decode("utf-8", errors="replace") for text in each] for each in stored)
    if WNID.fullmatch(archives[0].stem):
        labels = [archives[number].stem for number in members.places[:, 0].tolist()]
    labels, numbered = _of_one_kind(labels if any(labels) else [*map(_wnid_in, names)])
    listed = [*enumerate(labels if any(labels) else [None] * len(labels))]
    make = partial(TarSamples, members=members, decode=decode_image)
    return Part(_sorted(listed, names.__getitem__), names.__getitem__, make, lines, numbered)


def _of_one_kind(labels: Sequence[str]) -> tuple[Sequence[str], bool]:
    """The labels of the usual kind, others empty, as a damaged one would move all numbers; whether they are numbers."""
    counts = Counter(label for label in labels if label)
    numbers = {label for label in counts if label.isdecimal() and int(label) < MOST_CLASSES}
    for known in (numbers, {label for label in counts if WNID.fullmatch(label)}):
        if 2 * sum(counts[label] for label in known) > counts.total():
            return [label if label in known else "" for label in labels], known is numbers
    return labels, False


def _wnid_in(name: str) -> str:
    """The first WordNet number in a name: n01440764_18.JPEG, ILSVRC2012_val_00000293_n01440764.JPEG; else nothing."""
    return found[0] if (found := WNID.search(name)) else ""


def _sorted(listed: Iterable[tuple], name_of: Callable[..., str]) -> Listed:
    return sorted(listed, key=lambda sample: (sample[1] or "", name_of(sample[0])))


def _labelled(test: Part, folder: Path, place: Path) -> Part | None:
    """The validation pictures with their classes; None for ImageNet's test pictures, whose labels are not published."""
    places = [folder, place, *(place / name for name in IMAGES.test_folders)]
    if (place := place.absolute()).name == "CLS-LOC":
        places += place.parents[:3]
    first = test.name_of(test.listed[0][0])
    class_of = validation_labels(places)
    if "ILSVRC2012_test" in first or (class_of is None and first.startswith(f"test{os.sep}")):
        return None
    if class_of is None:
        pictures = f"{len(test.listed):,} validation pictures (the first is {first})"
        files = f"{DEVKIT} of image-net.org, or its {GROUND_TRUTH} and {META}, or Kaggle's {SOLUTION}"
        raise DataError(f"{pictures} have no class folders and no labels: put {files} into {folder}")
    found = [(item, class_of(Path(test.name_of(item)).stem)) for item, _ in test.listed]
    if lacking := [test.name_of(item) for item, name in found if name is None]:
        raise DataError(f"data.root={folder}: the labels of the validation pictures lack {first_few(lacking)}")
    return Part(_sorted(found, test.name_of), test.name_of, test.make, test.lines)


def _columns(folders: Sequence[Path]) -> str:
    """The options for the columns of pictures and labels, by the first Parquet file where that can be read."""
    with contextlib.suppress(Exception):  # pyarrow may be missing, and raises many kinds for a damaged file
        import pyarrow.parquet
        from pyarrow import types

        schema = pyarrow.parquet.read_schema(next(path for each in folders for path in sorted(each.glob("*.parquet"))))
        pictures = [field.name for field in schema if types.is_struct(field.type) or types.is_binary(field.type)]
        labels = [field.name for field in schema if types.is_integer(field.type)] or ["null"]
        label = next((name for name in labels if "label" in name.lower()), labels[0])
        return f"{shlex.quote(f'data.column={pictures[0]}')} {shlex.quote(f'data.label_column={label}')}"
    return "data.column=image data.label_column=label"


def _refuse_others(folder: Path, validation: Sequence[Path]) -> None:
    inside = [folder, folder / "data", folder / "train"]
    names = [path.name for each in inside if each.is_dir() for path in sorted(each.iterdir())]
    if any(name.endswith(".parquet") or name in ("dataset_dict.json", "state.json") for name in names):
        split = " data.test_split=validation" if any(name.startswith("validation") for name in names) else ""
        command = f"python train.py data=hf {shlex.quote(f'data.path={folder}')} {_columns(inside)}{split}"
        raise DataError(f"data.root={folder} holds a data set of Hugging Face. Read it with: {command}")
    packed = [name for name in names if re.search(r"\.(zip|tgz|tar\.(gz|bz2|xz|zst))$", name) and "devkit" not in name]
    if packed:
        problem = "pictures in compressed archives cannot be read by position: unpack them, with unzip or tar -xf"
        raise DataError(f"data.root={folder} holds {first_few(packed)}, but {problem}")
    if validation:
        raise DataError(f"data.root={folder} holds {first_few(validation)}, but neither train/ nor {ARCHIVES['train']}")
