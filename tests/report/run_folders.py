"""Run folders as a sweep leaves them, without training."""

from __future__ import annotations

import json
import re
from pathlib import Path

from jepa.utils.run_status import Status, write_status

METRIC = "eval/trained/linear"


def write_run(sweep: Path, number: int, options: str, value: float | None = None, **others: object) -> Path:
    """A run with options as on the command line; done with a value of METRIC unless told otherwise.

    value: what it counts as, and has measured if it is done. others: fields of the status. metrics: what its last line
    of metrics.jsonl holds besides.
    """
    folder, metrics = sweep / str(number), dict(others.pop("metrics", {}))
    objective = {} if value is None else {METRIC: value}
    status = {"state": "done", "objective": objective, "starts": 1, "started": 1e9 + number, "train_seconds": 60.0}
    status |= {"step": 100, "max_steps": 100, "verdict": "healthy", "settled": True, **others}
    write_status(folder, Status(overrides=options.split(), **status))
    lines = [{"step": step, "train/loss": 1 / step} for step in (1, 50, 100)]
    lines.append({"step": 100, **(objective if status["state"] == "done" else {}), **metrics})
    (folder / "metrics.jsonl").write_text("".join(json.dumps(line) + "\n" for line in lines))
    return folder


def table_of(page: Path) -> dict:
    """What a page over runs holds."""
    text = page.read_text(encoding="utf-8")
    return json.loads(re.search(r'<script type="application/json" id="table">(.*?)</script>', text)[1])
