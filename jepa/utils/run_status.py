"""The state of a run, as `status.json` in its folder, read by `scripts/status.py`, leaderboards and sweeps.

Rank 0 writes it, atomically.
"""

from __future__ import annotations

import contextlib
import dataclasses
import json
import os
import socket
import sys
import time
from collections.abc import Iterator, Mapping
from dataclasses import dataclass, field
from pathlib import Path
from typing import Any, Literal

import psutil

from jepa.utils.errors import UserError
from jepa.utils.files import write_text

STATUS_FILE = "status.json"
State = Literal["queued", "running", "preempted", "stopped", "done", "failed"]
"""queued: submitted to a scheduler. preempted: saved, and queued again by the scheduler. stopped: by a user's signal.
failed: ended by the error in `reason`."""

FINISHED: tuple[State, ...] = ("done", "failed", "stopped")


@dataclass(frozen=True)
class Status:
    """The state of a run.

    reason: why it failed, or ended before its last step. overrides: its options, as on the command line.
    step, max_steps: its progress; None before the first step. samples_per_second: at the last log line.
    train_seconds: time of all steps, over all restarts. verdict: the collapse monitor's.
    objective: metric name -> value that a sweep optimises, once it is done or has failed.
    settled: whether `objective` is final; a run that is done may have none.
    host, pid, pid_created: of rank 0, with the process's creation time, as pids are reused.
    job: its id with the scheduler, "17" or "17_3". starts: number of starts.
    started, updated: seconds since the epoch, of the first start and of this file.
    """

    state: State
    reason: str | None = None
    overrides: list[str] = field(default_factory=list)
    step: int | None = None
    max_steps: int | None = None
    samples_per_second: float | None = None
    train_seconds: float | None = None
    verdict: str | None = None
    objective: dict[str, float] = field(default_factory=dict)
    settled: bool = False
    host: str | None = None
    pid: int | None = None
    pid_created: float | None = None
    job: str | None = None
    starts: int = 0
    started: float | None = None
    updated: float | None = None


def read_status(folder: Path) -> Status | None:
    """Return the status of a run folder; None without a readable status.json."""
    try:
        content = json.loads((folder / STATUS_FILE).read_text())
    except (FileNotFoundError, NotADirectoryError, IsADirectoryError, ValueError):
        return None
    if not isinstance(content, dict) or "state" not in content:
        return None
    known = {item.name for item in dataclasses.fields(Status)}
    return Status(**{name: value for name, value in content.items() if name in known})


def write_status(folder: Path, status: Status) -> None:
    """Write the status of a run folder, which is made. Raises UserError when it cannot be written."""
    write_text(folder / STATUS_FILE, json.dumps(dataclasses.asdict(status), indent=2) + "\n", key="status")


@contextlib.contextmanager
def warn_if_not_written(what: str) -> Iterator[None]:
    """A context that turns a UserError into a warning, as a status file is no reason to end a run."""
    try:
        yield
    except UserError as error:
        print(f"warning: {what} could not be written: {error}", file=sys.stderr)


def update_status(folder: Path, changes: Mapping[str, Any]) -> Status:
    """Change some fields of the status, and return it; the state of a new one is "running"."""
    before = read_status(folder) or Status(state="running")
    status = dataclasses.replace(before, **{**changes, "updated": time.time()})
    write_status(folder, status)
    return status


def start_status(folder: Path, overrides: list[str], job: str | None) -> Status:
    """Write the status of a run that this process starts or continues. job: its id with the scheduler, if any."""
    before = read_status(folder) or Status(state="running")
    fresh = {"state": "running", "reason": None, "objective": {}, "settled": False}
    process = {"host": socket.gethostname(), "pid": os.getpid(), "pid_created": psutil.Process().create_time()}
    count = {"starts": before.starts + 1, "started": time.time() if before.started is None else before.started}
    return update_status(folder, {**fresh, **process, **count, "overrides": overrides, "job": job})


def is_collapse(verdict: str | None) -> bool:
    """Return whether a verdict of the collapse monitor is collapse or divergence."""
    return verdict is not None and (verdict.endswith("collapse") or verdict == "diverged")


def is_alive(status: Status | None) -> bool:
    """Return whether the process of a run, or the one that is about to start it, exists on this machine."""
    if status is None or status.state not in ("queued", "running") or not _is_here(status):
        return False
    try:
        process = psutil.Process(status.pid)
        same = status.pid_created is None or abs(process.create_time() - status.pid_created) < 1
        return same and process.status() != psutil.STATUS_ZOMBIE
    except psutil.NoSuchProcess:
        return False


def is_running_elsewhere(status: Status | None) -> bool:
    """Return whether another process on this machine is running this run."""
    return status is not None and status.state == "running" and status.pid != os.getpid() and is_alive(status)


def is_dead(status: Status) -> bool:
    """Return whether a run that should be running on this machine has lost its process."""
    return status.state == "running" and _is_here(status) and not is_alive(status)


def _is_here(status: Status) -> bool:
    return status.pid is not None and status.host == socket.gethostname()
