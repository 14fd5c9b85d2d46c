"""Any data set of the `datasets` library: one column is the input, another may be the label.

Rows are read by index from memory-mapped Arrow files, so that the sample stream, and with it exact resume, holds.
"""

from __future__ import annotations

import io
import os
from collections.abc import Callable, Sequence
from pathlib import Path
from typing import Any, Literal

from jepa.data.sources.decoders import decode_image, decode_sound
from jepa.data.sources.splits import Splits, check_fraction, first_few, hold_out
from jepa.data.stream import UnreadableSample
from jepa.utils.errors import DataError
from jepa.utils.lazy_import import lazy_import, require

datasets = lazy_import("datasets")

Kind = Literal["text", "image", "audio"]
TRAIN_NAMES, TEST_NAMES = ("train", "training"), ("test", "validation", "valid", "val", "dev")


class Rows:
    """Rows of a `datasets.Dataset`; items are (what the column holds, decoded; label).

    label_of: from what the label column holds to a number. Items raise UnreadableSample where a picture or sound cannot
    be decoded, a text is empty, or a label is missing.
    """

    def __init__(
        self,
        rows: Any,
        column: str,
        decode: Callable[[Any, str], Any],
        label_column: str | None,
        label_of: dict[Any, int],
    ) -> None:
        self.rows = rows.select_columns([column, *([label_column] if label_column else [])])
        self.column, self.decode, self.label_column, self.label_of = column, decode, label_column, label_of

    def __len__(self) -> int:
        return len(self.rows)

    def __getitem__(self, index: int) -> tuple[Any, int | None]:
        row, name = self.rows[int(index)], f"row {index}, column {self.column}"
        value = self.decode(row[self.column], name)
        if self.label_column is None:
            return value, None
        if (label := row[self.label_column]) not in self.label_of:
            raise UnreadableSample(name, f"its label is {label!r}")
        return value, self.label_of[label]


def open_rows(
    path: str,
    column: str,
    label_column: str | None = None,
    name: str | None = None,
    train_split: str | None = None,
    test_split: str | None = None,
    *,
    test_fraction: float = 0.1,
    split_seed: int = 0,
) -> tuple[Kind, Splits]:
    """What kind of input a column holds, and its `Splits`: strings, PIL images, or (waveform (t,), sampling rate).

    path: what `save_to_disk` has written, a .parquet or .arrow file, a folder of them (named by split: train-0.parquet)
        or of what else `datasets` reads (pictures, csv), or a name on the hub. name: of one of a data set's
        configurations.
    train_split, test_split: None finds train, and test or validation. Where there is no test split, a share
        `test_fraction` of the rows, drawn by `split_seed`, is kept aside.
    Class names are those of a ClassLabel, else the values of the label column in train, sorted.

    Raises DataError for what is missing, damaged or of no kind that can be read.
    """
    check_fraction("data.test_fraction", test_fraction)
    found = _open(os.path.expanduser(path), name)
    train = _pick(found, train_split, TRAIN_NAMES, "train_split", path)
    if train is None:
        train = _pick(found, next(iter(found)), (), "train_split", path) if len(found) == 1 else None
    if train is None:
        raise DataError(f"data.path={path} has the splits {first_few(found)}: name one with data.train_split")
    test = _pick(found, test_split, TEST_NAMES, "test_split", path)
    if test is None:
        kept, held = hold_out(len(train), test_fraction, split_seed, where=f"data.path={path}")
        train, test = train.select(kept), train.select(held)
    for key, wanted in (("column", column), ("label_column", label_column)):
        if wanted is not None and wanted not in train.features:
            raise DataError(f"data.{key}={wanted}: {path} has the columns {first_few(train.features)}")
    kind, feature = _kind(train.features[column], column)
    names, label_of = _labels(train, test, label_column)
    splits = []
    for rows in (train, test):
        rows = rows if feature is None else rows.cast_column(column, feature)
        splits.append(Rows(rows, column, DECODE[kind], label_column, label_of))
    return kind, Splits(train=splits[0], test=splits[1], class_names=names)


def _text(value: str | None, name: str) -> str:
    if value is None or not value.strip():
        raise UnreadableSample(name, "the text is empty")
    return value


def _content(value: dict[str, Any] | None, name: str) -> str | io.BytesIO:
    """The path or the content of {"bytes", "path"}, as the library stores pictures and sounds."""
    if value is None:
        raise UnreadableSample(name, "it is missing")
    return value["path"] if value.get("bytes") is None else io.BytesIO(value["bytes"])


DECODE: dict[Kind, Callable[[Any, str], Any]] = {
    "text": _text,
    "image": lambda value, name: decode_image(_content(value, name), name),
    "audio": lambda value, name: decode_sound(_content(value, name), name),
}


def _open(path: str, name: str | None) -> dict[str, Any]:
    """Splits by name."""
    require("datasets", extra="hub", purpose="reading a data set of Hugging Face")
    folder = Path(path)
    try:
        if (folder / "dataset_dict.json").is_file():
            return dict(datasets.load_from_disk(path))
        if (folder / "state.json").is_file():
            return {"train": datasets.load_from_disk(path)}
        files = [folder] if folder.is_file() else sorted(p for p in folder.rglob("*") if p.is_file())
        for suffix, read in ((".arrow", _arrow), (".parquet", _parquet)):
            if chosen := [file for file in files if file.suffix == suffix]:
                return {split: read(datasets, part) for split, part in _by_split(chosen).items()}
        if folder.is_file():
            raise DataError(f"data.path={path}: expected a .parquet or .arrow file, a folder, or a name on the hub")
        if not folder.exists() and (path[0] in "./~" or path.count("/") > 1):
            raise DataError(f"data.path={path}: there is no such file or folder")
        return dict(datasets.load_dataset(path, name))
    except DataError:
        raise
    except Exception as error:  # the library raises errors of pyarrow, fsspec, huggingface_hub and its own
        lines = str(error).strip().splitlines() or [repr(error)]
        raise DataError(
            f"data.path={path} cannot be opened by datasets ({type(error).__name__}: {lines[0]})"
        ) from error


def _arrow(datasets: Any, files: Sequence[Path]) -> Any:
    return datasets.concatenate_datasets([datasets.Dataset.from_file(str(file)) for file in files])


def _parquet(datasets: Any, files: Sequence[Path]) -> Any:
    # Written once as Arrow files to the library's cache, which are then memory-mapped.
    return datasets.load_dataset("parquet", data_files=[str(file) for file in files], split="train")


def _by_split(files: Sequence[Path]) -> dict[str, list[Path]]:
    """Files by the split in their name or folder; all are train where none is named so."""
    found: dict[str, list[Path]] = {}
    for file in files:
        stem = file.stem.lower()
        known = [s for s in (*TRAIN_NAMES, *TEST_NAMES) if stem.startswith(s) or file.parent.name.lower() == s]
        if known:
            found.setdefault(known[0], []).append(file)
    return found if any(name in found for name in TRAIN_NAMES) else {"train": list(files)}


def _pick(found: dict[str, Any], wanted: str | None, names: Sequence[str], key: str, path: str) -> Any:
    if wanted is not None and wanted not in found:
        raise DataError(f"data.{key}={wanted}: {path} has the splits {first_few(found)}")
    name = wanted or next((name for name in names if name in found), None)
    return None if name is None else found[name]


def _kind(feature: Any, column: str) -> tuple[Kind, Any]:
    """The kind, and the feature that gives bytes rather than what the library would decode; None leaves it."""
    if isinstance(feature, datasets.Image):
        return "image", datasets.Image(decode=False)
    if isinstance(feature, datasets.Audio):
        return "audio", datasets.Audio(decode=False)
    if isinstance(feature, datasets.Value) and feature.dtype in ("string", "large_string"):
        return "text", None
    raise DataError(f"data.column={column} holds {feature}; expected strings, an Image or an Audio column")


def _labels(train: Any, test: Any, column: str | None) -> tuple[tuple[str, ...] | None, dict[Any, int]]:
    """Class names, and from what the column holds to their number."""
    if column is None:
        return None, {}
    feature = train.features[column]
    if isinstance(feature, datasets.ClassLabel):
        return tuple(feature.names), {number: number for number in range(feature.num_classes)}
    if not isinstance(feature, datasets.Value) or feature.dtype.startswith(("float", "double")):
        raise DataError(f"data.label_column={column} holds {feature}; expected a ClassLabel, strings or whole numbers")
    values = sorted(value for value in train.unique(column) if value is not None)
    unknown = sorted({value for value in test.unique(column) if value is not None} - set(values))
    if unknown:
        raise DataError(f"data.label_column={column}: test holds {first_few(unknown)}, train only {first_few(values)}")
    if len(values) < 2:
        raise DataError(f"data.label_column={column} holds a single label ({first_few(values)})")
    return tuple(map(str, values)), {value: number for number, value in enumerate(values)}
