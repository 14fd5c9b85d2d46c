"""Sweeps by an Optuna study that is stored beside the runs, so that an interrupted sweep goes on."""

from __future__ import annotations

import itertools
import logging
import math
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

from jepa.utils.errors import UserError, first_line
from jepa.utils.metric_direction import direction_of
from jepa.utils.run_status import is_overrides, read_status

log = logging.getLogger(__name__)

OVERRIDES = "overrides"  # attribute of a trial: the options that its run is started with
METRICS = "metrics"  # attribute of a study: the metrics that it optimises


class OptunaSweeper(OptunaSweeperImpl):
    """hydra-optuna-sweeper's sweeper (`hydra.sweeper.*`) with another loop.

    Differences: a trial's run folder has the trial's number; trials that an interrupted sweep left running are started
    again with their options, in their folders, and only what is missing of `n_trials` is drawn; the sampler's seed
    counts the existing trials, so that a second sweep repeats none; a range ends before its stop, as Hydra's does;
    objectives may be minimised and maximised side by side; a failed run never ends the sweep.
    """

    def sweep(self, arguments: list[str]) -> None:
        """Run the trials that are left.

        Raise UserError for bad settings, and if the study is of another search or cannot be read or written.
        """
        try:
            self._sweep(arguments)
        except SQLAlchemyError as error:
            raise self._no_study(f"it cannot be read or written: {first_line(error)}") from error

    def _no_study(self, why: str) -> UserError:
        return UserError(f"the study in {self.storage}: {why}; sweep in another hydra.sweep.dir")

    def _sweep(self, arguments: list[str]) -> None:
        if self.max_failure_rate:
            raise UserError(
                f"hydra.sweeper.max_failure_rate={self.max_failure_rate} has no effect here, as a failed run counts as "
                "sweep.failed_value and never ends the sweep: leave it out"
            )
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
            if OVERRIDES not in trial.user_attrs:  # the sweep was killed before the options were stored
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
                raise self._no_study(f"{name} has been searched in another space ({error})") from error

    def _study(self, overrides: Sequence[Override]) -> optuna.Study:
        optuna.logging.set_verbosity(optuna.logging.WARNING)
        try:
            study = optuna.create_study(
                study_name=self.study_name, storage=self.storage, directions=self._get_directions(), load_if_exists=True
            )
            check_attributes(study)
        except (ValueError, LookupError, TypeError, AttributeError, AssertionError, RuntimeError) as error:
            why = f"it has other directions or is damaged ({type(error).__name__}: {first_line(error)})"
            raise self._no_study(why) from error
        self._check_metrics(study, self.config.optimized_metric)
        study.sampler = self._sampler(overrides, len(study.trials))
        return study

    def _check_metrics(self, study: optuna.Study, names: str | Sequence[str] | None) -> None:
        """Raise UserError if the study optimises other metrics than these; None for the default one."""
        known = study.user_attrs.get(METRICS)
        names = [names] if isinstance(names, str) else list(names or ())
        if known and names and names != known:
            raise UserError(
                f"the study in {self.storage} is of {', '.join(known)}, not of {', '.join(names)}: set "
                f"optimized_metric=[{','.join(known)}], or sweep in another hydra.sweep.dir"
            )
        directions = [direction.name.lower() for direction in study.directions]
        if names and not self.config.sweep.direction and directions != [direction_of(name) for name in names]:
            raise UserError(
                f"the runs give {', '.join(names)}, but the study in {self.storage} was created to "
                f"{' and '.join(directions)}: set optimized_metric=[{','.join(names)}], and sweep in another "
                "hydra.sweep.dir"
            )

    def _sampler(self, overrides: Sequence[Override], count: int) -> optuna.samplers.BaseSampler:
        """Return the configured sampler; a grid gets its values and limits the number of trials."""
        node = self.config.hydra.sweeper.sampler
        if node._target_ == "optuna.samplers.GridSampler":
            values = {o.get_key_element(): grid_values(o) for o in overrides if o.is_sweep_override()}
            self.n_trials = min(self.n_trials, math.prod(map(len, values.values())))
            return optuna.samplers.GridSampler(values)
        settings = {key: value for key, value in node.items() if value is not None}
        if "seed" in node:
            settings["seed"] = settings.get("seed", self.config.sweep.seed) + count
        return instantiate(settings, _convert_="all")

    def _launch(self, study: optuna.Study, trials: Sequence[FrozenTrial]) -> None:
        """Run trials, consecutive numbers together, and report their values to the study."""
        for _, group in itertools.groupby(enumerate(trials), key=lambda item: item[1].number - item[0]):
            batch = [trial for _, trial in group]
            options = [tuple(trial.user_attrs[OVERRIDES]) for trial in batch]
            for trial, returned in zip(batch, self.launcher.launch(options, initial_job_idx=batch[0].number)):
                self._tell(study, trial, returned)

    def _tell(self, study: optuna.Study, trial: FrozenTrial, returned: JobReturn) -> None:
        values = returned.return_value  # raises an error that would hit every run
        if values is None:
            raise UserError("the runs give no metric to optimise: set optimized_metric, and let it be measured")
        values = list(values) if isinstance(values, (tuple, list)) else [values]
        status = read_status(Path(self.config.hydra.sweep.dir) / str(trial.number))
        if status is not None and status.state == "done":
            self._check_metrics(study, list(status.objective))
            study.set_user_attr(METRICS, list(status.objective))
        try:
            study.tell(trial.number, values)
        except RuntimeError as error:  # the grid sampler at its end, outside of `optimize`
            if "`Study.stop` is supposed to be invoked" not in str(error):
                raise

    def _write_results(self, study: optuna.Study) -> None:
        """Write optimization_results.yaml in hydra-optuna-sweeper's format."""
        if len(study.directions) == 1:
            best = study.best_trial
            results = {"name": "optuna", "best_params": best.params, "best_value": best.value}
        else:
            front = [{"params": trial.params, "values": trial.values} for trial in study.best_trials]
            results = {"name": "optuna", "solutions": front}
        OmegaConf.save(OmegaConf.create(results), Path(self.config.hydra.sweep.dir) / "optimization_results.yaml")


def check_attributes(study: optuna.Study) -> None:
    """Raise ValueError for a study whose trials cannot be read, or that has other attributes than this sweeper's."""
    stored = [study.user_attrs.get(METRICS, []), *(trial.user_attrs.get(OVERRIDES, []) for trial in study.trials)]
    if not all(map(is_overrides, stored)):
        raise ValueError("its attributes are no lists of texts")


def distribution_of(override: Override) -> BaseDistribution:
    """Return the distribution of a swept option. Raise UserError if Optuna has none for it."""
    if override.is_range_sweep() and not override.value().shuffle:
        values = grid_values(override)
        kind = IntUniformDistribution if all(isinstance(v, int) for v in values) else DiscreteUniformDistribution
        return kind(values[0], values[-1], override.value().step)
    try:
        return create_optuna_distribution_from_override(override)
    except (AssertionError, NotImplementedError, ValueError) as error:
        raise UserError(f"{override.input_line}: cannot be searched by Optuna: {error}") from error


def grid_values(override: Override) -> list[Any]:
    """Return the values of a swept option. Raise UserError for an interval."""
    if override.is_interval_sweep():
        raise UserError(f"{override.input_line}: a grid takes single values: choice(...) or range(...)")
    return list(override.sweep_iterator(transformer=Transformer.encode))
