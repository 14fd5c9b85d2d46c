"""What Hydra takes launchers and sweepers by: `_target_: hydra_plugins.jepa.<class>`."""

from __future__ import annotations

from hydra.core.plugins import Plugins
from omegaconf import DictConfig, OmegaConf

from jepa.sweep.local_launcher import LocalLauncher
from jepa.sweep.objective import Objective, evaluates
from jepa.sweep.optuna_sweeper import OptunaSweeper
from jepa.sweep.slurm_launcher import SlurmLauncher


def register_plugins() -> None:
    """Make our launchers and sweepers known to Hydra, and `${sweep_directions:...}` to configs; may be called again.

    Hydra builds only what it knows under a name that begins with `hydra_plugins.`, where no package of ours can be.
    """
    known = Plugins.instance().class_name_to_class
    for plugin in (SlurmLauncher, LocalLauncher, OptunaSweeper):
        known[f"hydra_plugins.jepa.{plugin.__name__}"] = plugin
    OmegaConf.register_new_resolver("sweep_directions", _directions, replace=True)


def _directions(metric: object, direction: object, evaluation: DictConfig | None) -> list[str]:
    plain = (OmegaConf.to_container(value) if OmegaConf.is_config(value) else value for value in (metric, direction))
    return list(Objective.of(*plain, evaluated=evaluates(evaluation)).directions)
