"""Where metrics go: a file of JSON lines, TensorBoard. The console and W&B are in `console` and `wandb_logger`."""

from __future__ import annotations

import contextlib
import errno
import json
import logging
import math
import os
from collections.abc import Callable, Iterator, Mapping
from dataclasses import dataclass, field
from pathlib import Path
from typing import TYPE_CHECKING, Any

import torch

from jepa.types import RunLength
from jepa.utils.errors import SYSTEM_ERRORS
from jepa.utils.read_data import DamagedFileError, exists, parse_json, read_lines

if TYPE_CHECKING:
    import numpy as np

    from jepa.trainer.trainer_parts import TrainerParts

log = logging.getLogger("jepa")


@dataclass(frozen=True)
class RunInfo:
    """The run that a logger opens for."""

    folder: Path  # the run folder, which exists
    step: int  # steps that lie behind; what was logged later than that is void
    run_length: RunLength
    config: Mapping[str, Any] = field(default_factory=dict)  # resolved
    redo: bool = False  # what was validated and evaluated at exactly `step` is measured again


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

    def picture(self, name: str, image: np.ndarray, step: int) -> None:
        """Called with a picture (H, W, 3) uint8."""

    def animation(self, name: str, gif: bytes, step: int) -> None:
        """Called with a moving picture, the content of a GIF."""

    def embeddings(self, name: str, found: Mapping[str, Any], step: int) -> None:
        """Called with what features say of m samples, after every picture of them.

        found: `vectors` (m, 32) float, `labels` m texts, `thumbnails` (m, s, s, 3) uint8 or None, `neighbours` row ->
        rows of the closest samples, `last` whether these are the last ones of the run.
        """

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


class RunLog:
    """Passes metrics, messages and the monitor's verdict to the loggers of a run, which only rank 0 has."""

    def __init__(self, trainer: TrainerParts) -> None:
        self.trainer = trainer
        self._refused: set[str] = set()  # loggers that the system refused to write for

    @contextlib.contextmanager
    def open(self) -> Iterator[None]:
        """Return a context in which the loggers are open."""
        with contextlib.ExitStack() as stack:
            for name, logger in self.trainer.loggers.items():
                logger.open(self._info(redo=self.trainer.state.pending))
                stack.callback(self._call, name, logger.close)
            self.show_verdict()
            yield

    def reopen(self) -> None:
        """Open the loggers at an earlier step, as on a resume, so that no step stands twice."""
        self._tell("close")
        self._tell("open", self._info(redo=False))
        self.show_verdict()

    def advance(self) -> None:
        self._tell("advance", self.trainer.step)

    def log(self, metrics: Mapping[str, float]) -> None:
        """Give metrics of the present step to all loggers."""
        step = self.trainer.step
        self._tell("log", {"epoch": self.trainer.run_length.epoch(step), **metrics}, step)

    def picture(self, name: str, image: np.ndarray) -> None:
        """Give a picture (H, W, 3) to the loggers that show such."""
        self._tell("picture", name, image, self.trainer.step)

    def animation(self, name: str, gif: bytes) -> None:
        """Give a moving picture to the loggers that show such."""
        self._tell("animation", name, gif, self.trainer.step)

    def embeddings(self, name: str, **found: Any) -> None:
        self._tell("embeddings", name, found, self.trainer.step)

    def say(self, text: Any) -> None:
        """Give a message to the loggers that show such."""
        self._tell("message", text)

    def show_verdict(self) -> None:
        """Show the monitor's verdict for as long as it stands."""
        if self.trainer.verdict is not None:
            self._tell("status", self.trainer.verdict)

    def progress(self) -> dict[str, Any]:
        """Return where the run is, for its status."""
        where = {"step": self.trainer.step, "max_steps": self.trainer.run_length.max_steps}
        return {**where, "train_seconds": self.trainer.state.train_seconds, "verdict": self.trainer.verdict}

    def _tell(self, method: str, *arguments: Any) -> None:
        for name, logger in self.trainer.loggers.items():
            self._call(name, getattr(logger, method), *arguments)

    def _call(self, name: str, method: Callable[..., None], *arguments: Any) -> None:
        """Call a method of a logger. What cannot be written is no reason to lose a training: warn, once for each."""
        try:
            method(*arguments)
        except OSError as error:
            if error.errno not in SYSTEM_ERRORS:
                raise
            if name not in self._refused:
                self._refused.add(name)
                log.warning(
                    "logger.%s cannot write: %s%s: the run goes on without its lines, or with them once there is room",
                    name,
                    f"{error.filename}: " if error.filename else "",
                    error.strerror,
                )

    def _info(self, redo: bool) -> RunInfo:
        folder = self.trainer.folder
        return RunInfo(folder.path, self.trainer.step, self.trainer.run_length, folder.config, redo=redo)


@dataclass(kw_only=True, eq=False)
class JSONLines(Logger):
    """One JSON object a line, each with `step`; a value that is not finite is written as null.

    path: null writes `metrics.jsonl` in the run folder; a relative path stands in the run folder too, so that the
    runs of a sweep do not share it. What another run left in a file outside the run folder is kept under a new name.

    Lines that cannot be written, as on a full disk, are kept and written once there is room.
    """

    path: str | None = None

    def open(self, run: RunInfo) -> None:
        """Open the file for appending, cut back to the lines that hold."""
        path = run.folder / (self.path or "metrics.jsonl")
        path.parent.mkdir(parents=True, exist_ok=True)
        if path.is_file() or (self.path is None and exists(path)):  # a device or pipe only where it was asked for
            if run.step == 0 and not path.resolve().is_relative_to(run.folder.resolve()):
                set_aside(path)
            else:
                cut_back(path, run)
        path.touch()
        self._path, self._lines = path, []

    def log(self, metrics: Mapping[str, float], step: int) -> None:
        finite = {name: value if math.isfinite(value) else None for name, value in metrics.items()}
        self._lines.append(json.dumps({"step": step, **finite}, allow_nan=False) + "\n")
        self._write()

    def close(self) -> None:
        """Write what could not be written before. Raises OSError if it still cannot."""
        self._write()

    def _write(self) -> None:
        """Append all lines, or none, to the file; it is made anew if it is gone. Raises OSError if it cannot."""
        if not self._lines:
            return
        data = "".join(self._lines).encode()
        self._path.parent.mkdir(parents=True, exist_ok=True)
        with open(self._path, "ab", buffering=0) as file:
            end = os.fstat(file.fileno()).st_size
            try:
                if file.write(data) < len(data):
                    raise OSError(errno.ENOSPC, os.strerror(errno.ENOSPC), str(self._path))
            except OSError:
                with contextlib.suppress(OSError):  # no file, as /dev/full
                    file.truncate(end)
                raise
        self._lines.clear()


def cut_back(path: Path, run: RunInfo) -> None:
    """Keep the lines up to the run's step, without what was measured at that step if it will be again.

    Raise DamagedFileError for what is no regular file.
    """

    def holds(line: bytes) -> bool:
        try:
            values = parse_json(line, path)
            step = values["step"] if isinstance(values, dict) else None
        except (DamagedFileError, KeyError):
            return False  # a killed run may leave half a line
        if type(step) not in (int, float):
            return False
        return step < run.step or (step == run.step and not (run.redo and is_measurement(values)))

    temporary = path.with_name(f".{path.name}.writing")
    with open(temporary, "wb") as file:
        file.writelines(line.rstrip(b"\r\n") + b"\n" for line in read_lines(path) if holds(line))
    os.replace(temporary, path)


def is_measurement(metrics: Mapping[str, Any]) -> bool:
    """Return whether metrics are of a validation, a probe or an evaluation, and not of a step itself."""
    return any(name.startswith(("val/", "online/", "eval/")) for name in metrics)


def set_aside(path: Path) -> None:
    """Rename a file to the first free of `<name>.1`, `<name>.2`, ..."""
    number = 1
    while (free := path.with_name(f"{path.name}.{number}")).exists():
        number += 1
    os.replace(path, free)


@dataclass(kw_only=True, eq=False)
class TensorBoard(Logger):
    """TensorBoard event files.

    folder: null writes to `tensorboard/` in the run folder; a relative path stands in the run folder too. One
    folder is one curve in TensorBoard, so runs must not share it.
    """

    folder: str | None = None

    def open(self, run: RunInfo) -> None:
        """Open a writer that voids what was logged after the run's step."""
        from torch.utils.tensorboard import SummaryWriter

        self._writer = SummaryWriter(str(run.folder / (self.folder or "tensorboard")), purge_step=run.step + 1)

    def log(self, metrics: Mapping[str, float], step: int) -> None:
        for name, value in metrics.items():
            self._writer.add_scalar(name, value, step)

    def picture(self, name: str, image: np.ndarray, step: int) -> None:
        self._writer.add_image(name, image, step, dataformats="HWC")

    def animation(self, name: str, gif: bytes, step: int) -> None:
        from tensorboard.compat.proto.summary_pb2 import Summary

        image = Summary.Image(colorspace=3, encoded_image_string=gif)  # its size stands in the GIF
        self._writer._get_file_writer().add_summary(Summary(value=[Summary.Value(tag=name, image=image)]), step)

    def embeddings(self, name: str, found: Mapping[str, Any], step: int) -> None:
        """Write the last ones of the run for the embedding projector, with labels and thumbnails."""
        if found["last"]:
            images = found["thumbnails"]
            images = None if images is None else torch.from_numpy(images).movedim(-1, 1) / 255
            tag = name.replace("/", "_")
            self._writer.add_embedding(found["vectors"], found["labels"], images, global_step=step, tag=tag)

    def close(self) -> None:
        self._writer.close()
