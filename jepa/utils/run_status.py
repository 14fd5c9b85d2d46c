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
from collections.abc import Callable, Iterator, Mapping
from dataclasses import dataclass, field
from pathlib import Path
from typing import Any, Literal, get_args

import psutil

from jepa.utils.errors import UserError
from jepa.utils.files import write_text
from jepa.utils.read_data import DamagedFileError, exists, kind_of, read_mapping

STATUS_FILE = "status.json"
State = Literal["queued", "running", "preempted", "stopped", "done", "failed", "damaged"]
"""queued: submitted to a scheduler. preempted: saved, and queued again by the scheduler. stopped: by a user's signal.
failed: ended by the error in `reason`. damaged: unknown, as the files that say it are damaged; never written."""

FINISHED: tuple[State, ...] = ("done", "failed", "stopped", "damaged")


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


MAX_OVERRIDES = 1000
MAX_TEXT = 100_000  # characters of a text


def _is_text(value: object) -> bool:
    return isinstance(value, str) and len(value) <= MAX_TEXT


def _is_count(value: object) -> bool:
    return type(value) is int and 0 <= value < 2**63


def _is_seconds(value: object) -> bool:
    return type(value) in (int, float) and 0 <= value < 1e11


def is_overrides(value: object) -> bool:
    """Return whether a value can be the options of a run."""
    return isinstance(value, list) and len(value) <= MAX_OVERRIDES and all(map(_is_text, value))


def _is_objective(value: object) -> bool:
    return isinstance(value, dict) and len(value) <= 100 and all(type(v) in (int, float) for v in value.values())


FIELDS: dict[str, tuple[Callable[[object], bool], str]] = {
    "state": (lambda value: value in get_args(State)[:-1], f"one of {', '.join(get_args(State)[:-1])}"),
    "reason": (lambda value: isinstance(value, str), "a text"),
    "overrides": (is_overrides, f"a list of at most {MAX_OVERRIDES} texts"),
    "step": (_is_count, "a count"),
    "max_steps": (_is_count, "a count"),
    "samples_per_second": (lambda value: type(value) in (int, float) and not value < 0, "a number from 0"),
    "train_seconds": (_is_seconds, "seconds"),
    "verdict": (_is_text, "a text"),
    "objective": (_is_objective, "metrics with their numbers"),
    "settled": (lambda value: isinstance(value, bool), "true or false"),
    "host": (_is_text, "a text"),
    "pid": (lambda value: _is_count(value) and 0 < value < 2**31, "the number of a process"),
    "pid_created": (_is_seconds, "seconds"),
    "job": (_is_text, "a text"),
    "starts": (_is_count, "a count"),
    "started": (_is_seconds, "seconds"),
    "updated": (_is_seconds, "seconds"),
}
"""Field of `Status` -> whether a value can be its own, and what is expected in words. Optional ones may be null."""


def status_of(content: Mapping[str, Any], path: Path) -> Status:
    """Return the status of the values of a file; names that are no fields of `Status` are left out.

    Raise DamagedFileError for a field that cannot be right.
    """
    values = {}
    for item in dataclasses.fields(Status):
        value = content.get(item.name)
        if item.name not in content and item.default is dataclasses.MISSING is item.default_factory:
            raise DamagedFileError(path, f"it has no {item.name}")
        if item.name not in content or (value is None and item.default is None):
            continue
        is_right, expected = FIELDS[item.name]
        if not is_right(value):
            got = kind_of(value) if isinstance(value, (list, dict)) else repr(value)[:60]
            raise DamagedFileError(path, f"{item.name} is {got}, expected {expected}")
        values[item.name] = value
    return Status(**values)


def read_status(folder: Path) -> Status | None:
    """Return the status of a run folder: None without status.json, "damaged" with the reason where that is."""
    path = folder / STATUS_FILE
    if not exists(path):
        return None
    try:
        return status_of(read_mapping(path), path)
    except DamagedFileError as error:
        return Status(state="damaged", reason=error.brief)


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
    return _update(folder, _status_to_change(folder), changes)


def start_status(folder: Path, overrides: list[str], job: str | None) -> Status:
    """Write the status of a run that this process starts or continues. job: its id with the scheduler, if any."""
    before = _status_to_change(folder)
    fresh = {"state": "running", "reason": None, "objective": {}, "settled": False}
    process = {"host": socket.gethostname(), "pid": os.getpid(), "pid_created": psutil.Process().create_time()}
    count = {"starts": before.starts + 1, "started": time.time() if before.started is None else before.started}
    return _update(folder, before, {**fresh, **process, **count, "overrides": overrides, "job": job})


def _status_to_change(folder: Path) -> Status:
    """Return the status of a run folder, with a warning a new one in place of a damaged one."""
    before = read_status(folder)
    if before is not None and before.state == "damaged":
        print(f"warning: {folder}: {before.reason}: it begins anew", file=sys.stderr)
        before = None
    return before or Status(state="running")


def _update(folder: Path, before: Status, changes: Mapping[str, Any]) -> Status:
    status = dataclasses.replace(before, **{**changes, "updated": time.time()})
    write_status(folder, status)
    return status


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
    except psutil.AccessDenied:  # of another user, on macOS
        return True


def is_running_elsewhere(status: Status | None) -> bool:
    """Return whether another process on this machine is running this run."""
    return status is not None and status.state == "running" and status.pid != os.getpid() and is_alive(status)


def is_dead(status: Status) -> bool:
    """Return whether a run that should be running on this machine has lost its process."""
    return status.state == "running" and _is_here(status) and not is_alive(status)


def _is_here(status: Status) -> bool:
    return status.pid is not None and status.host == socket.gethostname()
