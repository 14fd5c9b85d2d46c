"""A sweep by an Optuna study that lives beside it: an interrupted one goes on with the trials that are left."""

from __future__ import annotations

import logging
from collections.abc import Mapping, Sequence
from pathlib import Path
from typing import Any

import optuna
from hydra.core.override_parser.overrides_parser import OverridesParser
from hydra.core.override_parser.types import Override, Transformer
from hydra.core.utils import JobReturn
from hydra.utils import instantiate
from hydra_plugins.hydra_optuna_sweeper._impl import OptunaSweeperImpl, create_optuna_distribution_from_override
from omegaconf import OmegaConf
from optuna.distributions import BaseDistribution, DiscreteUniformDistribution, IntUniformDistribution
from optuna.trial import FrozenTrial, TrialState
from sqlalchemy.exc import SQLAlchemyError

from jepa.utils.errors import UserError
from jepa.utils.metric_direction import direction_of
from jepa.utils.run_status import read_status

log = logging.getLogger(__name__)

OVERRIDES = "overrides"
"""Attribute of a trial that keeps the options its run is started with."""


METRICS = "metrics"
"""Attribute of a study that keeps what its runs are judged by."""


class StudySweeper(OptunaSweeperImpl):
    """hydra-optuna-sweeper's sweeper, with a loop of our own.

    What is other than there: a trial's run folder has the trial's number; trials that an interrupted sweep left
    running are started again with their options, in their folders, and only those that are missing of `n_trials` are
    drawn; the sampler's seed counts the trials there are, so that a second sweep repeats none of the first; a range
    ends before its stop, as Hydra's does; several objectives may be minimised and maximised side by side.
    """

    def sweep(self, arguments: list[str]) -> None:
        """Run what is left of the study. Raises UserError for a search space or study that does not fit."""
        for key, value in (("sweep.trials", self.n_trials), ("sweep.parallel", self.n_jobs)):
            if value < 1:
                raise UserError(f"{key}={value}: expected a whole number from 1")
        self._process_searchspace_config()
        folder = Path(self.config.hydra.sweep.dir)
        folder.mkdir(parents=True, exist_ok=True)
        OmegaConf.save(self.config, folder / "multirun.yaml")
        overrides = OverridesParser.create(self.hydra_context.config_loader).parse_overrides(
            [*self._parse_sweeper_params_config(), *arguments]
        )
        overrides = list({override.get_key_element(): override for override in overrides}.values())  # the last wins
        swept = {o.get_key_element(): distribution_of(o) for o in overrides if o.is_sweep_override()}
        swept = {**(self.search_space_distributions or {}), **swept}
        fixed = [override.input_line for override in overrides if not override.is_sweep_override()]
        if not swept and self.custom_search_space_extender is None:
            raise UserError("nothing to sweep over: give a range, such as optimizer.lr='tag(log,interval(1e-4,1e-2))'")
        study = self._study(overrides)
        left_running = [trial for trial in study.trials if trial.state == TrialState.RUNNING]
        done = len(study.trials) - len(left_running)
        if study.trials:
            log.info(f"The study in {self.storage} goes on: {done} of {self.n_trials} trials done")
        self._launch(study, [trial for trial in left_running if OVERRIDES in trial.user_attrs])
        for trial in left_running:
            if OVERRIDES not in trial.user_attrs:  # killed between drawing it and noting what was drawn
                study.tell(trial.number, state=TrialState.FAIL)
        while (left := self.n_trials - len(study.trials)) > 0:
            trials = [study.ask() for _ in range(min(left, self.n_jobs))]
            for trial in trials:
                self._draw(trial, swept)
                if self.custom_search_space_extender:
                    self.custom_search_space_extender(self.config, trial)
                options = [f"{name}={value}" for name, value in trial.params.items()]
                trial.set_user_attr(OVERRIDES, [*options, *fixed])
            self._launch(study, [study.trials[trial.number] for trial in trials])
        self._write_results(study)

    def _draw(self, trial: optuna.Trial, swept: Mapping[str, BaseDistribution]) -> None:
        for name, distribution in swept.items():
            try:
                trial._suggest(name, distribution)
            except ValueError as error:
                raise UserError(
                    f"{name}: the study in {self.storage} has searched it in another space, so it cannot go on in this "
                    f"one ({error}): sweep in another hydra.sweep.dir"
                ) from error

    def _study(self, overrides: Sequence[Override]) -> optuna.Study:
        optuna.logging.set_verbosity(optuna.logging.WARNING)
        try:
            study = optuna.create_study(
                study_name=self.study_name,
                storage=self.storage,
                directions=self._get_directions(),
                load_if_exists=True,
            )
        except (ValueError, SQLAlchemyError) as error:  # other directions; not a database
            raise UserError(f"the study in {self.storage}: {error}; sweep in another hydra.sweep.dir") from error
        self._check_metrics(study, self.config.optimized_metric)
        study.sampler = self._sampler(overrides, len(study.trials))
        return study

    def _check_metrics(self, study: optuna.Study, names: str | Sequence[str] | None) -> None:
        """Raise UserError where a study is of other metrics than these, None for the default one."""
        known = study.user_attrs.get(METRICS)
        names = [names] if isinstance(names, str) else list(names or ())
        if known and names and names != known:
            raise UserError(
                f"the study in {self.storage} is of {', '.join(known)}, not of {', '.join(names)}: set "
                f"optimized_metric=[{','.join(known)}], or sweep in another hydra.sweep.dir"
            )
        told = [direction.name.lower() for direction in study.directions]
        if names and not self.config.sweep.direction and told != [direction_of(name) for name in names]:
            raise UserError(
                f"the runs give {', '.join(names)}, which the study in {self.storage} does not {' and '.join(told)} "
                f"rightly: set optimized_metric=[{','.join(names)}], and sweep in another hydra.sweep.dir"
            )

    def _sampler(self, overrides: Sequence[Override], count: int) -> optuna.samplers.BaseSampler:
        """The sampler as configured; a grid gets its values and sets the number of trials."""
        node = self.config.hydra.sweeper.sampler
        if node._target_ == "optuna.samplers.GridSampler":
            values = {o.get_key_element(): grid_values(o) for o in overrides if o.is_sweep_override()}
            points = 1
            for choices in values.values():
                points *= len(choices)
            self.n_trials = min(self.n_trials, points)
            return optuna.samplers.GridSampler(values)
        settings = {key: value for key, value in node.items() if value is not None}
        if "seed" in node:
            settings["seed"] = settings.get("seed", self.config.sweep.seed) + count
        return instantiate(settings, _convert_="all")

    def _launch(self, study: optuna.Study, trials: Sequence[FrozenTrial]) -> None:
        """Run trials, those with consecutive numbers together, and tell the study what they gave."""
        groups: list[list[FrozenTrial]] = []
        for trial in trials:
            if groups and trial.number == groups[-1][-1].number + 1:
                groups[-1].append(trial)
            else:
                groups.append([trial])
        for group in groups:
            batch = [tuple(trial.user_attrs[OVERRIDES]) for trial in group]
            returns = self.launcher.launch(batch, initial_job_idx=group[0].number)
            for trial, returned in zip(group, returns):
                self._tell(study, trial, returned)

    def _tell(self, study: optuna.Study, trial: FrozenTrial, returned: JobReturn) -> None:
        values = returned.return_value  # raises what no run of the sweep can do without
        if values is None:
            raise UserError("the runs give no metric to optimise: set optimized_metric, and let it be measured")
        values = list(values) if isinstance(values, (tuple, list)) else [values]
        status = read_status(Path(self.config.hydra.sweep.dir) / str(trial.number))
        if status is not None and status.state == "done":
            self._check_metrics(study, list(status.objective))
            study.set_user_attr(METRICS, list(status.objective))
        try:
            study.tell(trial.number, values)
        except RuntimeError as error:  # how the grid sampler says, outside of `optimize`, that nothing is left
            if "`Study.stop` is supposed to be invoked" not in str(error):
                raise

    def _write_results(self, study: optuna.Study) -> None:
        """optimization_results.yaml, as hydra-optuna-sweeper has it."""
        if len(study.directions) == 1:
            best = study.best_trial
            results = {"name": "optuna", "best_params": best.params, "best_value": best.value}
        else:
            front = [{"params": trial.params, "values": trial.values} for trial in study.best_trials]
            results = {"name": "optuna", "solutions": front}
        OmegaConf.save(OmegaConf.create(results), Path(self.config.hydra.sweep.dir) / "optimization_results.yaml")


def distribution_of(override: Override) -> BaseDistribution:
    """What Optuna draws a swept option from. Raises UserError for what it cannot draw from."""
    if override.is_range_sweep() and not override.value().shuffle:
        values = grid_values(override)
        kind = IntUniformDistribution if all(isinstance(v, int) for v in values) else DiscreteUniformDistribution
        return kind(values[0], values[-1], override.value().step)
    try:
        return create_optuna_distribution_from_override(override)
    except (AssertionError, NotImplementedError, ValueError) as error:
        raise UserError(f"{override.input_line}: cannot be searched by Optuna: {error}") from error


def grid_values(override: Override) -> list[Any]:
    """The values of a swept option one by one. Raises UserError for an interval, which has no end of them."""
    if override.is_interval_sweep():
        raise UserError(f"{override.input_line}: a grid takes single values: choice(...) or range(...)")
    return list(override.sweep_iterator(transformer=Transformer.encode))
