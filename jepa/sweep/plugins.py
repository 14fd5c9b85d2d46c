"""Register our launchers and sweeper with Hydra, as `_target_: hydra_plugins.jepa.<class>`."""

from __future__ import annotations

from hydra.core.plugins import Plugins
from omegaconf import DictConfig, OmegaConf

from jepa.config.sweep_objective import SweepObjective, evaluates

PLUGINS = ("local_launcher.LocalLauncher", "slurm_launcher.SlurmLauncher", "optuna_sweeper.OptunaSweeper")
"""Classes below `jepa.sweep`."""


def register_plugins() -> None:
    """Register the plugins and the resolver `${sweep_directions:...}`; may be called again.

    Hydra builds only plugins whose name begins with `hydra_plugins.`, a package that we cannot add modules to. Their
    paths are given for classes, so that a module is imported only when a sweep uses it.
    """
    for path in PLUGINS:
        Plugins.instance().class_name_to_class[f"hydra_plugins.jepa.{path.partition('.')[2]}"] = f"jepa.sweep.{path}"
    OmegaConf.register_new_resolver("sweep_directions", _directions, replace=True)


def _directions(metric: object, direction: object, evaluation: DictConfig | None) -> list[str]:
    plain = (OmegaConf.to_container(value) if OmegaConf.is_config(value) else value for value in (metric, direction))
    return list(SweepObjective.of(*plain, evaluated=evaluates(evaluation)).directions)
