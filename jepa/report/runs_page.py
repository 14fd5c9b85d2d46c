"""The runs below a folder as one page: a table to filter and sort, and curves of the chosen runs.

python scripts/runs.py output=runs.html

Without output= it is served to this machine alone, and reads again what has changed.
"""

from __future__ import annotations

import json
import os
import threading
import time
from collections.abc import Callable, Mapping, Sequence
from http.server import BaseHTTPRequestHandler, ThreadingHTTPServer
from pathlib import Path
from typing import Any
from urllib.parse import parse_qs, quote, urlsplit

from jepa.report.formatting import count_states, options, progress, short_names, shortened
from jepa.report.html_page import render
from jepa.report.run_files import MAX_METRICS, curve, find_runs, is_value, last_modified, reading_for
from jepa.report.runs import CURVES, SHOWN_METRICS, Run, read_runs
from jepa.report.status_table import seconds_left
from jepa.utils.errors import UserError, first_line
from jepa.utils.files import write_text
from jepa.utils.metric_direction import direction_of
from jepa.utils.read_data import printable, read_bytes

REPORT = "report.html"
GIVE = "a run's folder, or one that holds runs, such as outputs"
MAX_POINTS, FEWEST, MOST = 60_000, 30, 400  # of the curves in a file: in all, and of one
MAX_CELL = 100  # characters
BAD = ("failed", "damaged")
LABEL_FREE = ("rankme", "lidar", "feature_std")
SECONDS_OF_ANSWER = 0.5  # after which the rest of the files is left for the next
SECONDS_OF_QUEUE = 60.0  # for which a scheduler's answer is good
MAX_REPORT = 64 * 2**20  # bytes
APART = "sandbox allow-scripts allow-popups; default-src 'none'; img-src data: blob:; media-src data:; "
APART += "style-src 'unsafe-inline'; script-src 'unsafe-inline'"
"""A report comes from a run's folder, so it gets neither this server's answers nor the network."""


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


class RunsServer(ThreadingHTTPServer):
    """Answers with the page, the table and curves as JSON, and the reports of the runs; see `serve`."""

    daemon_threads = True

    def __init__(self, *, folder: Path, port: int, ask_queue: Callable[[], Mapping[str, str] | None]) -> None:
        self.folder, self.ask_queue = folder, ask_queue
        self.lock = threading.Lock()
        self.queue: Mapping[str, str] | None = None
        self.queue_asked = -SECONDS_OF_QUEUE
        self.paths: dict[str, Path] = {}
        find_runs(folder, "folder", GIVE)
        try:
            super().__init__(("127.0.0.1", port), Handler)
        except (OSError, OverflowError) as error:
            raise UserError(f"port={port} cannot be used ({first_line(error)}): give another, or 0 for any") from error

    def table(self) -> bytes:
        """Return the table as JSON. Raise UserError if the folder has no runs any more."""
        with self.lock:
            table, runs = read_table(self.folder, self.queue, SECONDS_OF_ANSWER)
            self.paths = {address(run.path, self.folder): run.path for run in runs}
            has_jobs = any(run.status.job is not None and run.state != "done" for run in runs)
            if has_jobs and time.monotonic() > self.queue_asked + SECONDS_OF_QUEUE:
                self.queue, self.queue_asked = self.ask_queue(), time.monotonic()
        return json.dumps(table).encode()

    def handle_error(self, request: object, client_address: object) -> None:
        """Say nothing of a browser that has gone."""


class Handler(BaseHTTPRequestHandler):
    """Answers one request."""

    server: RunsServer

    def do_GET(self) -> None:
        url = urlsplit(self.path)
        # A page from elsewhere could reach this port under a name of its own.
        if (self.headers["Host"] or "").rpartition(":")[0] not in ("127.0.0.1", "localhost"):
            return self.answer(403, b"use http://127.0.0.1", "text/plain")
        name, _, file = url.path[1:].rpartition("/")
        run = self.server.paths.get(name or ".")
        try:
            if url.path == "/":
                self.answer(200, page(self.server.folder, None).encode(), "text/html")
            elif url.path == "/table":
                self.answer(200, self.server.table(), "application/json")
            elif run is not None and file == REPORT:
                self.answer(200, read_bytes(run / REPORT, MAX_REPORT), "text/html", policy=APART)
            elif run is not None and file == "curve":
                metric = parse_qs(url.query).get("metric", [""])[0]
                self.answer(200, json.dumps(curve(run, metric, MOST)).encode(), "application/json")
            else:
                self.answer(404, b"there is no such page", "text/plain")
        except UserError as error:
            self.answer(500, json.dumps({"error": str(error)}).encode(), "application/json")
        return None

    def answer(self, code: int, content: bytes, kind: str, policy: str | None = None) -> None:
        self.send_response(code)
        self.send_header("Content-Type", f"{kind}; charset=utf-8")
        self.send_header("Content-Length", str(len(content)))
        self.send_header("Cache-Control", "no-store")
        self.send_header("X-Content-Type-Options", "nosniff")
        self.send_header("Cross-Origin-Resource-Policy", "same-origin")
        if policy:
            self.send_header("Content-Security-Policy", policy)
        self.end_headers()
        self.wfile.write(content)

    def log_message(self, *arguments: object) -> None:
        """Print nothing."""
