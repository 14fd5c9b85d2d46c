"""status.json: read at any moment, and no reason to lose a run."""

from __future__ import annotations

import os
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


@pytest.mark.parametrize("text", [b"", b'{"state": "runn', b"[]", b"{}", b"\xff"])
@pytest.mark.faults
def test_what_is_no_status_is_none(tmp_path, text):
    (tmp_path / "status.json").write_bytes(text)
    assert read_status(tmp_path) is None
    assert read_status(tmp_path / "status.json") is None
    (tmp_path / "folder" / "status.json").mkdir(parents=True)
    assert read_status(tmp_path / "folder") is None


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
