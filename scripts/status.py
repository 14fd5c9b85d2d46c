"""How runs are doing: python scripts/status.py [folder=outputs] [all=true]

The runs below a folder, newest first, with state and why, step, speed, time left, verdict, job and last sign.
"""

from __future__ import annotations

import hydra
from omegaconf import DictConfig

from jepa.config.command import reported_errors, run_command
from jepa.utils.errors import UserError


@hydra.main(config_path="../conf", config_name="status", version_base="1.3")
def main(config: DictConfig) -> None:
    """Read and print."""
    with reported_errors():
        show(config)


def show(config: DictConfig) -> None:
    """Print the table and the summary. Raises UserError for a folder without runs."""
    from jepa.sweep.overview import has_jobs, standings, summary, table, to_show
    from jepa.sweep.slurm import queued_jobs
    from jepa.sweep.table import console

    if not isinstance(config.all, bool):
        raise UserError(f"all={config.all}: give true or false")
    folder = str(config.folder)
    runs = standings(folder, queued_jobs() if has_jobs(folder) else None)
    shown = to_show(runs, config.all)
    terminal = console()
    terminal.print(table(shown, terminal.width))
    print(summary(runs, len(shown)))


if __name__ == "__main__":
    run_command(main)
