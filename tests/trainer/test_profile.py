"""The profile of a window of steps."""

from __future__ import annotations

import io
import json

import pytest
import torch
from rich.console import Console
from rich.table import Table

from jepa.trainer.profile import profiling, window

CPU = torch.device("cpu")


def run(folder, made, *, start=0, stop):
    """What is shown in steps that multiply, and after how many."""
    shown = []
    with profiling(
        True, lambda table: shown.append((step, table)), folder=folder, start=start, stop=stop, device=CPU
    ) as advance:
        step = start
        for step in range(start + 1, start + made + 1):
            torch.ones(64, 64) @ torch.ones(64, 64)
            advance(step)
    return shown


def multiplications(path):
    return sum(event.get("name") == "aten::mm" for event in json.loads(path.read_text())["traceEvents"])


def shown(table):
    file = io.StringIO()
    Console(file=file, width=200).print(table)
    return file.getvalue()


@pytest.mark.parametrize(
    ("start", "steps", "expected"),
    [
        (0, 20, (3, 8)),
        (100, 20, (103, 108)),
        (0, 8, (3, 8)),
        (0, 6, (1, 6)),  # the warm-up gives way first
        (0, 2, (0, 2)),
        (7, 1, (7, 8)),
        (7, 0, (7, 7)),
    ],
)
def test_the_window(start, steps, expected):
    assert window(start, start + steps) == expected


def test_a_trace_and_a_table(tmp_path):
    ((step, table),) = run(tmp_path, 20, start=10, stop=30)
    assert step == 18
    assert multiplications(tmp_path / "profile" / "trace.json") == 5
    assert [path.name for path in (tmp_path / "profile").iterdir()] == ["trace.json"]
    assert isinstance(table, Table)
    text = shown(table)
    assert "Profile of steps 14 to 18" in text
    assert "aten::mm" in text
    assert "%" in text
    assert "ProfilerStep" not in text
    assert table.row_count <= 15
    assert [column.header for column in table.columns] == ["operation", "calls", "CPU ms", "share"]


@pytest.mark.parametrize("steps", [1, 2])
def test_a_short_run_is_profiled_whole(tmp_path, steps):
    ((step, _),) = run(tmp_path, steps, stop=steps)
    assert step == steps
    assert multiplications(tmp_path / "profile" / "trace.json") == steps


def test_a_run_that_stops_inside_the_window(tmp_path):
    ((_, table),) = run(tmp_path, 5, stop=30)
    assert "Profile of steps 4 to 5" in shown(table)
    assert multiplications(tmp_path / "profile" / "trace.json") == 2


@pytest.mark.parametrize(("steps", "stop"), [(2, 30), (3, 30), (0, 2), (0, 0)])
def test_a_run_that_stops_before_it_says_so(tmp_path, steps, stop):
    ((_, words),) = run(tmp_path, steps, stop=stop)
    assert words.startswith("no profile")
    assert not (tmp_path / "profile").exists()


def test_what_is_not_asked_for_is_not_made(tmp_path):
    with profiling(False, pytest.fail, folder=tmp_path, start=0, stop=2, device=CPU) as advance:
        advance(1), advance(2)
    assert list(tmp_path.iterdir()) == []


@pytest.mark.skipif(not torch.cuda.is_available(), reason="no CUDA device")
def test_device_time(tmp_path):
    tables, device = [], torch.device("cuda")
    x = torch.ones(512, 512, device=device)
    with profiling(True, tables.append, folder=tmp_path, start=0, stop=6, device=device) as advance:
        for step in range(6):
            _ = x @ x
            advance(step + 1)
    (table,) = tables
    assert [column.header for column in table.columns] == ["operation", "calls", "CPU ms", "CUDA ms", "share"]
    assert "aten::mm" in shown(table)
