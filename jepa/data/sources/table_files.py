"""Tables as people have them: CSV of any separator, decimal mark and encoding, packed or not, and parquet."""

from __future__ import annotations

import bz2
import csv
import gzip
import io
import lzma
import math
import re
import warnings
from collections.abc import Mapping, Sequence
from pathlib import Path
from typing import Any

from jepa.data.sources.download import memory_limit, read_all
from jepa.data.sources.splits import MOST_LEFT_OUT
from jepa.data.sources.table_dialect import (
    GROUPS,
    NUMBER,
    SEPARATORS,
    find_decimal,
    find_encoding,
    find_separator,
    is_value,
    sample_lines,
    split_cells,
    split_lines,
)
from jepa.utils.errors import DataError, UserError, first_line
from jepa.utils.lazy_import import lazy_import, require

pandas = lazy_import("pandas")
WORDS = {name.removesuffix("s"): separator for separator, name in SEPARATORS.items()}
PACKED = {b"\x1f\x8b": gzip.open, b"BZh": bz2.open, b"\xfd7zXZ": lzma.open}
BROKEN = "have more cells than the header has names, or a quote that is not closed"
MISSING = ("", "NA", "N/A", "NaN", "nan", "null")


def read_table(
    path: str | Path, *, separator: str | None = None, decimal: str | None = None, missing_markers: Sequence[str] = ()
) -> tuple[pandas.DataFrame, str, str, list[str]]:
    """Return a table, whose columns are numbers, dates (of parquet) or text, the index the number of a row from 0.

    Also how it is written, its decimal mark, and notes on what was taken for missing: cells that are no numbers among
    numbers, and rows that cannot be read, up to MOST_LEFT_OUT of a column or of the rows. Empty rows are left out.
    separator, decimal: None detects them. missing_markers: see `series_csv`. Numbers may be grouped, as 1,234,567.
    Raises DataError for what is damaged, no table, larger than memory, or can be read in two ways.
    """
    require("pandas", extra="series", purpose="reading a table of time series")
    separator = {**WORDS, "\\t": "\t", " ": r"\s+"}.get(separator, separator)
    if separator not in (None, r"\s+") and len(separator) != 1:
        expected = f"a character or one of {', '.join(WORDS)}, or null"
        raise ValueError(f"data.source.separator={separator!r}: expected {expected}")
    if decimal not in (None, ".", ","):
        raise ValueError(f"data.source.decimal={decimal!r}: expected '.' or ',', or null")
    path, missing_markers = Path(path), list(map(str, missing_markers))
    parquet = path.suffix.lower() in (".parquet", ".pq")
    lost: list[int] = []
    try:
        if parquet:
            frame, told, decimal = _read_parquet(path), "parquet", decimal or "."
        else:
            frame, told, decimal, lost = _read_csv(path, separator, decimal, missing_markers)
    except UserError:
        raise
    except MemoryError as error:
        raise DataError(f"{path} cannot be read: it does not fit in memory, give a part of it") from error
    except Exception as error:  # pandas, pyarrow, gzip and codecs raise many kinds for a damaged file
        kind = "parquet file" if parquet else "CSV table"
        raise DataError(f"{path} cannot be read as a {kind}: {first_line(error)}") from error
    frame.columns = [str(name).strip() for name in frame.columns]
    if not frame.columns.is_unique:
        raise DataError(f"{path} has two columns of the name {frame.columns[frame.columns.duplicated()][0]!r}")
    empty = [name for name in frame.columns if name.startswith("Unnamed: ") and frame[name].isna().all()]
    frame = frame.drop(columns=empty)[frame.notna().any(axis=1) | frame.index.isin(lost)]
    if not len(frame):
        raise DataError(f"{path} has no rows below its header")
    marks: set[str] = set()
    notes = [f"{len(lost)} of {len(frame)} rows, first row {lost[0] + 1}, {BROKEN}; they are missing"] if lost else []
    strange: dict[str, pandas.Series] = {}
    for name in [name for name in frame.columns if frame[name].dtype.kind not in "iufbMm"]:
        frame[name], found, wrong = _as_numbers(frame[name], decimal, missing_markers)
        marks |= found
        if len(wrong):
            strange[name] = wrong
    notes += _about_cells(strange)
    return frame, ", ".join([told, *(f"{mark!r} between thousands" for mark in sorted(marks))]), decimal, notes


def _about_cells(strange: Mapping[str, pandas.Series]) -> list[str]:
    if not strange:
        return []
    name, cells = next(iter(strange.items()))
    words = list(dict.fromkeys(str(cell)[:30] for each in strange.values() for cell in each))
    return [
        f"cells that are no numbers, {', '.join(map(repr, words[:5]))}{', ...' if len(words) > 5 else ''}, are "
        f"missing: {sum(map(len, strange.values()))} in {len(strange)} columns, the first in row {cells.index[0] + 1} "
        f"of {name!r} (data.source.missing_markers names them)"
    ]


def _read_parquet(path: Path) -> pandas.DataFrame:
    parquet = require("pyarrow.parquet", extra="series", purpose="reading a parquet table")
    claimed = parquet.ParquetFile(path).metadata
    packed = sum(claimed.row_group(number).total_byte_size for number in range(claimed.num_row_groups))
    if (size := max(8 * claimed.num_rows * claimed.num_columns, packed)) > memory_limit():
        raise DataError(f"{path} claims {size / 2**30:,.0f} GiB, which do not fit in memory: give a part of it")
    frame = pandas.read_parquet(path, engine="pyarrow")
    named = isinstance(frame.index, pandas.DatetimeIndex) or any(name is not None for name in frame.index.names)
    return frame.reset_index(drop=not named)


def _read_csv(
    path: Path, separator: str | None, decimal: str | None, missing_markers: Sequence[str]
) -> tuple[pandas.DataFrame, str, str, list[int]]:
    """As `read_table`, but with the numbers of the rows that cannot be read, which are empty."""
    content = _unpacked(path)
    encoding = find_encoding(path, content)
    if not encoding.startswith("utf-16"):
        content = content.replace(b"\0", b"?")  # which would end a cell
    errors = (pandas.errors.ParserWarning, pandas.errors.ParserError, csv.Error)
    try:
        frame, *told = _parse(path, content, encoding, separator, decimal, missing_markers)
        if not any(_holds_rows(frame[name]) for name in frame.columns if frame[name].dtype.kind not in "iufb"):
            return frame, *told, []
    except errors:
        pass
    content, separator, names, lost, count = _without_broken_rows(path, content, encoding, separator)
    try:
        if len(lost) > MOST_LEFT_OUT * count:
            raise csv.Error(f"{len(lost)} of {count}")
        return *_parse(path, content, "utf-8", separator, decimal, missing_markers), lost
    except errors as error:
        raise DataError(
            f"{path}: some rows, first row {lost[0] + 1 if lost else 1}, {BROKEN} ({len(names)} when split at "
            f"{SEPARATORS.get(separator, repr(separator))}: {', '.join(names[:5])}). Name every column, set "
            "data.source.separator, or, where commas stand between numbers and in them, use another separator"
        ) from error


def _parse(
    path: Path,
    content: bytes,
    encoding: str,
    separator: str | None,
    decimal: str | None,
    missing_markers: Sequence[str],
) -> tuple[pandas.DataFrame, str, str]:
    """The table, how it is written, and its decimal mark. Raises ParserError and others for rows of too many cells."""
    separator, header, hint, names, lines = _layout(path, content, encoding, separator)
    if 8 * content.count(b"\n") * len(names) > memory_limit():
        raise DataError(f"{path} cannot be read: its cells do not fit in memory as numbers, give a part of it")
    if decimal is None:
        decimal = find_decimal(path, split_cells(lines, separator), separator)
    with warnings.catch_warnings():
        warnings.simplefilter("error", pandas.errors.ParserWarning)  # that cells are lost
        try:
            frame = pandas.read_csv(
                io.BytesIO(content),
                sep=separator,
                decimal=decimal,
                encoding=encoding,
                skiprows=header,
                index_col=False,
                na_values=missing_markers,
                skipinitialspace=True,
                low_memory=False,
            )
        except pandas.errors.EmptyDataError:
            raise DataError(f"{path} has no rows below its header") from None
    told = f"{SEPARATORS.get(separator, repr(separator))} between cells, decimal "
    told += f"{'comma' if decimal == ',' else 'point'}, {encoding.removesuffix('-sig').upper()}"
    told += f", {header} lines above the header left out" if header and not hint else ""
    return frame, told, decimal


def _layout(
    path: Path, content: bytes, encoding: str, separator: str | None
) -> tuple[str, int, bool, list[str], list[str]]:
    """The separator, the line of the header, whether a line above names the separator, the columns, and some lines."""
    head, rest = sample_lines(content, encoding)
    if not any(line.strip() for line in head):
        raise DataError(f"{path} has no rows below its header")
    header, hint = 0, re.fullmatch(r"\ufeff?sep=(.)", head[0].strip("\r\n"), re.IGNORECASE)  # by a spreadsheet
    if hint:
        separator, header = separator or hint.group(1), 1
    elif separator is None:
        separator, header = find_separator(head)
    closed = [line for line in [*head[header + 1 :], *rest] if line.count('"') % 2 == 0]
    return separator, header, bool(hint), split_cells(head[header:], separator)[0], closed


def _holds_rows(cells: pandas.Series) -> bool:
    """Whether a column of numbers or dates has a cell of several lines: rows that a quote has swallowed."""
    text = cells.dropna().astype(str).str.strip().str.replace(r"[;|]", ",", regex=True)
    return bool(text.str.contains(r"[\r\n]").any()) and 2 * sum(map(is_value, text)) > len(text)


def _without_broken_rows(
    path: Path, content: bytes, encoding: str, separator: str | None
) -> tuple[bytes, str, list[str], list[int], int]:
    """The table in UTF-8 with BROKEN rows empty, its separator and columns, the broken rows, and how many there are."""
    lines = split_lines(content.decode(encoding, errors="replace").removeprefix("\ufeff"))
    whole = ["" if line.count('"') % 2 else line for line in lines]
    separator, header, _, names, _ = _layout(path, "\n".join(whole).encode(), "utf-8", separator)
    missing = (" " if separator == r"\s+" else separator).join(["NaN"] * len(names))
    lost, rows = [], []
    for line, known in zip(lines[header + 1 :], whole[header + 1 :]):
        if not line.strip():
            continue
        cells = split_cells([known], separator)
        if not cells or any(cell.strip() for cell in cells[0][len(names) :]):
            lost.append(len(rows))
        rows.append(missing if lost and lost[-1] == len(rows) else known)
    return "\n".join([*whole[: header + 1], *rows, ""]).encode(), separator, names, lost, len(rows)


def _unpacked(path: Path) -> bytes:
    with path.open("rb") as file:
        start = file.read(8)
    if start.startswith((b"PK\x03\x04", b"\xd0\xcf\x11\xe0")):
        raise DataError(f"{path} is a workbook or a zip archive: save the table as CSV, or unpack it")
    packed = next((opener for mark, opener in PACKED.items() if start.startswith(mark)), None)
    with (packed or (gzip.open if path.suffix == ".gz" else open))(path, "rb") as file:
        return read_all(file, path)


def _as_numbers(
    cells: pandas.Series, decimal: str, missing_markers: Sequence[str]
) -> tuple[pandas.Series, set[str], pandas.Series]:
    """Return a column as numbers, if most are, the marks between thousands, and the cells that are none."""
    none = cells.iloc[:0]
    if not cells.map(lambda cell: isinstance(cell, str)).any():
        numbers = cells.map(_as_float, na_action="ignore")
        return (numbers.astype("float64") if numbers.isna().equals(cells.isna()) else cells), set(), none
    text = cells.map(lambda cell: cell.strip().replace("\u2212", "-") if isinstance(cell, str) else None)
    text = text.mask(text.isin([*MISSING, *missing_markers])).dropna()
    marks = GROUPS + ("." if decimal == "," else ",")
    number = rf"(?=.*\d)[+-]?(?:\d+|\d{{1,3}}(?:([{marks}])\d{{3}})(?:\1\d{{3}})*)?(?:{re.escape(decimal)}\d*)?"
    fits = text.str.fullmatch(rf"{number}(?:[eE][+-]?\d+)?").astype(bool)
    wrong = text[~fits]
    if not len(text) or len(wrong) > MOST_LEFT_OUT * len(text) or wrong.str.fullmatch(NUMBER).any():
        return cells, set(), none
    text = text[fits]
    found = {mark for mark in marks if text.str.contains(mark, regex=False).any()}
    plain = text.str.replace(rf"[{marks}]", "", regex=True).str.replace(decimal, ".", regex=False)
    return plain.map(float).astype("float64").reindex(cells.index), found, wrong


def _as_float(value: Any) -> float:
    try:
        return float(value)
    except OverflowError:
        return math.inf
    except (TypeError, ValueError):
        return math.nan
