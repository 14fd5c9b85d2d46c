"""Read the files of a run folder, which may be missing, half-written, damaged or of a run under way.

What is damaged is added to a list `damaged`, and read as if it were missing.
"""

from __future__ import annotations

import contextlib
import dataclasses
import json
import math
import os
import time
from collections.abc import Callable, Iterable, Iterator, Mapping
from pathlib import Path
from typing import Any, TypeVar

from jepa.utils.errors import UserError
from jepa.utils.read_data import DamagedFileError, exists, kind_of, parse_json, read_json, read_lines, read_yaml
from jepa.utils.run_status import FINISHED, STATUS_FILE, Status, is_dead, is_overrides, read_status, status_of

RUN_FILES = (STATUS_FILE, "results.json", "metrics.jsonl", "config.yaml")  # a folder with any of these is a run's
NOT_PROBES = ("collapse", "spread", "data")  # entries of results.json that are not probe results
QUIET_SECONDS = 600.0  # a run without status.json counts as running if it wrote something this recently
MAX_DAMAGED_LINES = 1000  # after which the rest of a file is not read
MAX_SHAPES = 1000  # of lines that are held in memory
MAX_METRICS = 5000  # of a run
MAX_VALUE = 1e100  # of a metric; a greater one is as good as infinite

Content = TypeVar("Content", dict, list)

_kept: dict[tuple[Path, str], tuple[tuple[int, int], Any, list[str]]] = {}
"""File -> its size and time, what it held, and notes of damage."""
_limit = {"deadline": math.inf, "postponed": 0}


def run_folders(folder: Path) -> list[Path]:
    """Return every run folder in a folder, at any depth; the folder itself if it is one.

    A config.yaml alone does not make `folder` itself a run, as a sweep has one too.
    """
    found = []
    for place, inside, files in os.walk(folder):
        wanted = RUN_FILES[:-1] if Path(place) == folder else RUN_FILES
        if any(name in files or name in inside for name in wanted):  # a folder of that name is a damaged file
            found.append(Path(place))
            inside.clear()
        inside[:] = [name for name in inside if not name.startswith(".")]
    return found


def find_runs(folder: Path, key: str, give: str) -> list[Path]:
    """Return `run_folders`. Raise UserError, which says what to `give`, if the folder does not exist or has none."""
    if not folder.is_dir():
        raise UserError(f"{key}={folder} {'is a file' if folder.exists() else 'does not exist'}: give {give}")
    if not (found := run_folders(folder)):
        nothing = "no folder in it has a status.json, metrics.jsonl or results.json"
        raise UserError(f"{key}={folder} holds no runs ({nothing}): give {give}")
    return found


def current_status(path: Path, queue: Mapping[str, str] | None = None) -> Status:
    """Return the status of a run now: its status.json, corrected by its process or the scheduler's queue.

    queue: job -> SLURM's state, of all jobs in the queue; None if unknown. A job that waits there after it ran has been
    preempted. A run without status.json is judged by its other files.
    """
    status = read_status(path) or status_from_files(path)
    state, reason = status.state, status.reason
    if queue is None or status.job is None:
        if is_dead(status):
            state, reason = "failed", "its process is gone (killed? out of memory?)"
    elif status.job not in queue and state not in FINISHED:
        state, reason = "failed", f"its job {status.job} has left the queue"
    elif queue.get(status.job) == "PENDING" and state not in ("queued", "done", "failed"):
        # A job in the queue whose process is gone is about to be started again.
        state, reason = "preempted", reason or "waits to be started again"
    return dataclasses.replace(status, state=state, reason=reason)


def status_from_files(path: Path, now: float | None = None) -> Status:
    """Return the status of a run without status.json, from its other files. now: seconds since the epoch."""
    damaged: list[str] = []
    results, last = read_results(path, damaged), last_values(path, damaged)
    if not is_overrides(read_content(path / "config.yaml", dict, damaged).get("overrides", [])):
        damaged.append("config.yaml is damaged: its overrides are no list of texts")
    if damaged:
        return Status(state="damaged", reason="; ".join(damaged), updated=last_modified(path))
    state, reason, updated = "done", results.get("stopped"), last_modified(path)
    if not results and (now or time.time()) - updated < QUIET_SECONDS:
        state = "running"
    elif not results:
        state, reason = "stopped", "it ended, or was ended, without results.json"
    return Status(
        state=state,
        reason=reason,
        step=results.get("step", last.get("step")),
        samples_per_second=last.get("samples_per_second"),
        verdict=(results.get("collapse") or {}).get("verdict"),
        updated=updated,
    )


def last_modified(path: Path) -> float:
    """Return the seconds since the epoch at which a run last wrote one of its files."""
    times = [0.0]
    for name in RUN_FILES:
        with contextlib.suppress(OSError):
            times.append((path / name).stat().st_mtime)
    return max(times)


@contextlib.contextmanager
def noted(damaged: list[str]) -> Iterator[None]:
    """A context that a damaged file ends, with a note of it."""
    try:
        yield
    except DamagedFileError as error:
        damaged.append(error.brief)


@contextlib.contextmanager
def reading_for(seconds: float) -> Iterator[dict[str, float]]:
    """A context in which files that have changed count as empty after some seconds, to be read the next time.

    Gives {"postponed": how many}.
    """
    _limit.update(deadline=time.monotonic() + seconds, postponed=0)
    try:
        yield _limit
    finally:
        _limit["deadline"] = math.inf


def read_once(
    path: Path, kind: type[Content], read: Callable[[list[str]], Content], damaged: list[str], made: str = "content"
) -> Content:
    """Return what `read` makes of a file, or has made of it if its size and time are the same.

    read: takes a list for notes of damage. made: tells apart what is made of one file.
    """
    try:
        status = path.stat()
    except OSError:
        return read(damaged)
    stamp, key = (status.st_size, status.st_mtime_ns), (path, made)
    if _kept.get(key, (None,))[0] != stamp:
        if time.monotonic() > _limit["deadline"]:
            _limit["postponed"] += 1
            return kind()
        notes: list[str] = []
        _kept[key] = stamp, read(notes), notes
    _, value, notes = _kept[key]
    damaged += notes
    return value


def read_content(path: Path, kind: type[Content], damaged: list[str]) -> Content:
    """Return a dict or list from a JSON or YAML file; an empty one if the file is missing, damaged or neither."""
    return read_once(path, kind, lambda notes: parse_content(path, kind, notes), damaged)


def parse_content(path: Path, kind: type[Content], damaged: list[str]) -> Content:
    """Return the same, read anew."""
    with noted(damaged):
        if exists(path):
            content = read_json(path) if path.suffix == ".json" else read_yaml(path)
            if isinstance(content, kind):
                return content
            expected = "a list" if kind is list else "names and values"
            raise DamagedFileError(path, f"it holds {kind_of(content)}, expected {expected}")
    return kind()


def read_results(path: Path, damaged: list[str]) -> dict[str, Any]:
    """Return a run's results.json; an empty one if it is missing or damaged."""
    path = path / "results.json"
    results = read_content(path, dict, damaged)
    collapse = results.get("collapse") or {}
    own = {"state": "done", "reason": results.get("stopped"), "step": results.get("step")}
    with noted(damaged):
        if not isinstance(collapse, dict):
            raise DamagedFileError(path, f"collapse is {kind_of(collapse)}, expected names and values")
        status_of({**own, "verdict": collapse.get("verdict")}, path)
        values = {name: value for name, value in results.items() if "/" in name}
        if wrong := values.keys() - only_numbers(values).keys():
            raise DamagedFileError(path, f"{min(wrong)} is no number")
        if len(result_values(results)) > MAX_METRICS:
            raise DamagedFileError(path, f"it holds more than {MAX_METRICS} metrics")
        return results
    return {}


def metric_lines(
    path: Path, damaged: list[str], needle: str = "", max_lines: float = math.inf, *, last: bool = False
) -> Iterator[dict[str, float]]:
    """Yield the complete lines of a run's metrics.jsonl: name -> number, NaN for null.

    Of damaged lines the first is noted. needle: skip lines without this text. max_lines: yield about so many of them,
    evenly, and the last. last: of lines that differ in numbers alone take the last. All save parsing the others.
    """
    path, found, place, count, text = path / "metrics.jsonl", 0, 0, 0, needle.encode()
    with noted(damaged):
        if max_lines < math.inf and exists(path):
            count = sum(text in line for line in read_lines(path))
        stride = max(1, math.ceil(count / max_lines))
        lines = enumerate(read_lines(path) if exists(path) else (), 1)
        for number, line in last_of_each_shape(lines) if last else lines:
            if line.strip():
                place += text in line
                if text not in line or ((place - 1) % stride and place != count):
                    continue
            try:
                yield _metric_line(line, path, number)
            except DamagedFileError as error:
                # Without its newline it is the last one, not written to its end.
                if line.endswith(b"\n") or not line:
                    damaged += [error.brief] if found == 0 else []
                    found += 1
                if found == MAX_DAMAGED_LINES:
                    return


def last_of_each_shape(lines: Iterable[tuple[int, bytes]]) -> Iterator[tuple[int, bytes]]:
    """Yield of numbered lines that differ in numbers alone the last, and, beyond MAX_SHAPES, others too."""
    latest: dict[tuple[bytes, ...], tuple[int, bytes]] = {}
    for number, line in lines:
        shape = line.translate(None, b"0123456789.eE+- "), *line.split(b'"')[1::2]
        latest.pop(shape, None)
        latest[shape] = number, line
        if len(latest) > MAX_SHAPES:
            yield latest.pop(next(iter(latest)))
    yield from latest.values()


def _metric_line(line: bytes, path: Path, number: int) -> dict[str, float]:
    """Return the metrics of a line. Raise DamagedFileError where it holds other things."""
    if not line.strip():
        raise DamagedFileError(path, f"line {number} is {'empty' if line else 'too long'}")
    values = parse_json(line, path)
    numbers = only_numbers(values) if isinstance(values, dict) else {}
    if not isinstance(values, dict) or len(numbers) < len(values) or type(numbers.get("step", 0)) is not int:
        raise DamagedFileError(path, f"line {number} holds other things than a step and numbers by name")
    return numbers


def only_numbers(values: Mapping[str, Any]) -> dict[str, float]:
    """Return the numbers among logged values; null, which stands for a non-finite number, becomes NaN."""
    kinds = (float, int, type(None))
    return {name: math.nan if value is None else value for name, value in values.items() if type(value) in kinds}


def last_values(path: Path, damaged: list[str]) -> dict[str, float]:
    """Return the last value of every metric in metrics.jsonl, and of `step`."""
    return read_once(path / "metrics.jsonl", dict, lambda notes: _last_values(path, notes), damaged)


def _last_values(path: Path, damaged: list[str]) -> dict[str, float]:
    values: dict[str, float] = {}
    for line in metric_lines(path, damaged, last=True):
        values |= line
        if len(values) > MAX_METRICS:
            damaged.append(f"metrics.jsonl is damaged: it holds more than {MAX_METRICS} metrics")
            return {}
    return values


def is_value(value: float | None) -> bool:
    """Return whether a number can be compared and drawn: finite, and its square too."""
    return value is not None and abs(value) < MAX_VALUE


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
    lines = metric_lines(path, [], json.dumps(metric), max_points)
    return [(line["step"], line[metric]) for line in lines if "step" in line and is_value(line.get(metric))]
