"""When the rows of a table were measured: in one column or several, evenly or not."""

from __future__ import annotations

import warnings
from collections.abc import Sequence

from jepa.utils.errors import DataError
from jepa.utils.lazy_import import lazy_import, require

pandas = lazy_import("pandas")
DATE_NAMES = ("date", "datetime", "time", "timestamp")
PARTS = {
    "year": "year yr jahr año ano année annee anno",
    "month": "month monat mes mês mois mese",
    "day": "day tag día dia jour giorno",
    "hour": "hour hr stunde hora heure ora",
    "minute": "minute minuto",
    "second": "second sekunde segundo seconde secondo",
}
"""Part of a date -> what its column may be called, in any case."""
DATED = 0.9  # share of the cells of a column of times that can be read as such; rows of the others are left out
CLOCK = r"\d{1,2}[:.h]\d{2}(?:[:.]\d{2}(?:[.,]\d+)?)?"


def find_times(
    path: str, frame: pandas.DataFrame, time_column: str | Sequence[str] | None, channels: Sequence[str]
) -> tuple[list[str], pandas.Series | None]:
    """Return the columns that hold the time, and the times, in UTC where a zone is given; None where there are none.

    time_column: one column, or those of year, month, day and so on in this order, or of date and clock time. None takes
    such by their names, or any column of text that reads as dates. channels: columns that are none of these.
    """
    free = [name for name in frame.columns if name not in channels]
    named = [name for name in free if name.lower() in DATE_NAMES]
    if time_column is not None:
        names = [time_column] if isinstance(time_column, (str, int)) else list(time_column)
        names = check_names(path, frame, names, "data.source.time_column")
        if len(names) > 2:
            times = _assembled(frame, dict(zip(PARTS, names)))
        else:
            times = as_dates(frame[names[0]], named=True)
            times = times if times is None or len(names) == 1 else _with_clock(times, frame[names[1]])
        return [*names, *(name for name in named if name not in names)], times
    parts = _named_parts(frame, free)
    if {"year", "month", "day"} <= parts.keys():
        names, times = list(parts.values()), _assembled(frame, parts)
    else:
        found = {name: as_dates(frame[name], named=name in named) for name in free}
        found = {name: dates for name, dates in found.items() if dates is not None}
        first = next((name for name in named if name in found), next(iter(found), None))
        names, times = [name for name in free if name in {*named, *found}], found.get(first)
    clocks = [name for name in free if is_clock(frame[name])]
    if times is not None and times.duplicated().any() and times.dropna().dt.normalize().eq(times.dropna()).all():
        clock = next(iter(clocks), parts.get("hour"))
        times = times if clock is None else _with_clock(times, frame[clock])
        clocks.append(clock)
    return [name for name in free if name in {*names, *clocks}], times


def _named_parts(frame: pandas.DataFrame, free: Sequence[str]) -> dict[str, str]:
    """Return the columns of numbers that are called a part of a date and hold such; minutes count with hours alone."""
    most = {"hour": 24, "minute": 59, "second": 59}
    parts: dict[str, str] = {}
    for part, words in PARTS.items():
        name = next((name for name in free if name.lower() in words.split()), None)
        fits = name is not None and frame[name].dtype.kind in "iuf"
        if fits and (part not in most or frame[name].dropna().between(0, most[part]).all()):
            parts[part] = name
        elif part in ("hour", "minute"):
            break
    return parts


def check_names(path: str, frame: pandas.DataFrame, names: Sequence[object], key: str) -> list[str]:
    """Return the names as str. Raise DataError for one that is no column. key: the option that names them."""
    names = list(map(str, names))
    if lacking := [name for name in names if name not in frame.columns]:
        raise DataError(f"{path} has no column {lacking[0]!r} ({key}); its columns are {', '.join(frame.columns)}")
    return names


def as_dates(cells: pandas.Series, named: bool = False) -> pandas.Series | None:
    """Return a column as dates without a zone; None where it holds none.

    named: whether it is called a date, and numbers may be dates: 20240131, or seconds (or ms, us, ns) since 1970.
    Day or month come first as more of the cells, or the more even steps, have it.
    """
    if cells.dtype.kind == "M" or isinstance(cells.dtype, pandas.DatetimeTZDtype):
        return pandas.to_datetime(cells, utc=True).dt.tz_localize(None)
    if pandas.api.types.is_numeric_dtype(cells):
        return _dates_of_numbers(cells) if named else None
    known = cells.dropna().astype(str)
    few = known.iloc[:: max(1, len(known) // 100)]
    if not few.str.contains(r"\d\D*\d\D*\d").mean() > DATED or is_clock(few):
        return None
    best = None
    for how in ({"format": "ISO8601"}, {"dayfirst": True}, {"dayfirst": False}):
        with warnings.catch_warnings():
            warnings.simplefilter("ignore")  # that the format is not known beforehand
            dates = pandas.to_datetime(cells.astype(str).where(cells.notna()), errors="coerce", utc=True, **how)
        dates = dates.dt.tz_localize(None)
        fit = (round(dates.notna().sum() / max(1, len(known)), 2), -uneven_steps(dates)[1])
        if fit[0] > DATED and (best is None or fit > best[0]):
            best = fit, dates
        if fit == (1, 0):
            break
    return None if best is None else best[1]


def _dates_of_numbers(cells: pandas.Series) -> pandas.Series | None:
    known = cells.dropna()
    if not len(known) or not (known % 1 == 0).all() or known.min() < 19000101:
        return None
    if known.max() < 21001231:
        dates = pandas.to_datetime(cells.astype("Int64").astype("string"), format="%Y%m%d", errors="coerce")
        return dates if dates.notna().mean() > DATED else None
    unit = next((u for u, size in (("s", 1e10), ("ms", 1e13), ("us", 1e16), ("ns", 1e19)) if known.max() < size), None)
    return pandas.to_datetime(cells, unit=unit, errors="coerce") if unit and known.min() > 1e8 else None


def is_clock(cells: pandas.Series) -> bool:
    """Return whether nearly all cells of a column are times of day, such as 12:30."""
    known = cells.dropna()
    return cells.dtype.kind not in "iufbmM" and known.astype(str).str.strip().str.fullmatch(CLOCK).mean() > DATED


def _with_clock(dates: pandas.Series, clock: pandas.Series) -> pandas.Series:
    if clock.dtype.kind in "iuf":
        return dates.dt.normalize() + pandas.to_timedelta(clock, unit="hour")
    text = clock.astype(str).str.strip().str.replace(r"^(\d+)[:.h](\d+)[:.]?", r"\1:\2:", regex=True)
    text = text.str.replace(r":$", ":00", regex=True).str.replace(",", ".", regex=False)
    return dates.dt.normalize() + pandas.to_timedelta(text, errors="coerce")


def _assembled(frame: pandas.DataFrame, parts: dict[str, str]) -> pandas.Series | None:
    """Return dates of columns of numbers; None where they are no dates. Hour 24 is the next day's first."""
    numbers = {part: pandas.to_numeric(frame[name], errors="coerce") for part, name in parts.items()}
    numbers["year"] = numbers["year"].where(numbers["year"] > 99, numbers["year"] + 2000)
    days = pandas.DataFrame({part: numbers.pop(part) for part in ("year", "month", "day")})
    days = pandas.to_datetime(days, errors="coerce")
    for part, values in numbers.items():
        days = days + pandas.to_timedelta(values, unit=part)
    return days if days.notna().mean() > DATED else None


def uneven_steps(times: pandas.Series) -> tuple[pandas.Timedelta | None, int]:
    """Return the usual step and how many steps are unlike it; None where time does not go on. Months count as even."""
    steps = times.diff().iloc[1:]
    changes = steps[steps != pandas.Timedelta(0)]
    if not changes.notna().any():
        return None, 0
    usual = changes.median()
    allowed = usual * (0.1 if usual >= pandas.Timedelta(days=28) else 0.01)
    return usual, int(((steps - usual).abs() > abs(allowed)).sum())


def step_length(resample: str) -> pandas.Timedelta:
    """Return data.source.resample as a length of time. Raise ValueError for what is none above 0."""
    require("pandas", extra="series", purpose="reading a table of time series")
    try:
        length = pandas.Timedelta(resample)
        if length > pandas.Timedelta(0):
            return length
        reason = "it is not above 0"
    except (ValueError, TypeError) as error:
        reason = str(error)
    expected = f"no length of time ({reason}): expected such as 15min, 1h or 1D, or null"
    raise ValueError(f"data.source.resample={resample!r} is {expected}")
