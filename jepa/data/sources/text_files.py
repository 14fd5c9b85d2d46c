"""Texts from files: lines, tables with a column of labels, and WikiText-2."""

from __future__ import annotations

from collections.abc import Mapping, Sequence
from pathlib import Path
from typing import Any

import numpy as np

from jepa.data.sources.download import download_file, find_packed
from jepa.data.sources.splits import NO_LABEL, Splits, check_fraction, first_few, hold_out, number_classes, sort_classes
from jepa.data.sources.text_tables import (
    NOT_UTF8,
    TABLES,
    TOO_LONG,
    Unusable,
    advise_column,
    every_row,
    is_utf8,
    read_lines,
    read_table,
    table_kind,
)
from jepa.data.stream import UnreadableSample
from jepa.utils.errors import DataError

LINES = (".txt", ".text", ".tokens")
ABOUT = (".", "readme", "license", "licence", "citation", "changelog")
"""How names begin that are hidden, or of files that tell of the data and are none."""
TEST_NAMES = ("test", "valid", "validation", "val", "dev")
WIKITEXT2_URL = "https://raw.githubusercontent.com/pytorch/examples/main/word_language_model/data/wikitext-2/"
WIKITEXT2_MD5 = {
    "train.txt": "34a77ebe59551b3a3b3d8c0a2797c976",
    "valid.txt": "d756d22ab2310e7e60c094bea5c5a8eb",
    "test.txt": "781c9418ab9414bd09e4aad825aae752",
}


class Texts:
    """Texts in memory and labels, if any. Items raise UnreadableSample for those empty, `Unusable`, or not UTF-8."""

    def __init__(self, texts: Sequence[str], labels: Sequence[int] | None = None, *, name: str) -> None:
        unusable = {number: text for number, text in enumerate(texts) if isinstance(text, Unusable)}
        self.places = {number: text.place for number, text in unusable.items()}
        self.broken = {number: "the text is empty" for number, text in enumerate(texts) if not text.strip()}
        self.broken |= {number: NOT_UTF8 for number, text in enumerate(texts) if not is_utf8(text)}
        self.broken |= {number: text.why for number, text in unusable.items()}
        # One block of bytes: workers would copy a million strings by touching their reference counts.
        encoded = [text.encode(errors="replace") for text in texts]
        self._bytes = np.frombuffer(b"".join(encoded), dtype=np.uint8)
        self._ends = np.cumsum([len(text) for text in encoded], dtype=np.int64)
        self.labels = None if labels is None else np.array(labels)
        self.name = name

    def __len__(self) -> int:
        return len(self._ends)

    def describe(self, index: int) -> str:
        return self.places.get(index, f"{self.name}, row {index + 1}")

    def __getitem__(self, index: int) -> tuple[str, int | None]:
        if index in self.broken:
            raise UnreadableSample(self.describe(index), self.broken[index])
        first = self._ends[index - 1] if index else 0
        text = self._bytes[first : self._ends[index]].tobytes().decode()
        return text, None if self.labels is None else int(self.labels[index])


def text_lines(
    *, root: str, text_column: str | int | None = None, test_fraction: float = 0.05, split_seed: int = 0
) -> Splits:
    """Plain text in UTF-8, one sample a line, without labels; empty lines are left out, .gz files are unpacked.

    root is a file, or a folder with a file whose name starts with train or has it as a part (wiki.train.tokens.gz)
    and the same with test, valid, validation, val or dev, or any *.txt, *.text, *.tokens and .gz files. Without a test
    split by name, a share `test_fraction` of the lines is kept aside, drawn by `split_seed`.
    text_column: of tables and JSON, which are read as by `text_csv`, without labels.
    A line that is not UTF-8, or has more than a million characters, counts as a damaged sample (`data.max_bad_share`).
    Raises DataError for files that are missing, damaged, or hold no text in UTF-8, and tables without a column.
    """
    check_fraction("data.source.test_fraction", test_fraction)
    if text_column is not None:
        return text_csv(root=root, text_column=text_column, test_fraction=test_fraction, split_seed=split_seed)
    folder = Path(root)
    tables = _with_suffix(folder, tuple(TABLES)) if folder.is_dir() else []
    if tables and not _with_suffix(folder, LINES):
        advice = advise_column(tables[0], root)
        raise DataError(f"data.root={root} holds tables ({first_few(tables)}), no lines: {advice}")
    train, test = _find_files(folder, LINES)
    if (kind := table_kind(train[0])) is not None:
        raise DataError(f"{train[0]} is no plain text, but a table ({kind}): {advise_column(train[0], root)}")
    read = [_read_lines(paths) for paths in (train, test) if paths]
    parts = [lines for lines, _ in read]
    if not test:
        parts = hold_out(parts[0], test_fraction, split_seed, where=root)
    splits = (Texts(part, name=str(name)) for part, name in zip(parts, (train[0], (test or train)[0])))
    lines = (f"data.root={root}: tables beside the text left out: {first_few(tables)}",) if tables else ()
    return Splits(*splits, lines=(*lines, *left_out(sum(count for _, count in read))))


def text_csv(
    *,
    root: str,
    text_column: str | int,
    label_column: str | int | None = None,
    header: bool | None = None,
    train_rows: Mapping[str | int, str | int] | None = None,
    test_rows: Mapping[str | int, str | int] | None = None,
    test_fraction: float = 0.1,
    split_seed: int = 0,
) -> Splits:
    """Tables of texts, .csv (quoted), .tsv (not quoted) or JSON (.jsonl, or .json with a list of objects), also .gz.

    root is a folder with train files and test files (test, valid, validation, val or dev), or a single file or folder
    of files of one kind, of which a share `test_fraction` of the rows, drawn by `split_seed`, is the test split.
    text_column, label_column: by name, or by number from 0; label_column None for data without labels. Class names are
    those of train, sorted, by number where all are whole numbers. header: None: where a column is given by name.
    train_rows, test_rows: the rows of a split, as values of columns, {split: train}; those of the test split are of the
    training files where there are no others. None: all of its files.
    Empty texts are left out; rows and labels that cannot be used count as damaged samples (`data.max_bad_share`).
    Raises DataError for files that are missing or damaged, a column there is not, and test labels unknown to train.
    """
    check_fraction("data.source.test_fraction", test_fraction)
    train, test = _find_files(Path(root), tuple(TABLES))
    if test_rows and not test:
        _check_rows(train_rows, test_rows, root)
    if len({table_kind(file) for file in train}) > 1:
        raise DataError(f"data.root={root} holds tables of several kinds to train on ({first_few(train)}): give one")
    columns = {"text": text_column, "label": label_column}
    header = any(isinstance(column, str) for column in columns.values()) if header is None else header
    parts, empty = [], 0
    for name, paths, chosen in (("train_rows", train, train_rows), ("test_rows", test or train, test_rows)):
        if name == "test_rows" and not (test or chosen):
            continue
        chosen = chosen or {}
        wanted = columns | {f"{name}.{column}": column for column in chosen}
        tables = [read_table(path, wanted, header, [str(value) for value in chosen.values()]) for path in paths]
        parts.append([row for rows, _ in tables for row in rows])
        empty += sum(count for _, count in tables)
        if not parts[-1]:
            raise DataError(f"data.source.{name}={dict(chosen)}: {first_few(paths)} has no text in such a row")
    if len(parts) == 1:
        parts = hold_out(parts[0], test_fraction, split_seed, where=train[0])
    index, lines = None, ()
    if label_column is not None:
        used = [[row.label for row in rows if row.label is not None] for rows in parts]
        where = f"data.root={root}, data.label_column={label_column}"
        index, lines = number_classes(sort_classes(used[0]), used[1], where=where)
    splits = []
    for rows, file in zip(parts, (train[0], (test or train)[0])):
        texts, labels = [row.text for row in rows], None
        if index is not None:
            labels = [index.get(row.label, -1) for row in rows]
            for number, (row, label) in enumerate(zip(rows, labels)):
                if label < 0 and row.text:
                    texts[number] = Unusable(NO_LABEL, row.place or f"{file}, label {row.label!r}")
        splits.append(Texts(texts, labels, name=str(file)))
    return Splits(*splits, class_names=index and tuple(index), lines=(*lines, *left_out(empty)))


def _check_rows(train_rows: Mapping[str | int, Any] | None, test_rows: Mapping[str | int, Any], root: str) -> None:
    """Raise ValueError where rows of the same files may be in both splits."""
    said = f"data.source.test_rows={dict(test_rows)}"
    if not train_rows:
        raise ValueError(f"{said}: say data.source.train_rows as well, as {root} is one file")
    if all(str(train_rows.get(column, value)) == str(value) for column, value in test_rows.items()):
        raise ValueError(f"{said} may be among train_rows={dict(train_rows)}: give a column in which they differ")


def find_texts(root: Path, text_column: str | int | None) -> list[Path]:
    """Return a file, or the files of a folder: of lines, or with a column of tables. Raise DataError without any."""
    if root.is_file():
        return [root]
    suffixes = LINES if text_column is None else tuple(TABLES)
    if not (found := _with_suffix(root, suffixes)):
        hint = f"; text_column=<name> reads {', '.join(TABLES)}" if text_column is None else ""
        raise DataError(f"input={root} holds no texts ({', '.join(suffixes)}){hint}")
    return found


def texts_of(path: Path, text_column: str | int | None) -> Texts:
    """Return every line of a file, or every row of a table, in order, also those that cannot be used."""
    if text_column is not None:
        rows = every_row(path, {"text": text_column, "label": None}, isinstance(text_column, str))
        return Texts([row.text for row in rows], name=str(path))
    if (kind := table_kind(path)) is not None:
        raise DataError(f"input={path} is no plain text, but a table ({kind}): name the column, text_column=...")
    lines = enumerate(read_lines(path), 1)
    texts = [line.strip() if quotes is None else Unusable(TOO_LONG, f"{path}, row {n}") for n, (line, quotes) in lines]
    return Texts(texts, name=str(path))


def wikitext2(*, root: str, download: bool = True) -> Splits:
    """WikiText-2 (Merity et al. 2016, arXiv 1609.07843): paragraphs of Wikipedia articles in English, without labels.

    17,556 paragraphs to train on, 2,185 to test. root holds wiki.train.tokens and wiki.test.tokens, or train.txt and
    test.txt, gzipped or not; otherwise they are downloaded. Raises DataError if they are damaged or out of reach.
    """
    folder, splits = Path(root), []
    for split in ("train", "test"):
        path = find_packed(folder, f"wiki.{split}.tokens") or find_packed(folder, f"{split}.txt")
        if path is None:
            path = folder / f"{split}.txt"
            source = {"urls": [WIKITEXT2_URL + path.name], "md5": WIKITEXT2_MD5[path.name]}
            wanted = ["wiki.train.tokens and wiki.test.tokens", "or train.txt and test.txt; gzipped if you like"]
            download_file(path, **source, allowed=download, name="WikiText-2", root=folder, wanted=wanted)
        paragraphs = [line for line in _read_lines([path])[0] if not (line.startswith("= ") and line.endswith(" ="))]
        splits.append(Texts(paragraphs, name=str(path)))
    return Splits(*splits)


def left_out(empty: int) -> tuple[str, ...]:
    """Return what the first lines of a run say of empty texts."""
    return (f"{empty:,} empty text{'s' * (empty > 1)} left out",) if empty else ()


def _read_lines(paths: Sequence[Path]) -> tuple[list[str], int]:
    lines, empty = [], 0
    for path in paths:
        for number, (line, quotes) in enumerate(read_lines(path), 1):
            place = f"{path}, row {number}"
            if quotes is not None:
                lines.append(Unusable(TOO_LONG, place))
            elif text := line.strip():
                lines.append(text if is_utf8(text) else Unusable(NOT_UTF8, place))
            else:
                empty += 1
    if not lines:
        raise DataError(f"{first_few(paths)}: there is no text in it")
    if all(isinstance(line, Unusable) and line.why == NOT_UTF8 for line in lines):
        raise DataError(f"{first_few(paths)} is not text in UTF-8: convert it, for example with iconv")
    return lines, empty


def _find_files(root: Path, suffixes: tuple[str, ...]) -> tuple[list[Path], list[Path]]:
    """Files to train on, and to test on, by their names; without these, all that are not named for testing."""
    if root.is_file():
        return [root], []
    if not root.is_dir():
        raise DataError(f"data.root={root} is neither a file nor a folder")
    if not (found := _with_suffix(root, suffixes)):
        raise DataError(f"data.root={root} holds no files {', '.join(suffixes)} (or with .gz)")
    test = _named(found, TEST_NAMES)
    if train := _named(found, ("train",)) or [file for file in found if file not in test]:
        return train, test
    return found, []


def _with_suffix(folder: Path, suffixes: tuple[str, ...]) -> list[Path]:
    """The files of a folder whose names end so, packed or else not, but those that tell of the data."""
    found = [path for path in sorted(folder.iterdir()) if path.is_file() and not path.name.lower().startswith(ABOUT)]
    found = [path for path in found if path.name.lower().removesuffix(".gz").endswith(suffixes)]
    return [path for path in found if path.suffix != ".gz" or path.with_suffix("") not in found]


def _named(files: Sequence[Path], names: Sequence[str]) -> list[Path]:
    """The files that have one of the names as a part of theirs (wiki.train.tokens.gz), the first name that is there."""
    parts = {file: file.name.lower().split(".") for file in files}
    found = ([file for file in files if name in parts[file] or parts[file][0].startswith(name)] for name in names)
    return next(filter(None, found), [])
