"""Texts from files: lines, tables with a column of labels, and WikiText-2."""

from __future__ import annotations

import csv
import itertools
from collections.abc import Mapping, Sequence
from pathlib import Path
from typing import NamedTuple

import numpy as np

from jepa.data.sources.download import download_file, find_packed
from jepa.data.sources.line_reader import TOO_LONG, read_lines, read_rows
from jepa.data.sources.splits import Splits, check_fraction, first_few, hold_out, number_classes, sort_classes
from jepa.data.stream import UnreadableSample
from jepa.utils.errors import DataError

TEST_NAMES = ("test", "valid", "validation", "val", "dev")
WIKITEXT2_URL = "https://raw.githubusercontent.com/pytorch/examples/main/word_language_model/data/wikitext-2/"
WIKITEXT2_MD5 = {
    "train.txt": "34a77ebe59551b3a3b3d8c0a2797c976",
    "valid.txt": "d756d22ab2310e7e60c094bea5c5a8eb",
    "test.txt": "781c9418ab9414bd09e4aad825aae752",
}


NOT_UTF8 = "it is not text in UTF-8: convert it, for example with iconv"


class Unusable(str):
    """Stands, as an empty text, for one that cannot be used; why: the reason."""

    why: str

    def __new__(cls, why: str) -> Unusable:
        """Make an empty text with its reason."""
        text = super().__new__(cls, "")
        text.why = why
        return text


class Texts:
    """Texts in memory and their labels; items are (text, label).

    labels: None for texts without. name: of the file, for messages. Items raise UnreadableSample for texts that are
    empty, `Unusable`, or hold what was no UTF-8.
    """

    def __init__(
        self,
        texts: Sequence[str],
        labels: Sequence[int] | None = None,
        *,
        name: str,
    ) -> None:
        problems = {number: text.why for number, text in enumerate(texts) if isinstance(text, Unusable)}
        problems |= {number: "the text is empty" for number, text in enumerate(texts) if not text.strip()} | problems
        # One block of bytes: workers would copy a million strings by touching their reference counts.
        encoded = []
        for number, text in enumerate(texts):
            try:
                encoded.append(text.encode())
            except UnicodeEncodeError:
                encoded.append(b"")
                problems[number] = NOT_UTF8
        self._bytes = np.frombuffer(b"".join(encoded), dtype=np.uint8)
        self._ends = np.cumsum([len(text) for text in encoded], dtype=np.int64)
        self.labels = None if labels is None else np.array(labels)
        self.name = name
        self.broken = problems

    def __len__(self) -> int:
        return len(self._ends)

    def describe(self, index: int) -> str:
        """The file and row of a text."""
        return f"{self.name}, row {index + 1}"

    def __getitem__(self, index: int) -> tuple[str, int | None]:
        if index in self.broken:
            raise UnreadableSample(self.describe(index), self.broken[index])
        first = self._ends[index - 1] if index else 0
        text = self._bytes[first : self._ends[index]].tobytes().decode()
        return text, None if self.labels is None else int(self.labels[index])


def text_lines(*, root: str, test_fraction: float = 0.05, split_seed: int = 0) -> Splits:
    """Plain text in UTF-8, one sample a line, without labels; empty lines are left out, .gz files are unpacked.

    root is a file, or a folder that holds either a file whose name starts with train or has it as a part
    (train.txt, wiki.train.tokens.gz) and the same with test, valid, validation, val or dev, or any *.txt, *.text,
    *.tokens and .gz files. Where nothing is kept aside for the test split by name, a share `test_fraction` of the
    lines is, drawn by `split_seed`.
    A line that is not UTF-8, or has more than a million characters, counts as a damaged sample
    (`data.max_bad_share`).
    Raises DataError for files that are missing, damaged, or hold no text in UTF-8.
    """
    check_fraction("data.source.test_fraction", test_fraction)
    files, train, test = _find_files(Path(root), (".txt", ".text", ".tokens"))
    if train and test:
        names, parts = (train[0], test[0]), (_read_lines(train), _read_lines(test))
    else:
        names, parts = (root, root), hold_out(_read_lines(train or files), test_fraction, split_seed, where=root)
    return Splits(*(Texts(lines, name=str(name)) for lines, name in zip(parts, names)))


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
    A row of too few columns, one that is too long or not UTF-8, and an empty text or label, count as damaged samples
    (`data.max_bad_share`).
    Raises DataError for files that are missing or damaged, a column there is not, and test labels unknown to train.
    """
    check_fraction("data.source.test_fraction", test_fraction)
    files, train, test = _find_files(Path(root), (".csv", ".tsv"))
    if not train:
        raise DataError(
            f"data.root={root} holds {first_few(files)}, but no train.csv or train.tsv; of a single table give the file"
        )
    columns = {"text": text_column, "label": label_column}
    header = any(isinstance(column, str) for column in columns.values()) if header is None else header
    parts = [_read_table(found[0], columns, header) for found in (train, test) if found]
    if not test:
        parts = hold_out(parts[0], test_fraction, split_seed, where=train[0])
    names, index, lines = None, None, ()
    if label_column is not None:
        used = [{row.label for row in rows if row.label is not None} for rows in parts]
        names = sort_classes(used[0])
        where = f"data.root={root}, data.label_column={label_column}"
        index, lines = number_classes(names, used[1], where=where)
    splits = []
    for rows, file in zip(parts, (train[0], (test or train)[0])):
        labels = None if index is None else [index.get(row.label, 0) for row in rows]
        splits.append(Texts([row.text for row in rows], labels, name=str(file)))
    return Splits(*splits, class_names=None if index is None else names, lines=lines)


def wikitext2(*, root: str, download: bool = True) -> Splits:
    """WikiText-2 (Merity et al. 2016, arXiv 1609.07843): paragraphs of Wikipedia articles in English, without labels.

    One sample a paragraph, headings left out: 17,556 to train on, 2,185 to test. root holds wiki.train.tokens and
    wiki.test.tokens, or train.txt and test.txt, gzipped or not; otherwise they are downloaded to it (11 and 1.2 MB).
    Raises DataError if they are damaged or out of reach.
    """
    folder, splits = Path(root), []
    for split in ("train", "test"):
        path = find_packed(folder, f"wiki.{split}.tokens") or find_packed(folder, f"{split}.txt")
        if path is None:
            path = folder / f"{split}.txt"
            source = {"urls": [WIKITEXT2_URL + path.name], "md5": WIKITEXT2_MD5[path.name]}
            wanted = ["wiki.train.tokens and wiki.test.tokens", "or train.txt and test.txt; gzipped if you like"]
            download_file(path, **source, allowed=download, name="WikiText-2", root=folder, wanted=wanted)
        paragraphs = [line for line in _read_lines([path]) if not (line.startswith("= ") and line.endswith(" ="))]
        splits.append(Texts(paragraphs, name=str(path)))
    return Splits(*splits)


def _read_lines(paths: Sequence[Path]) -> list[str]:
    """The lines that are not empty, without blanks around them; `Unusable` for what is too long to be read."""
    lines = [
        line.strip() if quotes is None else Unusable(TOO_LONG) for path in paths for line, quotes in read_lines(path)
    ]
    lines = [line for line in lines if line or isinstance(line, Unusable)]
    if not lines:
        raise DataError(f"{first_few(paths)}: there is no text in it")
    if not any(map(_is_utf8, lines)):
        raise DataError(f"{first_few(paths)} is not text in UTF-8: convert it, for example with iconv")
    return lines


def _is_utf8(text: str) -> bool:
    try:
        text.encode()
    except UnicodeEncodeError:
        return False
    return True


class Row(NamedTuple):
    """A row of a table."""

    text: str
    label: str | None = None


def _read_table(path: Path, columns: Mapping[str, str | int | None], header: bool) -> list[Row]:
    tabs = ".tsv" in path.suffixes[-2:]
    # A quote in a .tsv file is a quote; in a .csv file it surrounds what may hold commas and line breaks.
    dialect = {"delimiter": "\t", "quoting": csv.QUOTE_NONE} if tabs else {"delimiter": ","}
    rows = read_rows(path, **dialect)
    if (first := next(rows, [])) is None:
        raise DataError(f"{path}: its first row cannot be used, as {TOO_LONG}")
    body = rows if header else itertools.chain([first] if first else [], rows)
    text, label = (_place(column, first, header, path, key) if first else None for key, column in columns.items())
    wanted = 1 + max(text or 0, -1 if label is None else label)
    table = []
    for row in body:
        if row is None:
            table.append(Row(Unusable(TOO_LONG)))
        elif len(row) < wanted:
            table.append(Row(Unusable(f"it has {len(row)} columns, expected {wanted} or more")))
        elif label is None:
            table.append(Row(row[text]))
        elif not row[label].strip():
            table.append(Row(Unusable("the label is empty")))
        elif not _is_utf8(row[label]):
            table.append(Row(Unusable(NOT_UTF8)))
        else:
            table.append(Row(row[text], row[label].strip()))
    if not table:
        raise DataError(f"{path} {'holds the names of columns and no rows' if first else 'is empty'}")
    return table


def _place(column: str | int | None, first: list[str], header: bool, path: Path, key: str) -> int | None:
    """The number of a column. Raises DataError for one there is not."""
    if column is None:
        return None
    name = f"data.{key}_column={column}"
    if isinstance(column, int):
        if not 0 <= column < len(first):
            raise DataError(f"{name}: {path} has columns 0 to {len(first) - 1}")
        return column
    if not header:
        raise DataError(f"{name}: without a header (data.source.header=false) give its number")
    if column not in first:
        raise DataError(
            f"{name}: {path} begins with the columns {first_few(first)}; give one of these, or its number from 0 where "
            "the file has no header"
        )
    return first.index(column)


def _find_files(root: Path, suffixes: tuple[str, ...]) -> tuple[list[Path], list[Path], list[Path]]:
    """Files of a folder with these suffixes: all, those to train on, those to test on. A single file is to train on."""
    if root.is_file():
        return [root], [root], []
    if not root.is_dir():
        raise DataError(f"data.root={root} is neither a file nor a folder")
    found = [path for path in sorted(root.iterdir()) if path.is_file() and not path.name.startswith(".")]
    found = [path for path in found if path.name.lower().removesuffix(".gz").endswith(suffixes)]
    if not found:
        raise DataError(f"data.root={root} holds no files {', '.join(suffixes)} (or with .gz)")
    return found, _named(found, ("train",)), _named(found, TEST_NAMES)


def _named(files: Sequence[Path], names: Sequence[str]) -> list[Path]:
    """The files that have one of the names as a part of theirs (wiki.train.tokens.gz), the first name that is there."""
    for name in names:
        found = [file for file in files if name in file.name.lower().split(".") or file.name.lower().startswith(name)]
        if found:
            return found
    return []
