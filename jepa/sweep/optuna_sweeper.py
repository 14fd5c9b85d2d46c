"""The name that Hydra knows the sweeper of studies by; Optuna is imported only where a study is made."""

from __future__ import annotations

from typing import Any

from hydra_plugins.hydra_optuna_sweeper.optuna_sweeper import OptunaSweeper as HydraOptunaSweeper
from omegaconf import DictConfig


class OptunaSweeper(HydraOptunaSweeper):
    """hydra-optuna-sweeper's, whose study goes on where an interrupted sweep ended: see `jepa.sweep.study`.

    The arguments are those of hydra-optuna-sweeper (`hydra.sweeper.*`).
    """

    def __init__(
        self,
        *,
        sampler: Any,
        direction: Any,
        storage: str | None,
        study_name: str | None,
        n_trials: int,
        n_jobs: int,
        max_failure_rate: float,
        search_space: DictConfig | None,
        custom_search_space: str | None,
        params: DictConfig | None,
    ) -> None:
        from jepa.sweep.study import StudySweeper

        self.sweeper = StudySweeper(
            sampler=sampler,
            direction=direction,
            storage=storage,
            study_name=study_name,
            n_trials=n_trials,
            n_jobs=n_jobs,
            max_failure_rate=max_failure_rate,
            search_space=search_space,
            custom_search_space=custom_search_space,
            params=params,
        )
