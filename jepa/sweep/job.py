"""One run as the job it may be of a sweep: what it is worth, its status, and that its failure ends no other."""

from __future__ import annotations

import traceback
from collections.abc import Callable, Mapping, Sequence
from pathlib import Path
from typing import Any

from hydra.core.hydra_config import HydraConfig
from hydra.types import RunMode
from omegaconf import DictConfig, OmegaConf

from jepa.config.command import failed_jobs, reported_errors
from jepa.config.overrides import override_key
from jepa.distributed.launch import read_launch, slurm_job_id
from jepa.sweep.objective import Objective, as_returned, evaluates
from jepa.utils.errors import NonFiniteError, UserError, error_message
from jepa.utils.run_status import (
    Status,
    is_alive,
    is_running_elsewhere,
    read_status,
    start_status,
    update_status,
    warn_if_not_written,
)

FREE_KEYS = ("resume", "init_from", "trainer", "logger", "callbacks", "evaluation", "sweep", "optimized_metric")
"""Options, and sections of them, that a run may change when it goes on in its folder; trainer.seed it may not."""

IDLE_KEYS = ("resume", "logger", "sweep", "optimized_metric")
"""Those with which a run that is done would do nothing else."""


def run_job(config: DictConfig, build: Callable[[DictConfig], Any]) -> float | tuple[float, ...] | None:
    """Build the trainer, train, and give what the run is worth to a sweep, which also stands in its status.

    In a sweep a failure counts as `sweep.failed_value` instead of ending the sweep; a run that is done is not run
    again, and one whose folder holds another run is refused. Raises UserError outside a sweep, or where no run of the
    sweep can be right.
    """
    objective = objective_of(config)
    folder, overrides = Path(config.run_dir), list(config.overrides)
    in_sweep = HydraConfig.get().mode == RunMode.MULTIRUN
    with reported_errors():
        if not in_sweep:
            check_alone(HydraConfig.get().runtime.choices, config.resume)
        before = check_folder(folder, overrides) if in_sweep and config.resume == "auto" else None
    if before is not None and is_finished(before, objective, overrides) and read_launch().world_size == 1:
        print(f"{folder}: done before, {_shown(before.objective)}", flush=True)
        return as_returned(before.objective)
    try:
        with reported_errors():
            trainer = build(config)
            metrics = trainer.fit()
    except UserError as error:
        if not in_sweep:
            raise
        return failed(folder, overrides, error, objective)
    except Exception as error:  # a bug, or no memory left: shown whole, and the other runs of the sweep go on
        if not in_sweep:
            raise
        traceback.print_exc()
        return failed(folder, overrides, error, objective)
    if config.trainer.get("dry_run"):
        return None
    with reported_errors():
        values = objective.measured(metrics, trainer.verdict)
    if read_launch().rank == 0:
        with warn_if_not_written(f"the status of {folder}"):
            update_status(folder, {"state": "done", "objective": values, "settled": True})
    return as_returned(values)


def check_alone(choices: Mapping[str, str | None], resume: str | None) -> None:
    """Raise UserError for choices of groups that only a sweep looks at. A run of a sweep may be resumed by itself."""
    launcher, sweep = choices.get("hydra/launcher"), choices.get("sweep")
    if launcher not in (None, "basic"):
        raise UserError(f"hydra/launcher={launcher} is used with -m alone, also for one run: python train.py -m ...")
    if sweep not in (None, "default", "wandb") and resume is None:
        raise UserError(f"sweep={sweep} makes a sweep with -m alone: python train.py -m sweep={sweep} ...")


def objective_of(config: DictConfig) -> Objective:
    """The objective that a configuration asks for. Raises UserError where it makes no sense."""
    metric, sweep = config.optimized_metric, OmegaConf.to_container(config.sweep, resolve=True)
    evaluated = evaluates(config.evaluation)
    if OmegaConf.is_config(metric):
        metric = OmegaConf.to_container(metric)
    with reported_errors():
        return Objective.of(metric, sweep["direction"], sweep["failed_value"], sweep["collapsed"], evaluated)


def check_folder(folder: Path, overrides: list[str]) -> Status | None:
    """The status of the run that a sweep's folder holds, None if it holds none.

    Raises UserError for a run with other options, which would otherwise go on under these.
    """
    before = read_status(folder)
    if before is None or (before.starts == 0 and before.job is None and not is_alive(before)):
        return None
    now, then = (fixed(options, FREE_KEYS) for options in (overrides, before.overrides))
    if now != then:
        raise UserError(
            f"{folder} holds a run with {' '.join(sorted(then - now)) or 'fewer options'} where this sweep has "
            f"{' '.join(sorted(now - then)) or 'fewer options'}: go on with its own options (resume=<the sweep's "
            "folder>), or sweep in another hydra.sweep.dir"
        )
    return before


def fixed(overrides: list[str], free: Sequence[str]) -> set[str]:
    """A run's options without those in the sections that are free, in a form in which equal ones are equal."""

    def is_free(key: str) -> bool:
        section = key.partition("@")[0].partition(".")[0].partition("/")[0]
        return section in free and key != "trainer.seed"

    return {_without_quotes(option) for option in overrides if not is_free(override_key(option))}


def is_finished(status: Status, objective: Objective, overrides: list[str]) -> bool:
    """Whether a run is done, with these options, and what it is worth by an objective known."""
    told = not objective.metrics or set(objective.metrics) == set(status.objective)
    same = fixed(overrides, IDLE_KEYS) == fixed(status.overrides, IDLE_KEYS)
    return status.state == "done" and status.settled and told and same


def failed(
    folder: Path, overrides: list[str], error: Exception, objective: Objective
) -> float | tuple[float, ...] | None:
    """Note in the run's status that it has failed, and give what that counts as."""
    values = objective.bad()
    if not isinstance(error, NonFiniteError):
        failed_jobs.add(folder.name)
    if read_launch().rank == 0:
        with warn_if_not_written(f"the status of {folder}"):
            note_failure(folder, overrides, error, values)
    return as_returned(values)


def note_failure(folder: Path, overrides: list[str], error: Exception, values: dict[str, float]) -> None:
    """Write that a run has failed, and why.

    Not where it was refused by another run that is in the folder, and where it is known to have been stopped.
    """
    before = read_status(folder)
    if before is not None and (before.state in ("done", "stopped") or is_running_elsewhere(before)):
        return
    if before is None or before.starts == 0:
        start_status(folder, overrides, slurm_job_id())
    verdict = {"verdict": "diverged"} if isinstance(error, NonFiniteError) else {}
    update_status(folder, {"state": "failed", "reason": error_message(error), "objective": values, **verdict})


def _without_quotes(option: str) -> str:
    return option.replace("'", "").replace('"', "").lstrip("+")


def _shown(values: dict[str, float]) -> str:
    return ", ".join(f"{name} {value:.4g}" for name, value in values.items()) or "without a metric"
