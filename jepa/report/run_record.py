"""What a run folder holds, as plain data for the report: curves, results, options, and sentences on them."""

from __future__ import annotations

import platform
import re
import subprocess
from collections.abc import Callable, Mapping, Sequence
from dataclasses import dataclass, field
from importlib.metadata import PackageNotFoundError, version
from pathlib import Path
from typing import Any

import numpy as np

from jepa.report.formatting import duration, number, plural
from jepa.report.run_files import current_status, is_value, metric_lines, only_numbers, read_results
from jepa.report.runs import config_values, name_of, stored_overrides
from jepa.utils.metric_direction import direction_of
from jepa.utils.run_status import Status

MAX_POINTS, MAX_VERDICTS = 600, 40
ROWS = {"trained": "trained", "random_init": "random weights", "raw_input": "raw input", "initial": "before the run"}
"""Rows of results.json, and what they are called."""

WORDS = {
    "linear": "accuracy of a linear probe",
    "knn": "accuracy of nearest neighbours (k-NN)",
    "rankme": "effective rank (RankMe), dimensions",
    "lidar": "rank of what differs between samples (LiDAR), dimensions",
    "mse": "squared error of forecasts",
    "mae": "absolute error of forecasts, in deviations",
}
"""The end of a metric's name -> what it is."""

PLACES = ("run_dir", "resume", "overrides", "init_from", "data.tokenizer_folder")
"""Options that say where a run is rather than what it does."""


@dataclass(frozen=True)
class Curve:
    """A metric's finite values (n,) after `steps` (n,)."""

    steps: np.ndarray
    values: np.ndarray


@dataclass(frozen=True)
class Record:
    """What a run has left in its folder.

    options: dotted key -> value of config.yaml, as on the command line. verdicts: (step, the monitor's verdict then).
    damaged: what of it could not be read.
    """

    name: str
    path: Path
    status: Status
    curves: dict[str, Curve]
    verdicts: list[tuple[int, str]]
    results: dict[str, Any]
    options: dict[str, str]
    overrides: list[str]
    damaged: list[str] = field(default_factory=list)

    @property
    def rows(self) -> dict[str, dict[str, float]]:
        """Return network -> probe -> finite score, of the rows of the frozen evaluation."""
        found = {name: only_numbers(self.results[name]) for name in ROWS if isinstance(self.results.get(name), dict)}
        return {name: {probe: x for probe, x in row.items() if is_value(x)} for name, row in found.items()}


def in_words(metric: str) -> str:
    """Return what a metric is called on the page: its own name where that has no other."""
    *before, last = metric.split("/")
    steps = f" of {before[-1]} steps" if before and before[-1].isdigit() else ""
    return WORDS[last].replace("forecasts", f"forecasts{steps}") if last in WORDS and (steps or not before) else metric


def better(metric: str) -> str:
    """Return whether a probe's "higher" or "lower" scores are better."""
    return "lower" if direction_of(f"eval/{metric}") == "minimize" else "higher"


def read_record(path: Path, judge: Callable[[Sequence[Mapping[str, float]]], str]) -> Record:
    """Return what a run's folder holds. judge: measurements of the monitor, in order -> the verdict on them."""
    damaged: list[str] = []
    status = current_status(path)
    points: dict[str, list[tuple[int, float]]] = {}
    measured: list[dict[str, float]] = []
    for line in metric_lines(path, damaged):
        if "step" not in line:
            continue
        for name, value in line.items():
            if name not in ("step", "epoch") and is_value(value):
                points.setdefault(name, []).append((int(line["step"]), value))
        if any(name.startswith(("monitor/", "online/")) for name in line):
            measured.append(line)
    ends = sorted({round(end) for end in np.linspace(1, len(measured), min(len(measured), MAX_VERDICTS))})
    return Record(
        name=name_of(path, path),
        path=path,
        status=status,
        curves={name: _curve(found) for name, found in points.items()},
        verdicts=[(int(measured[end - 1]["step"]), judge(measured[:end])) for end in ends],
        results=read_results(path, damaged),
        options=without_places(config_values(path, damaged)),
        overrides=stored_overrides(path, status, damaged),
        damaged=list(dict.fromkeys(damaged)),
    )


def without_places(options: Mapping[str, str]) -> dict[str, str]:
    """Return options without those that say where a run is."""
    return {key: text for key, text in options.items() if not key.startswith(PLACES)}


def _curve(points: Sequence[tuple[int, float]]) -> Curve:
    """Return points, thinned evenly, with the last one."""
    stride = -(-len(points) // MAX_POINTS)
    kept = points[::stride] + (points[-1:] if (len(points) - 1) % stride else [])
    steps, values = zip(*kept)
    return Curve(np.array(steps), np.array(values))


def sentences(record: Record, trained: str | None, compared: str | None) -> list[str]:
    """Return the summary: what was trained on what, how long, whether it helped, and the monitor's verdict.

    trained: a sentence on what. compared: the sentence of the evaluation on whether training has helped.
    """
    status, said = record.status, [f"Run {record.name} ({' '.join(['python train.py', *record.overrides])})."]
    said += [trained] if trained else []
    seconds = status.train_seconds
    steps = f"{status.step or 0:,} of {status.max_steps:,} steps" if status.max_steps else f"{status.step or 0:,} steps"
    batch = record.options.get("data.batch_size")
    steps += (f" of {batch} samples" if batch else "") + (f" in {duration(seconds)}" if seconds else "")
    said.append(f"{steps}; the run is {status.state}{f' ({status.reason})' if status.reason else ''}.")
    rows = record.rows
    if compared:
        names = sorted(set().union(*rows.values()), key=len, reverse=True)
        called = {name: in_words(name) for name in names} | ROWS
        compared = re.sub("|".join(map(re.escape, called)), lambda found: called[found[0]], compared)
        said.append(compared[0].upper() + compared[1:] + ".")
    elif (
        "trained" in rows
        and len(rows) > 2
        and all({"lidar"} <= row.keys() <= {"lidar", "rankme", "feature_std"} for row in rows.values())
    ):
        values = ", ".join(f"{ROWS[name]} {number(row['lidar'], 3)}" for name, row in rows.items())
        doubt = ", a sign that it has not" if rows["trained"]["lidar"] <= rows["random_init"]["lidar"] else ""
        said.append(f"No labels tell whether training has helped; {WORDS['lidar']}: {values}{doubt}.")
    if record.results.get("scored_on") == "validation":
        said.append("Scores are on samples kept aside from training, not on the test split (data.score_on=validation).")
    collapse = record.results.get("collapse") or {}
    verdict = collapse.get("verdict") or status.verdict
    if verdict:
        evidence = f": {collapse['evidence']}" if collapse.get("evidence") else ""
        said.append(f"The collapse monitor's verdict is {verdict}{evidence}.")
    if record.damaged:
        said.append(f"Not all files could be read: {'; '.join(record.damaged)}.")
    return said


def key_figures(record: Record) -> list[tuple[str, str, str]]:
    """Return (name, value, what it is beside) of what a reader looks for first."""
    found = []
    rows = record.rows
    for probe in [name for name in rows.get("trained", {}) if name not in ("rankme", "feature_std", "lidar")][:3]:
        scores = {row: number(values[probe], 3) for row, values in rows.items() if probe in values}
        value = scores.pop("trained")
        beside = [*(f"{ROWS[row]} {score}" for row, score in scores.items()), f"{better(probe)} is better"]
        found.append((in_words(probe), value, ", ".join(beside)))
    for name in ("val/loss", "train/loss"):
        if name in record.curves:
            values = record.curves[name].values
            start = f"from {number(float(values[0]), 3)}, lower is better"
            found.append((in_words(name), number(float(values[-1]), 3), start))
    if record.status.train_seconds:
        speed = record.status.samples_per_second
        found.append(("training", duration(record.status.train_seconds), f"{speed:,.0f} samples/s" if speed else ""))
    return found


def differences(options: Sequence[Mapping[str, str]]) -> list[tuple[str, list[str]]]:
    """Return (key, value in each) of the keys in which mappings differ; "" where one lacks it."""
    keys = sorted(set().union(*options))
    rows = [(key, [each.get(key, "") for each in options]) for key in keys]
    return [(key, values) for key, values in rows if len(set(values)) > 1]


def environment(record: Record, device: str, commit_of: Path) -> list[tuple[str, str]]:
    """Return (name, value) of machine, versions and commit when the report is written, and of the run's cost.

    commit_of: a folder of the repository.
    """
    status, found = record.status, [("folder", str(record.path))]
    found += [("host", status.host or ""), ("device", device), ("python", platform.python_version())]
    for package in ("torch", "timm", "numpy", "jepa"):
        try:
            found.append((package, version(package)))
        except PackageNotFoundError:
            continue
    found.append(("commit", commit(commit_of)))
    found.append(("cost", f"{duration(status.train_seconds)} of steps" if status.train_seconds else ""))
    if "cost/samples" in record.curves:
        found.append(("", f"{record.curves['cost/samples'].values[-1]:,.0f} samples"))
    if status.starts > 1:
        found.append(("", plural(status.starts, "start")))
    return [(name, value) for name, value in found if value]


def commit(folder: Path) -> str:
    """Return the commit that is checked out in a folder; "" outside of a repository or without git."""
    try:
        command = ["git", "-C", str(folder), "describe", "--always", "--dirty", "--abbrev=12", "--exclude=*"]
        return subprocess.run(command, capture_output=True, text=True, timeout=10, check=True).stdout.strip()
    except (OSError, subprocess.SubprocessError):
        return ""
