"""The run folder: `config.yaml`, `metrics.jsonl`, `results.json`, `checkpoints/last.pt`, and who may write there."""

from __future__ import annotations

import json
import os
from collections.abc import Mapping
from pathlib import Path
from typing import Any

from jepa.trainer.saver import Saver, find_checkpoint
from jepa.utils.distributed import is_main
from jepa.utils.errors import CheckpointError, UserError
from jepa.utils.weights import locate, reason


class RunFolder:
    """One run's files, which rank 0 writes. resume: see `Trainer`."""

    def __init__(self, path: Path, config: dict[str, Any], resume: str | None, saver: Saver) -> None:
        self.path = path
        self.config = config
        self.resume = resume
        self.saver = saver

    @property
    def last(self) -> Path:
        """The checkpoint to go on from: what there is, or where it will be."""
        return find_checkpoint(self.saver.folder) or self.saver.path("last")

    def source(self) -> Path | None:
        """The checkpoint to go on from, None for a fresh start.

        Raises CheckpointError when there is one and resume is not asked for, or none where it is, UserError when it is
        of another folder.
        """
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

    def lay_out(self) -> None:
        """Make the folders and write config.yaml. Raises UserError when the folder cannot be written."""
        try:
            self.saver.folder.mkdir(parents=True, exist_ok=True)
            self.path.mkdir(parents=True, exist_ok=True)
            self._write("config.yaml", self._config_text())
        except OSError as error:
            raise UserError(
                f"cannot write to the run folder {self.path}: {reason(error, self.path)}: "
                "choose another with hydra.run.dir=<folder>"
            ) from error

    def _config_text(self) -> str:
        from omegaconf import OmegaConf

        return OmegaConf.to_yaml(OmegaConf.create(self.config))

    def write_results(self, results: Mapping[str, Any]) -> None:
        """Write results.json."""
        if is_main():
            self._write("results.json", json.dumps(results, indent=2) + "\n")

    def _write(self, name: str, text: str) -> None:
        temporary = self.path / f".{name}.writing"
        temporary.write_text(text)
        os.replace(temporary, self.path / name)
