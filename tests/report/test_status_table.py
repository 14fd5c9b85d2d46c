"""What scripts/status.py and scripts/leaderboard.py print."""

from __future__ import annotations

import io
import os
import re
import time

import pytest
from rich.console import Console
from run_folders import METRIC, write_run

from jepa.report.status_table import counts_line, newest, read_statuses, seconds_left, status_table
from jepa.utils.errors import UserError
from jepa.utils.run_status import Status


def test_states_are_held_against_processes_and_the_queue(tmp_path):
    here = {"host": os.uname().nodename}
    write_run(tmp_path, 0, "a=1", None, state="running", pid=2**22 + 1, **here)  # above the largest there can be
    write_run(tmp_path, 1, "a=2", None, state="running", pid=os.getpid(), **here)
    write_run(tmp_path, 2, "a=3", None, state="running", job="7_2", host="elsewhere", pid=1)
    write_run(tmp_path, 3, "a=4", None, state="running", job="7_3", host="elsewhere", pid=1)
    write_run(tmp_path, 4, "a=5", None, state="stopped", job="7_4", host="elsewhere", pid=1)
    write_run(tmp_path, 5, "a=6", None, state="queued", job="7_5")
    queue = {"7_3": "PENDING", "7_4": "PENDING", "7_5": "PENDING"}
    found = read_statuses(tmp_path, queue)
    states = [found[str(number)].state for number in range(6)]
    assert states == ["failed", "running", "failed", "preempted", "preempted", "queued"]
    assert "its process is gone" in found["0"].reason
    assert "its job 7_2 has left the queue" in found["2"].reason
    unknown = read_statuses(tmp_path)
    assert [unknown[str(number)].state for number in (2, 3, 4)] == ["running", "running", "stopped"]


def test_the_newest_and_those_under_way_are_shown(tmp_path):
    for number in range(25):
        write_run(tmp_path, number, f"a={number}", 0.5, **({"state": "queued"} if number == 0 else {}))
    runs = read_statuses(tmp_path)
    assert list(runs)[:2] == ["24", "23"]
    shown = newest(runs)
    assert len(shown) == 21
    assert list(shown)[-1] == "0"
    assert counts_line(runs, len(shown)) == "25 runs: 24 done, 1 queued; 4 older not shown (all=true shows them)"


def test_a_table_of_any_width(tmp_path):
    here = {"host": os.uname().nodename, "pid": os.getpid(), "state": "running", "samples_per_second": 1234.5}
    write_run(tmp_path, 0, "a=1", None, **here, step=25, train_seconds=50.0)
    write_run(tmp_path, 1, "a=2", None, state="failed", reason="no such file: x\nmore", job="17_3", step=None)
    write_run(tmp_path, 2, "a=3", None, state="preempted", reason="its time limit is over " * 4, starts=3)
    runs = read_statuses(tmp_path)

    def shown(width):
        console = Console(width=width, file=io.StringIO())
        console.print(status_table(runs, width, now=max(status.updated for status in runs.values()) + 65))
        return console.file.getvalue()

    wide = shown(200)
    assert re.search(r"\n +0 +running +25/100 +1,234 +2 min 30 s +healthy +1 +1 min \d\d s ago", wide)
    assert re.search(r"\n +1 +failed +no such file: x +healthy +17_3 +1 +1 min", wide)
    assert re.search(r"\n +2 +preempted +its time limit is over .* 100/100 +healthy +3 ", wide)
    narrow = shown(80)
    assert all(len(line) <= 80 for line in narrow.splitlines())
    assert re.search(r"\n +0 +running +25/100 .*2 min 30 s", narrow)
    assert "no room for " in narrow


def test_time_left():
    running = Status(state="running", step=25, max_steps=100, train_seconds=50.0, samples_per_second=64.0)
    assert seconds_left(running) == 150
    assert seconds_left(Status(state="running", step=0, max_steps=100, train_seconds=0.0)) is None
    assert seconds_left(Status(state="done", step=25, max_steps=100)) is None


def test_no_runs(tmp_path):
    with pytest.raises(UserError, match="holds no runs"):
        read_statuses(tmp_path)
    with pytest.raises(UserError, match="does not exist"):
        read_statuses(tmp_path / "none")


@pytest.fixture
def script(fork_server, tmp_path):
    def run(name, *arguments):
        return fork_server.start(list(arguments), tmp_path, {}, f"scripts/{name}.py").wait()

    return run


@pytest.mark.slow
def test_the_scripts(script, tmp_path):
    sweep = tmp_path / "outputs" / "study"
    write_run(sweep, 0, "optimizer.lr=1e-3", 0.5, started=time.time())
    write_run(sweep, 1, "optimizer.lr=1e-2", 0.7, state="failed", reason="no such file: x", started=time.time() + 1)
    status = script("status")
    assert status.returncode == 0, status.stderr
    lines = [line.split() for line in status.stdout.splitlines() if "study/" in line]
    assert lines[0][:6] == ["study/1", "failed", "no", "such", "file:", "x"]
    assert lines[1][:3] == ["study/0", "done", "100/100"]
    assert "2 runs: 1 done, 1 failed" in status.stdout
    board = script("leaderboard", "sweep=outputs/study", f"metric={METRIC}")
    assert board.returncode == 0, board.stderr
    assert re.search(r"\n +1 +0 +1e-3 +0.5000 ", board.stdout)
    assert "2 runs: 1 done, 1 failed." in board.stdout
    assert (sweep / "leaderboard.csv").is_file()
    assert (sweep / "leaderboard.html").is_file()
    for name, arguments, message in (
        ("leaderboard", [], "sweep= is missing"),
        ("leaderboard", ["sweep=outputs/study", "limit=0"], "limit=0"),
        ("leaderboard", ["sweep=outputs/study", "metric=[a,b]"], "give the name of one metric"),
        ("leaderboard", ["sweep=nowhere"], "sweep=nowhere does not exist"),
        ("status", ["folder=nowhere"], "folder=nowhere does not exist"),
        ("status", ["all=maybe"], "all=maybe: give true or false"),
    ):
        refused = script(name, *arguments)
        assert refused.returncode == 1
        assert message in refused.stderr
        assert "Traceback" not in refused.stderr
