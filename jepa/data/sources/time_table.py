"""A table with a row per time step: its columns sorted into channels, times and text, its rows put in order."""

from __future__ import annotations

import json
import re
from collections.abc import Sequence
from functools import partial
from typing import Any

from jepa.data.sources.download import memory_limit
from jepa.data.sources.splits import first_few
from jepa.data.sources.table_dialect import NUMBER, is_value
from jepa.data.sources.table_files import read_table
from jepa.data.sources.table_times import check_names, find_times, uneven_steps
from jepa.utils.errors import DataError
from jepa.utils.lazy_import import lazy_import

pandas = lazy_import("pandas")
named = partial(first_few, most=30)
MARKERS = 3  # rows of a value that may stand for a missing one


class TimeTable:
    """A table, read. Raises DataError for what cannot be read, and a column of numbers among which many cells are none.

    path: of a file, or a table in memory, whose times may be its index. columns: the channels; None takes all columns
    of numbers but times. time_column: see `find_times`. step_labels: a column that is no channel, kept as `labels`.
    reading: what `read_table` takes.
    numbers: the channels, float64, a row per time step. times: of the rows, or None. text: columns that are left out.
    told: how the file is written. notes: what is wrong with the rows.
    """

    def __init__(
        self,
        path: str | pandas.DataFrame,
        columns: Sequence[str] | None = None,
        time_column: str | Sequence[str] | None = None,
        step_labels: str | None = None,
        **reading: Any,
    ) -> None:
        if isinstance(path, str):
            frame, self.told, decimal, self.notes = read_table(path, **reading)
        else:
            frame = path.reset_index(drop=path.index.dtype.kind != "M")  # which may hold the times
            frame, path = frame.set_axis(list(map(str, frame.columns)), axis=1), "the table"
            self.told, decimal, self.notes = "a table in memory", ".", []
        self.path = path
        self.labels = None
        if step_labels is not None:
            [name] = check_names(path, frame, [step_labels], "data.source.step_labels")
            if name in (columns or ()):
                raise DataError(f"{path}: data.source.step_labels={name} is in data.source.columns too: leave it out")
            self.labels = frame.pop(name)
        wanted = None if columns is None else check_names(path, frame, columns, "data.source.columns")
        self.time_columns, self.times = find_times(path, frame, time_column, wanted or ())
        free = [name for name in frame.columns if name not in self.time_columns] if wanted is None else wanted
        self.text = [name for name in free if frame[name].dtype.kind not in "iufb"]
        for name in self.text:
            self._check_text(frame[name], decimal, asked_for=wanted is not None)
        channels = [name for name in free if name not in self.text]
        if not channels:
            shown = ", ".join(f"{name} ({str(frame[name].iloc[0])[:30]})" for name in frame.columns[:5])
            advice = "set data.source.separator or data.source.decimal if that is wrong"
            problem = f"no columns of numbers; read with {self.told}, its columns are {shown}"
            raise DataError(f"{path} has {problem}: {advice}")
        self.numbers = frame[channels].astype("float64")
        names = [*channels, *self.time_columns]
        if wanted is None and all(map(is_value, names)) and not all(re.fullmatch(r"-?\d+", name) for name in names):
            advice = "put a header above them, or name the channels with data.source.columns=[...]"
            raise DataError(f"{path} has values where names of columns belong ({', '.join(names[:3])}): {advice}")

    def _check_text(self, cells: pandas.Series, decimal: str, asked_for: bool) -> None:
        """Raise DataError for text in a column that was asked for, or of which a tenth are numbers."""
        known = cells.dropna().astype(str).str.strip()
        if not asked_for and known.str.fullmatch(NUMBER).mean() < 0.1:
            return
        wrong = known[pandas.to_numeric(known.str.replace(decimal, ".", regex=False), errors="coerce").isna()]
        if len(wrong):  # dates of a column that was asked for are none
            shown, row = wrong.iloc[0][:100], int(wrong.index[0]) + 1
            raise DataError(
                f"{self.path}: column {cells.name!r} holds {shown!r} in row {row}, which is no number (read with "
                f"{self.told}): name the channels with data.source.columns=[...], what stands for missing cells with "
                "data.source.missing_markers=[...], or the mark before fractions with data.source.decimal"
            )

    def put_in_order(self) -> None:
        """Sort the rows by time, and leave out those without one."""
        if self.times is None:
            return
        times = self.times.dropna()
        if undated := len(self.times) - len(times):
            self.notes.append(f"rows without a time that can be read, left out: {undated}")
        if not times.is_monotonic_increasing:
            self.notes.append("rows are not in the order of their times, and are sorted")
            times = times.sort_values(kind="stable")
        self.numbers, self.times = self.numbers.loc[times.index], times
        self.labels = None if self.labels is None else self.labels.loc[times.index]

    def resample(self, step: pandas.Timedelta) -> None:
        """Take the mean and first label of each step of time (NaN without any). Raises DataError without times."""
        setting = f"{self.path}: data.source.resample={in_units(step)}"
        if self.times is None:
            columns = ", ".join(self.time_columns)
            why = f"{columns} cannot be read as such" if columns else "there are none"
            advice = "name what holds them with data.source.time_column, or set data.source.resample=null"
            raise DataError(f"{setting} needs times, and {why}: {advice}")
        usual = uneven_steps(self.times)[0]
        if usual is not None and step < usual:
            apart = in_units(usual)
            raise DataError(f"{setting} is finer than its rows, of which most are {apart} apart: give {apart} or more")
        rows = (self.times.max() - self.times.min()) / step + 1
        if 8 * rows * self.numbers.shape[1] > memory_limit():
            steps = f"from {self.times.min()} to {self.times.max()} there are {rows:,.0f} steps"
            advice = "which do not fit in memory: use a longer one, or mend the times"
            raise DataError(f"{self.path}: {steps} of data.source.resample, {advice}")
        if self.labels is not None:
            self.labels = self.labels.set_axis(pandas.DatetimeIndex(self.times)).resample(step).first()
        self.numbers = self.numbers.set_index(pandas.DatetimeIndex(self.times)).resample(step).mean()
        self.times = self.numbers.index.to_series()
        if missing := int(self.numbers.isna().all(axis=1).sum()):
            self.notes.append(f"nothing was measured in {missing} of {len(self.times)} steps of {in_units(step)}")

    def find_uneven_steps(self) -> None:
        """Note steps between rows that are not the usual one."""
        usual, count = (None, 0) if self.times is None else uneven_steps(self.times)
        if not count:
            return
        total, repeated = len(self.times) - 1, int(self.times.duplicated().sum())
        again = f". {repeated} times are there again: by a clock that went back, or of several devices"
        self.notes.append(
            f"{count} of {total} steps between rows ({count / total:.2%}) are not the usual {in_units(usual)}, the "
            f"longest is {in_units(self.times.diff().max())}, and windows take them for even ones: data.source."
            f"resample={in_units(usual)} takes means, and leaves gaps missing{again if repeated else ''}"
        )

    @property
    def step(self) -> pandas.Timedelta | None:
        """The usual step between rows; None without times."""
        return None if self.times is None or not len(self.times) else uneven_steps(self.times)[0]

    def steps_a_day(self) -> int | None:
        """Return the rows of a day; None for steps of a day or more, or without times."""
        usual = self.step
        seconds = 0.0 if usual is None else usual.total_seconds()
        return round(86400 / seconds) if 0 < seconds < 86400 else None

    def find_markers(self) -> None:
        """Note a value at the end of a column's range that is there often and far from all others: -9999."""
        found: dict[str, list[str]] = {}
        for name in self.numbers.columns:
            counts = self.numbers[name].value_counts().sort_index()
            lowest, low, *_, high, highest = [*counts.index] if len(counts) >= 4 else [0.0] * 4
            for end, other in ((lowest, low), (highest, high)):
                if abs(end - other) > 5 * max(high - low, 1e-9) and counts[end] >= MARKERS:
                    found.setdefault(f"{end:g}", []).append(name)
        for value, names in found.items():
            self.notes.append(
                f"{value} stands {MARKERS} times or more, far from all other values, in {named(names)}: if that is a "
                f"missing value, data.source.missing_markers=['{value}']"
            )

    def lines(self) -> list[str]:
        """Return what the first lines of a run say of the table."""
        names = list(self.numbers.columns)
        lines = [f"channels: {named(names)}"]
        if self.times is not None and len(self.times):
            every = "" if self.step is None else f", every {in_units(self.step)}"
            columns = ", ".join(self.time_columns)
            lines[0] += f"; time: {columns} ({self.times.min()} to {self.times.max()}{every})"
        elif self.time_columns:
            lines[0] += f"; left out, though no times: {named(self.time_columns)}"
        else:
            lines[0] += "; no times"
        lines[0] += f"; left out, as text: {named(self.text)}" if self.text else ""
        steps = self.numbers.diff().iloc[1:]
        constant = [name for name in names if self.numbers[name].nunique() < 2]
        even = [name for name in names if len(steps) > 1 and steps[name].notna().all() and steps[name].nunique() == 1]
        counters = [name for name in even if name not in constant]
        useless = [f"{named(constant)} never changes"] if constant else []
        useless += [f"{named(counters)} only counts the rows"] if counters else []
        if useless:
            others = [name for name in names if name not in {*constant, *counters}]
            lines.append(f"{', '.join(useless)}; without: {columns_option(others)}")
        return lines


def columns_option(names: Sequence[str]) -> str:
    """Return the option, quoted for a shell, that chooses these columns."""
    return f"'data.source.columns={json.dumps(list(names), ensure_ascii=False)}'"


def in_units(step: pandas.Timedelta) -> str:
    """Return a length of time in the largest unit of which it is a whole number: 15min, 1h, 1D."""
    nanoseconds = step.value
    units = {"D": 86400 * 10**9, "h": 3600 * 10**9, "min": 60 * 10**9, "s": 10**9, "ms": 10**6, "us": 10**3, "ns": 1}
    unit = next(unit for unit, size in units.items() if nanoseconds % size == 0 and (nanoseconds or unit == "s"))
    return f"{nanoseconds // units[unit]}{unit}"
