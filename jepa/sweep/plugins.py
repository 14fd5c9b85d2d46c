"""Register our launchers and sweeper with Hydra, as `_target_: hydra_plugins.jepa.<class>`.

They are functions, so that a module is imported only when a sweep uses it.
"""

from __future__ import annotations

from typing import Any

from hydra.core.plugins import Plugins
from hydra.plugins.launcher import Launcher
from hydra.plugins.sweeper import Sweeper
from omegaconf import DictConfig, OmegaConf

from jepa.config.sweep_objective import SweepObjective, evaluates


def local_launcher(**settings: Any) -> Launcher:
    """Build `LocalLauncher`, which is imported only here and refuses settings that it does not take."""
    from jepa.sweep.local_launcher import LocalLauncher

    return LocalLauncher(**settings)


def slurm_launcher(**settings: Any) -> Launcher:
    """Build `SlurmLauncher`, which is imported only here and refuses settings that it does not take."""
    from jepa.sweep.slurm_launcher import SlurmLauncher

    return SlurmLauncher(**settings)


def optuna_sweeper(**settings: Any) -> Sweeper:
    """Build `OptunaSweeper`, which is imported only here and refuses settings that it does not take."""
    from jepa.sweep.optuna_sweeper import OptunaSweeper

    return OptunaSweeper(**settings)


def register_plugins() -> None:
    """Register the plugins and the resolver `${sweep_directions:...}`; may be called again.

    Hydra builds only plugins whose name begins with `hydra_plugins.`, a package that we cannot add modules to.
    """
    known = Plugins.instance().class_name_to_class
    known["hydra_plugins.jepa.LocalLauncher"] = local_launcher
    known["hydra_plugins.jepa.SlurmLauncher"] = slurm_launcher
    known["hydra_plugins.jepa.OptunaSweeper"] = optuna_sweeper
    OmegaConf.register_new_resolver("sweep_directions", _directions, replace=True)


def _directions(metric: object, direction: object, evaluation: DictConfig | None) -> list[str]:
    plain = (OmegaConf.to_container(value) if OmegaConf.is_config(value) else value for value in (metric, direction))
    return list(SweepObjective.of(*plain, evaluated=evaluates(evaluation)).directions)
