"""How the runs below a folder are doing: a table, newest first, and a line that counts them."""

from __future__ import annotations

import math
import time
from collections.abc import Mapping, Sequence
from dataclasses import dataclass
from pathlib import Path
from typing import TYPE_CHECKING, Any

from jepa.sweep.collect import name_of
from jepa.sweep.reading import current_status, last_sign, read_yaml, run_folders
from jepa.sweep.table import Column, drawn, numbers, words
from jepa.sweep.wording import counted, duration, progress, shortened
from jepa.utils.errors import UserError
from jepa.utils.run_status import FINISHED, Status

if TYPE_CHECKING:
    from rich.table import Table

NEWEST = 20
"""Runs that are shown unless all are asked for; those that have not ended always are."""

STYLES = {"failed": "red", "running": "green", "preempted": "yellow", "queued": "yellow", "stopped": "dim"}


@dataclass(frozen=True)
class Standing:
    """A run. sign: seconds since the epoch of the last sign of life, if there ever was one."""

    folder: str
    path: Path
    status: Status
    sign: float | None

    @property
    def ended(self) -> bool:
        """Whether nothing more is to come."""
        return self.status.state in FINISHED

    @property
    def begun(self) -> float:
        """Seconds since the epoch by which it is older or newer than others."""
        return self.status.started or self.sign or 0.0


def standings(folder: str | Path, queue: Mapping[str, str] | None = None) -> list[Standing]:
    """The runs below a folder, newest first. queue: see `current_status`.

    Raises UserError where there is no such folder, or no run in it.
    """
    folder = Path(folder)
    if not folder.is_dir():
        what = "is a file" if folder.exists() else "does not exist"
        raise UserError(f"folder={folder} {what}: give a run's folder, or one that holds runs, such as outputs")
    found = []
    for path in run_folders(folder):
        status = current_status(path, queue)
        signs = [sign for sign in (status.updated, last_sign(path)) if sign is not None]
        found.append(Standing(name_of(path, folder), path, status, max(signs, default=None)))
    if not found:
        raise UserError(f"folder={folder} holds no runs: give one that does, such as outputs, or start one by train.py")
    return sorted(found, key=lambda run: (-run.begun, run.folder))


def has_jobs(folder: str | Path) -> bool:
    """Whether a run below a folder that is not done is a scheduler's, so that its queue has something to tell."""
    statuses = [current_status(path) for path in run_folders(Path(folder))]
    return any(status.job is not None and status.state != "done" for status in statuses)


def to_show(runs: Sequence[Standing], everything: bool) -> list[Standing]:
    """The newest, and those that have not ended; or all."""
    return [run for index, run in enumerate(runs) if everything or index < NEWEST or not run.ended]


def seconds_left(status: Status, batch_size: int | None = None) -> float | None:
    """How long a running run has to go on, in seconds; None where nothing tells.

    From its mean time per step so far, restarts included, which holds what logging costs too; else from the samples per
    second of late and the samples of a step.
    """
    if status.state != "running" or status.step is None or status.max_steps is None:
        return None
    steps = max(0, status.max_steps - status.step)
    if status.train_seconds and status.step:
        return steps * status.train_seconds / status.step
    rate = status.samples_per_second
    if batch_size is None or not rate or not math.isfinite(rate):
        return None
    return steps * batch_size / rate


def table(runs: Sequence[Standing], width: int, now: float | None = None) -> Table:
    """A row for each run, in a line of so many characters. now: seconds since the epoch, the present when None."""
    now = time.time() if now is None else now
    statuses = [run.status for run in runs]
    steps = [progress(status.step, status.max_steps) for status in statuses]
    signs = [None if run.sign is None else now - run.sign for run in runs]
    columns = [
        words("run", [run.folder for run in runs]),
        words("state", [status.state for status in statuses]),
        words("why", [shortened(status.reason or "", 100) for status in statuses]),
        Column("step", steps, steps, worth=6),
        numbers("samples/s", [status.samples_per_second for status in statuses], rate, 2),
        numbers("left", [time_left(run) for run in runs], duration, 5),
        words("verdict", [status.verdict or "" for status in statuses], 4),
        words("job", [status.job or "" for status in statuses], 1),
        numbers("starts", [status.starts or None for status in statuses], worth=0),
        numbers("last sign", signs, lambda ago: f"{duration(ago)} ago" if ago is not None else "", 3),
    ]
    return drawn(columns, width, styles=[STYLES.get(status.state, "") for status in statuses])


def summary(runs: Sequence[Standing], shown: int) -> str:
    """How many runs are in which state, and how many of them are not shown."""
    line = counted([run.status.state for run in runs])
    hidden = len(runs) - shown
    return f"{line}; {hidden} older not shown (all=true shows them)" if hidden else line


def rate(value: float | None) -> str:
    """Samples per second."""
    return f"{value:,.0f}" if value is not None and math.isfinite(value) else ""


def time_left(run: Standing) -> float | None:
    """Seconds that a run has to go on, which may need a look into its config.yaml."""
    if run.status.state != "running" or run.status.train_seconds:
        return seconds_left(run.status)
    config: Any = read_yaml(run.path / "config.yaml")
    data = config.get("data") if isinstance(config, dict) else None
    size = data.get("batch_size") if isinstance(data, dict) else None
    return seconds_left(run.status, size if isinstance(size, int) else None)
