"""Weights & Biases: logger=[console,jsonl,wandb], or +logger/wandb... beside the default ones.

W&B uploads from a process of its own, so training never waits for the network; without one the run is kept in the
run folder, to be uploaded later.
"""

from __future__ import annotations

import io
import os
import secrets
import sys
from collections.abc import Mapping, Sequence
from dataclasses import dataclass
from pathlib import Path
from typing import TYPE_CHECKING, Any, Literal

from jepa.trainer.loggers import Logger, RunInfo
from jepa.utils.errors import UserError

if TYPE_CHECKING:
    import numpy as np


@dataclass(kw_only=True, eq=False)
class WandB(Logger):
    """Metrics, configuration and final values in a W&B run, whose files stand in `wandb/` of the run folder.

    mode: "online" uploads while training, and goes "offline" by itself, saying so, where nobody is logged in or no
        server answers; "offline" keeps everything for `wandb sync`; "disabled" does nothing.

    The run's id is kept in checkpoints, so that a resumed run continues its curves. They are drawn over a metric
    `step` of our own: W&B's must never decrease, and a run that goes on from a checkpoint repeats the steps since.
    Such points stand twice in the history, the newer with a later `_timestamp`, and the start says so.

    In a run that `wandb agent` starts for a sweep (conf/wandb), id, project and entity are the agent's, without which
    the sweep never sees a result. Checkpoints keep them too, so that it may be resumed without the agent.
    """

    project: str = "jepa"
    entity: str | None = None
    tags: Sequence[str] = ()
    group: str | None = None
    name: str | None = None  # None: the last two parts of the run folder
    mode: Literal["online", "offline", "disabled"] = "online"
    folder: str | None = None  # of W&B's files; None is the run folder, a relative path stands in it
    init_timeout: float = 15.0  # seconds to wait for the server at the start
    finish_timeout: float = 60.0  # and at the end, for what is not yet uploaded

    def __post_init__(self) -> None:
        if min(self.init_timeout, self.finish_timeout) <= 0:
            raise ValueError(
                f"got init_timeout={self.init_timeout}, finish_timeout={self.finish_timeout}, expected above 0 s"
            )
        self.id: str | None = None
        self._home: dict[str, str | None] | None = None  # project and entity of the sweep that the run is of
        self._run: Any = None

    def open(self, run: RunInfo) -> None:
        """Start or continue the W&B run, waiting at most `init_timeout` seconds.

        Raises UserError when W&B refuses the settings or the API key's form.
        """
        if self.mode == "disabled":
            return
        import wandb

        resumed = self.id is not None
        self.id = self.id or secrets.token_hex(4)
        self._outer_error = sys.exc_info()[1]
        folder = run.folder / (self.folder or "")
        folder.mkdir(parents=True, exist_ok=True)
        wandb.setup(wandb.Settings(silent=True))
        try:
            self._run, why_offline = self._start(wandb, run, folder)
        except wandb.errors.Error as error:
            raise UserError(f"logger.wandb: {first_sentence(error)}: check project, entity and the API key") from error
        # On top of W&B's own step, which counts the calls of log.
        self._run.define_metric("step", hidden=True)
        self._run.define_metric("*", step_metric="step")
        self._files = Path(self._run.dir).parent
        if in_sweep():
            self.id = self._run.id
            self._home = {"project": self._run.project, "entity": self._run.entity or None}
        if self._run.offline:
            text = f"{why_offline}kept in {self._files}, upload with: wandb sync {self._files.parent}"
        else:
            text = self._run.url
        again = f" (run {self.id} goes on from step {run.step}; steps it had logged after that stand twice)"
        print(f"W&B: {text}{again if resumed else ''}", flush=True)

    def _start(self, wandb: Any, run: RunInfo, folder: Path) -> tuple[Any, str]:
        """Return the W&B run, and why it is offline against what was asked for."""
        place = {**(self._home or {"project": self.project, "entity": self.entity}), "id": self.id}
        if in_sweep():
            place = dict.fromkeys(place)  # W&B finds the agent's by itself, and would warn of any other
        settings = {
            **place,
            "tags": list(self.tags) or None,
            "group": self.group,
            "name": self.name or "/".join(run.folder.resolve().parts[-2:]),
            "config": dict(run.config),
            "dir": str(folder),
            "resume": "allow",
            "reinit": "finish_previous",
            "allow_val_change": True,
            "settings": wandb.Settings(
                silent=True,
                console="off",
                init_timeout=self.init_timeout,
                finish_timeout=self.finish_timeout,
                finish_timeout_raises=True,
            ),
        }
        mode, why = self.mode, ""
        # Asks nobody: a prompt would hold the run up until someone looks.
        if mode == "online" and not wandb.login(prompt=False, verify=False):
            mode, why = "offline", "nobody is logged in (wandb login), the run is "
        try:
            return wandb.init(mode=mode, **settings), why
        except wandb.errors.CommError as error:
            if isinstance(error, wandb.errors.AuthenticationError):
                raise
            why = f"no connection ({first_sentence(error)}), the run is "
            wandb.teardown()  # W&B's process holds the id of a run that could not start
            wandb.setup(wandb.Settings(silent=True))
            return wandb.init(mode="offline", **settings), why

    def log(self, metrics: Mapping[str, float], step: int) -> None:
        if self._run is not None:
            self._run.log({**metrics, "step": step})

    def picture(self, name: str, image: np.ndarray, step: int) -> None:
        if self._run is not None:
            import wandb

            self._run.log({name: wandb.Image(image), "step": step})

    def animation(self, name: str, gif: bytes, step: int) -> None:
        if self._run is not None:
            import wandb

            self._run.log({name: wandb.Video(io.BytesIO(gif), format="gif"), "step": step})

    def embeddings(self, name: str, found: Mapping[str, Any], step: int) -> None:
        """Log a table of samples and their nearest neighbours: thumbnails with labels, or labels alone."""
        if self._run is None:
            return
        import wandb

        def cell(row: int) -> Any:
            images, label = found["thumbnails"], found["labels"][row]
            return label if images is None else wandb.Image(images[row], caption=label)

        rows = [[cell(row), *map(cell, near)] for row, near in found["neighbours"].items()]
        columns = ["sample", *(f"nearest {number}" for number in range(1, len(rows[0])))]
        self._run.log({f"{name}/neighbours": wandb.Table(columns=columns, data=rows), "step": step})

    def close(self) -> None:
        """End the W&B run, as failed where an error ends ours; wait at most `finish_timeout` seconds for uploads."""
        if self._run is None:
            return
        failed = sys.exc_info()[1] not in (None, self._outer_error)
        try:
            self._run.finish(exit_code=int(failed))
        except TimeoutError:
            print(
                f"W&B: not all was uploaded in {self.finish_timeout:.0f} s, upload the rest with: "
                f"wandb sync {self._files}",
                flush=True,
            )
        self._run = None

    def state_dict(self) -> dict[str, Any]:
        """Return the id and group of the W&B run, and where it is if an agent has decided that."""
        return {"id": self.id, "group": self.group, "home": self._home}

    def load_state_dict(self, state: Mapping[str, Any]) -> None:
        """Continue that run; a group given now wins."""
        self.id, self.group = state["id"], self.group or state["group"]
        self._home = state.get("home")  # which older checkpoints do not have


def in_sweep() -> bool:
    """Return whether `wandb agent` has started this process for a sweep."""
    return bool(os.environ.get("WANDB_SWEEP_ID"))


def first_sentence(error: BaseException) -> str:
    """Return the first line of an error, without its full stop."""
    return (str(error).strip().splitlines() or [type(error).__name__])[0].rstrip(".")
