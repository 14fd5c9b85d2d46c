"""Texts from files: lines, tables with a column of labels, and WikiText-2."""

from __future__ import annotations

import csv
import gzip
import io
import zlib
from collections.abc import Iterable, Sequence
from pathlib import Path

import numpy as np

from jepa.data.sources.download import download_file
from jepa.data.sources.splits import Splits, check_fraction, first_few, hold_out
from jepa.data.stream import UnreadableSample
from jepa.utils.errors import DataError

TEST_NAMES = ("test", "valid", "validation", "val", "dev")
WIKITEXT2_URL = "https://raw.githubusercontent.com/pytorch/examples/main/word_language_model/data/wikitext-2/"
WIKITEXT2_MD5 = {
    "train.txt": "34a77ebe59551b3a3b3d8c0a2797c976",
    "valid.txt": "d756d22ab2310e7e60c094bea5c5a8eb",
    "test.txt": "781c9418ab9414bd09e4aad825aae752",
}


class Texts:
    """Texts in memory and their labels; items are (text, label).

    labels: None for texts without. Items raise UnreadableSample for a text that is empty, and those in `broken`, which
    gives the reason by index. name: of the file, for messages.
    """

    def __init__(
        self,
        texts: Iterable[str],
        labels: Sequence[int] | None = None,
        *,
        name: str,
        broken: dict[int, str] | None = None,
    ) -> None:
        # One block of bytes: workers would copy a million strings by touching their reference counts.
        encoded = [text.encode() for text in texts]
        self._bytes = np.frombuffer(b"".join(encoded), dtype=np.uint8)
        self._ends = np.cumsum([len(text) for text in encoded], dtype=np.int64)
        self.labels = None if labels is None else np.array(labels)
        self.name = name
        self.broken = broken or {}

    def __len__(self) -> int:
        return len(self._ends)

    def __getitem__(self, index: int) -> tuple[str, int | None]:
        first = self._ends[index - 1] if index else 0
        text = self._bytes[first : self._ends[index]].tobytes().decode()
        if not text.strip() or index in self.broken:
            raise UnreadableSample(f"{self.name}, row {index + 1}", self.broken.get(index, "the text is empty"))
        return text, None if self.labels is None else int(self.labels[index])


def text_lines(*, root: str, test_fraction: float = 0.05, split_seed: int = 0) -> Splits:
    """Plain text in UTF-8, one sample a line, without labels; empty lines are left out, .gz files are unpacked.

    root is a file, or a folder that holds either a file whose name starts with train or has it as a part
    (train.txt, wiki.train.tokens.gz) and the same with test, valid, validation, val or dev, or any *.txt, *.text,
    *.tokens and .gz files. Where nothing is kept aside for the test split by name, a share `test_fraction` of the
    lines is, drawn by `split_seed`.
    Raises DataError for files that are missing, damaged, not in UTF-8, or empty.
    """
    check_fraction("data.source.test_fraction", test_fraction)
    path = Path(root)
    if path.is_file():
        return _split_lines(_read_lines([path]), test_fraction, split_seed, path)
    files = _files(path, (".txt", ".text", ".tokens"))
    train, test = _named(files, ("train",)), _named(files, TEST_NAMES)
    if train and test:
        return Splits(
            train=Texts(_read_lines(train), name=str(train[0])), test=Texts(_read_lines(test), name=str(test[0]))
        )
    return _split_lines(_read_lines(train or files), test_fraction, split_seed, path)


def text_csv(
    *,
    root: str,
    text_column: str | int,
    label_column: str | int | None = None,
    header: bool | None = None,
    test_fraction: float = 0.1,
    split_seed: int = 0,
) -> Splits:
    """Tables of texts, .csv (quoted) or .tsv (not quoted), also .gz.

    root is a folder with a train file and a test file (test, valid, validation, val or dev), or a single file, of which
    a share `test_fraction` of the rows, drawn by `split_seed`, is the test split.
    text_column, label_column: by name, or by number from 0; label_column None for data without labels. Class names are
    what stands in the label column of train, sorted, by number where all are whole numbers.
    header: whether the first row names the columns; None takes it for that where a column is given by name.
    A row of too few columns, and an empty text or label, count as damaged samples (`data.max_bad_share`).
    Raises DataError for files that are missing or damaged, a column there is not, and test labels unknown to train.
    """
    check_fraction("data.source.test_fraction", test_fraction)
    path = Path(root)
    files = [path] if path.is_file() else _files(path, (".csv", ".tsv"))
    train = files if path.is_file() else _named(files, ("train",))
    test = [] if path.is_file() else _named(files, TEST_NAMES)
    if not train:
        raise DataError(
            f"data.root={root} holds {first_few(files)}, but no train.csv or train.tsv; of a single table give the file"
        )
    columns = (text_column, label_column)
    header = any(isinstance(column, str) for column in columns) if header is None else header
    tables = [_read_table(found[0], columns, header) for found in (train, test) if found]
    if len(tables) == 1:
        kept, held = hold_out(len(tables[0]), test_fraction, split_seed, where=train[0])
        tables = [[tables[0][i] for i in kept], [tables[0][i] for i in held]]
    names = None if label_column is None else _class_names(tables[0], train[0], label_column)
    origins = (train[0], (test or train)[0])
    train_split, test_split = (_labelled(table, names, origin) for table, origin in zip(tables, origins))
    return Splits(train=train_split, test=test_split, class_names=names)


def wikitext2(*, root: str, download: bool = True) -> Splits:
    """WikiText-2 (Merity et al. 2016, arXiv 1609.07843): paragraphs of Wikipedia articles in English, without labels.

    One sample a paragraph, headings left out: 17,556 to train on, 2,185 to test. root holds wiki.train.tokens and
    wiki.test.tokens, or train.txt and test.txt, gzipped or not; otherwise they are downloaded to it (11 and 1.2 MB).
    Raises DataError if they are damaged or out of reach.
    """
    folder, found = Path(root), {}
    for split in ("train", "test"):
        names = (f"wiki.{split}.tokens", f"{split}.txt")
        candidates = [folder / f"{name}{end}" for name in names for end in ("", ".gz")]
        path = next((path for path in candidates if path.is_file()), None)
        if path is None:
            path = folder / f"{split}.txt"
            source = {"urls": [WIKITEXT2_URL + path.name], "md5": WIKITEXT2_MD5[path.name]}
            wanted = ["wiki.train.tokens and wiki.test.tokens", "or train.txt and test.txt; gzipped if you like"]
            download_file(path, **source, allowed=download, name="WikiText-2", root=folder, wanted=wanted)
        found[split] = path
    splits = {}
    for split, path in found.items():
        paragraphs = [line for line in _read_lines([path]) if not (line.startswith("= ") and line.endswith(" ="))]
        splits[split] = Texts(paragraphs, name=str(path))
    return Splits(**splits)


def _split_lines(lines: list[str], fraction: float, seed: int, path: Path) -> Splits:
    parts = hold_out(len(lines), fraction, seed, where=path)
    return Splits(*(Texts((lines[i] for i in part), name=str(path)) for part in parts))


def _read_lines(paths: Sequence[Path]) -> list[str]:
    """The lines that are not empty, without blanks around them."""
    lines = [line.strip() for path in paths for line in _read(path).split("\n")]
    lines = [line for line in lines if line]
    if not lines:
        raise DataError(f"{first_few(paths)}: there is no text in it")
    return lines


def _read(path: Path) -> str:
    try:
        with gzip.open(path) if path.suffix == ".gz" else path.open("rb") as file:
            return file.read().decode("utf-8-sig").replace("\r\n", "\n")
    except UnicodeDecodeError as error:
        raise DataError(f"{path} is not text in UTF-8 ({error}): convert it, for example with iconv") from error
    except (OSError, EOFError, zlib.error) as error:
        raise DataError(f"{path} cannot be read ({error}); get it again") from error


Row = tuple[str, str | None] | str
"""Text and label of a row, or why there are none."""


def _read_table(path: Path, columns: tuple[str | int, str | int | None], header: bool) -> list[Row]:
    tabs = ".tsv" in path.suffixes[-2:]
    # A quote in a .tsv file is a quote; in a .csv file it surrounds what may hold commas and line breaks.
    dialect = {"delimiter": "\t", "quoting": csv.QUOTE_NONE} if tabs else {"delimiter": ","}
    try:
        rows = [row for row in csv.reader(io.StringIO(_read(path), newline=""), **dialect) if row]
    except csv.Error as error:
        raise DataError(f"{path} is not a table ({error})") from error
    if not rows:
        raise DataError(f"{path} is empty")
    places = [_place(column, rows[0], header, path, key) for column, key in zip(columns, ("text", "label"))]
    rows = rows[1:] if header else rows
    if not rows:
        raise DataError(f"{path} holds the names of columns and no rows")
    wanted = 1 + max(place for place in places if place is not None)
    return [_entry(row, *places, wanted) for row in rows]


def _entry(row: list[str], text: int, label: int | None, wanted: int) -> Row:
    if len(row) < wanted:
        return f"it has {len(row)} columns, expected {wanted} or more"
    if label is not None and not row[label].strip():
        return "the label is empty"
    return row[text], None if label is None else row[label].strip()


def _place(column: str | int | None, first: list[str], header: bool, path: Path, key: str) -> int | None:
    """The number of a column. Raises DataError for one there is not."""
    if column is None:
        return None
    if isinstance(column, int):
        if not 0 <= column < len(first):
            raise DataError(f"data.{key}_column={column}: {path} has columns 0 to {len(first) - 1}")
        return column
    if not header:
        raise DataError(f"data.{key}_column={column}: without a header (data.source.header=false) give its number")
    if column not in first:
        raise DataError(
            f"data.{key}_column={column}: {path} begins with the columns {first_few(first)}; give one of these, or its "
            "number from 0 where the file has no header"
        )
    return first.index(column)


def _class_names(rows: Sequence[Row], path: Path, column: str | int) -> tuple[str, ...]:
    labels = {row[1] for row in rows if not isinstance(row, str)}
    if len(labels) < 2:
        raise DataError(f"{path}: data.label_column={column} holds a single label ({first_few(sorted(labels))})")
    whole = all(label.removeprefix("-").isdecimal() for label in labels)
    return tuple(sorted(labels, key=int) if whole else sorted(labels))


def _labelled(rows: Sequence[Row], names: tuple[str, ...] | None, path: Path) -> Texts:
    broken = {number: row for number, row in enumerate(rows) if isinstance(row, str)}
    pairs = [("", None) if isinstance(row, str) else row for row in rows]
    texts = [text for text, _ in pairs]
    if names is None:
        return Texts(texts, name=str(path), broken=broken)
    index = {name: number for number, name in enumerate(names)}
    unknown = sorted({label for number, (_, label) in enumerate(pairs) if number not in broken} - index.keys())
    if unknown:
        raise DataError(f"{path}: the labels {first_few(unknown)} are not in train, which has {first_few(names)}")
    labels = [index.get(label, 0) for _, label in pairs]
    return Texts(texts, labels, name=str(path), broken=broken)


def _files(folder: Path, suffixes: tuple[str, ...]) -> list[Path]:
    if not folder.is_dir():
        raise DataError(f"data.root={folder} is neither a file nor a folder")
    found = [path for path in sorted(folder.iterdir()) if path.is_file() and not path.name.startswith(".")]
    found = [path for path in found if path.name.lower().removesuffix(".gz").endswith(suffixes)]
    if not found:
        raise DataError(f"data.root={folder} holds no files {', '.join(suffixes)} (or with .gz)")
    return found


def _named(files: Sequence[Path], names: Sequence[str]) -> list[Path]:
    """The files that have one of the names as a part of theirs (wiki.train.tokens.gz), the first name that is there."""
    for name in names:
        found = [file for file in files if name in file.name.lower().split(".") or file.name.lower().startswith(name)]
        if found:
            return found
    return []
