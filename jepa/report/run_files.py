"""Read the files of a run folder, which may be missing, half-written or of a run under way."""

from __future__ import annotations

import dataclasses
import json
import math
import os
import time
from collections.abc import Iterator, Mapping
from pathlib import Path
from typing import Any, TypeVar

import yaml

from jepa.utils.run_status import STATUS_FILE, Status, is_dead, read_status

RUN_FILES = (STATUS_FILE, "results.json", "metrics.jsonl", "config.yaml")  # a folder with any of these is a run's
NOT_PROBES = ("collapse", "spread", "data")  # entries of results.json that are not probe results
QUIET_SECONDS = 600.0  # a run without status.json counts as running if it wrote something this recently


Content = TypeVar("Content", dict, list)

_LOADER = getattr(yaml, "CSafeLoader", yaml.SafeLoader)  # the C one is ten times faster


def run_folders(folder: Path) -> list[Path]:
    """Return every run folder in a folder, at any depth; the folder itself if it is one.

    A config.yaml alone does not make `folder` itself a run, as a sweep has one too.
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
    """Return the status of a run now: its status.json, corrected by its process or the scheduler's queue.

    queue: job -> SLURM's state, of all jobs in the queue; None if unknown. A job that waits there after it ran has been
    preempted. A run without status.json is judged by its other files.
    """
    status = read_status(path) or status_from_files(path)
    if queue is None or status.job is None:
        gone = {"state": "failed", "reason": "its process is gone (killed? out of memory?)"}
        return dataclasses.replace(status, **gone) if is_dead(status) else status
    if status.state in ("done", "failed") or (status.state == "stopped" and status.job not in queue):
        return status
    # A job in the queue whose process is gone is about to be started again.
    if status.job not in queue:
        return dataclasses.replace(status, state="failed", reason=f"its job {status.job} has left the queue")
    if queue[status.job] == "PENDING" and status.state != "queued":
        return dataclasses.replace(status, state="preempted", reason=status.reason or "waits to be started again")
    return status


def status_from_files(path: Path, now: float | None = None) -> Status:
    """Return the status of a run without status.json, from its other files. now: seconds since the epoch."""
    results, last = read_content(path / "results.json", dict), last_values(path)
    status = Status(
        state="done",
        reason=results.get("stopped"),
        step=results.get("step", last.get("step")),
        samples_per_second=last.get("samples_per_second"),
        verdict=(results.get("collapse") or {}).get("verdict"),
        updated=last_modified(path),
    )
    if results:
        return status
    if (time.time() if now is None else now) - status.updated < QUIET_SECONDS:
        return dataclasses.replace(status, state="running")
    return dataclasses.replace(status, state="stopped", reason="it ended, or was ended, without results.json")


def last_modified(path: Path) -> float:
    """Return the seconds since the epoch at which a run last wrote one of its files."""
    return max((file.stat().st_mtime for file in map(path.joinpath, RUN_FILES) if file.is_file()), default=0.0)


def read_content(path: Path, kind: type[Content]) -> Content:
    """Return a dict or list from a JSON or YAML file; an empty one if the file is missing, incomplete or neither."""
    text = path.read_text(encoding="utf-8", errors="replace") if path.is_file() else ""
    try:
        content = json.loads(text) if path.suffix == ".json" else yaml.load(text, Loader=_LOADER)
    except (ValueError, yaml.YAMLError):
        return kind()
    return content if isinstance(content, kind) else kind()


def metric_lines(path: Path, needle: str = "") -> Iterator[dict[str, float]]:
    """Yield the complete lines of a run's metrics.jsonl: name -> number, NaN for null.

    needle: skip lines without this text, which saves parsing them.
    """
    if not (path / "metrics.jsonl").is_file():
        return
    with (path / "metrics.jsonl").open(encoding="utf-8", errors="replace") as file:
        for line in file:
            if needle not in line:
                continue
            try:
                values = json.loads(line)
            except ValueError:  # not written to its end
                continue
            if isinstance(values, dict):
                yield only_numbers(values)


def only_numbers(values: Mapping[str, Any]) -> dict[str, float]:
    """Return the numbers among logged values; null, which stands for a non-finite number, becomes NaN."""
    values = {name: math.nan if value is None else value for name, value in values.items()}
    return {name: value for name, value in values.items() if type(value) in (int, float)}


def last_values(path: Path) -> dict[str, float]:
    """Return the last value of every metric in metrics.jsonl, and of `step`."""
    values: dict[str, float] = {}
    for line in metric_lines(path):
        values |= line
    return values


def result_values(results: Mapping[str, Any]) -> dict[str, float]:
    """Return the numbers of a results.json by their metric names: "eval/trained/linear", "val/loss"."""
    values = {}
    for name, value in results.items():
        if name not in NOT_PROBES and isinstance(value, dict):
            values |= {f"eval/{name}/{probe}": number for probe, number in only_numbers(value).items()}
        elif "/" in name:
            values |= only_numbers({name: value})
    return values


def curve(path: Path, metric: str, max_points: int = 400) -> list[tuple[int, float]]:
    """Return (step, value) of a metric's finite values, evenly thinned to about `max_points`."""
    points = []
    for line in metric_lines(path, needle=json.dumps(metric)):
        if "step" in line and math.isfinite(line.get(metric, math.nan)):
            points.append((line["step"], line[metric]))
    stride = max(1, math.ceil(len(points) / max_points))
    return points[::stride] + (points[-1:] if (len(points) - 1) % stride else [])
