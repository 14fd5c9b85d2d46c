"""Reading what a run folder holds, at any moment: files may be missing, half-written or of a run under way."""

from __future__ import annotations

import dataclasses
import json
import math
import os
import time
from collections.abc import Iterator, Mapping
from pathlib import Path
from typing import Any

import yaml

from jepa.utils.run_status import STATUS_FILE, Status, is_dead, read_status

RUN_FILES = (STATUS_FILE, "results.json", "metrics.jsonl", "config.yaml")
"""By any of which a folder is known as a run's."""

NOT_ROWS = ("collapse", "spread", "data")
"""What of results.json is no row of probes."""

QUIET = 600.0
"""Seconds without a new line after which a run that has no status.json is no longer taken to be running."""

GONE = "its process is gone (killed? out of memory?)"
WAITS = "waits to be started again"

_LOADER = getattr(yaml, "CSafeLoader", yaml.SafeLoader)  # the C one is ten times faster


def run_folders(folder: Path) -> list[Path]:
    """Every run folder in a folder, at any depth; the folder itself if it is one.

    A bare config.yaml does not make `folder` itself a run, as that may be a sweep's.
    """
    found = []
    for place, inside, files in os.walk(folder):
        wanted = RUN_FILES[:-1] if Path(place) == folder else RUN_FILES
        if any(name in files for name in wanted):
            found.append(Path(place))
            inside.clear()
        inside[:] = [name for name in inside if not name.startswith(".")]
    return found


def current_status(path: Path, queue: Mapping[str, str] | None = None) -> Status:
    """What is known of a run now: its status.json, held against the process or the scheduler's queue.

    A run that has no status.json is judged by its other files. queue: job -> state in SLURM's words, of all jobs still
    in the queue; None where that is not known. A job that waits there after it ran has been preempted.
    """
    status = read_status(path)
    if status is None:
        return without_status(path)
    if queue is None or status.job is None:
        return dataclasses.replace(status, state="failed", reason=GONE) if is_dead(status) else status
    if status.state in ("done", "failed") or (status.state == "stopped" and status.job not in queue):
        return status
    # The queue is right where the process is gone but the job is not: it is about to be started again.
    if status.job not in queue:
        return dataclasses.replace(status, state="failed", reason=f"its job {status.job} has left the queue")
    if queue[status.job] == "PENDING" and status.state != "queued":
        return dataclasses.replace(status, state="preempted", reason=status.reason or WAITS)
    return status


def without_status(path: Path, now: float | None = None) -> Status:
    """What the other files tell of a run that has no status.json. now: seconds since the epoch."""
    results = read_json(path / "results.json")
    sign = last_sign(path)
    last = last_values(path, tail=1 << 16)
    known = Status(
        state="done",
        reason=results.get("stopped"),
        step=results.get("step", as_step(last.get("step"))),
        samples_per_second=last.get("samples_per_second"),
        verdict=verdict_of(results),
        updated=sign,
    )
    if results:
        return known
    quiet = (time.time() if now is None else now) - (sign or 0.0)
    if quiet < QUIET:
        return dataclasses.replace(known, state="running")
    return dataclasses.replace(known, state="stopped", reason="it ended, or was ended, without results.json")


def last_sign(path: Path) -> float | None:
    """Seconds since the epoch at which a run last wrote one of its files."""
    times = []
    for name in RUN_FILES:
        try:
            times.append((path / name).stat().st_mtime)
        except (FileNotFoundError, NotADirectoryError):
            continue
    return max(times, default=None)


def verdict_of(results: Mapping[str, Any]) -> str | None:
    """The collapse monitor's verdict in a results.json."""
    collapse = results.get("collapse")
    return collapse.get("verdict") if isinstance(collapse, dict) else None


def as_step(value: float | None) -> int | None:
    """A step as a whole number."""
    return None if value is None or not math.isfinite(value) else int(value)


def read_json(path: Path) -> dict[str, Any]:
    """A JSON object; empty where there is none, or not a whole one."""
    content = read_text(path)
    try:
        value = json.loads(content)
    except json.JSONDecodeError:
        return {}
    return value if isinstance(value, dict) else {}


def read_yaml(path: Path) -> Any:
    """What a YAML file holds; None where there is none, or not a whole one."""
    try:
        return yaml.load(read_text(path), Loader=_LOADER)
    except (yaml.YAMLError, ValueError):  # the latter for what looks like a date and is none
        return None


def read_text(path: Path) -> str:
    """A file's text; empty where there is none. Half a character at the end becomes a mark."""
    try:
        return path.read_text(encoding="utf-8", errors="replace")
    except (FileNotFoundError, NotADirectoryError):
        return ""


def lines_of(path: Path, tail: int | None = None, needle: str = "") -> Iterator[dict[str, Any]]:
    """The whole lines of a run's metrics.jsonl, as objects.

    tail: read only so many bytes at the end. needle: skip lines without this text, which saves parsing them.
    """
    try:
        file = open(path / "metrics.jsonl", "rb")  # noqa: SIM115 (closed by the with below)
    except (FileNotFoundError, NotADirectoryError):
        return
    searched = needle.encode()
    with file:
        if tail is not None:
            file.seek(max(0, os.fstat(file.fileno()).st_size - tail))
        for line in file:
            if searched in line:
                try:
                    value = json.loads(line)
                except ValueError:  # cut off, at either end: of JSON, or of a character
                    continue
                if isinstance(value, dict):
                    yield value


def numbers(line: Mapping[str, Any]) -> dict[str, float]:
    """The figures of a line; null, which stands for what is not finite, as NaN."""
    wanted = {name: math.nan if value is None else value for name, value in line.items()}
    return {name: value for name, value in wanted.items() if type(value) in (int, float)}


def last_values(path: Path, tail: int | None = None) -> dict[str, float]:
    """The last value of everything in metrics.jsonl, `step` included. tail: of its last so many bytes."""
    values: dict[str, float] = {}
    for line in lines_of(path, tail):
        values |= numbers(line)
    return values


def result_values(results: Mapping[str, Any]) -> dict[str, float]:
    """The figures of a results.json by the names they are logged by: "eval/trained/linear", "val/loss"."""
    values = {}
    for name, value in results.items():
        if name not in NOT_ROWS and isinstance(value, dict):
            values |= {f"eval/{name}/{probe}": figure for probe, figure in numbers(value).items()}
        elif "/" in name:
            values |= numbers({name: value})
    return values


def curve(path: Path, metric: str, most: int = 400) -> list[tuple[int, float]]:
    """A metric over the steps, thinned evenly to at most about so many points; what is not finite is left out."""
    points = []
    for line in lines_of(path, needle=json.dumps(metric)):
        value = numbers(line).get(metric)
        step = as_step(numbers(line).get("step"))
        if value is not None and step is not None and math.isfinite(value):
            points.append((step, value))
    stride = max(1, math.ceil(len(points) / most))
    return points[::stride] + (points[-1:] if (len(points) - 1) % stride else [])
