"""Sources of time series: labelled series of the UCR / UEA archive, the ETT tables, and any tables of numbers."""

from __future__ import annotations

import functools
import logging
import os
import re
from collections.abc import Mapping, Sequence
from dataclasses import dataclass, field
from pathlib import Path
from typing import Any

import numpy as np
import torch
from torch import Tensor

from jepa.data.sources.download import memory_limit
from jepa.data.sources.splits import MOST_LEFT_OUT, NO_LABEL, first_few, number_classes, sort_classes
from jepa.data.sources.table_times import step_length
from jepa.data.sources.time_table import TimeTable, columns_option, in_units
from jepa.utils.errors import DataError
from jepa.utils.lazy_import import lazy_import

pandas = lazy_import("pandas")
log = logging.getLogger("jepa")
MOST_NOTES = 5
TABLES = re.compile(r"\.(csv|tsv|txt|parquet|pq)(\.(gz|bz2|xz))?", re.IGNORECASE)


@dataclass(frozen=True)
class Timeline:
    """A long series (C, T) float32, NaN where values are missing, and how it is split by time.

    ends: where the training, validation and test parts end; each begins where the one before ends. period: steps of a
    season, for the seasonal-naive forecast; None where it is not known. names: of the channels. path: of its file.
    times: of the steps, a pandas Series, or None.
    truth: what is known of each step (T,), see `step_truths`; None for nothing.
    """

    values: Tensor
    ends: tuple[int, int, int]
    period: int | None
    names: tuple[str, ...]
    path: str = ""
    times: Any = None
    truth: Tensor | None = None


@dataclass(frozen=True)
class SeriesSplits:
    """Training and test series, each (C, T) float32 with NaN for missing, T of any length; or timelines.

    train_labels, test_labels: of each series, int; class_names[label] names them. None: there are no labels.
    lines: what the first lines of a run say of the tables. wrong: of each split, number -> why a series cannot be used.
    truth_names: of the classes in the truth of timelines; None for numbers.
    """

    train: Sequence[Tensor] = ()
    test: Sequence[Tensor] = ()
    train_labels: Sequence[int] | None = None
    test_labels: Sequence[int] | None = None
    class_names: tuple[str, ...] | None = None
    timelines: Sequence[Timeline] = ()
    lines: tuple[str, ...] = ()
    wrong: Mapping[str, Mapping[int, str]] = field(default_factory=dict)
    truth_names: tuple[str, ...] | None = None


def ucr(*, root: str, name: str) -> SeriesSplits:
    """A set of the UCR / UEA archive: `<root>/<name>.npz`.

    Keys train_x, test_x: float (N, channels, time); train_y, test_y: labels from 0; where lengths differ also
    train_len, test_len, and what lies beyond is padding; optionally classes, names of the labels. A series of another
    length or label is a bad sample. Raises DataError for files missing or damaged.
    """
    folder = Path(root)
    path = folder / f"{name}.npz"
    if not path.is_file():
        found = ", ".join(sorted(file.stem for file in folder.glob("*.npz")))
        hint = f"data.name can be one of {found}" if found else "no .npz files are in that folder (data.root)"
        if folder.is_file():
            hint = f"data.root is a file: give its folder, and its name as data.name={folder.stem}"
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
    sides = {side: _labelled(path, arrays, side) for side in ("train", "test")}
    (train, known, _), (test, asked, _) = sides.values()
    if len(train[0]) != len(test[0]):
        raise DataError(f"{path}: train_x has {len(train[0])} channels and test_x {len(test[0])}, expected as many")
    names = tuple(map(str, np.ravel(arrays.get("classes", ()))))
    beyond = [label for label in known if names and label >= len(names)]
    if len(beyond) > MOST_LEFT_OUT * len(known):
        raise DataError(f"{path}: classes names {len(names)} labels, but labels go up to {max(beyond)}")
    used = sorted({label for label in known if label >= 0} - {*beyond})
    index, lines = number_classes(used, [label for label in asked if label >= 0], where=path)
    found = {}
    if index is not None:
        # With names, labels stay as they are, where some classes have no series.
        index, names = ({label: label for label in used}, names) if names else (index, tuple(map(str, used)))
        for side, (_, labels, wrong) in sides.items():
            wrong |= {n: f"{NO_LABEL} ({label})" for n, label in enumerate(labels) if label not in index}
            found[f"{side}_labels"] = [index.get(label, -1) for label in labels]
        found["class_names"] = names
    return SeriesSplits(train, test, lines=lines, wrong={side: each[2] for side, each in sides.items()}, **found)


def _labelled(path: Path, arrays: dict[str, np.ndarray], split: str) -> tuple[list[Tensor], list[int], dict[int, str]]:
    """Series, labels as they stand there, and number -> why a series cannot be used."""
    x, y = arrays[f"{split}_x"], arrays[f"{split}_y"]
    numbers = x.dtype.kind in "fiub" and x.ndim == 3 and x.size
    if not numbers or y.shape != (len(x),) or y.dtype.kind not in "iu":
        got = f"{split}_x is {x.dtype} {x.shape} and {split}_y {y.dtype} {y.shape}"
        expected = "numbers (N, channels, time), none of them 0, and N whole numbers from 0"
        raise DataError(f"{path}: {got}, expected {expected}")
    values = _as_float32(x)
    if np.isnan(values).all():
        raise DataError(f"{path}: {split}_x holds nothing but NaN")
    most = x.shape[2]
    lengths = arrays.get(f"{split}_len", np.full(len(x), most))
    if lengths.shape != (len(x),) or lengths.dtype.kind not in "iu":
        raise DataError(f"{path}: {split}_len has to hold {len(x)} whole numbers from 1 to {most}")
    ends = lengths.tolist()
    wrong = {n: f"its length is {end}, expected 1 to {most}" for n, end in enumerate(ends) if not 1 <= end <= most}
    series = [each[:, : 1 if n in wrong else ends[n]] for n, each in enumerate(torch.from_numpy(values))]
    return series, y.tolist(), wrong


def ett(*, root: str) -> SeriesSplits:
    """One of the ETT tables (Zhou et al. 2021, arXiv 2012.07436), `ETTh1.csv` or such, also `.csv.gz`.

    The usual split: 12, 4 and 4 months of 30 days. Hourly tables (ETTh) and those of 15 minutes (ETTm) are known by
    the file's name, or by the steps of its date column. The season is a day. Raises DataError for what is neither.
    """
    if not os.path.isfile(root):
        raise DataError(f"data.root={root} is not a file: expected an ETT table, such as data.root=/data/ETTh1.csv")
    table = TimeTable(root)
    steps_a_day = next((steps for name, steps in (("etth", 24), ("ettm", 96)) if name in Path(root).name.lower()), None)
    steps_a_day = steps_a_day or table.steps_a_day()
    if steps_a_day not in (24, 96):
        problem = "is neither hourly (ETTh) nor every 15 minutes (ETTm), by its name or its date column"
        raise DataError(f"{root} {problem}: use data=series_csv for other tables")
    ends = tuple(30 * steps_a_day * months for months in (12, 16, 20))
    if (rows := len(table.numbers)) < ends[2]:
        problem = f"has {rows} rows, but 20 months of {steps_a_day} steps a day take {ends[2]}"
        raise DataError(f"{root} {problem}: it is cut short, or no ETT table (for others use data=series_csv)")
    return _series_splits([table], [ends], steps_a_day)


def series_csv(
    *,
    root: str,
    columns: Sequence[str] | None = None,
    time_column: str | Sequence[str] | None = None,
    separator: str | None = None,
    decimal: str | None = None,
    resample: str | None = None,
    splits: Sequence[float] = (0.7, 0.1, 0.2),
    period: int | None = None,
    missing_markers: Sequence[str | float] = (),
    step_labels: str | None = None,
) -> SeriesSplits:
    """A table, CSV (compressed or not) or parquet, with a row per time step, or a folder of such with the same columns.

    columns: the channels; None takes all numbers but times, and leaves text out.
    time_column: holds the time, or several: year, month, day and so on, or date and clock time; None finds them
        (`find_times`). separator, decimal: see `read_table`.
    resample: takes means over each such length of time, as 15min, 1h or 1D; None warns where steps differ.
    splits: shares of the rows of each file for training, validation and test, one after the other.
    period: rows of a season; None takes a day, where steps are shorter.
    missing_markers: words that stand for a missing cell, besides empty ones and NaN, NA, null.
    step_labels: a column that says what each step is, for `DenseProbe`, and is no channel; see `step_truths`.

    Rows are put in the order of their times; what cannot be read is missing, with a warning (`read_table`). Raises
    ValueError for settings that make no sense, DataError for what cannot be read.
    """
    if len(splits) != 3 or min(splits) <= 0 or sum(splits) > 1 + 1e-9:
        expected = "shares of training, validation and test, all above 0 and at most 1 together"
        raise ValueError(f"data.source.splits={list(splits)}: expected {expected}")
    if period is not None and period < 1:
        raise ValueError(f"data.source.period={period}: expected the rows of a season, at least 1, or null")
    if resample is not None:
        step_length(resample)
    paths, lines = find_tables(root)
    reading = {"columns": columns, "time_column": time_column, "separator": separator, "decimal": decimal}
    reading |= {"missing_markers": missing_markers, "step_labels": step_labels}
    tables = [series_table(each, resample=resample, **reading) for each in paths]
    ends = [tuple(min(len(t.numbers), round(float(s) * len(t.numbers))) for s in np.cumsum(splits)) for t in tables]
    return _series_splits(tables, ends, period, tuple(lines))


def series_table(table: str | pandas.DataFrame, *, resample: str | None = None, **reading: Any) -> TimeTable:
    """Return a table, by its path or in memory, with its rows in order and resampled; reading: see `series_csv`."""
    found = TimeTable(table, **reading)
    found.put_in_order()
    found.find_markers()
    if resample is None:
        found.find_uneven_steps()
    else:
        found.resample(step_length(resample))
    return found


def find_tables(root: str) -> tuple[list[str], list[str]]:
    """Return the file, or the tables of a folder in the order of their names, and what to say of these."""
    if os.path.isfile(root):
        return [root], []
    if not os.path.isdir(root):
        expected = "a table, such as data.root=/data/ETTh1.csv, or a folder of tables"
        raise DataError(f"data.root={root} is not a file, nor a folder: expected {expected}")
    files = sorted(path for path in Path(root).rglob("*") if path.is_file())
    files = [path for path in files if not any(part.startswith(".") for part in path.relative_to(root).parts)]
    found = [path for path in files if TABLES.search(path.name)]
    found = [path for path in found if TABLES.search(path.name).group(1).lower() != "txt"] or found
    if not found:
        others = first_few(files) or "no files"
        raise DataError(f"data.root={root} holds no tables (.csv, .tsv, .parquet), but {others}")
    rest = [path for path in files if path not in set(found)]
    others = [f"other files, left out: {len(rest)} ({first_few(rest)})"] if rest else []
    series = [f"{len(found)} tables, each a series that is split by time; no window crosses from one to another"]
    return list(map(str, found)), ["; ".join([*(series if len(found) > 1 else [f"table: {found[0]}"]), *others])]


def _series_splits(
    tables: Sequence[TimeTable], ends: Sequence[tuple[int, int, int]], period: int | None, lines: tuple[str, ...] = ()
) -> SeriesSplits:
    """Logs the notes. Raises DataError for tables of different channels, and channels empty in the training parts."""
    notes = [f"{table.path}: {note}" for table in tables for note in table.notes]
    for note in notes[:MOST_NOTES]:
        warn_once(note)
    if len(notes) > MOST_NOTES:
        warn_once(f"{tables[0].path}: other tables have such faults too: {len(notes) - MOST_NOTES}")
    steps = {in_units(table.step): table.path for table in tables if table.step is not None}
    if len(steps) > 1:
        shown = ", ".join(f"{step} ({Path(path).name})" for step, path in steps.items())
        warn_once(f"the tables have different steps, {shown}: data.source.resample=... makes them alike")
    text = {name for table in tables for name in table.text}
    every = list(dict.fromkeys(name for table in tables for name in table.numbers.columns if name not in text))
    for table in tables:
        if lacking := [name for name in every if name not in table.numbers.columns]:
            common = columns_option([name for name in every if all(name in each.numbers.columns for each in tables)])
            problem = f"has no column {lacking[0]!r}, which other tables have"
            raise DataError(f"{table.path} {problem}: name the channels, as by {common}")
        table.numbers = table.numbers[every]
    values = [_as_float32(table.numbers.to_numpy().T) for table in tables]
    for number, name in enumerate(every):
        if any(end[0] for end in ends) and all(np.isnan(v[number, : end[0]]).all() for v, end in zip(values, ends)):
            problem = f"column {name!r} holds no values in the training part, its first {ends[0][0]} rows"
            advice = "leave it out with data.source.columns=[...], or change data.source.splits"
            raise DataError(f"{tables[0].path}: {problem}: {advice}")
    seasons = {table.steps_a_day() for table in tables}
    period = seasons.pop() if period is None and len(seasons) == 1 else period
    told = "; ".join(dict.fromkeys(table.told for table in tables))
    missing = {name: sum(int(np.isnan(each[n]).sum()) for each in values) for n, name in enumerate(every)}
    if total := sum(missing.values()):
        most, cells = max(missing, key=missing.get), sum(each.size for each in values)
        lines += (f"missing cells: {total:,} of {cells:,} ({total / cells:.2%}), most in {most} ({missing[most]:,})",)
    truths, truth_names, said = [None] * len(tables), None, []
    if tables[0].labels is not None:
        truths, truth_names, line = step_truths([table.labels for table in tables], tables[0].path)
        said = [line]
    each = zip(values, ends, tables, truths)
    timelines = [
        Timeline(torch.from_numpy(v), end, period, tuple(every), t.path, t.times, truth) for v, end, t, truth in each
    ]
    lines = (*lines, f"read as {told}", *tables[0].lines(), *said)
    return SeriesSplits(timelines=timelines, lines=lines, truth_names=truth_names)


@functools.cache
def warn_once(note: str) -> None:
    """Log what is wrong with a file, once in a process, which may read it again for a report."""
    log.warning("%s", note)


def _as_float32(values: np.ndarray) -> np.ndarray:
    with np.errstate(over="ignore"):  # becomes infinite, which makes a bad sample
        return values.astype(np.float32)


MOST_WHOLE_NUMBERS = 20  # more different ones are taken for numbers rather than classes
MOST_CLASSES = 1000


def step_truths(columns: Sequence[pandas.Series], where: str) -> tuple[list[Tensor], tuple[str, ...] | None, str]:
    """Return the labels (T,) of each table, the names of the classes, and what the first lines of a run say of them.

    Classes, int64, -1 where missing, are text, true and false, or up to MOST_WHOLE_NUMBERS different whole numbers.
    Other numbers are float32, NaN where missing, without names. Raises DataError for one class or over MOST_CLASSES.
    """
    every = pandas.concat(columns, ignore_index=True).dropna()
    numbers = all(column.dtype.kind in "iuf" for column in columns)
    if numbers and (every.nunique() > MOST_WHOLE_NUMBERS or (every % 1 != 0).any()):
        truths = [torch.from_numpy(column.to_numpy(np.float32, copy=True)) for column in columns]
        return truths, None, f"step labels: numbers from {every.min():g} to {every.max():g}"
    text = (lambda cell: str(int(cell))) if numbers else (lambda cell: str(cell).strip())
    columns = [column.map(text, na_action="ignore") for column in columns]
    names = sort_classes(name for column in columns for name in column.dropna().unique())
    if not 2 <= len(names) <= MOST_CLASSES:
        raise DataError(
            f"{where}: data.source.step_labels has {len(names)} different labels ({first_few(names)}), expected 2 to "
            f"{MOST_CLASSES} classes, or numbers: name another column, or set data.source.step_labels=null"
        )
    codes = [pandas.Categorical(column, categories=names).codes.astype(np.int64) for column in columns]
    return list(map(torch.from_numpy, codes)), names, f"step labels: {len(names)} classes, {first_few(names)}"
