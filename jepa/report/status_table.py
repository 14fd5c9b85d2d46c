"""The state of the runs below a folder: a table, newest first, and a line of counts."""

from __future__ import annotations

import math
import time
from collections.abc import Mapping, Sequence
from dataclasses import dataclass
from pathlib import Path
from typing import TYPE_CHECKING

from jepa.report.formatting import count_states, duration, number, progress, shortened
from jepa.report.run_files import current_status, last_modified, run_folders
from jepa.report.runs import name_of
from jepa.report.terminal_table import Column, rich_table
from jepa.utils.errors import UserError
from jepa.utils.run_status import FINISHED, Status

if TYPE_CHECKING:
    from rich.table import Table

NEWEST = 20
"""Ended runs that are shown by default; runs under way always are."""

STYLES = {"failed": "red", "running": "green", "preempted": "yellow", "queued": "yellow", "stopped": "dim"}


@dataclass(frozen=True)
class RunState:
    """A run. updated: seconds since the epoch of its last write."""

    folder: str
    status: Status
    updated: float


def read_states(folder: str | Path, queue: Mapping[str, str] | None = None) -> list[RunState]:
    """Return the runs below a folder, newest first. queue: see `current_status`.

    Raise UserError if the folder does not exist or has no runs.
    """
    folder = Path(folder)
    if not folder.is_dir():
        what = "is a file" if folder.exists() else "does not exist"
        raise UserError(f"folder={folder} {what}: give a run's folder, or one that holds runs, such as outputs")
    found = []
    for path in run_folders(folder):
        status = current_status(path, queue)
        found.append(RunState(name_of(path, folder), status, max(status.updated or 0.0, last_modified(path))))
    if not found:
        raise UserError(f"folder={folder} holds no runs: give one that does, such as outputs, or start one by train.py")
    return sorted(found, key=lambda run: (-(run.status.started or run.updated), run.folder))


def has_jobs(folder: str | Path) -> bool:
    """Return whether a scheduler runs an unfinished run below a folder, so that its queue is worth asking."""
    statuses = [current_status(path) for path in run_folders(Path(folder))]
    return any(status.job is not None and status.state != "done" for status in statuses)


def newest(runs: Sequence[RunState]) -> list[RunState]:
    """Return the newest runs and those that have not ended."""
    return [run for index, run in enumerate(runs) if index < NEWEST or run.status.state not in FINISHED]


def seconds_left(status: Status) -> float | None:
    """Return the seconds that a running run still needs, by its mean time per step; None if unknown."""
    if status.state != "running" or not (status.step and status.max_steps and status.train_seconds):
        return None
    return max(0, status.max_steps - status.step) * status.train_seconds / status.step


def status_table(runs: Sequence[RunState], width: int, now: float | None = None) -> Table:
    """Return a table with a row for each run. now: seconds since the epoch; None: the present."""
    now = time.time() if now is None else now
    statuses = [run.status for run in runs]
    speeds = [status.samples_per_second or math.nan for status in statuses]
    columns = [
        Column("run", [run.folder for run in runs], is_text=True),
        Column("state", [status.state for status in statuses], is_text=True),
        Column("why", [shortened(status.reason or "", 100) for status in statuses], is_text=True),
        Column("step", [progress(status) for status in statuses], priority=6),
        Column("samples/s", [f"{speed:,.0f}" if math.isfinite(speed) else "" for speed in speeds], priority=2),
        Column("left", [duration(seconds_left(status)) for status in statuses], priority=5),
        Column("verdict", [status.verdict or "" for status in statuses], is_text=True, priority=4),
        Column("job", [status.job or "" for status in statuses], is_text=True, priority=1),
        Column("starts", [number(status.starts or None) for status in statuses], priority=0),
        Column("last sign", [f"{duration(now - run.updated)} ago" for run in runs], priority=3),
    ]
    return rich_table(columns, width, styles=[STYLES.get(status.state, "") for status in statuses])


def counts_line(runs: Sequence[RunState], shown: int) -> str:
    """Return how many runs are in which state, and how many are not shown."""
    hidden = f"; {len(runs) - shown} older not shown (all=true shows them)" if shown < len(runs) else ""
    return count_states([run.status.state for run in runs]) + hidden
