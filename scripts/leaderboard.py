"""Rank the runs of a sweep: python scripts/leaderboard.py sweep=<folder> [metric=val/loss] [limit=30]

Prints them, best first, and what follows: which setting won, whether that is more than chance, what mattered. Writes
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
    """Read the runs, print the table and the conclusions, and write the files.

    Raises UserError for a folder without runs, a metric that none has, and files that cannot be written.
    """
    from jepa.sweep.leaderboard import leaderboard
    from jepa.sweep.overview import has_jobs
    from jepa.sweep.slurm import queued_jobs
    from jepa.sweep.table import console

    if OmegaConf.is_missing(config.sweep, "folder"):
        raise UserError("sweep= is missing: give the folder of a sweep, such as sweep=outputs/<date>/<time>-sweep")
    if not (config.metric is None or isinstance(config.metric, str)):
        raise UserError(f"metric={config.metric}: give the name of one metric")
    if not (config.limit is None or (isinstance(config.limit, int) and config.limit > 0)):
        raise UserError(f"limit={config.limit}: give a number of rows from 1, or null for all")
    folder = Path(str(config.sweep.folder))
    # The queue is only asked for where it has something to say, as it may take seconds to answer.
    board = leaderboard(folder, config.metric, config.direction, queued_jobs() if has_jobs(folder) else None)
    terminal = console()
    terminal.print(board.table(config.limit, terminal.width))
    for line in board.conclusions():
        terminal.print(line, markup=False, highlight=False, soft_wrap=True)
    csv, html = Path(config.csv or folder / "leaderboard.csv"), Path(config.html or folder / "leaderboard.html")
    board.write_csv(csv)
    board.write_page(html)
    print(f"{csv}\n{html}")


def as_folder(arguments: list[str]) -> list[str]:
    """Command-line arguments with `sweep=<folder>` as Hydra takes it: alone it is one of the groups in conf."""
    return [f"sweep.folder={a.partition('=')[2]}" if a.startswith("sweep=") else a for a in arguments]


if __name__ == "__main__":
    sys.argv[1:] = as_folder(sys.argv[1:])
    run_command(main)
