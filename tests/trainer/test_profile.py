"""The profile of a window of steps."""

from __future__ import annotations

import io
import json

import pytest
import torch
from rich.console import Console
from rich.table import Table

from jepa.trainer.profile import Profile, window

CPU = torch.device("cpu")


def run(profile, steps, start=0):
    """Steps that multiply; gives what the profile gave after each, and at the end."""
    given = []
    for step in range(start, start + steps):
        torch.ones(64, 64) @ torch.ones(64, 64)
        given.append(profile.advance(step + 1))
    return given, profile.close()


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
    assert window(start, start + steps, 3, 5) == expected


def test_a_trace_and_a_table(tmp_path):
    profile = Profile(folder=tmp_path, start=10, stop=30, device=CPU)
    given, last = run(profile, 20, start=10)
    assert last is None
    assert [number for number, value in enumerate(given, 11) if value is not None] == [18]
    table = next(value for value in given if value is not None)
    assert multiplications(tmp_path / "profile" / "trace.json") == 5
    assert [path.name for path in (tmp_path / "profile").iterdir()] == ["trace.json"]
    assert isinstance(table, Table)
    text = shown(table)
    assert "Profile of steps 14 to 18" in text
    assert "aten::mm" in text
    assert "%" in text
    assert table.row_count <= 15
    assert [column.header for column in table.columns] == ["operation", "calls", "CPU ms", "share"]


@pytest.mark.parametrize("steps", [1, 2])
def test_a_short_run_is_profiled_whole(tmp_path, steps):
    given, _ = run(Profile(folder=tmp_path, start=0, stop=steps, device=CPU), steps)
    assert given[-1] is not None
    assert multiplications(tmp_path / "profile" / "trace.json") == steps


def test_a_run_that_stops_inside_the_window(tmp_path):
    given, last = run(Profile(folder=tmp_path, start=0, stop=30, device=CPU), 5)
    assert given == [None] * 5
    assert "Profile of steps 4 to 5" in shown(last)
    assert multiplications(tmp_path / "profile" / "trace.json") == 2


@pytest.mark.parametrize(("steps", "stop"), [(2, 30), (3, 30), (0, 2), (0, 0)])
def test_a_run_that_stops_before_it_says_so(tmp_path, steps, stop):
    profile = Profile(folder=tmp_path, start=0, stop=stop, device=CPU)
    given, last = run(profile, steps)
    assert given == [None] * steps
    assert last.startswith("no profile")
    assert profile.close() is None
    assert not (tmp_path / "profile").exists()


def test_settings_out_of_range(tmp_path):
    for wrong in ({"first_step": -1}, {"steps": 0}):
        with pytest.raises(ValueError, match="expected first_step >= 0 and steps >= 1"):
            Profile(folder=tmp_path, start=0, stop=5, device=CPU, **wrong)


@pytest.mark.skipif(not torch.cuda.is_available(), reason="no CUDA device")
def test_device_time(tmp_path):
    device = torch.device("cuda")
    profile = Profile(folder=tmp_path, start=0, stop=6, device=device, first_step=1, steps=5)
    x = torch.ones(512, 512, device=device)
    given = []
    for step in range(6):
        _ = x @ x
        given.append(profile.advance(step + 1))
    table = given[-1]
    assert [column.header for column in table.columns] == ["operation", "calls", "CPU ms", "CUDA ms", "share"]
    assert "aten::mm" in shown(table)
