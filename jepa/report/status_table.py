"""The state of the runs below a folder: a table, newest first, and a line of counts."""

from __future__ import annotations

import dataclasses
import math
import time
from collections.abc import Mapping
from pathlib import Path

from rich.table import Table

from jepa.report.formatting import Column, count_states, duration, number, progress, rich_table, shortened
from jepa.report.run_files import current_status, find_runs, last_modified, run_folders
from jepa.report.runs import name_of
from jepa.utils.run_status import FINISHED, Status

NEWEST = 20  # ended runs that are shown by default; runs under way always are

STYLES = {"failed": "red", "damaged": "red", "running": "green", "preempted": "yellow", "queued": "yellow"}
STYLES |= {"stopped": "dim"}


def read_statuses(folder: str | Path, queue: Mapping[str, str] | None = None) -> dict[str, Status]:
    """Return the status of each run below a folder, newest first; `updated` is when the run last wrote a file.

    queue: see `current_status`. Raise UserError if the folder does not exist or has no runs.
    """
    folder, found = Path(folder), {}
    for path in find_runs(folder, "folder", "a run's folder, or one that holds runs, such as outputs"):
        status = current_status(path, queue)
        updated = max(status.updated or 0.0, last_modified(path))
        found[name_of(path, folder)] = dataclasses.replace(status, updated=updated)
    return dict(sorted(found.items(), key=lambda item: (-(item[1].started or item[1].updated), item[0])))


def has_jobs(folder: str | Path) -> bool:
    """Return whether a scheduler runs an unfinished run below a folder, so that its queue is worth asking."""
    statuses = map(current_status, run_folders(Path(folder)))
    return any(status.job is not None and status.state != "done" for status in statuses)


def newest(statuses: Mapping[str, Status]) -> dict[str, Status]:
    """Return the newest runs, those that have not ended, and those of which that is unknown."""
    first, known = list(statuses)[:NEWEST], set(FINISHED) - {"damaged"}
    return {name: status for name, status in statuses.items() if name in first or status.state not in known}


def seconds_left(status: Status) -> float | None:
    """Return the seconds that a running run still needs, by its mean time per step; None if unknown."""
    if status.state != "running" or not (status.step and status.max_steps and status.train_seconds):
        return None
    return max(0, status.max_steps - status.step) * status.train_seconds / status.step


def status_table(runs: Mapping[str, Status], width: int, now: float | None = None) -> Table:
    """Return a table with a row for each run. now: seconds since the epoch; None: the present."""
    now = time.time() if now is None else now
    statuses = list(runs.values())
    speeds = [status.samples_per_second or math.nan for status in statuses]
    columns = [
        Column("run", list(runs), is_text=True),
        Column("state", [status.state for status in statuses], is_text=True),
        Column("why", [shortened(status.reason or "", 100) for status in statuses], is_text=True),
        Column("step", [progress(status) for status in statuses], priority=6),
        Column("samples/s", [f"{speed:,.0f}" if math.isfinite(speed) else "" for speed in speeds], priority=2),
        Column("left", [duration(seconds_left(status)) for status in statuses], priority=5),
        Column("verdict", [status.verdict or "" for status in statuses], is_text=True, priority=4),
        Column("job", [status.job or "" for status in statuses], is_text=True, priority=1),
        Column("starts", [number(status.starts or None) for status in statuses], priority=0),
        Column("last sign", [f"{duration(now - status.updated)} ago" for status in statuses], priority=3),
    ]
    return rich_table(columns, width, styles=[STYLES.get(status.state, "") for status in statuses])


def counts_line(runs: Mapping[str, Status], shown: int) -> str:
    """Return how many runs are in which state, and how many are not shown."""
    hidden = f"; {len(runs) - shown} older not shown (all=true shows them)" if shown < len(runs) else ""
    return count_states([status.state for status in runs.values()]) + hidden
