"""Any data set of the `datasets` library as the data of its column's kind; another column may be the label.

python train.py model=text data=hf data.path=stanfordnlp/sst2 data.column=sentence data.label_column=label
python train.py data=hf data.path=photos.parquet data.column=image data.label_column=label
python train.py model=audio data=hf data.path=sounds.parquet data.column=audio data.label_column=label

Rows are read by index from memory-mapped Arrow files, so that the sample stream, and with it exact resume, holds.
"""

from __future__ import annotations

import io
import os
from collections.abc import Callable, Mapping, Sequence
from functools import partial
from pathlib import Path
from typing import Any, Literal

from jepa.data.data_module import DataModule
from jepa.data.sources.decoders import decode_image
from jepa.data.sources.sound_files import SoundFile
from jepa.data.sources.splits import Fence, Splits, check_fraction, first_few, hold_out, number_classes
from jepa.data.sources.text_files import LINES, left_out
from jepa.data.sources.text_tables import MOST_CHARACTERS
from jepa.data.stream import UnreadableSample
from jepa.utils.errors import DataError, first_line
from jepa.utils.lazy_import import lazy_import, require
from jepa.utils.log_mel import LogMel

datasets = lazy_import("datasets")
Kind = Literal["text", "image", "audio"]
MOST_BYTES = {"text": 4 * MOST_CHARACTERS, "image": 2**29, "audio": 2**29}  # of one row, packed as it is
READERS = {".parquet": "parquet", ".jsonl": "json", ".ndjson": "json", ".json": "json", ".csv": "csv"}
"""How `datasets` calls its readers of files; all but the first also read what gzip has packed."""
SCANNED, LONGEST_BLANK = 1000, 1000
"""Rows that are looked through for empty texts at a time, and bytes of the longest that are; longer ones of blanks
alone are bad samples."""
TRAIN_NAMES, TEST_NAMES = ("train", "training"), ("test", "validation", "valid", "val", "dev")


def hugging_face(
    *,
    path: str,
    column: str,
    label_column: str | None = None,
    name: str | None = None,
    train_split: str | None = None,
    test_split: str | None = None,
    test_fraction: float = 0.1,
    split_seed: int = 0,
    text: Callable[..., DataModule] | None = None,
    image: Callable[..., DataModule] | None = None,
    audio: Callable[..., DataModule] | None = None,
    vocab_size: int | None = 4096,
    max_length: int = 64,
    image_size: int | Sequence[int] = 224,
    channels: int = 3,
    sample_rate: int = 16000,
    seconds: float = 4.0,
    spectrogram: LogMel | None = None,
    views: int = 1,
    batch_size: int = 256,
    num_workers: int = 0,
    pin_memory: bool | Literal["auto"] = "auto",
    prefetch_factor: int = 2,
    max_bad_share: float = 0.1,
    allow_outside: bool = False,
    score_on: Literal["test", "validation"] = "test",
    hints: Mapping[str, Any] | None = None,
) -> DataModule:
    """Data of a column of strings, an Image column or an Audio column.

    path: what `save_to_disk` has written, a file (.parquet, .arrow or of `READERS`), a folder (named by split:
        train-0.parquet) of what `datasets` reads, or a name on the hub. name: of one of its configurations.
    label_column: of a ClassLabel, or of strings or whole numbers, which are sorted as they are in train.
    train_split, test_split, test_fraction, split_seed: see `_find_splits`. allow_outside: see `read_columns`.
    text, image, audio: make the data of such a column, called with `source=`, the two or three arguments of their own
        and those from views on. None: such columns are refused.

    Raises DataError for what is missing or damaged, and a column of no kind that can be read.
    """
    loader = {"views": views, "batch_size": batch_size, "num_workers": num_workers, "pin_memory": pin_memory}
    loader |= {"prefetch_factor": prefetch_factor, "max_bad_share": max_bad_share}
    loader |= {"score_on": score_on, "hints": hints}
    DataModule(**loader)  # checked before anything is read
    train, test = _find_splits(path, name, train_split, test_split, test_fraction, split_seed)
    kind, splits = read_columns(train, test, column, label_column, _folders(path), allow_outside=allow_outside)
    make, own = {
        "text": (text, {"vocab_size": vocab_size, "max_length": max_length}),
        "image": (image, {"image_size": image_size, "channels": channels}),
        "audio": (audio, {"sample_rate": sample_rate, "seconds": seconds, "spectrogram": spectrogram}),
    }[kind]
    if make is None:
        raise DataError(f"data.column={column} holds {kind}, but data.{kind}=null: set there how to read it")
    return make(source=lambda: splits, **own, **loader)


def _find_splits(
    path: str, name: str | None, train_split: str | None, test_split: str | None, test_fraction: float, split_seed: int
) -> tuple[Any, Any]:
    """The rows to train on, and those to test on: of a split named so, or kept aside at random."""
    check_fraction("data.test_fraction", test_fraction)
    found = _open(os.path.expanduser(path), name)
    for key, wanted in (("train_split", train_split), ("test_split", test_split)):
        if wanted is not None and wanted not in found:
            raise DataError(f"data.{key}={wanted}: {path} has the splits {first_few(found)}")
    if train_split is None:
        train_split = next(split for split in (*TRAIN_NAMES, *found) if split in found)
        if train_split not in TRAIN_NAMES and len(found) > 1:
            raise DataError(f"data.path={path} has the splits {first_few(found)}: name one with data.train_split")
    train = found[train_split]
    test_split = test_split or next((split for split in TEST_NAMES if split in found), None)
    if test_split is not None:
        return train, found[test_split]
    kept, held = hold_out(range(len(train)), test_fraction, split_seed, where=f"data.path={path}")
    return train.select(kept), train.select(held)


def read_columns(
    train: Any,
    test: Any,
    column: str,
    label_column: str | None,
    folders: Sequence[str] = (),
    *,
    allow_outside: bool = False,
) -> tuple[Kind, Splits]:
    """What kind of input a column holds, and samples of it: strings, PIL images, or files of sound.

    folders: where files may lie that rows name by paths, relative to the first; allow_outside: or anywhere. Empty texts
    are left out, which `Splits.lines` counts.
    """
    for key, wanted in (("column", column), ("label_column", label_column)):
        if wanted is not None and wanted not in train.features:
            raise DataError(f"data.{key}={wanted}: the data has the columns {first_few(train.features)}")
    kind = _kind(train.features[column], column)
    lines: tuple[str, ...] = ()
    if kind == "text":
        kept = [_with_text(rows, column) for rows in (train, test)]
        lines = left_out(len(train) + len(test) - sum(map(len, kept)))
        train, test = kept
    names, label_of, said = _labels(train, test, label_column)
    label_column = None if names is None else label_column
    make = partial(Rows, column=column, kind=kind, label_column=label_column, label_of=label_of, folders=folders)
    splits = (make(rows, allow_outside=allow_outside) for rows in (train, test))
    return kind, Splits(*splits, class_names=names, lines=(*said, *lines))


def _with_text(rows: Any, column: str) -> Any:
    from pyarrow import compute

    empty: list[int] = []
    for number, table in enumerate(rows.select_columns([column]).with_format("arrow").iter(SCANNED)):
        try:
            table.validate(full=True)  # as a damaged Arrow file may point anywhere
            texts = table[column]
            short = compute.if_else(compute.less(compute.binary_length(texts), LONGEST_BLANK), texts, "long")
            blank = compute.equal(compute.utf8_trim_whitespace(short), "")
            found = compute.indices_nonzero(compute.fill_null(blank, True))
        except (OSError, ValueError, MemoryError):  # left to the reading of each row
            continue
        empty += (found.to_numpy() + number * SCANNED).tolist()
    if len(empty) == len(rows):
        raise DataError(f"data.column={column}: there is no text in it")
    return rows.select(sorted(set(range(len(rows))) - set(empty))) if empty else rows


class Rows:
    """Rows of a `datasets.Dataset` as (what a column holds, decoded; label); label_of: from what another holds."""

    def __init__(
        self,
        rows: Any,
        *,
        column: str,
        kind: Kind,
        label_column: str | None,
        label_of: Mapping[Any, int],
        folders: Sequence[str],
        allow_outside: bool,
    ) -> None:
        if kind != "text":  # bytes rather than what the library would decode
            rows = rows.cast_column(column, (datasets.Image if kind == "image" else datasets.Audio)(decode=False))
        self.rows = rows.select_columns([column, *([label_column] if label_column else [])])
        self.tables = self.rows.with_format("arrow")
        self.column, self.kind, self.label_column, self.label_of = column, kind, label_column, label_of
        self.folder, self.fence = folders[0] if folders else "", None if allow_outside else Fence(folders)

    def __len__(self) -> int:
        return len(self.rows)

    def describe(self, index: int) -> str:
        return f"row {index}, column {self.column}"

    def __getitem__(self, index: int) -> tuple[Any, int | None]:
        name = self.describe(index)
        table = self.tables[int(index)]  # a view of the file, not in memory yet
        if (size := table.nbytes) > MOST_BYTES[self.kind]:
            raise UnreadableSample(name, f"it has {size:,} bytes, more than {MOST_BYTES[self.kind]:,}")
        table.validate(full=True)  # as a damaged Arrow file may point anywhere
        row = self.rows[int(index)]
        value = row[self.column]
        if value is None:
            raise UnreadableSample(name, "it is missing")
        if self.kind != "text":  # {"bytes", "path"}
            content = value.get("bytes")
            file = self._find(value.get("path"), name) if content is None else io.BytesIO(content)
            value = (decode_image if self.kind == "image" else SoundFile)(file, name)
        elif not value.strip():
            raise UnreadableSample(name, "the text is empty")
        if self.label_column is None:
            return value, None
        if (label := row[self.label_column]) not in self.label_of:
            raise UnreadableSample(name, f"its label is {label!r}")
        return value, self.label_of[label]

    def _find(self, path: Any, name: str) -> str:
        if not isinstance(path, str):
            raise UnreadableSample(name, "it has neither content nor a path")
        path = os.path.join(self.folder, path)
        if self.fence is not None and self.fence.leaves(path):
            problem = f"its path {path!r} leaves the folder of data.path ({self.folder})"
            raise UnreadableSample(name, f"{problem}; if you trust this data, set data.allow_outside=true")
        return path


def _folders(path: str) -> list[str]:
    path = os.path.expanduser(path)
    if os.path.isfile(path):
        return [os.path.dirname(path) or "."]
    cache = [str(datasets.config.HF_CACHE_HOME), str(datasets.config.HF_DATASETS_CACHE)]  # of packed files, too
    return [path, *cache] if os.path.isdir(path) else cache


def _open(path: str, name: str | None) -> Mapping[str, Any]:
    require("datasets", extra="hub", purpose="reading a data set of Hugging Face")
    folder = Path(path)
    kind = READERS.get(Path(folder.name.lower().removesuffix(".gz")).suffix)
    if folder.is_file() and folder.suffix != ".arrow" and kind is None:
        lines = f"; plain text is for data=text_lines data.root={path}" if folder.suffix in LINES else ""
        expected = f"a file .arrow, {', '.join(READERS)}, a folder, or a name on the hub"
        raise DataError(f"data.path={path}: expected {expected}{lines}")
    if not folder.exists() and (path[0] in "./~" or path.count("/") > 1):
        raise DataError(f"data.path={path}: there is no such file or folder")
    try:
        if (folder / "dataset_dict.json").is_file():
            return datasets.load_from_disk(path)
        if (folder / "state.json").is_file():
            return {"train": datasets.load_from_disk(path)}
        files = [folder] if folder.is_file() else sorted(file for file in folder.rglob("*") if file.is_file())
        if arrow := _by_split(files, ".arrow"):
            read = datasets.Dataset.from_file
            return {split: datasets.concatenate_datasets([*map(read, paths)]) for split, paths in arrow.items()}
        if parquet := _by_split(files, ".parquet"):
            # Written once as Arrow files to the library's cache, which are then memory-mapped.
            return datasets.load_dataset("parquet", data_files=parquet)
        if folder.is_file():
            return datasets.load_dataset(kind, data_files={"train": [path]})
        return datasets.load_dataset(path, name)
    except Exception as error:  # the library raises errors of pyarrow, fsspec, huggingface_hub and its own
        reason = f"{type(error).__name__}: {first_line(error)}"
        raise DataError(f"data.path={path} cannot be opened by datasets ({reason})") from error


def _by_split(files: Sequence[Path], suffix: str) -> dict[str, list[str]]:
    """Files of a kind by the split in their name or folder; all are train where none is named so."""
    found: dict[str, list[str]] = {}
    files = [file for file in files if file.suffix == suffix]
    for file in files:
        for name in (*TRAIN_NAMES, *TEST_NAMES):
            if file.stem.lower().startswith(name) or file.parent.name.lower() == name:
                found.setdefault(name, []).append(str(file))
                break
    named = not files or found.keys() & set(TRAIN_NAMES)
    return found if named else {"train": list(map(str, files))}


def _kind(feature: Any, column: str) -> Kind:
    if isinstance(feature, (datasets.Image, datasets.Audio)):
        return "image" if isinstance(feature, datasets.Image) else "audio"
    if isinstance(feature, datasets.Value) and feature.dtype in ("string", "large_string"):
        return "text"
    raise DataError(f"data.column={column} holds {feature}; expected strings, an Image or an Audio column")


def _labels(
    train: Any, test: Any, column: str | None
) -> tuple[tuple[str, ...] | None, dict[Any, int], tuple[str, ...]]:
    if column is None:
        return None, {}, ()
    feature = train.features[column]
    named = isinstance(feature, datasets.ClassLabel)
    if not named and (not isinstance(feature, datasets.Value) or feature.dtype.startswith(("float", "double"))):
        raise DataError(f"data.label_column={column} holds {feature}; expected a ClassLabel, strings or whole numbers")
    try:
        # The column alone, as the library copies the rows that are kept aside.
        values = set(train.select_columns([column]).unique(column))
        used = test.select_columns([column])[:][column]
    except (OSError, ValueError, MemoryError) as error:  # pyarrow's are among them
        raise DataError(f"data.label_column={column} cannot be read ({first_line(error)})") from error
    known = {*range(feature.num_classes)} if named else values.union(used) - {None}  # -1 stands for no label
    used = [value for value in used if value in known]
    index, lines = number_classes(sorted(values & known), used, where=f"data.label_column={column}")
    if index is None:
        return None, {}, lines
    if named:
        return tuple(feature.names), {number: number for number in known}, lines
    return tuple(map(str, index)), index, lines
