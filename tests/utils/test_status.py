"""status.json: read at any moment, and no reason to lose a run."""

from __future__ import annotations

import dataclasses
import json
import math
import os
import re
import signal
import socket

import psutil
import pytest

from jepa.utils.run_status import (
    Status,
    is_alive,
    is_dead,
    is_running_elsewhere,
    read_status,
    start_status,
    update_status,
    warn_if_not_written,
    write_status,
)
from jepa.utils.signals import EarlySignal


def test_what_is_written_is_read(tmp_path):
    status = Status(state="running", overrides=["a=1"], step=3, objective={"val/loss": 0.5}, job="7_1")
    write_status(tmp_path / "run", status)
    assert read_status(tmp_path / "run") == status
    assert [path.name for path in (tmp_path / "run").iterdir()] == ["status.json"]
    assert update_status(tmp_path / "run", {"step": 4}).job == "7_1"


WRONG = {
    "state": (5, "damaged", "asleep", None, ["done"]),
    "reason": (5, [1]),
    "overrides": ("a=1", [1], None, {"a": 1}, ["a=1"] * 2000),
    "step": (-1, 1.5, math.nan, "3", True, 10**19),
    "max_steps": ("x", -1),
    "samples_per_second": ("fast", -1.0, True),
    "train_seconds": ("1", math.nan, -1, 1e300, math.inf),
    "verdict": (1, {}),
    "objective": ([1], {"val/loss": "x"}, {"val/loss": None}, None),
    "settled": (1, "yes", None),
    "host": (1, ["here"]),
    "pid": (-1, 0, 2**40, 1.0, "7"),
    "pid_created": ("now", -1.0),
    "job": (17, {}),
    "starts": (-1, "1", 1.0, None),
    "started": ("yesterday", math.nan),
    "updated": (1e300, []),
}


@pytest.mark.faults
@pytest.mark.parametrize("name", [item.name for item in dataclasses.fields(Status)])
def test_a_field_that_cannot_be_right_is_named(tmp_path, name):
    for value in WRONG[name]:
        (tmp_path / "status.json").write_text(json.dumps({"state": "done", name: value}))
        found = read_status(tmp_path)
        assert (found.state, is_alive(found), is_dead(found)) == ("damaged", False, False), value
        assert re.match(f"status.json is damaged: {name} is ", found.reason), value


@pytest.mark.faults
@pytest.mark.parametrize("text", [b"", b'{"state": "runn', b"[]", b"{}", b"\xff", b"[" * 100_000])
def test_a_damaged_status_is_replaced_with_a_word(tmp_path, text, capsys):
    assert read_status(tmp_path) is None
    (tmp_path / "status.json").write_bytes(text)
    assert read_status(tmp_path).state == "damaged"
    assert read_status(tmp_path / "status.json") is None
    assert start_status(tmp_path, ["a=1"], None).starts == 1
    assert read_status(tmp_path).state == "running"
    assert re.fullmatch(r"warning: .*: status.json is damaged: .*: it begins anew\n", capsys.readouterr().err)


def test_keys_of_a_later_version_are_left_out(tmp_path):
    (tmp_path / "status.json").write_text('{"state": "done", "from_the_future": 1}')
    assert read_status(tmp_path) == Status(state="done")


@pytest.mark.faults
def test_what_cannot_be_written_is_a_warning_and_leaves_nothing_behind(tmp_path, capsys):
    (tmp_path / "status.json" / "x").mkdir(parents=True)
    with warn_if_not_written("the status"):
        write_status(tmp_path, Status(state="done"))
    assert "warning: the status could not be written" in capsys.readouterr().err
    assert [path.name for path in tmp_path.iterdir()] == ["status.json"]


def test_starts_are_counted(tmp_path):
    first = start_status(tmp_path, ["a=1"], None)
    update_status(tmp_path, {"state": "done", "objective": {"x": 1.0}, "settled": True})
    second = start_status(tmp_path, ["a=1"], "7")
    assert (first.starts, second.starts, second.job) == (1, 2, "7")
    assert (second.state, second.objective, second.settled) == ("running", {}, False)
    assert first.started == second.started


def test_processes_are_told_from_later_ones_of_their_number():
    me, here = psutil.Process(), socket.gethostname()
    mine = Status(state="running", pid=me.pid, pid_created=me.create_time(), host=here)
    assert is_alive(mine)
    assert not is_running_elsewhere(mine)
    later = Status(state="running", pid=me.pid, pid_created=me.create_time() - 100, host=here)
    assert not is_alive(later)
    assert is_dead(later)
    assert is_running_elsewhere(Status(state="running", pid=os.getppid(), host=here))
    assert not is_running_elsewhere(Status(state="running", pid=os.getppid(), host="elsewhere"))
    assert not is_dead(Status(state="done", pid=me.pid, host=here))


@pytest.mark.faults
def test_a_signal_that_comes_early():
    before, early = signal.getsignal(signal.SIGTERM), EarlySignal()
    try:
        early.install(signal.SIGTERM)
        os.kill(os.getpid(), signal.SIGTERM)
        assert early.number == signal.SIGTERM
    finally:
        signal.signal(signal.SIGTERM, before)
