"""Register our launchers and sweeper with Hydra, as `_target_: hydra_plugins.jepa.<class>`."""

from __future__ import annotations

import importlib
from functools import partial
from typing import Any

from hydra.core.plugins import Plugins
from omegaconf import DictConfig, OmegaConf

from jepa.config.sweep_objective import SweepObjective, evaluates

PLUGINS = {
    "LocalLauncher": "jepa.sweep.local_launcher",
    "SlurmLauncher": "jepa.sweep.slurm_launcher",
    "OptunaSweeper": "jepa.sweep.optuna_sweeper",
}
"""Class -> module, imported only when a sweep uses it."""


def register_plugins() -> None:
    """Register the plugins and the resolver `${sweep_directions:...}`; may be called again.

    Hydra builds only plugins whose name begins with `hydra_plugins.`, a package that we cannot add modules to.
    """
    known = Plugins.instance().class_name_to_class
    for name, module in PLUGINS.items():
        known[f"hydra_plugins.jepa.{name}"] = partial(_build, module, name)
    OmegaConf.register_new_resolver("sweep_directions", _directions, replace=True)


def _build(module: str, name: str, /, **settings: Any) -> Any:
    return getattr(importlib.import_module(module), name)(**settings)


def _directions(metric: object, direction: object, evaluation: DictConfig | None) -> list[str]:
    plain = (OmegaConf.to_container(value) if OmegaConf.is_config(value) else value for value in (metric, direction))
    return list(SweepObjective.of(*plain, evaluated=evaluates(evaluation)).directions)
