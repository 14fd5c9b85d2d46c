"""Sources of time series: labelled series of the UCR / UEA archive, the ETT tables, and any CSV table."""

from __future__ import annotations

import os
import warnings
from collections.abc import Sequence
from dataclasses import dataclass
from pathlib import Path
from typing import TYPE_CHECKING

import numpy as np
import torch
from torch import Tensor

from jepa.data.sources.download import memory_limit
from jepa.data.sources.splits import number_classes
from jepa.utils.errors import DataError
from jepa.utils.lazy_import import require

if TYPE_CHECKING:
    import pandas

DATE_NAMES = ("date", "datetime", "time", "timestamp")


@dataclass(frozen=True)
class Timeline:
    """A long series (C, T) float32, NaN where values are missing, and how it is split by time.

    ends: where the training, validation and test parts end; each begins where the one before ends. period: steps of a
    season, for the seasonal-naive forecast; None where it is not known. names: of the channels.
    """

    values: Tensor
    ends: tuple[int, int, int]
    period: int | None
    names: tuple[str, ...]


@dataclass(frozen=True)
class SeriesSplits:
    """Training and test series, each (C, T) float32 with NaN for missing, T of any length; or a timeline.

    Series of infinite values are bad samples, and of a timeline such values are missing (`SeriesData`).

    train_labels, test_labels: of each series, int; class_names[label] names them. None: there are no labels.
    lines: see `Splits`.
    """

    train: Sequence[Tensor] = ()
    test: Sequence[Tensor] = ()
    train_labels: Sequence[int] | None = None
    test_labels: Sequence[int] | None = None
    class_names: tuple[str, ...] | None = None
    timeline: Timeline | None = None
    lines: tuple[str, ...] = ()


def ucr(*, root: str, name: str) -> SeriesSplits:
    """A set of the UCR / UEA archive: `<root>/<name>.npz`.

    Keys train_x, test_x: float (N, channels, time); train_y, test_y: labels from 0; where lengths differ also
    train_len, test_len, and what lies beyond is padding; optionally classes, names of the labels. Raises DataError for
    files missing or damaged.
    """
    folder = Path(root)
    path = folder / f"{name}.npz"
    if not path.is_file():
        found = ", ".join(sorted(file.stem for file in folder.glob("*.npz")))
        hint = f"data.name can be one of {found}" if found else "no .npz files are in that folder (data.root)"
        raise DataError(f"{path} is missing (data.root={root}, data.name={name}): {hint}")
    try:
        with np.load(path, allow_pickle=False) as file:
            if (size := sum(each.file_size for each in file.zip.infolist())) > memory_limit():
                raise ValueError(f"it claims {size / 2**30:,.0f} GiB of arrays, which do not fit in memory")
            arrays = {key: file[key] for key in file.files}
    except Exception as error:  # NumPy and zipfile raise many kinds for a damaged file
        raise DataError(f"{path} cannot be read ({error}): it is damaged, or no NumPy .npz file") from error
    if missing := {"train_x", "train_y", "test_x", "test_y"} - arrays.keys():
        raise DataError(f"{path} lacks {sorted(missing)}; it holds {sorted(arrays)}")
    (train, train_labels), (test, test_labels) = (_labelled(path, arrays, split) for split in ("train", "test"))
    if len(train[0]) != len(test[0]):
        raise DataError(f"{path}: train_x has {len(train[0])} channels and test_x {len(test[0])}, expected as many")
    index, lines = number_classes(sorted(set(train_labels)), test_labels, where=path)
    if index is None:
        return SeriesSplits(train, test, lines=lines)
    count = 1 + max(train_labels)
    names = tuple(map(str, arrays.get("classes", range(count))))
    if len(names) < count:
        raise DataError(f"{path}: classes names {len(names)} labels, but labels go up to {count - 1}")
    return SeriesSplits(train, test, train_labels, test_labels, names)


def _labelled(path: Path, arrays: dict[str, np.ndarray], split: str) -> tuple[list[Tensor], list[int]]:
    x, y = arrays[f"{split}_x"], arrays[f"{split}_y"]
    numbers = x.dtype.kind in "fiub" and x.ndim == 3 and x.size
    if not numbers or y.shape != (len(x),) or y.dtype.kind not in "iu" or y.min() < 0:
        raise DataError(
            f"{path}: {split}_x is {x.dtype} {x.shape} and {split}_y {y.dtype} {y.shape}, expected numbers (N, "
            "channels, time), none of them 0, and N whole numbers from 0"
        )
    values = _as_float32(x)
    if np.isnan(values).all():
        raise DataError(f"{path}: {split}_x holds nothing but NaN")
    lengths = arrays.get(f"{split}_len", np.full(len(x), x.shape[2]))
    integers = lengths.shape == (len(x),) and lengths.dtype.kind in "iu"
    if not integers or lengths.min() < 1 or lengths.max() > x.shape[2]:
        raise DataError(f"{path}: {split}_len has to hold {len(x)} whole numbers from 1 to {x.shape[2]}")
    return [each[:, :length] for each, length in zip(torch.from_numpy(values), lengths.tolist())], y.tolist()


def ett(*, root: str) -> SeriesSplits:
    """One of the ETT tables (Zhou et al. 2021, arXiv 2012.07436), `ETTh1.csv` or such, also `.csv.gz`.

    The usual split: 12, 4 and 4 months of 30 days. Hourly tables (ETTh) and those of 15 minutes (ETTm) are known by
    the file's name, or by the steps of its date column. The season is a day. Raises DataError for what is neither.
    """
    table = _read_table(root)
    numbers, dates = _columns(root, table, None, None)
    steps_a_day = next((steps for name, steps in (("etth", 24), ("ettm", 96)) if name in Path(root).name.lower()), None)
    steps_a_day = steps_a_day or _steps_a_day(dates)
    if steps_a_day not in (24, 96):
        raise DataError(
            f"{root} is neither hourly (ETTh) nor every 15 minutes (ETTm), by its name or its date column: use "
            "data=series_csv for other tables"
        )
    ends = tuple(30 * steps_a_day * months for months in (12, 16, 20))
    if len(table) < ends[2]:
        raise DataError(
            f"{root} has {len(table)} rows, but 20 months of {steps_a_day} steps a day take {ends[2]}: the file is cut "
            "short, or no ETT table (for others use data=series_csv)"
        )
    return _timeline(root, numbers, ends, steps_a_day)


def series_csv(
    *,
    root: str,
    columns: Sequence[str] | None = None,
    date_column: str | None = None,
    splits: Sequence[float] = (0.7, 0.1, 0.2),
    period: int | None = None,
    missing_markers: Sequence[str] = (),
) -> SeriesSplits:
    """A CSV table with a header, one row per time step, in order; also compressed (`.csv.gz`).

    columns: the channels; None takes all but dates. date_column: left out, as is any column called date, datetime, time
    or timestamp, and one of text that reads as dates. splits: shares of the rows for training, validation and test, one
    after the other; without validation the penalty of a forecast cannot be chosen. period: rows of a season; None takes
    a day, where there are dates a day or more apart in several steps. missing_markers: words that stand for a missing
    cell, besides empty ones and NaN, NA, null.

    Raises ValueError for splits that make no sense, DataError for what cannot be read.
    """
    if len(splits) != 3 or min(splits) <= 0 or sum(splits) > 1 + 1e-9:
        raise ValueError(
            f"data.source.splits={list(splits)}: expected shares of training, validation and test, all above 0 and at "
            "most 1 together"
        )
    if period is not None and period < 1:
        raise ValueError(f"data.source.period={period}: expected the rows of a season, at least 1, or null")
    table = _read_table(root, missing_markers)
    numbers, dates = _columns(root, table, columns, date_column)
    ends = tuple(min(len(table), round(float(share) * len(table))) for share in np.cumsum(splits))
    return _timeline(root, numbers, ends, _steps_a_day(dates) if period is None else period)


def _read_table(root: str, missing_markers: Sequence[str] = ()) -> pandas.DataFrame:
    pandas = require("pandas", extra="series", purpose="reading a table of time series")
    if not os.path.isfile(root):
        raise DataError(f"data.root={root} is not a file: expected a CSV table, such as data.root=/data/ETTh1.csv")
    try:
        table = pandas.read_csv(root, na_values=list(missing_markers), skipinitialspace=True)
    except Exception as error:  # pandas, gzip and codecs raise many kinds for a damaged file
        raise DataError(f"{root} cannot be read as a CSV table: {error}") from error
    if not len(table):
        raise DataError(f"{root} has no rows below its header")
    return table


def _columns(
    root: str, table: pandas.DataFrame, columns: Sequence[str] | None, date_column: str | None
) -> tuple[pandas.DataFrame, pandas.Series | None]:
    """The columns of numbers, and the dates where there are any."""
    import pandas

    for name in [*(columns or []), *([] if date_column is None else [date_column])]:
        if name not in table.columns:
            raise DataError(f"{root} has no column {name!r}; its columns are {', '.join(map(str, table.columns))}")
    named = [name for name in table.columns if name == date_column or str(name).lower() in DATE_NAMES]
    tried = named if columns is not None else table.columns
    dates = {name: found for name in tried if (found := _as_dates(table[name])) is not None}
    wanted = [name for name in table.columns if name not in named and name not in dates] if columns is None else columns
    for name in wanted:
        if not pandas.api.types.is_numeric_dtype(cells := table[name]):
            wrong = cells[pandas.to_numeric(cells, errors="coerce").isna() & cells.notna()]
            shown, row = str(wrong.iloc[0])[:100], int(wrong.index[0]) + 1
            raise DataError(
                f"{root}: column {name!r} holds {shown!r} in row {row}, which is no number: "
                "name the channels with data.source.columns=[...], or what stands for missing cells with "
                "data.source.missing_markers=[...]"
            )
    if columns is None and wanted and all(_is_value(str(name)) for name in wanted):
        raise DataError(
            f"{root} has values where names of columns belong ({', '.join(map(str, wanted[:3]))}): put a header above "
            "them, or name the channels with data.source.columns=[...]"
        )
    if not wanted:
        raise DataError(f"{root} has no columns of numbers; its columns are {', '.join(map(str, table.columns))}")
    return table[list(wanted)], dates.get(date_column, next(iter(dates.values()), None))


def _is_value(name: str) -> bool:
    """Whether a column's name is a number, but no integer: those are common names."""
    try:
        return not float(name).is_integer()
    except (ValueError, OverflowError):
        return False


def _as_dates(cells: pandas.Series) -> pandas.Series | None:
    """The cells as dates; None where they are not (numbers never are)."""
    import pandas

    if pandas.api.types.is_numeric_dtype(cells):
        return None
    with warnings.catch_warnings():
        warnings.simplefilter("ignore")  # that the format is not known beforehand
        dates = pandas.to_datetime(cells, errors="coerce")
    return dates if dates.notna().mean() > 0.99 else None


def _steps_a_day(dates: pandas.Series | None) -> int | None:
    """How many steps make a day; None without dates, or where steps are a day or longer."""
    if dates is None or len(dates) < 2:
        return None
    seconds = dates.diff().dt.total_seconds().median()
    return round(86400 / seconds) if 0 < seconds < 86400 else None


def _timeline(root: str, numbers: pandas.DataFrame, ends: tuple[int, int, int], period: int | None) -> SeriesSplits:
    """Raises DataError for columns that are empty in the training part."""
    values = _as_float32(numbers.to_numpy(dtype=np.float64).T)
    for name, row in zip(numbers.columns, values):
        if ends[0] and np.isnan(row[: ends[0]]).all():
            raise DataError(
                f"{root}: column {name!r} holds no values in the training part, its first {ends[0]} rows: leave it out "
                "with data.source.columns=[...], or change data.source.splits"
            )
    names = tuple(map(str, numbers.columns))
    return SeriesSplits(timeline=Timeline(torch.from_numpy(values), ends, period, names))


def _as_float32(values: np.ndarray) -> np.ndarray:
    with np.errstate(over="ignore"):  # becomes infinite, which makes a bad sample
        return values.astype(np.float32)
