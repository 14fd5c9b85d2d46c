"""The run folder: `config.yaml`, `status.json`, `results.json`, `checkpoints/last.pt`; one run writes there."""

from __future__ import annotations

import contextlib
import json
import logging
import os
import time
from collections.abc import Callable, Iterator, Mapping
from pathlib import Path
from typing import Any

from omegaconf import OmegaConf

from jepa.checkpoint.load import locate
from jepa.checkpoint.saver import Saver, find_checkpoint
from jepa.distributed.collectives import is_rank0, propagate_failure
from jepa.distributed.launch import slurm_job_id
from jepa.utils.errors import CheckpointError, NonFiniteError, UserError, convert_system_errors, error_message, reason
from jepa.utils.run_status import is_running_elsewhere, read_status, start_status, update_status, warn_if_not_written

log = logging.getLogger("jepa")

SECONDS_BETWEEN_UPDATES = 5.0  # between two updates of the status while the run goes on, at least


class RunFolder:
    """One run's files, which rank 0 writes. resume: see `Trainer`."""

    def __init__(self, path: Path, config: dict[str, Any], resume: str | None, saver: Saver) -> None:
        self.path, self.config, self.resume, self.saver = path, config, resume, saver
        self._is_rank0 = is_rank0()  # kept, as the process group may be gone when the end is recorded
        self._begun, self._written_at = False, -float("inf")
        self._kept = True  # whether config.yaml is that of this run

    @property
    def last(self) -> Path:
        """The checkpoint to go on from: what there is, or where it will be."""
        return find_checkpoint(self.saver.folder) or self.saver.path("last")

    def source(self) -> Path | None:
        """Return the checkpoint to go on from, None for a fresh start.

        Raises CheckpointError when there is one and resume is not asked for, or none where it is, UserError when it is
        of another folder, or while another process trains here.
        """
        now = read_status(self.path)
        if is_running_elsewhere(now):
            raise UserError(
                f"the run in {self.path} is being trained by process {now.pid}: wait for it, or end it first"
            )
        last = find_checkpoint(self.saver.folder)
        if self.resume is None:
            if last is not None:
                own = self.saver.folder.resolve().is_relative_to(self.path.resolve())
                elsewhere = "" if own else " and trainer.checkpoint_dir (${hydra:job.num} in it tells jobs apart)"
                raise CheckpointError(
                    f"the run folder {self.path} already holds a checkpoint ({last}): continue it with "
                    f"resume={self.path} (or resume=auto), or start a new run in another hydra.run.dir" + elsewhere
                )
            return None
        if self.resume == "auto":
            return last
        if last is not None and Path(self.resume).resolve() in (self.path.resolve(), self.saver.folder.resolve()):
            return last
        source = locate(self.resume)
        if source.parent.resolve() != self.saver.folder.resolve():
            raise UserError(
                f"resume={self.resume} continues in its own run folder, but hydra.run.dir is {self.path}: leave "
                "hydra.run.dir out, or use init_from= to start a new run from the weights"
            )
        return source

    def create(self, *, begins: bool = True, fresh: bool = True) -> None:
        """Make the folders and write config.yaml and, where training begins, the status.

        A run that goes on has its config kept by `keep_config`: one that fails at once leaves the config that works.

        Raises UserError when the folder cannot be written.
        """
        before = read_status(self.path)
        options = list(self.config.get("overrides") or [])
        try:
            self.saver.folder.mkdir(parents=True, exist_ok=True)
            self.path.mkdir(parents=True, exist_ok=True)
            if fresh:
                self._write_config()
            self._kept = fresh or not begins
            if begins:
                start_status(self.path, options if fresh or before is None else before.overrides, slurm_job_id())
                self._begun = True
        except OSError as error:
            raise self._unwritable(error) from error

    def keep_config(self) -> None:
        """Write config.yaml, and the options in the status, of a run that goes on and has made its first step.

        Raises UserError when it cannot be written.
        """
        if self._kept or not self._is_rank0:
            return
        self._kept = True
        try:
            self._write_config()
        except OSError as error:
            raise self._unwritable(error) from error
        self.update_status(overrides=list(self.config.get("overrides") or []))

    def update_status(self, **changes: Any) -> None:
        """Write changed fields of `jepa.utils.run_status.Status`."""
        if self._is_rank0 and self._begun:
            self._written_at = time.monotonic()
            with warn_if_not_written(f"the status of {self.path}"):
                update_status(self.path, changes)

    def update_progress(self, **changes: Any) -> None:
        """Write changed fields, unless the status was written a moment ago."""
        if time.monotonic() - self._written_at >= SECONDS_BETWEEN_UPDATES:
            self.update_status(**changes)

    @contextlib.contextmanager
    def record_end(self, progress: Callable[[], Mapping[str, Any]]) -> Iterator[None]:
        """Return a context after which the status says how the run ended: done, stopped by a signal, or failed and why.

        Other ranks hear of a failure; what the system refused is a UserError with the checkpoint that stands.

        progress: further fields of the status, as of then.
        """
        try:
            with propagate_failure(), convert_system_errors(self.what_stands):
                yield
        except (KeyboardInterrupt, SystemExit) as stop:
            now = read_status(self.path)
            if now is None or now.state != "done":
                self.update_status(state="stopped", reason=str(stop) or type(stop).__name__, **progress())
            raise
        except BaseException as error:
            verdict = {"verdict": "diverged"} if isinstance(error, NonFiniteError) else {}
            self.update_status(state="failed", reason=error_message(error), **{**progress(), **verdict})
            raise
        self.update_status(state="done", **progress())

    def what_stands(self) -> str:
        """Return the end of a message about a run that failed: the checkpoint to go on from, if any."""
        last = find_checkpoint(self.saver.folder)
        return "" if last is None else f"; {last} stands: go on with resume={self.path}"

    def write_results(self, results: Mapping[str, Any]) -> None:
        """Write results.json."""
        if is_rank0():
            self._write("results.json", json.dumps(results, indent=2) + "\n")

    def restore_if_deleted(self) -> None:
        """Make the folder anew, with config.yaml, if somebody has deleted it while the run goes on; say so."""
        if self._begun and self._is_rank0 and not (self.path / "config.yaml").is_file():
            log.warning("the run folder %s was deleted while the run goes on: it is made anew from here on", self.path)
            self.create(begins=True)

    def _unwritable(self, error: OSError) -> UserError:
        return UserError(
            f"cannot write to the run folder {self.path}: {reason(error, self.path)}: "
            "choose another with hydra.run.dir=<folder>"
        )

    def _write_config(self) -> None:
        self._write("config.yaml", OmegaConf.to_yaml(OmegaConf.create(self.config)))

    def _write(self, name: str, text: str) -> None:
        temporary = self.path / f".{name}.writing"
        temporary.write_text(text)
        os.replace(temporary, self.path / name)
