"""The runs below a folder as one page: a table to filter and sort, and curves of the chosen runs.

python scripts/runs.py output=runs.html
"""

from __future__ import annotations

import os
from collections.abc import Mapping, Sequence
from pathlib import Path
from typing import Any
from urllib.parse import quote

from jepa.report.formatting import count_states, options, progress, short_names, shortened
from jepa.report.html_page import render
from jepa.report.run_files import MAX_METRICS, curve, is_value, last_modified, reading_for
from jepa.report.runs import CURVES, SHOWN_METRICS, Run, read_runs
from jepa.report.status_table import seconds_left
from jepa.utils.files import write_text
from jepa.utils.metric_direction import direction_of
from jepa.utils.read_data import printable

REPORT = "report.html"
GIVE = "a run's folder, or one that holds runs, such as outputs"
MAX_POINTS, FEWEST, MOST = 60_000, 30, 400  # of the curves in a file: in all, and of one
MAX_CELL = 100  # characters
BAD = ("failed", "damaged")
LABEL_FREE = ("rankme", "lidar", "feature_std")


def write_runs_page(folder: Path, path: Path, queue: dict[str, str] | None) -> int:
    """Write the page with the curves of the first metrics, and return the number of runs. queue: see `current_status`.

    Raise UserError if the folder does not exist or has no runs, or the page cannot be written.
    """
    runs = read_runs(folder, queue, key="folder", give=GIVE)
    table = runs_table(runs, folder, path.parent)
    table["metrics"] = table["metrics"][: max(1, MAX_POINTS // FEWEST // len(runs))]
    most = max(FEWEST, min(MOST, MAX_POINTS // (len(runs) * max(1, len(table["metrics"])))))
    paths = {address(run.path, path.parent): run.path for run in runs}
    for row in table["rows"]:
        row["curves"] = [curve(paths[row["address"]], metric, most) for metric in table["metrics"]]
    write_text(path, page(folder, table))
    return len(runs)


def page(folder: Path, table: dict[str, Any] | None) -> str:
    """Return the page. table: see `runs_table`; None: the page asks the server for it, again and again."""
    name = printable(str(folder), keep="")
    return render("runs_page.html", title=f"Runs in {name}", table=table)


def read_table(folder: Path, queue: dict[str, str] | None, seconds: float) -> tuple[dict[str, Any], list[Run]]:
    """Return the table, of what can be read in some seconds, and the runs; `postponed` files are read the next time."""
    with reading_for(seconds) as reading:
        runs = read_runs(folder, queue, key="folder", give=GIVE)
    return runs_table(runs, folder, folder) | {"postponed": reading["postponed"]}, runs


def runs_table(runs: Sequence[Run], folder: Path, base: Path) -> dict[str, Any]:
    """Return the runs as plain values that JSON has, newest first.

    `columns` are [name, heading, kind]; `rows` hold a cell for each of them, their kind, and their address from `base`.
    """
    objectives = dict.fromkeys(name for run in runs for name in run.status.objective)
    known = dict.fromkeys(name for run in runs for name, value in run.metrics.items() if is_value(value))
    metrics = [name for name in dict.fromkeys((*objectives, *SHOWN_METRICS, *CURVES)) if name in known | objectives]
    keys = list(runs[0].overrides)
    names = short_names([*keys, *metrics])
    columns = [["run", "run", "text"], ["state", "state", "text"]]
    columns += [[name, name if name.count("/") < 2 else names[name], "number"] for name in metrics]
    columns += [["helped", "has helped", "text"], ["verdict", "verdict", "text"]]
    columns += [[key, shortened(names[key], MAX_CELL), "option"] for key in keys]
    columns += [["step", "step", "text"], ["time", "time", "seconds"], ["left", "left", "seconds"]]
    columns += [["samples_per_second", "samples/s", "number"], ["started", "started", "date"]]
    columns += [["written", "last sign", "date"], ["reason", "why", "text"]]
    rows = []
    for run in sorted(runs, key=lambda run: -(run.status.started or last_modified(run.path))):
        status = run.status
        values = [run.metrics.get(name, status.objective.get(name)) for name in metrics]
        cells = [run.folder, run.state, *values, helped(run.metrics), status.verdict, *run.overrides.values()]
        cells += [progress(status), run.seconds, seconds_left(status), status.samples_per_second, status.started]
        row = {
            "cells": [_plain(cell) for cell in [*cells, last_modified(run.path), status.reason]],
            "kind": "bad" if run.bad or run.state in BAD else "" if run.state == "done" else "open",
            "address": address(run.path, base),
            "report": (run.path / REPORT).is_file(),
        }
        rows.append(row)
    return {
        "counts": count_states([run.state for run in runs]),
        "shared": shortened(options(runs[0].shared), 2000) if len(runs) > 1 else "",
        "columns": columns,
        "rows": rows,
        "metrics": list(dict.fromkeys([*(name for name in (*CURVES, *metrics) if name in known), *sorted(known)]))[
            :MAX_METRICS
        ],
    }


def helped(metrics: Mapping[str, float]) -> str:
    """Return in how many of its probes a run beats random weights and raw input: "in 2 of 3"; "" where none tells."""
    better = []
    for name in [name for name in metrics if "eval/trained/" in name and not name.endswith(LABEL_FREE)]:
        value, *others = (metrics.get(name.replace("trained", row)) for row in ("trained", "random_init", "raw_input"))
        if None not in others and {*others} != {value}:
            sign = 1 if direction_of(name) == "maximize" else -1
            better.append(all(sign * value > sign * other for other in others))
    return f"in {sum(better)} of {len(better)}" if better else ""


def address(path: Path, base: Path) -> str:
    """Return a run's folder as a relative URL."""
    return quote(os.fsencode(os.path.relpath(path, base)))


def _plain(value: object) -> object:
    """Return a cell as JSON has it, "" for none and for numbers that are not finite."""
    if isinstance(value, str):
        return shortened(value, MAX_CELL)
    return value if is_value(value) else ""
