"""Rank the runs of a sweep: python scripts/leaderboard.py sweep=<folder> [metric=val/loss] [limit=30]

Prints them, best first, which setting won, whether that is more than chance, and which options matter. Writes
leaderboard.csv and leaderboard.html into the folder. May be called while the sweep is running. See --help.
"""

from __future__ import annotations

import sys
from pathlib import Path

import hydra
from omegaconf import DictConfig, OmegaConf

from jepa.config.command import reported_errors, run_command
from jepa.utils.errors import UserError


@hydra.main(config_path="../conf", config_name="leaderboard", version_base="1.3")
def main(config: DictConfig) -> None:
    """Read, print, write."""
    with reported_errors():
        rank(config)


def rank(config: DictConfig) -> None:
    """Print the table and the summary, and write the files.

    Raise UserError for a folder without runs, a metric that no run has, and files that cannot be written.
    """
    from jepa.report.leaderboard import read_leaderboard
    from jepa.report.leaderboard_tables import show
    from jepa.report.status_table import has_jobs
    from jepa.sweep.slurm_queue import queued_jobs

    if OmegaConf.is_missing(config.sweep, "folder"):
        raise UserError("sweep= is missing: give the folder of a sweep, such as sweep=outputs/<date>/<time>-sweep")
    if not (config.metric is None or isinstance(config.metric, str)):
        raise UserError(f"metric={config.metric}: give the name of one metric")
    if not (config.limit is None or (isinstance(config.limit, int) and config.limit > 0)):
        raise UserError(f"limit={config.limit}: give a number of rows from 1, or null for all")
    folder = Path(str(config.sweep.folder))
    # squeue may take seconds to answer.
    board = read_leaderboard(folder, config.metric, config.direction, queued_jobs() if has_jobs(folder) else None)
    csv_path, page_path = config.csv or folder / "leaderboard.csv", config.html or folder / "leaderboard.html"
    show(board, Path(csv_path), Path(page_path), config.limit)


def as_folder(arguments: list[str]) -> list[str]:
    """Command-line arguments with `sweep=<folder>` as Hydra takes it: alone it is one of the groups in conf."""
    return [f"sweep.folder={a.partition('=')[2]}" if a.startswith("sweep=") else a for a in arguments]


if __name__ == "__main__":
    sys.argv[1:] = as_folder(sys.argv[1:])
    run_command(main, "leaderboard")
