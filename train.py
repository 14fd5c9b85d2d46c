"""Train a JEPA: python train.py [group=option] [key=value], see --help; on several devices with torchrun or srun."""

from __future__ import annotations

import hydra
from omegaconf import DictConfig

from jepa.utils.command import complete, reported_errors, run_command
from jepa.utils.config import register_resolvers

register_resolvers()


@hydra.main(config_path="conf", config_name="config", version_base="1.3")
def main(config: DictConfig) -> float | None:
    """Compose, build, fit; gives the metric that a sweep optimises."""
    from jepa.build import build_trainer  # torch is not needed for --help

    complete(config)
    with reported_errors():
        metrics = build_trainer(config).fit()
    wanted = [config.optimized_metric] if config.optimized_metric else ["eval/trained/linear", "val/loss"]
    return next((metrics[name] for name in wanted if name in metrics), None)


if __name__ == "__main__":
    run_command(main)
