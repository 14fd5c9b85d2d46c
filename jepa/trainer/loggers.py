"""Where metrics go: a file of JSON lines, TensorBoard. The console is in `jepa.trainer.console`."""

from __future__ import annotations

import json
import os
from collections.abc import Mapping
from pathlib import Path
from typing import Any

from jepa.types import Horizon


class Logger:
    """Receives what happens in a run; a subclass overrides what it is interested in.

    Metrics are plain floats under full names (`train/loss`, `lr`, ...).
    """

    def open(self, run_dir: Path, step: int, horizon: Horizon) -> None:
        """The run starts or goes on after `step` steps: what was logged later than that is void."""

    def advance(self, step: int) -> None:
        """A step has been made."""

    def log(self, metrics: Mapping[str, float], step: int) -> None:
        """Metrics in force after `step` steps."""

    def message(self, text: Any) -> None:
        """Something for a person to read: text, or whatever rich can print."""

    def close(self) -> None:
        """The run ends."""


class JSONLines(Logger):
    """`metrics.jsonl` in the run folder: one object a line, each with `step`."""

    def open(self, run_dir: Path, step: int, horizon: Horizon) -> None:
        """Open the file for appending, cut back to the lines up to `step`."""
        path = run_dir / "metrics.jsonl"
        if path.exists():
            lines = [line for line in path.read_text().splitlines() if is_before(line, step)]
            temporary = path.with_suffix(".jsonl.writing")
            temporary.write_text("".join(f"{line}\n" for line in lines))
            os.replace(temporary, path)
        self._file = open(path, "a", buffering=1)  # noqa: SIM115 (closed by close)

    def log(self, metrics: Mapping[str, float], step: int) -> None:
        """Append one line."""
        self._file.write(json.dumps({"step": step, **metrics}) + "\n")

    def close(self) -> None:
        """Close the file."""
        self._file.close()


def is_before(line: str, step: int) -> bool:
    """Whether a line is whole and tells of a step up to this one; a killed run may leave half a line."""
    try:
        return json.loads(line)["step"] <= step
    except (json.JSONDecodeError, KeyError, TypeError):
        return False


class TensorBoard(Logger):
    """TensorBoard event files in `tensorboard/` of the run folder."""

    def open(self, run_dir: Path, step: int, horizon: Horizon) -> None:
        """Open a writer that voids what was logged after `step`."""
        from torch.utils.tensorboard import SummaryWriter

        self._writer = SummaryWriter(str(run_dir / "tensorboard"), purge_step=step + 1)

    def log(self, metrics: Mapping[str, float], step: int) -> None:
        """Write one scalar per metric."""
        for name, value in metrics.items():
            self._writer.add_scalar(name, value, step)

    def close(self) -> None:
        """Flush and close."""
        self._writer.close()
