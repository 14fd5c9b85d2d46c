"""Write the page on a run: python scripts/report.py run=<run folder> [output=<file>], or run=[A,B] for several.

Curves, probes, features as pictures, neighbours, masks and predictions; see docs/seeing.md and --help.
"""

from __future__ import annotations

from pathlib import Path

import hydra
from omegaconf import DictConfig, OmegaConf

from jepa.config.command import reported_errors, run_command
from jepa.config.compose import register_resolvers
from jepa.utils.errors import UserError

register_resolvers()


@hydra.main(config_path="../conf", config_name="report", version_base="1.3")
def main(config: DictConfig) -> None:
    """Read, compute, write."""
    with reported_errors():
        report(config)


def report(config: DictConfig) -> None:
    """Write the page. Raise UserError for what is no run folder, and for a page that cannot be written."""
    from jepa.config.report_run import report_runs

    if OmegaConf.is_missing(config, "run") or not config.run:
        raise UserError("run= is missing: give a run folder, such as run=outputs/<date>/<time>, or several, run=[A,B]")
    folders = [Path(str(folder)) for folder in (config.run if OmegaConf.is_list(config.run) else [config.run])]
    output = None if config.output is None else Path(str(config.output))
    print(report_runs(folders, output=output, device=str(config.device), trust=bool(config.trust)))


if __name__ == "__main__":
    run_command(main, "report")
