"""Where metrics go: a file of JSON lines, TensorBoard. The console and W&B are in `console` and `wandb_logger`."""

from __future__ import annotations

import json
import math
import os
from collections.abc import Mapping
from dataclasses import dataclass, field
from pathlib import Path
from typing import Any

from jepa.types import RunLength


@dataclass(frozen=True)
class RunInfo:
    """The run that a logger opens for.

    folder: the run folder, which exists. step: steps that lie behind; what was logged later than that is void.
    config: the resolved configuration. redo: what was validated and evaluated at exactly `step` is measured again.
    """

    folder: Path
    step: int
    run_length: RunLength
    config: Mapping[str, Any] = field(default_factory=dict)
    redo: bool = False


class Logger:
    """Receives metrics and messages of a run; a subclass overrides the methods it needs.

    Metrics are plain floats under full names (`train/loss`, `lr`, ...). Under several ranks only the first one's
    loggers are opened. What a logger must remember across a resume it returns from `state_dict`, which is
    stored in checkpoints under the logger's name in the configuration and loaded before `open`.
    """

    def open(self, run: RunInfo) -> None:
        """Called when the run starts or resumes."""

    def advance(self, step: int) -> None:
        """Called after every step."""

    def log(self, metrics: Mapping[str, float], step: int) -> None:
        """Called with metrics measured after `step` steps."""

    def message(self, text: Any) -> None:
        """Called with something for a person to read: text, or what rich can print."""

    def status(self, text: str) -> None:
        """Called with the collapse monitor's verdict, to be shown until the next one."""

    def close(self) -> None:
        """Called at the end of the run or before a rollback, after which `open` follows."""

    def state_dict(self) -> dict[str, Any]:
        """Return what a checkpoint keeps: plain values and tensors."""
        return {}

    def load_state_dict(self, state: Mapping[str, Any]) -> None:
        """Restore what `state_dict` returned."""


class JSONLines(Logger):
    """One JSON object a line, each with `step`; a value that is not finite is written as null.

    path: null writes `metrics.jsonl` in the run folder; a relative path stands in the run folder too, so that the
    runs of a sweep do not share it. What another run left in a file outside the run folder is kept under a new name.
    """

    def __init__(self, *, path: str | None = None) -> None:
        self.path = path

    def open(self, run: RunInfo) -> None:
        """Open the file for appending, cut back to the lines that hold."""
        path = run.folder / (self.path or "metrics.jsonl")
        path.parent.mkdir(parents=True, exist_ok=True)
        if path.exists():
            if run.step == 0 and not path.resolve().is_relative_to(run.folder.resolve()):
                set_aside(path)
            else:
                cut_back(path, run)
        self._file = open(path, "a", buffering=1)  # noqa: SIM115 (closed by close)

    def log(self, metrics: Mapping[str, float], step: int) -> None:
        """Append one line."""
        finite = {name: value if math.isfinite(value) else None for name, value in metrics.items()}
        self._file.write(json.dumps({"step": step, **finite}, allow_nan=False) + "\n")

    def close(self) -> None:
        """Close the file."""
        self._file.close()


def cut_back(path: Path, run: RunInfo) -> None:
    """Keep the lines up to the run's step, without what was measured at that step if it will be again."""

    def holds(line: str) -> bool:
        if not is_before(line, run.step):
            return False
        return not run.redo or is_before(line, run.step - 1) or not measures(json.loads(line))

    lines = [line for line in path.read_text().splitlines() if holds(line)]
    temporary = path.with_name(f".{path.name}.writing")
    temporary.write_text("".join(f"{line}\n" for line in lines))
    os.replace(temporary, path)


def measures(line: Mapping[str, Any]) -> bool:
    """Whether a line is of a validation, a probe or an evaluation, and not of a step itself."""
    return any(name.startswith(("val/", "online/", "eval/")) for name in line)


def set_aside(path: Path) -> None:
    """Rename a file to the first free of `<name>.1`, `<name>.2`, ..."""
    number = 1
    while (free := path.with_name(f"{path.name}.{number}")).exists():
        number += 1
    os.replace(path, free)


def is_before(line: str, step: int) -> bool:
    """Whether a line is complete and of a step up to this one; a killed run may leave half a line."""
    try:
        return json.loads(line)["step"] <= step
    except (json.JSONDecodeError, KeyError, TypeError):
        return False


class TensorBoard(Logger):
    """TensorBoard event files.

    folder: null writes to `tensorboard/` in the run folder; a relative path stands in the run folder too. One
    folder is one curve in TensorBoard, so runs must not share it.
    """

    def __init__(self, *, folder: str | None = None) -> None:
        self.folder = folder

    def open(self, run: RunInfo) -> None:
        """Open a writer that voids what was logged after the run's step."""
        from torch.utils.tensorboard import SummaryWriter

        self._writer = SummaryWriter(str(run.folder / (self.folder or "tensorboard")), purge_step=run.step + 1)

    def log(self, metrics: Mapping[str, float], step: int) -> None:
        """Write one scalar per metric."""
        for name, value in metrics.items():
            self._writer.add_scalar(name, value, step)

    def close(self) -> None:
        """Flush and close."""
        self._writer.close()
