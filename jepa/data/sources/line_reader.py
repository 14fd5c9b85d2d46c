"""Lines of text files, packed or not, of which none takes more memory than a text may."""

from __future__ import annotations

import contextlib
import csv
import gzip
import itertools
import zlib
from collections import deque
from collections.abc import Iterator
from pathlib import Path
from typing import Any, TextIO

from jepa.data.sources.download import memory_limit
from jepa.utils.errors import DataError

MOST_CHARACTERS = 1_000_000
"""Of one text, the length of two novels; all of it is split into tokens, which takes half a gigabyte."""

OPEN_QUOTE = "a quote in it opens a cell and is not closed"
TOO_LONG = f"it has more than {MOST_CHARACTERS:,} characters"
TOO_MUCH = "holds more text than fits in memory, even once: give a part of it"


def read_lines(path: Path, newline: str = "\n") -> Iterator[tuple[str, int | None]]:
    """The lines of a file in UTF-8, unpacked if its name ends in .gz; of one that is too long, how many quotes it has.

    A long line comes as (nothing, quotes), any other as (line, None); bytes that are not UTF-8 come as surrogates.
    newline: as of `open`. Raises DataError for a file that is damaged, or has more text than fits in memory.
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
