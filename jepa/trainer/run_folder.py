"""The run folder: `config.yaml`, `metrics.jsonl`, `results.json`, `checkpoints/last.pt`, and who may write there."""

from __future__ import annotations

import json
import os
import shutil
from collections.abc import Mapping
from pathlib import Path
from typing import TYPE_CHECKING, Any

from jepa.trainer import checkpoint
from jepa.trainer.loggers import is_before
from jepa.utils.errors import CheckpointError, UserError
from jepa.utils.weights import locate

if TYPE_CHECKING:
    from jepa.trainer.trainer import Trainer


class RunFolder:
    """One run's files. resume: see `Trainer`."""

    def __init__(self, path: Path, config: dict[str, Any], resume: str | None) -> None:
        self.path = path
        self.config = config
        self.resume = resume
        self.checkpoints = path / "checkpoints"
        self.last = self.checkpoints / "last.pt"
        self.results = path / "results.json"

    def begin(self, trainer: Trainer) -> str:
        """Load the checkpoint to go on from, if any, then lay the folder out; gives a sentence that says which.

        Raises CheckpointError when there is a checkpoint and resume is not asked for, or it cannot be used;
        UserError when the folder cannot be written. Nothing in the folder has been touched then.
        """
        source = self._source()
        if source is not None:
            trainer.load_checkpoint(source)
            start = f"resumed from {source} at step {trainer.step} of {trainer.horizon.max_steps}"
        elif trainer.step > 0:
            start = f"going on from step {trainer.step} in the new run folder {self.path}"
        else:
            start = f"training from scratch in {self.path}"
        if trainer.step > trainer.horizon.max_steps:
            raise UserError(
                f"the checkpoint {source} is at step {trainer.step}, past the end of this run "
                f"({trainer.horizon.max_steps} steps): raise trainer.max_epochs or trainer.max_steps"
            )
        self._lay_out()
        return start

    def _source(self) -> Path | None:
        """The checkpoint to go on from."""
        if self.resume is None:
            if self.last.exists():
                raise CheckpointError(
                    f"the run folder {self.path} already holds a checkpoint ({self.last}): continue it with "
                    f"resume={self.path} (or resume=auto), or start a new run in another hydra.run.dir"
                )
            return None
        if self.resume == "auto":
            return self.last if self.last.exists() else None
        source = locate(self.resume)
        if source.resolve().parent != self.checkpoints.resolve():
            raise UserError(
                f"resume={self.resume} continues in its own run folder, but hydra.run.dir is {self.path}: leave "
                "hydra.run.dir out, or use init_from= to start a new run from the weights"
            )
        return source

    def _lay_out(self) -> None:
        try:
            self.checkpoints.mkdir(parents=True, exist_ok=True)
            self._write("config.yaml", self._config_text())
        except OSError as error:
            raise UserError(
                f"cannot write to the run folder {self.path}: {checkpoint.reason(error, self.path)}: "
                "choose another with hydra.run.dir=<folder>"
            ) from error

    def _config_text(self) -> str:
        from omegaconf import OmegaConf

        return OmegaConf.to_yaml(OmegaConf.create(self.config))

    def write_results(self, results: Mapping[str, Any]) -> None:
        """Write results.json."""
        self._write("results.json", json.dumps(results, indent=2) + "\n")

    def read_metrics(self, step: int) -> dict[str, float]:
        """The last value of every metric in metrics.jsonl up to a step; nothing when there is none."""
        path = self.path / "metrics.jsonl"
        lines = path.read_text().splitlines() if path.exists() else []
        entries = [json.loads(line) for line in lines if is_before(line, step)]
        last = {name: value for entry in entries for name, value in entry.items() if name not in ("step", "epoch")}
        return {name: float("nan") if value is None else value for name, value in last.items()}  # as JSONLines writes

    def copy(self, name: str, new_name: str) -> None:
        """Put a checkpoint under another name too, whole or not at all: a hard link where that can be, else a copy."""
        source, target = self.checkpoints / name, self.checkpoints / new_name
        temporary = self.checkpoints / f".{new_name}.writing"
        temporary.unlink(missing_ok=True)
        try:
            try:
                os.link(source, temporary)
            except OSError:
                shutil.copyfile(source, temporary)
            os.replace(temporary, target)
        except OSError as error:
            temporary.unlink(missing_ok=True)
            raise CheckpointError(f"could not write {target}: {checkpoint.reason(error, target)}") from error

    def _write(self, name: str, text: str) -> None:
        temporary = self.path / f".{name}.writing"
        temporary.write_text(text)
        os.replace(temporary, self.path / name)
