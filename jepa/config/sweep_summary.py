"""Hydra's callback at the end of a sweep: print the leaderboard and write it beside the runs."""

from __future__ import annotations

from pathlib import Path

from hydra.experimental.callback import Callback
from omegaconf import DictConfig

from jepa.config import command
from jepa.config.resume import SWEEP_FILE
from jepa.distributed.launch import read_launch
from jepa.utils.errors import UserError
from jepa.utils.run_status import read_status

MAX_ROWS = 20


class SweepSummary(Callback):
    """Print the leaderboard at the end of a sweep, write leaderboard.csv and leaderboard.html, and note failed runs."""

    def on_multirun_start(self, config: DictConfig, *, config_name: str | None = None) -> None:
        """Keep the file of a sweep that goes on: Hydra overwrites it even if this sweep is then refused."""
        path = Path(config.hydra.sweep.dir) / SWEEP_FILE
        if path.is_file():
            command.sweep_file = (path, path.read_bytes())

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
        from rich.console import Console

        from jepa.report.leaderboard import read_leaderboard
        from jepa.report.leaderboard_files import write_files
        from jepa.report.leaderboard_summary import summary
        from jepa.report.leaderboard_tables import tables

        console = Console(markup=False, highlight=False, soft_wrap=True)
        try:
            board = read_leaderboard(folder)
        except UserError as error:  # no run has a metric
            console.print(f"no leaderboard: {error}")
            return
        console.print(tables(board, limit=MAX_ROWS))
        files = write_files(board, folder / "leaderboard.csv", folder / "leaderboard.html")
        for line in (*summary(board), *files):
            console.print(line)
        console.print(f"go on with `resume={folder}`, see {SWEEP_FILE}")
