"""Tables as people have them: CSV of any separator, decimal mark and encoding, packed or not, and parquet."""

from __future__ import annotations

import bz2
import gzip
import io
import lzma
import re
import warnings
from collections.abc import Sequence
from pathlib import Path
from typing import TYPE_CHECKING

from jepa.data.sources.download import memory_limit, read_all
from jepa.data.sources.table_dialect import (
    GROUPS,
    SEPARATORS,
    find_decimal,
    find_encoding,
    find_separator,
    sample_lines,
    split_cells,
)
from jepa.utils.errors import DataError, UserError, first_line
from jepa.utils.lazy_import import require

if TYPE_CHECKING:
    import pandas

WORDS = {name.removesuffix("s"): separator for separator, name in SEPARATORS.items()}
PARQUET = (".parquet", ".pq")
PACKED = {b"\x1f\x8b": gzip.open, b"BZh": bz2.open, b"\xfd7zXZ": lzma.open}
MISSING = ("", "NA", "N/A", "NaN", "nan", "null")


def read_table(
    path: str | Path, *, separator: str | None = None, decimal: str | None = None, missing_markers: Sequence[str] = ()
) -> tuple[pandas.DataFrame, str, str]:
    """Return a table, whose columns are numbers, dates (of parquet) or text, how it is written, and the decimal mark.

    separator, decimal: None detects them. missing_markers: see `series_csv`. Numbers may be grouped, as
    1,234,567. Rows and unnamed columns without any cell are left out; the index is the number of a row, from 0.

    Raises DataError for what is damaged, no table, larger than memory, or can be read in two ways.
    """
    require("pandas", extra="series", purpose="reading a table of time series")
    separator = {**WORDS, "\\t": "\t", " ": r"\s+"}.get(separator, separator)
    if separator not in (None, r"\s+") and len(separator) != 1:
        raise ValueError(
            f"data.source.separator={separator!r}: expected a character or one of {', '.join(WORDS)}, or null"
        )
    if decimal not in (None, ".", ","):
        raise ValueError(f"data.source.decimal={decimal!r}: expected '.' or ',', or null")
    path = Path(path)
    parquet = path.suffix.lower() in PARQUET
    try:
        if parquet:
            frame, told, decimal = _read_parquet(path), "parquet", decimal or "."
        else:
            frame, told, decimal = _read_csv(path, separator, decimal, missing_markers)
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
    frame = frame.drop(columns=empty).dropna(how="all")
    if not len(frame):
        raise DataError(f"{path} has no rows below its header")
    marks = set()
    for name in [name for name in frame.columns if frame[name].dtype.kind not in "iufbMm"]:
        frame[name], found = _as_numbers(frame[name], decimal, missing_markers)
        marks |= found
    return frame, ", ".join([told, *(f"{mark!r} between thousands" for mark in sorted(marks))]), decimal


def _read_parquet(path: Path) -> pandas.DataFrame:
    import pandas

    parquet = require("pyarrow.parquet", extra="series", purpose="reading a parquet table")
    claimed = parquet.ParquetFile(path).metadata
    size = max(
        8 * claimed.num_rows * claimed.num_columns,
        sum(claimed.row_group(number).total_byte_size for number in range(claimed.num_row_groups)),
    )
    if size > memory_limit():
        raise DataError(f"{path} claims {size / 2**30:,.0f} GiB, which do not fit in memory: give a part of it")
    frame = pandas.read_parquet(path, engine="pyarrow")
    named = isinstance(frame.index, pandas.DatetimeIndex) or any(name is not None for name in frame.index.names)
    return frame.reset_index(drop=not named)


def _read_csv(
    path: Path, separator: str | None, decimal: str | None, missing_markers: Sequence[str]
) -> tuple[pandas.DataFrame, str, str]:
    import pandas

    content = _unpacked(path)
    encoding = find_encoding(path, content)
    head, rest = sample_lines(content, encoding)
    if not any(line.strip() for line in head):
        raise DataError(f"{path} has no rows below its header")
    hint = re.fullmatch(r"\ufeff?sep=(.)", head[0].strip("\r\n"), re.IGNORECASE)  # a line that spreadsheets write
    if hint:
        separator, header = separator or hint.group(1), 1
    elif separator is None:
        separator, header = find_separator(head)
    else:
        header = 0
    names = split_cells(head[header:], separator)[0]
    if 8 * content.count(b"\n") * len(names) > memory_limit():
        raise DataError(f"{path} cannot be read: its cells do not fit in memory as numbers, give a part of it")
    if decimal is None:
        decimal = find_decimal(path, split_cells([*head[header + 1 :], *rest], separator), separator)
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
                na_values=list(missing_markers),
                skipinitialspace=True,
                low_memory=False,
            )
        except pandas.errors.EmptyDataError:
            raise DataError(f"{path} has no rows below its header") from None
        except (pandas.errors.ParserWarning, pandas.errors.ParserError) as error:
            raise DataError(
                f"{path}: some rows have more cells than the header has names ({len(names)} when split at "
                f"{SEPARATORS.get(separator, repr(separator))}: {', '.join(names[:5])}). Name every column, set "
                "data.source.separator, or, where commas stand between numbers and in them, use another separator"
            ) from error
    told = [
        f"{SEPARATORS.get(separator, repr(separator))} between cells",
        f"decimal {'comma' if decimal == ',' else 'point'}",
        encoding.removesuffix("-sig").upper(),
        *([f"{header} lines above the header left out"] if header and not hint else []),
    ]
    return frame, ", ".join(told), decimal


def _unpacked(path: Path) -> bytes:
    """Return the content of a file, unpacked where its first bytes say that it is packed."""
    with path.open("rb") as file:
        start = file.read(8)
    if start.startswith((b"PK\x03\x04", b"\xd0\xcf\x11\xe0")):
        raise DataError(f"{path} is a workbook or a zip archive: save the table as CSV, or unpack it")
    packed = next((opener for mark, opener in PACKED.items() if start.startswith(mark)), None)
    with (packed or (gzip.open if path.suffix == ".gz" else open))(path, "rb") as file:
        return read_all(file, path)


def _as_numbers(cells: pandas.Series, decimal: str, missing_markers: Sequence[str]) -> tuple[pandas.Series, set[str]]:
    """Return a column as numbers, and the marks between its thousands, or as it is where not all of it are numbers."""
    import pandas

    if not cells.map(lambda cell: isinstance(cell, str)).any():
        numbers = pandas.to_numeric(cells, errors="coerce")
        return (numbers.astype("float64") if numbers.isna().equals(cells.isna()) else cells), set()
    text = cells.map(lambda cell: cell.strip().replace("\u2212", "-") if isinstance(cell, str) else None)
    text = text.mask(text.isin([*MISSING, *map(str, missing_markers)]))
    marks = GROUPS + ("." if decimal == "," else ",")
    number = rf"(?=.*\d)[+-]?(?:\d+|\d{{1,3}}(?:([{marks}])\d{{3}})(?:\1\d{{3}})*)?(?:{re.escape(decimal)}\d*)?"
    if not text.notna().any() or not text.dropna().str.fullmatch(rf"{number}(?:[eE][+-]?\d+)?").all():
        return cells, set()
    found = {mark for mark in marks if text.str.contains(mark, regex=False).any()}
    plain = text.str.replace(rf"[{marks}]", "", regex=True).str.replace(decimal, ".", regex=False)
    return pandas.to_numeric(plain, errors="coerce").astype("float64"), found
