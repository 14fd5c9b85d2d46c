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
    """Print the table and the counts. Raise UserError for a folder without runs."""
    from jepa.report.formatting import terminal
    from jepa.report.status_table import counts_line, has_jobs, newest, read_statuses, status_table
    from jepa.sweep.slurm_queue import queued_jobs

    if not isinstance(config.all, bool):
        raise UserError(f"all={config.all}: give true or false")
    folder = str(config.folder)
    runs = read_statuses(folder, queued_jobs() if has_jobs(folder) else None)
    shown = runs if config.all else newest(runs)
    console = terminal()
    console.print(status_table(shown, console.width))
    print(counts_line(runs, len(shown)))


if __name__ == "__main__":
    run_command(main, "status")
