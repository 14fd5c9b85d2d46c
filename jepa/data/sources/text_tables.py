"""Rows of tables of texts: .csv, .tsv, and JSON, as one object a line or as a list of them; packed by gzip or not."""

from __future__ import annotations

import contextlib
import csv
import gzip
import itertools
import json
import re
import shlex
import zlib
from collections import deque
from collections.abc import Iterator, Mapping, Sequence
from pathlib import Path
from typing import Any, NamedTuple, TextIO

from jepa.data.sources.download import memory_limit
from jepa.data.sources.splits import first_few
from jepa.utils.errors import DataError

MOST_CHARACTERS = 1_000_000
"""Of one text, the length of two novels; all of it is split into tokens, which takes half a gigabyte."""
OPEN_QUOTE = "a quote in it opens a cell and is not closed"
TOO_LONG = f"it has more than {MOST_CHARACTERS:,} characters"
TOO_MUCH = "holds more text than fits in memory, even once: give a part of it"


def read_lines(path: Path, newline: str = "\n") -> Iterator[tuple[str, int | None]]:
    """The lines of a file in UTF-8, also of a .gz, as (line, None); a too long one as (nothing, its number of quotes).

    Bytes that are not UTF-8 come as surrogates. newline: as of `open`. Raises DataError for a damaged file, or one with
    more text than fits in memory.
    """
    left = memory_limit() // 4  # a Python string takes up to four bytes a character
    with _opened(path, newline) as file:
        while line := file.readline(MOST_CHARACTERS):
            if (left := left - len(line)) < 0:
                raise DataError(f"{path} {TOO_MUCH}")
            if len(line) < MOST_CHARACTERS or line.endswith("\n"):
                yield line, None
                continue
            quotes = 0
            while line and not line.endswith("\n"):
                quotes += line.count('"')
                line = file.readline(MOST_CHARACTERS)
            yield "", quotes + line.count('"')


def read_text(path: Path, most: int | None = None) -> str:
    """All of a file, or its first `most` characters, as `read_lines` reads it, and raises."""
    limit = memory_limit() // 8 if most is None else most  # what is made of the text takes as much again
    with _opened(path, "\n") as file:
        text = file.read(limit)
        if most is None and file.read(1):
            raise DataError(f"{path} {TOO_MUCH}")
        return text


@contextlib.contextmanager
def _opened(path: Path, newline: str) -> Iterator[TextIO]:
    opener = gzip.open if path.suffix == ".gz" else open
    try:
        with opener(path, "rt", encoding="utf-8-sig", errors="surrogateescape", newline=newline) as file:
            yield file
    except (OSError, EOFError, zlib.error, MemoryError) as error:
        raise DataError(f"{path} cannot be read ({error or 'it does not fit in memory'}); get it again") from error


def read_rows(path: Path, **dialect: Any) -> Iterator[list[str] | str]:
    """The rows of a table, or why one cannot be used. A quote that is never closed costs its own line alone."""
    lines = _TableLines(path, quoted=dialect.get("quoting") != csv.QUOTE_NONE)
    reader = csv.reader(lines, strict=True, **dialect)
    before = csv.field_size_limit(MOST_CHARACTERS)
    try:
        while lines.begin_row():
            try:
                row = next(reader)
            except csv.Error as error:
                if "field limit" in str(error):
                    lines.drop_cell()
                    yield TOO_LONG
                elif lines.push_back():
                    yield OPEN_QUOTE
                else:  # text after a closing quote, in one line
                    yield from csv.reader([lines.row[0][0].replace("\0", " ")], **dialect)
                continue
            if lines.dropped:
                yield TOO_LONG
            elif row:
                yield row
    finally:
        csv.field_size_limit(before)


class _TableLines:
    """Lines for `csv.reader`, of the present `row`; of one that is too long (`dropped`) only a quote is left."""

    def __init__(self, path: Path, *, quoted: bool) -> None:
        self.lines = read_lines(path, newline="")
        self.quoted = quoted
        self.row: list[tuple[str, int | None]] = []
        self.again: deque[tuple[str, int | None]] = deque()
        self.dropped = False

    def begin_row(self) -> bool:
        self.row, self.dropped = [], False
        if not self.again:
            self.again.extend(itertools.islice(self.lines, 1))
        return bool(self.again)

    def push_back(self) -> bool:
        """Give all lines of the row but the first again; return whether its quote was left open at their end."""
        self.again.extendleft(reversed(self.row[1:]))
        return len(self.row) > 1 or bool(self.row[0][0].count('"') % 2)

    def drop_cell(self) -> None:
        """Read up to the line that closes the cell; where none does, give all but the first again."""
        for line in self:
            if line.count('"') % 2:
                return
        self.push_back()

    def __iter__(self) -> _TableLines:
        return self

    def __next__(self) -> str:
        line, quotes = self.again.popleft() if self.again else next(self.lines)
        self.row.append((line, quotes))
        if quotes is None:
            return line.replace("\r\n", "\n")
        self.dropped = True
        return '"\n' if self.quoted and quotes % 2 else "\n"


TABLES = {".csv": "csv", ".tsv": "tsv", ".jsonl": "json", ".ndjson": "json", ".json": "json"}
NOT_UTF8 = "it is not text in UTF-8: convert it, for example with iconv"
NO_OBJECT = "it is no JSON object"
SHOWN_ROWS, SNIFFED = 20, 1000
"""Rows, and characters, by which a table is told from other files, and its columns are found."""


class Unusable(str):
    """Stands, as an empty text, for one that cannot be used; why: the reason; place: its file and row."""

    def __new__(cls, why: str, place: str) -> Unusable:
        text = super().__new__(cls, "")
        text.why, text.place = why, place
        return text


class Row(NamedTuple):
    """A row of a table; place: of one that lacks its label."""

    text: str
    label: str | None = None
    place: str | None = None


def table_kind(path: Path) -> str | None:
    """ "csv", "tsv" or "json" by a file's name; "json" also where its first lines are JSON objects; None for others."""
    if (kind := TABLES.get(Path(path.name.lower().removesuffix(".gz")).suffix)) is not None:
        return kind
    first = (line for line, _ in itertools.islice(read_lines(path), SHOWN_ROWS) if line.strip())
    found = [isinstance(_parse(line), dict) for line in first]
    return "json" if found and all(found) else None


def read_table(
    path: Path, columns: Mapping[str, str | int | None], header: bool, only: Sequence[str] = ()
) -> tuple[list[Row], int]:
    """The rows of a file, and the number of those left out, as their text is empty; of unusable ones, `Unusable` texts.

    columns: `text` and `label`, by name or by number from 0, label None for none; then those of `only`, the values of
    the rows that count. header: of .csv and .tsv.
    Raises DataError for a column there is not, and a file of no rows.
    """
    rows = every_row(path, columns, header, only)
    kept = [row for row in rows if isinstance(row.text, Unusable) or row.text.strip()]
    if not kept and not only:
        raise DataError(f"{path}: there is no text in column {columns['text']}" if rows else f"{path} holds no rows")
    return kept, len(rows) - len(kept)


def every_row(path: Path, columns: Mapping[str, str | int | None], header: bool, only: Sequence[str] = ()) -> list[Row]:
    """Return all rows of a file, also those without a text; see `read_table`."""
    rows = (_read_json if table_kind(path) == "json" else _read_csv)(path, columns, header)
    made = []
    for number, row in enumerate(rows, 1):
        place = f"{path}, row {number}"
        labelled = columns["label"] is not None
        if isinstance(row, str):
            made.append(Row(Unusable(row, place)))
        elif tuple(str(cell).strip() for cell in row[2:]) == tuple(only):
            made.append(_row(*row[:2], place, labelled=labelled))
    return made


def advise_column(path: Path, root: str) -> str:
    """What to say where a table was taken for lines: what its columns are, and the option that chooses one."""
    if table_kind(path) == "json":
        objects = [row for row in itertools.islice(_json_rows(path), SHOWN_ROWS) if isinstance(row, dict)]
        names = list(dict.fromkeys(itertools.chain.from_iterable(objects)))
        lengths = {name: sum(len(row[name]) for row in objects if isinstance(row.get(name), str)) for name in names}
    else:
        rows = itertools.islice(read_rows(path, **_dialect(path)), SHOWN_ROWS)
        rows = [row for row in rows if not isinstance(row, str)]
        first, *body = rows or [[]]
        columns = [[row[number] for row in body if number < len(row)] for number in range(len(first))]
        names = first if _is_header(first, columns) else list(range(len(first)))
        lengths = {name: sum(map(len, column)) for name, column in zip(names, columns)}
    if not names:
        return "it holds no rows"
    column = max(names, key=lengths.__getitem__)
    options = [_option("data.root", root), _option("data.text_column", column)]
    return f"its columns are {first_few(names)}; choose one, as in data=text_lines {' '.join(options)}"


def is_utf8(text: str) -> bool:
    """Return whether a text can be written as UTF-8: bytes that could not be decoded stand in it as surrogates."""
    return text.encode(errors="ignore").decode() == text


def _is_header(first: Sequence[str], columns: Sequence[Sequence[str]]) -> bool:
    """Whether a first row looks like names: it has no number, above a column of numbers or of longer texts."""
    if any(cell.strip().isdecimal() for cell in first) or len(set(first)) < len(first):
        return False
    return any(
        column and (all(map(str.isdecimal, column)) or 2 * len(name) < sum(map(len, column)) / len(column))
        for name, column in zip(first, columns)
    )


def _option(key: str, value: str | int) -> str:
    plain = isinstance(value, int) or re.fullmatch(r"[\w./-]*[^\W\d][\w./-]*", value)
    quoted = value if plain else "'" + re.sub(r"(\\*)'", r"\1\1\\'", value) + "'"
    return shlex.quote(f"{key}={quoted}")


def _read_csv(path: Path, columns: Mapping[str, str | int | None], header: bool) -> Iterator[str | tuple[Any, ...]]:
    """The cells of each row in these columns, or why it cannot be used."""
    rows = read_rows(path, **_dialect(path))
    if isinstance(first := next(rows, []), str):
        raise DataError(f"{path}: its first row cannot be used, as {first}")
    if not first:
        return
    places = [_place(column, first, header, path, key) for key, column in columns.items()]
    wanted = 1 + max(place for place in places if place is not None)
    for row in rows if header else itertools.chain([first], rows):
        if not isinstance(row, str) and len(row) < wanted:
            row = f"it has {len(row)} columns, expected {wanted} or more"
        yield row if isinstance(row, str) else tuple(None if place is None else row[place] for place in places)


def _read_json(path: Path, columns: Mapping[str, str | int | None], header: bool) -> Iterator[str | tuple[Any, ...]]:
    names = [None if column is None else str(column) for column in columns.values()]
    text = names[0]
    rows = _json_rows(path)
    begin = list(itertools.islice(rows, SHOWN_ROWS))
    first = [row for row in begin if isinstance(row, dict)]
    found = list(dict.fromkeys(itertools.chain.from_iterable(first)))
    if not found:
        raise DataError(f"{path} is no JSON with an object a line, or a list of objects")
    for key, column in columns.items():
        if column is not None and str(column) not in found:
            raise DataError(f"{_option_of(key, column)}: the objects of {path} have the keys {first_few(found)}")
    if not any(isinstance(row.get(text), (str, type(None))) for row in first):
        kind = type(next(row[text] for row in first if text in row)).__name__
        raise DataError(f"data.text_column={text}: {path} has no texts there, but values of type {kind}")
    for row in itertools.chain(begin, rows):
        yield row if isinstance(row, str) else tuple(None if name is None else row.get(name) for name in names)


def _row(text: Any, label: Any, place: str, *, labelled: bool) -> Row:
    if text is None or (isinstance(text, str) and not text.strip()):
        return Row("")
    if not isinstance(text, str):
        return Row(Unusable(f"its text is a value of type {type(text).__name__}", place))
    if len(text) > MOST_CHARACTERS:
        return Row(Unusable(TOO_LONG, place))
    if label is None or not str(label).strip():
        return Row(text, place=place if labelled else None) if is_utf8(text) else Row(Unusable(NOT_UTF8, place))
    if isinstance(label, float) and label.is_integer():  # as pandas writes whole numbers beside a missing one
        label = int(label)
    if isinstance(label, (float, list, dict)):
        return Row(Unusable(f"its label is {label!r:.80}, expected a text or a whole number", place))
    name = str(label).strip()
    return Row(text, name) if is_utf8(text + name) else Row(Unusable(NOT_UTF8, place))


def _json_rows(path: Path) -> Iterator[dict[str, Any] | str]:
    """The objects of a file; of what is none, why it cannot be used."""
    if read_text(path, most=SNIFFED).lstrip().startswith("["):
        found = _parse(read_text(path))
        if not isinstance(found, list):
            raise DataError(f"{path} is damaged: it begins as a list of JSON, but {found}")
        yield from (row if isinstance(row, dict) else NO_OBJECT for row in found)
        return
    for line, quotes in read_lines(path):
        if quotes is not None:
            yield TOO_LONG
        elif line.strip():
            found = _parse(line)
            yield found if isinstance(found, (dict, str)) else NO_OBJECT


def _parse(text: str) -> Any:
    try:
        found = json.loads(text)
    except (ValueError, RecursionError, MemoryError) as error:
        return f"it is no JSON ({error!s:.80})"
    return found if isinstance(found, (dict, list)) else NO_OBJECT


def _dialect(path: Path) -> dict[str, Any]:
    """A quote in a .tsv file is a quote; in a .csv file it surrounds what may hold commas and line breaks."""
    return {"delimiter": "\t", "quoting": csv.QUOTE_NONE} if table_kind(path) == "tsv" else {"delimiter": ","}


def _option_of(key: str, column: str | int) -> str:
    return f"data.{key}_column={column}" if key in ("text", "label") else f"data.source.{key}"


def _place(column: str | int | None, first: Sequence[str], header: bool, path: Path, key: str) -> int | None:
    if column is None:
        return None
    name = _option_of(key, column)
    if isinstance(column, int):
        if not 0 <= column < len(first):
            raise DataError(f"{name}: {path} has columns 0 to {len(first) - 1}")
        return column
    if not header:
        raise DataError(f"{name}: without a header (data.source.header=false) give its number")
    if column not in first:
        advice = "give one of these, or its number from 0 where the file has no header"
        raise DataError(f"{name}: {path} begins with the columns {first_few(first)}; {advice}")
    return first.index(column)
