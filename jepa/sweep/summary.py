"""What a sweep says and leaves at its end: the table of its runs, which setting won, and whether that is real."""

from __future__ import annotations

from pathlib import Path

from hydra.experimental.callback import Callback
from omegaconf import DictConfig
from rich.console import Console

from jepa.config import command
from jepa.config.overrides import SWEEP_FILE
from jepa.distributed.launch import read_launch
from jepa.utils.errors import UserError
from jepa.utils.run_status import Status, read_status

MOST_ROWS = 20


class SweepSummary(Callback):
    """Prints the leaderboard at the end of a sweep and writes it beside the runs, as CSV and as a page."""

    def on_multirun_start(self, config: DictConfig, *, config_name: str | None = None) -> None:
        """Remember the file of a sweep that is to go on: Hydra overwrites it also where this one is refused."""
        path = Path(config.hydra.sweep.dir) / SWEEP_FILE
        if path.is_file():
            command.sweep_file = (path, path.read_bytes())

    def on_multirun_end(self, config: DictConfig, *, config_name: str | None = None) -> None:
        """Show and write what there is, and note the runs that have failed for the exit code."""
        if read_launch().rank > 0:
            return
        folder = Path(config.hydra.sweep.dir)
        statuses = {path.parent.name: read_status(path.parent) for path in folder.glob("*/status.json")}
        bad = [name for name, status in statuses.items() if status is not None and _is_bad(status)]
        command.failed_jobs.update(bad)
        if len(statuses) < 2:
            return
        from jepa.sweep.leaderboard import leaderboard

        console = Console(markup=False, highlight=False, soft_wrap=True)
        try:
            board = leaderboard(folder)
        except UserError as error:  # no run has come to a metric
            console.print(f"no leaderboard: {error}")
            return
        console.print(board.table(limit=MOST_ROWS))
        for line in board.conclusions():
            console.print(line)
        board.write_csv(folder / "leaderboard.csv")
        board.write_page(folder / "leaderboard.html")
        console.print(f"{folder / 'leaderboard.html'}, leaderboard.csv; go on with `resume={folder}`, see {SWEEP_FILE}")


def _is_bad(status: Status) -> bool:
    """Whether the sweep's exit code is to tell of a run: a learning rate at which it diverges is a result."""
    return status.state in ("failed", "stopped") and status.verdict != "diverged"
