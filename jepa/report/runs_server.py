"""The page over runs, served to this machine alone, which reads again what has changed: python scripts/runs.py"""

from __future__ import annotations

import json
import threading
import time
from collections.abc import Callable, Mapping
from http.server import BaseHTTPRequestHandler, ThreadingHTTPServer
from pathlib import Path
from urllib.parse import parse_qs, urlsplit

from jepa.report.run_files import curve, find_runs
from jepa.report.runs_page import GIVE, MOST, REPORT, address, page, read_table
from jepa.utils.errors import UserError, first_line
from jepa.utils.read_data import read_bytes

SECONDS_OF_ANSWER = 0.5  # after which the rest of the files is left for the next
SECONDS_OF_QUEUE = 60.0  # for which a scheduler's answer is good
MAX_REPORT = 64 * 2**20  # bytes
APART = "sandbox allow-scripts allow-popups; default-src 'none'; img-src data: blob:; media-src data:; "
APART += "style-src 'unsafe-inline'; script-src 'unsafe-inline'"
"""A report comes from a run's folder, so it gets neither this server's answers nor the network."""


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
