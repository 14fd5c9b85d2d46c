"""All runs on one page: python scripts/runs.py [folder=outputs] [output=runs.html] [port=6010]

A table to filter and sort, curves of the chosen runs, links to their reports. See --help.
"""

from __future__ import annotations

from pathlib import Path

import hydra
from omegaconf import DictConfig

from jepa.config.command import reported_errors, run_command
from jepa.utils.errors import UserError


@hydra.main(config_path="../conf", config_name="runs", version_base="1.3")
def main(config: DictConfig) -> None:
    """Write or serve the page."""
    with reported_errors():
        show(config)


def show(config: DictConfig) -> None:
    """Write the page, or serve it until Ctrl-C. Raise UserError for a folder without runs and a port in use."""
    from jepa.report.formatting import plural
    from jepa.report.status_table import has_jobs
    from jepa.sweep.slurm_queue import queued_jobs
    from jepa.utils.lazy_import import require
    from jepa.utils.read_data import printable

    if type(config.port) is not int or not 0 <= config.port < 2**16:
        raise UserError(f"port={config.port}: give a number from 0 to 65535")
    require("plotly", extra="report", purpose="scripts/runs.py")
    from jepa.report.runs_page import RunsServer, write_runs_page

    folder = Path(str(config.folder))

    if config.output is not None:
        count = write_runs_page(folder, Path(str(config.output)), queued_jobs() if has_jobs(folder) else None)
        print(printable(f"{plural(count, 'run')}: {config.output}"))
        return
    with RunsServer(folder=folder, port=config.port, ask_queue=queued_jobs) as server:
        print(f"http://127.0.0.1:{server.server_port}/ shows the runs until Ctrl-C", flush=True)
        server.serve_forever()


if __name__ == "__main__":
    run_command(main, "runs")
