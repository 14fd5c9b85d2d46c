"""Tables as people write them: every way of writing gives the same numbers and times, or says why it cannot."""

from __future__ import annotations

import bz2
import functools
import gzip

import numpy as np
import pandas
import pytest
import torch

from jepa.data.series_data import SeriesData
from jepa.data.sources.series_tables import series_csv
from jepa.data.sources.table_files import read_table
from jepa.data.sources.time_table import TimeTable
from jepa.utils.errors import DataError

ROWS = 60
TIMES = pandas.date_range("2024-01-30 20:00", periods=ROWS, freq="1h")
VALUES = np.round(np.random.default_rng(0).normal(0, [[3.0], [4e6]], (2, ROWS)), 2)


def write(
    *,
    separator=",",
    decimal=".",
    thousands="",
    quote="",
    header=("time", "höhe", "b"),
    time="%Y-%m-%d %H:%M:%S",
    encoding="utf-8",
    above="",
    end="\n",
):
    """A table of TIMES and VALUES as bytes, `time` in as many columns as it has separators."""

    def number(value):
        text = f"{value:,.2f}".replace(",", "T").replace(".", "D").replace("D", decimal).replace("T", thousands)
        return f"{quote}{text}{quote}"

    rows = [[f"{t:{time}}", *map(number, values)] for t, *values in zip(TIMES, *VALUES)]
    return (above + end.join(map(separator.join, [header, *rows])) + end).encode(encoding)


GERMAN = {"separator": ";", "decimal": ",", "time": "%d.%m.%Y %H:%M"}
SPREAD = {"separator": ";", "time": "%Y;%m;%d;%H"}
WRITINGS = {
    "plain": ({}, "commas between cells, decimal point, UTF-8"),
    "semicolons": (GERMAN, "semicolons between cells, decimal comma, UTF-8"),
    "German": ({**GERMAN, "thousands": "."}, "decimal comma, UTF-8, '.' between thousands"),
    "Swiss": ({"separator": ";", "thousands": "'"}, '"\'" between thousands'),
    "French": ({**GERMAN, "thousands": "\u202f", "time": "%d/%m/%Y %H:%M"}, r"'\u202f' between thousands"),
    "blanks in numbers": ({**GERMAN, "thousands": " "}, "' ' between thousands"),
    "American": ({"thousands": ",", "quote": '"', "time": "%m/%d/%Y %I:%M %p"}, "',' between thousands"),
    "Spanish": ({"decimal": ",", "thousands": ".", "quote": '"', "time": "%d/%m/%Y %H:%M"}, "decimal comma"),
    "tabs": ({**GERMAN, "separator": "\t"}, "tabs between cells, decimal comma"),
    "bars": ({"separator": "|"}, "bars between cells"),
    "spaces": ({"separator": "   ", "time": "%Y-%m-%dT%H:%M"}, "spaces between cells, decimal point"),
    "date and clock": ({**GERMAN, "time": "%d/%m/%Y;%H.%M.%S", "header": ("Date", "Time", "höhe", "b")}, ""),
    "date and hour": ({**GERMAN, "time": "%d/%m/%Y;%H", "header": ("fecha", "hora", "höhe", "b")}, ""),
    "spread": ({**SPREAD, "header": ("year", "month", "day", "hour", "höhe", "b")}, ""),
    "spread, with a clock": (
        {"separator": ";", "time": "%Y;%m;%d;%H:%M", "header": ("year", "month", "day", "hour", "höhe", "b")},
        "",
    ),
    "spread, Spanish": ({**SPREAD, "header": ("Año", "Mes", "Día", "Hora", "höhe", "b")}, ""),
    "byte order mark": ({"encoding": "utf-8-sig"}, "UTF-8"),
    "UTF-16": ({**GERMAN, "encoding": "utf-16"}, "decimal comma, UTF-16"),
    "UTF-16 without a mark": ({**GERMAN, "encoding": "utf-16-be"}, "UTF-16-BE"),
    "cp1252": ({**GERMAN, "encoding": "cp1252"}, "CP1252"),
    "Windows lines": ({"end": "\r\n"}, ""),
    "old Macintosh lines": ({"end": "\r"}, ""),
    "lines above": ({**GERMAN, "above": "Logger 7\nserial: 1,5\n\n"}, "3 lines above the header left out"),
    "a hint for spreadsheets": ({**GERMAN, "above": "sep=;\n"}, "semicolons"),
    "separators at the ends": ({**GERMAN, "end": ";;\n"}, "semicolons"),
}


@pytest.mark.parametrize("name", WRITINGS)
def test_every_way_of_writing_gives_the_same_table(tmp_path, name, caplog):
    settings, told = WRITINGS[name]
    content = write(**settings)
    for packed, suffix in ((content, "csv"), (gzip.compress(content), "csv.gz"), (bz2.compress(content), "csv")):
        (tmp_path / f"t.{suffix}").write_bytes(packed)
        table = TimeTable(str(tmp_path / f"t.{suffix}"))
        np.testing.assert_allclose(table.numbers.to_numpy().T, VALUES)
        assert list(table.numbers.columns) == ["höhe", "b"]
        assert list(table.times) == list(TIMES)
        assert told in table.told
        assert not caplog.records
        assert series_csv(root=str(tmp_path / f"t.{suffix}")).timelines[0].period == 24


def test_what_is_set_counts(tmp_path):
    (tmp_path / "t.csv").write_text("a;b\n" + "1,234;5,678\n2,345;6,789\n")
    for decimal, expected in ((None, 1.234), (",", 1.234), (".", 1234)):
        frame, *_ = read_table(tmp_path / "t.csv", decimal=decimal)
        assert frame["a"][0] == expected
    for separator in (";", "semicolon"):
        assert read_table(tmp_path / "t.csv", separator=separator)[0].shape == (2, 2)
    (tmp_path / "w.csv").write_text("y x w z\n" + "".join(f"2024 {n // 24 + 1} {n % 24 + 1} 0.5\n" for n in range(72)))
    assert TimeTable(str(tmp_path / "w.csv")).times is None
    table = TimeTable(str(tmp_path / "w.csv"), time_column=["y", "x", "w"])
    assert table.times.iloc[-1] == pandas.Timestamp("2024-03-24")
    assert list(table.numbers.columns) == ["z"]
    (tmp_path / "h.csv").write_text("x w z\n" + "".join(f"2024-01-{n // 24 + 1} {n % 24} 0.5\n" for n in range(72)))
    times = TimeTable(str(tmp_path / "h.csv"), time_column=["x", "w"]).times
    assert times.iloc[25] == pandas.Timestamp("2024-01-02 01:00")
    (tmp_path / "m.csv").write_text(
        "year month day minute max\n" + "".join(f"2024 1 {n + 1} {n} 2\n" for n in range(30))
    )
    assert list(TimeTable(str(tmp_path / "m.csv")).numbers.columns) == ["minute", "max"]
    with pytest.raises(ValueError, match=r"data.source.separator='ab': expected a character or one of tab, "):
        read_table(tmp_path / "t.csv", separator="ab")
    with pytest.raises(ValueError, match=r"data.source.decimal='x': expected"):
        read_table(tmp_path / "t.csv", decimal="x")
    with pytest.raises(DataError, match=r"no column 'd' \(data.source.time_column\)"):
        TimeTable(str(tmp_path / "w.csv"), time_column=["y", "x", "d"])


def test_whole_numbers_in_groups_are_thousands(tmp_path):
    for separator, mark in ((";", "."), ("\t", ","), (";", ",")):
        rows = "".join(f"{n}{separator}{mark.join(('12', '500')) if n % 3 else '7'}\n" for n in range(50))
        (tmp_path / "t.csv").write_text(f"n{separator}a\n{rows}")
        frame, told, *_ = read_table(tmp_path / "t.csv")
        assert sorted(frame["a"].unique()) == [7, 12500]
        assert f"{mark!r} between thousands" in told


def test_numbers_as_dates(tmp_path):
    seconds = TIMES.astype("int64") // (10**9 if TIMES.unit == "ns" else 10**6 if TIMES.unit == "us" else 1)
    for name, unit in (("timestamp", 1), ("time", 1000)):
        (tmp_path / "t.csv").write_text(f"{name},a\n" + "".join(f"{s * unit},1.5\n" for s in seconds))
        assert list(TimeTable(str(tmp_path / "t.csv")).times) == list(TIMES)
    days = pandas.date_range("2024-01-01", periods=40)
    (tmp_path / "d.csv").write_text("date,a\n" + "".join(f"{day:%Y%m%d},1.5\n" for day in days))
    assert list(TimeTable(str(tmp_path / "d.csv")).times) == list(days)


def test_parquet(tmp_path):
    frame = pandas.DataFrame({"a": VALUES[0], "b": pandas.array([1, None] * (ROWS // 2), dtype="Int64"), "note": "x"})
    frame.assign(when=TIMES).to_parquet(tmp_path / "column.parquet")
    frame.set_index(TIMES.tz_localize("UTC")).to_parquet(tmp_path / "index.parquet")
    for name in ("column", "index"):
        table = TimeTable(str(tmp_path / f"{name}.parquet"))
        assert list(table.times) == list(TIMES)
        assert table.text == ["note"]
        assert table.numbers["b"].isna().sum() == ROWS // 2
    (tmp_path / "cut.parquet").write_bytes((tmp_path / "index.parquet").read_bytes()[:500])
    with pytest.raises(DataError, match=r"cut.parquet cannot be read as a parquet file"):
        TimeTable(str(tmp_path / "cut.parquet"))


@pytest.mark.parametrize(
    ("content", "message"),
    [
        (write(decimal=","), r"more cells than the header has names.*use another separator"),
        (
            "a\tb\n1,234\t2\n5,678\t3\n",
            r"'1,234', whose comma may .* data.source.decimal=',' or data.source.decimal='.'",
        ),
        ("a;b\n1,5;2.5\n", "holds '2.5' and '1,5': set data.source.decimal"),
        (
            "a;b\n" + "5;6\n" * 75000 + "1,5;6\n" + "5;6\n" * 325000,
            r"'a' holds '1,5' in row 75001.*data.source.decimal",
        ),
        ("a,b\n1,2\n3,4,5\n", "more cells than the header"),
        ("a,b\n" + '"1,2\n' * 100, "first row 1, have more cells than the header has names, or a quote"),
        ("<html>404</html>\n" * 50, "no columns of numbers; read with"),
        (write(header=("2024-01-01", "0.5", "3")), "values where names of columns belong"),
        (b"PK\x03\x04" + bytes(99), "workbook or a zip archive"),
        (bytes(range(256)) * 9, "zero bytes"),
        (b"", "no rows below its header"),
        (gzip.compress(b"a,b\n1,2\n", mtime=0)[:-9], "cannot be read as a CSV table"),
    ],
)
def test_what_can_be_read_in_two_ways_or_not_at_all(tmp_path, content, message):
    (tmp_path / "t.csv").write_bytes(content.encode() if isinstance(content, str) else content)
    with pytest.raises(DataError, match=message):
        TimeTable(str(tmp_path / "t.csv"))


@pytest.mark.parametrize(
    ("row", "missing", "note"),
    [
        ("40,abc", [1], "cells that are no numbers, 'abc', are missing: 1 in 1 columns, the first in row 41 of 'b'"),
        ("True,0.5", [0], "cells that are no numbers, 'True', are missing"),
        ("40,\0.5", [1], "'?.5', are missing: 1 in 1 columns, the first in row 41 of 'b'"),
        ("40,", [1], None),
        ("40", [1], None),
        ("40,0.5,7", [0, 1], "1 of 100 rows, first row 41, have more cells"),
        ('40,"0.5', [0, 1], "1 of 100 rows, first row 41, have more cells"),
        ('"40,0.5', [0, 1], "1 of 100 rows, first row 41, have more cells"),
    ],
)
@pytest.mark.parametrize("separator", [",", ";", " "])
def test_what_cannot_be_read_is_missing_and_said(tmp_path, caplog, row, missing, note, separator):
    rows = [f"{n},{n % 7}.5" for n in range(100)]
    rows[40] = row
    (tmp_path / "t.csv").write_text("\n".join(["a,b", *rows, ""]).replace(",", separator))
    values = series_csv(root=str(tmp_path / "t.csv")).timelines[0].values
    assert values.isnan().nonzero().tolist() == [[channel, 40] for channel in missing]
    assert (note in caplog.text) if note else not caplog.records


def test_lines_above_a_header_whose_last_column_is_mostly_empty(tmp_path):
    rows = [f"2024-01-01 {n:02}:00;{n};{n % 7},5;{'seen' if n == 9 else ''}" for n in range(24)]
    (tmp_path / "t.csv").write_text("\n".join(["Station: X", "Model: a;7", "", "time;n;b;note", *rows, ""]))
    table = TimeTable(str(tmp_path / "t.csv"))
    assert (list(table.numbers.columns), table.text) == (["n", "b"], ["note"])
    assert "3 lines above the header left out" in table.told


def test_what_may_stand_for_a_missing_value_and_other_steps_are_said(tmp_path, caplog):
    for name, step in (("hours", "1h"), ("days", "1D")):
        times = pandas.date_range("2024-01-01", periods=200, freq=step)
        rows = [f"{t},{-9999 if n in (3, 50, 90) else n % 11},{n % 13}.5" for n, t in enumerate(times)]
        (tmp_path / f"{name}.csv").write_text("\n".join(["time,a,b", *rows, ""]))
    series_csv(root=str(tmp_path / "hours.csv"))
    assert "-9999 stands 3 times or more, far from all other values, in a: " in caplog.text
    values = series_csv(root=str(tmp_path / "hours.csv"), missing_markers=[-9999]).timelines[0].values
    assert values.isnan().nonzero().tolist() == [[0, 3], [0, 50], [0, 90]]
    lines = series_csv(root=str(tmp_path), missing_markers=[-9999]).lines
    assert "missing cells: 6 of 800 (0.75%), most in a (6)" in lines
    assert caplog.text.count("-9999 stands") == 1  # not again for a report
    series_csv(root=str(tmp_path))
    assert "the tables have different steps, 1D (days.csv), 1h (hours.csv): data.source.resample=" in caplog.text


def test_quotes_that_swallow_rows_cost_their_own_rows_alone(tmp_path):
    rows = [f"{n},{n % 7}.5" for n in range(100)]
    rows[20], rows[60] = '20,"6.5', '60,"4.5'
    (tmp_path / "t.csv").write_text("\n".join(["a,b", *rows]))
    assert series_csv(root=str(tmp_path / "t.csv")).timelines[0].values[0].isnan().nonzero().flatten().tolist() == [
        20,
        60,
    ]
    notes = "".join(f'{n},{n % 7}.5,"two\nlines"\n' if n % 9 == 0 else f"{n},{n % 7}.5,one\n" for n in range(100))
    (tmp_path / "n.csv").write_text("a,b,note\n" + notes)
    assert series_csv(root=str(tmp_path / "n.csv")).timelines[0].values.isnan().sum() == 0
    (tmp_path / "t.csv").write_text("\n".join(["a,b", *rows[:19], "1,2,3", "4,5,6", "7,8,9"]))
    with pytest.raises(DataError, match=r"some rows, first row 20, have more cells"):
        series_csv(root=str(tmp_path / "t.csv"))


def test_a_table_that_unpacks_to_more_than_fits(tmp_path, monkeypatch):
    for module in ("table_files", "download"):
        monkeypatch.setattr(f"jepa.data.sources.{module}.memory_limit", lambda: 2**16)
    (tmp_path / "t.csv").write_bytes(gzip.compress(b"a,b\n" + b"1,2\n" * 2**15))
    with pytest.raises(DataError, match="does not fit in memory once it is unpacked"):
        read_table(tmp_path / "t.csv")
    (tmp_path / "t.csv").write_text("a,b\n" + "1,2\n" * 2**13)
    with pytest.raises(DataError, match="its cells do not fit in memory"):
        read_table(tmp_path / "t.csv")
    pandas.DataFrame({"a": np.zeros(2**15)}).to_parquet(tmp_path / "t.parquet")
    with pytest.raises(DataError, match="do not fit in memory"):
        read_table(tmp_path / "t.parquet")


def test_steps_that_differ_are_said_and_resampled(tmp_path, caplog):
    rows = [f"{t},{n},7,{n * n % 17}\n" for n, t in enumerate(TIMES) if n not in range(10, 14)]
    (tmp_path / "t.csv").write_text("time,n,c,a\n" + "".join(reversed(rows)) + "total,9,9,9\n")
    table = series_csv(root=str(tmp_path / "t.csv"))
    said = caplog.text
    assert "rows without a time that can be read, left out: 1" in said
    assert "not in the order of their times, and are sorted" in said
    assert "1 of 55 steps between rows (1.82%) are not the usual 1h, the longest is 5h" in said
    assert "data.source.resample=1h" in said
    assert 'c never changes; without: \'data.source.columns=["n", "a"]\'' in table.lines[-1]
    values = series_csv(root=str(tmp_path / "t.csv"), resample="1h").timelines[0].values
    assert values[0, :10].tolist() == list(range(10))
    assert values[0, 14:].tolist() == list(range(14, ROWS))
    assert values[:, 10:14].isnan().all()
    two = series_csv(root=str(tmp_path / "t.csv"), resample="2h").timelines[0]
    assert two.values[0, :2].tolist() == [0.5, 2.5]
    assert two.period == 12
    with pytest.raises(ValueError, match=r"data.source.resample='1x' is no length of time"):
        series_csv(root=str(tmp_path / "t.csv"), resample="1x")
    with pytest.raises(DataError, match=r"resample=10min is finer than its rows, of which most are 1h apart"):
        series_csv(root=str(tmp_path / "t.csv"), resample="10min")
    close = "".join(f"2024-01-01 00:00:00.00000000{n},{n}\n" for n in range(5))
    (tmp_path / "far.csv").write_text(f"time,a\n{close}2025-01-01 00:00:00,7\n")
    with pytest.raises(DataError, match=r"steps of data.source.resample, which do not fit in memory"):
        series_csv(root=str(tmp_path / "far.csv"), resample="1us")
    (tmp_path / "u.csv").write_text("a,b\n" + "1,2\n" * 90)
    with pytest.raises(DataError, match=r"resample=1h needs times, and there are none"):
        series_csv(root=str(tmp_path / "u.csv"), resample="1h")


@pytest.mark.parametrize("time", ["%d.%m.%Y %H:%M", "%Y%m%d", "%Y;%m;%d;%H"])
def test_a_time_that_cannot_be_read_costs_its_row(tmp_path, caplog, time):
    times = pandas.date_range("2024-01-30", periods=40, freq="1D" if "H" not in time else "1h")
    lines = [f"{t:{time}};{n}.5" for n, t in enumerate(times)]
    lines[7] = "x" + lines[7][1:]
    names = "year;month;day;hour" if ";" in time else "timestamp" if "." not in time else "wann"
    (tmp_path / "t.csv").write_text("\n".join([f"{names};a", *lines]))
    assert series_csv(root=str(tmp_path / "t.csv")).timelines[0].values.shape == (1, 39)
    assert "rows without a time that can be read, left out: 1" in caplog.text


def test_days_and_months_come_in_the_order_that_fits(tmp_path):
    """Of 01.02. and 02/01/ alone nothing is known; the other rows tell."""
    days = pandas.date_range("2024-01-02", periods=90)
    for form in ("%d.%m.%Y", "%d/%m/%Y", "%m/%d/%Y", "%d-%m-%y", "%Y/%m/%d"):
        (tmp_path / "t.csv").write_text("when,a\n" + "".join(f"{day:{form}},0.5\n" for day in days))
        assert list(TimeTable(str(tmp_path / "t.csv")).times) == list(days), form
    months = pandas.date_range("2020-01-31", periods=40, freq="ME")
    (tmp_path / "m.csv").write_text("when,a\n" + "".join(f"{day:%Y-%m-%d},0.5\n" for day in months))
    assert "every 31D" in TimeTable(str(tmp_path / "m.csv")).lines()[0]


def write_devices(folder, rows=(400, 300, 30)):
    """A table with decimal commas for each number of rows; all hold the same columns."""
    for number, count in enumerate(rows):
        values = np.sin(np.arange(count) / 4 + number)
        lines = [
            f"{t};{v:.3f};{v * 7:.3f}"
            for t, v in zip(pandas.date_range("2024-01-01", periods=count, freq="1h"), values)
        ]
        (folder / f"{number}.csv").write_text("\n".join(["time;a;b", *lines]).replace(".", ","))
    return str(folder)


def devices(root, **settings):
    return SeriesData(source=functools.partial(series_csv, **settings), root=root, window_size=24, batch_size=4)


def test_a_folder_of_tables_is_many_series_and_no_window_crosses_files(tmp_path):
    (tmp_path / "notes.md").write_text("no table")
    data = devices(write_devices(tmp_path), splits=[0.5, 0.25, 0.25])
    assert [each.ends for each in data.timelines] == [(200, 300, 400), (150, 225, 300)]
    assert data.lines[0].startswith(
        "3 tables, each a series that is split by time; no window crosses from one to another"
    )
    assert data.lines[0].endswith("other files, left out: 1 (notes.md)")
    assert f"left out, as too short for data.window_size=24: {tmp_path}/2.csv" in data.lines
    assert data.spec.num_train == (200 - 23) + (150 - 23)
    train = torch.cat([each.values[:, : each.ends[0]] for each in data.timelines], dim=1)
    torch.testing.assert_close(data.level[:, 0], train.mean(dim=1))
    x = torch.cat([batch["x"] for batch in data.evaluation_batches("train", batch_size=1000)])
    z = [(each.values - data.level) / data.scale for each in data.timelines]
    torch.testing.assert_close(x[176], z[0][:, 176:200])
    torch.testing.assert_close(x[177], z[1][:, :24])
    (tmp_path / "3.csv").write_text((tmp_path / "0.csv").read_text().replace("b", "c", 1))
    with pytest.raises(DataError, match=r"0.csv has no column 'c', which other tables have: .*data.source.columns=\["):
        devices(str(tmp_path))
    assert devices(str(tmp_path), columns=["a"]).spec.input_shape == (1, 24)
    (tmp_path / "none").mkdir()
    (tmp_path / "none" / "a.doc").touch()
    with pytest.raises(DataError, match=r"holds no tables \(.csv, .tsv, .parquet\), but a.doc"):
        devices(str(tmp_path / "none"))


def test_forecasts_of_several_series_share_their_first_windows(tmp_path):
    data = devices(write_devices(tmp_path), splits=[0.5, 0.25, 0.25])
    z = [(each.values - data.level) / data.scale for each in data.timelines]
    short, long = (data.windows("test", horizon=horizon) for horizon in (5, 80))
    assert len(short) == (100 - 4) + (75 - 4)
    assert len(long) == 100 - 79  # the second series has 75 steps
    index = torch.arange(len(long))
    torch.testing.assert_close(short[index][4], long[index][4])
    _, future, _, _, window = short[torch.arange(len(short))]
    pairs = {tuple(torch.cat([w, f], dim=1).flatten().tolist()) for w, f in zip(window, future)}
    expected = {
        tuple(series[:, end : end + 29].flatten().tolist())
        for series, first in ((z[0], 300), (z[1], 225))
        for end in range(first - 24, series.shape[1] - 28)
    }
    assert pairs == expected
