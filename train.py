"""Train a JEPA: python train.py [group=option] [key=value], see --help; on several devices with torchrun or srun."""

from __future__ import annotations

from typing import TYPE_CHECKING

import hydra
from omegaconf import DictConfig

from jepa.config.command import complete, run_command
from jepa.config.compose import register_resolvers
from jepa.config.job import run_job
from jepa.sweep.plugins import register_plugins

if TYPE_CHECKING:
    from jepa.trainer import Trainer

register_resolvers()
register_plugins()


@hydra.main(config_path="conf", config_name="config", version_base="1.3")
def main(config: DictConfig) -> float | tuple[float, ...] | None:
    """Compose, build, fit; gives what a sweep optimises."""
    return run_job(complete(config), build)


def build(config: DictConfig) -> Trainer:
    """The trainer; torch is imported only here, as neither --help nor a run that is done needs it."""
    from jepa.config.build import build_trainer

    return build_trainer(config)


if __name__ == "__main__":
    run_command(main)
