"""How a CSV table is written: its encoding, what separates its cells, and the decimal mark of its numbers."""

from __future__ import annotations

import codecs
import collections
import contextlib
import csv
import re
from collections import Counter
from collections.abc import Iterable
from pathlib import Path

from jepa.utils.errors import DataError

SEPARATORS = {"\t": "tabs", ";": "semicolons", "|": "bars", ",": "commas", r"\s+": "spaces"}
"""What may stand between cells, and its name; the first that fits is taken."""
GROUPS = " '\u2019\u00a0\u202f"  # what may stand between thousands, besides the mark that is not the decimal one
NUMBER = r"[+-]?(?:\d*[.,]?\d+|\d{1,3}(?:[.,' ]\d{3})+[.,]?\d*)(?:[eE][+-]?\d+)?"  # a number by any decimal mark
SAMPLE = 2**18
"""Bytes of the beginning of a file, and of eight places further on, by which separator and decimal mark are told."""
STRAY_ZEROS = 3  # zero bytes among the first ones of a file of which it is still taken for text
BYTE_ORDER_MARKS = {codecs.BOM_UTF8: "utf-8-sig", codecs.BOM_UTF16_LE: "utf-16", codecs.BOM_UTF16_BE: "utf-16"}


def find_encoding(path: Path, content: bytes) -> str:
    """Return UTF-16 or UTF-8 where it fits, else cp1252, or Latin-1, which fits all. Raise DataError for no text."""
    if marked := next((name for mark, name in BYTE_ORDER_MARKS.items() if content.startswith(mark)), None):
        return marked
    head = content[:4096]
    if head.count(0) > STRAY_ZEROS:
        zeros = [part.count(0) * 4 > len(part) for part in (head[::2], head[1::2])]
        if sum(zeros) != 1:
            raise DataError(f"{path} holds zero bytes: it is no table of text")
        return "utf-16-be" if zeros[0] else "utf-16-le"
    for name in ("utf-8", "cp1252"):
        with contextlib.suppress(UnicodeDecodeError):
            parts = (content[start : start + 2**20] for start in range(0, len(content), 2**20))
            collections.deque(codecs.iterdecode(parts, name), maxlen=0)
            return name
    return "latin-1"


def sample_lines(content: bytes, encoding: str) -> tuple[list[str], list[str]]:
    """Return the first lines of a file, and lines from all over the rest of it; whole lines only."""
    end = content.find(b"\n", SAMPLE)
    head = split_lines(content[: None if end < 0 else end + 2].decode(encoding, errors="replace"))
    if encoding == "utf-16":
        encoding = "utf-16-be" if content.startswith(codecs.BOM_UTF16_BE) else "utf-16-le"
    rest = []
    for number in range(1, 1 if end < 0 else 9):
        start = number * len(content) // 9 // 2 * 2
        rest += split_lines(content[start : start + SAMPLE // 8].decode(encoding, errors="replace"))[1:-1]
    return head if end < 0 else head[:-1], rest


def split_lines(text: str) -> list[str]:
    """Return the lines of a text, whose ends may be of Unix, Windows or old Macs."""
    return re.split(r"\r\n|\r|\n", text)


def split_cells(lines: Iterable[str], separator: str) -> list[list[str]]:
    """Return the cells of lines that are not blank, and have no cell that is longer than `csv` reads."""
    lines = [line for line in lines if line.strip()]
    if separator == r"\s+":
        lines, separator = [line.replace("\t", " ").strip() for line in lines], " "
    most = csv.field_size_limit()
    lines = [line for line in lines if len(line) < most or max(map(len, line.split(separator))) < most]
    return [row for row in csv.reader(lines, delimiter=separator, skipinitialspace=True) if row]


def find_separator(head: list[str]) -> tuple[str, int]:
    """Return what separates the cells, and the number of the line that is the header.

    The header names as many columns as rows have cells, but for empty ones at their end. Where other lines stand above,
    it is the first line of as many cells as most have, or more, if none of these is a number or a date.
    """
    numbers = [number for number, line in enumerate(head) if line.strip()]
    for separator in SEPARATORS:
        rows = split_cells(head, separator)
        if len(rows) < 2:
            continue
        widths = [max((n for n, cell in enumerate(row, start=1) if cell.strip()), default=0) for row in rows]
        usual = Counter(widths[1:]).most_common(1)[0][0]
        if usual > 1 and max(widths[1:]) <= widths[0]:
            return separator, numbers[0]
        first = next(number for number, width in enumerate(widths) if width >= usual)
        below = widths[first:]
        fits = below.count(usual) >= 0.9 * len(below) or max(below) == below[0]
        if usual > 1 and fits and not any(map(is_value, rows[first])) and len(rows) == len(numbers):
            return separator, numbers[first]
    first_row = head[numbers[0]]
    return next((each for each in SEPARATORS if each in first_row), "\t"), numbers[0]  # else it is a single column


def is_value(name: str) -> bool:
    """Return whether a cell looks like a number, date or time, and so like no name of a column."""
    return re.fullmatch(r"[\d.,:/+\-\sTZ]*\d[\d.,:/+\-\sTZ]*", name) is not None


def find_decimal(path: Path, rows: list[list[str]], separator: str) -> str:
    """Return the decimal mark of the numbers in some rows of a table. Raise DataError for both, or where it is unclear.

    1,5 and 1.234,5 have a comma, 1.5 and 1,234.5 a point. 1,234 and 1.234 may be either: thousands, in a column whose
    other numbers are whole and below 1000, else fractions, in a table with semicolons.
    """
    sure: dict[str, str] = {}  # decimal mark -> a number that has it
    doubtful: dict[str, str] = {}
    for number in range(max(map(len, rows), default=0)):
        cells = list(dict.fromkeys(row[number].strip() for row in rows if number < len(row)))
        cells = [cell for cell in cells if re.fullmatch(rf"[+-]?[\d.,{GROUPS}]*\d(?:[eE][+-]?\d+)?", cell)]
        for mark, other in ((",", "."), (".", ",")):
            group = rf"[+-]?[1-9]\d{{0,2}}{re.escape(mark)}\d{{3}}"
            fraction = rf"(?:\d*|\d{{1,3}}(?:[{other}{GROUPS}]\d{{3}})+){re.escape(mark)}\d+(?:[eE][+-]?\d+)?"
            several_groups = rf"\d{{1,3}}(?:{re.escape(other)}\d{{3}}){{2,}}"
            groups = [cell for cell in cells if re.fullmatch(group, cell)]
            proof = [cell for cell in cells if re.fullmatch(rf"[+-]?(?:{fraction}|{several_groups})", cell)]
            proof = [cell for cell in proof if cell not in set(groups)]
            whole = [cell for cell in cells if re.fullmatch(r"[+-]?\d{1,3}", cell)]
            if proof:
                sure.setdefault(mark, proof[0])
            elif groups and whole and len(groups) + len(whole) == len(cells) and (mark, separator) != (".", ","):
                sure.setdefault(other, groups[0])
            elif groups:
                doubtful.setdefault(mark, groups[0])
    if len(sure) == 2:
        advice = "set data.source.decimal to the mark before fractions, '.' or ','"
        raise DataError(f"{path} holds {sure['.']!r} and {sure[',']!r}: {advice}")
    if sure or separator == ";" or "," not in doubtful:
        return next(iter(sure), "," if "," in doubtful else ".")
    problem = "whose comma may stand before a fraction or between thousands"
    advice = "set data.source.decimal=',' or data.source.decimal='.'"
    raise DataError(f"{path} holds {doubtful[',']!r}, {problem}: {advice}")
