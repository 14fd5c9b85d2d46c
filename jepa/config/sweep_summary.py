"""Hydra's callback at the end of a sweep: print the leaderboard and write it beside the runs."""

from __future__ import annotations

from pathlib import Path

from hydra.experimental.callback import Callback
from omegaconf import DictConfig

from jepa.config import command
from jepa.config.resume import SWEEP_FILE
from jepa.distributed.launch import read_launch
from jepa.utils.errors import UserError
from jepa.utils.read_data import MAX_YAML, exists, printable, read_bytes
from jepa.utils.run_status import read_status

MAX_ROWS = 20


class SweepSummary(Callback):
    """Print the leaderboard at the end of a sweep, write leaderboard.csv and leaderboard.html, and note failed runs."""

    def on_multirun_start(self, config: DictConfig, *, config_name: str | None = None) -> None:
        """Keep the file of a sweep that goes on: Hydra overwrites it even if this sweep is then refused."""
        path = Path(config.hydra.sweep.dir) / SWEEP_FILE
        if exists(path):
            command.sweep_file = (path, read_bytes(path, MAX_YAML))

    def on_multirun_end(self, config: DictConfig, *, config_name: str | None = None) -> None:
        """Print and write the leaderboard, and note failed runs for the exit code."""
        if read_launch().rank > 0:
            return
        folder = Path(config.hydra.sweep.dir)
        statuses = {path.parent.name: read_status(path.parent) for path in folder.glob("*/status.json")}
        for name, status in statuses.items():
            # A learning rate at which training diverges is a result.
            if status is not None and status.state in ("failed", "stopped") and status.verdict != "diverged":
                command.failed_jobs.add(name)
        if len(statuses) < 2:
            return
        from jepa.report.leaderboard import read_leaderboard
        from jepa.report.leaderboard_tables import show

        try:
            board = read_leaderboard(folder)
        except UserError as error:  # no run has a metric
            print(printable(f"no leaderboard: {error}"))
            return
        show(board, folder / "leaderboard.csv", folder / "leaderboard.html", MAX_ROWS)
        print(f"go on with `resume={folder}`, see {SWEEP_FILE}")
