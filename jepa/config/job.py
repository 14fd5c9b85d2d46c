"""One run, alone or as a job of a sweep: train it, return what the sweep optimises and write that to its status."""

from __future__ import annotations

import contextlib
import traceback
from collections.abc import Callable, Mapping, Sequence
from pathlib import Path
from typing import Any

from hydra.core.hydra_config import HydraConfig
from hydra.types import RunMode
from omegaconf import DictConfig, OmegaConf

from jepa.config.command import failed_jobs, reported_errors
from jepa.config.overrides import override_key
from jepa.config.resume import StoredRun
from jepa.config.sweep_objective import SweepObjective, as_returned, evaluates
from jepa.distributed.launch import read_launch, slurm_job_id
from jepa.utils.errors import NonFiniteError, UserError, error_message
from jepa.utils.lazy_import import MissingPackageError
from jepa.utils.read_data import DamagedFileError, printable
from jepa.utils.run_status import (
    Status,
    is_alive,
    is_running_elsewhere,
    read_status,
    start_status,
    update_status,
    warn_if_not_written,
)

FREE_SECTIONS = ("resume", "init_from", "trainer", "logger", "callbacks", "evaluation", "visualise", "report")
FREE_SECTIONS += ("sweep", "optimized_metric")
"""Sections of the options that a run may change when it goes on in its folder; trainer.seed it may not."""

IDLE_SECTIONS = ("resume", "logger", "visualise", "report", "sweep", "optimized_metric")
"""Sections that change nothing about a finished run."""


def run_job(config: DictConfig, build: Callable[[DictConfig], Any]) -> float | tuple[float, ...] | None:
    """Build the trainer, train, and return the values that a sweep optimises, which are also written to the status.

    In a sweep a failed run counts as `sweep.failed_value` and the sweep goes on, a finished run is not repeated, and a
    folder that holds another run is refused. Raise UserError outside a sweep, or if it would hit every run of a sweep.
    """
    objective = objective_of(config)
    folder, overrides = Path(config.run_dir), list(config.overrides)
    in_sweep = HydraConfig.get().mode == RunMode.MULTIRUN
    with reported_errors():
        if not in_sweep:
            check_single_run(HydraConfig.get().runtime.choices, config.resume)
            if config.get("report", "none") not in ("auto", "none"):
                raise UserError(f"report={config.report}: expected auto, a page at the end of the run, or none")
        before = check_folder(folder, overrides) if in_sweep and config.resume == "auto" else None
    if before is not None and is_finished(before, objective, overrides) and read_launch().world_size == 1:
        values = ", ".join(f"{name} {value:.4g}" for name, value in before.objective.items())
        print(f"{folder}: done before, {values or 'without a metric'}", flush=True)
        return as_returned(before.objective)
    try:
        with reported_errors():
            trainer = build(config)
            metrics = trainer.fit()
    except Exception as error:
        if not in_sweep:
            raise
        if not isinstance(error, UserError):  # a bug, or out of memory
            traceback.print_exc()
        return _failed(folder, overrides, error, objective)
    if config.trainer.get("dry_run"):
        return None
    with reported_errors():
        values = objective.measured(metrics, trainer.verdict)
    if read_launch().rank == 0:
        with warn_if_not_written(f"the status of {folder}"):
            update_status(folder, {"state": "done", "objective": values, "settled": True})
        if not in_sweep and config.get("report") == "auto":
            write_report(folder, str(config.trainer.get("device", "auto")))
    return as_returned(values)


def write_report(folder: Path, device: str) -> None:
    """Write the page on a run that has ended, and say where it is or, in one line, why there is none."""
    if read_launch().world_size > 1:  # the others have ended, or wait for this one
        print(f"python scripts/report.py run={folder} writes a page on this run", flush=True)
        return
    from jepa.config.report_run import report_runs

    try:
        print(f"report: {report_runs([folder], device=device, trust=True)}", flush=True)
    except MissingPackageError as error:
        print(f"no report: {error} (report=none leaves it out)", flush=True)
    except Exception as error:  # the run is done, and its results are written
        problem = error_message(error)
        print(f"no report: {problem}; python scripts/report.py run={folder} tries again", flush=True)


def check_single_run(choices: Mapping[str, str | None], resume: str | None) -> None:
    """Raise UserError if a single run sets groups that only a sweep reads, unless it resumes a run of a sweep."""
    launcher, sweep = choices.get("hydra/launcher"), choices.get("sweep")
    if launcher not in (None, "basic"):
        raise UserError(f"hydra/launcher={launcher} needs -m, also for one run: python train.py -m ...")
    if sweep not in (None, "default", "wandb") and resume is None:
        raise UserError(f"sweep={sweep} needs -m: python train.py -m sweep={sweep} ...")


def objective_of(config: DictConfig) -> SweepObjective:
    """Return the objective of a composed configuration. Raise UserError if its settings are invalid."""
    metric, sweep = config.optimized_metric, OmegaConf.to_container(config.sweep, resolve=True)
    if OmegaConf.is_config(metric):
        metric = OmegaConf.to_container(metric)
    evaluated = evaluates(config.evaluation)
    with reported_errors():
        return SweepObjective.of(metric, sweep["direction"], sweep["failed_value"], sweep["collapsed"], evaluated)


def check_folder(folder: Path, overrides: list[str]) -> Status | None:
    """Return the status of the run in a folder, None without one that can be read.

    Raise UserError if that run has other options, by its status or else by its config.yaml.
    """
    before = read_status(folder)
    if before is not None and before.state == "damaged":
        run = None
        with contextlib.suppress(DamagedFileError):
            run = StoredRun.values_of(folder)
        before, stored = None, run and run.get("overrides")
    elif before is None or (before.starts == 0 and before.job is None and not is_alive(before)):
        return None
    else:
        stored = before.overrides
    now, then = (options_outside(FREE_SECTIONS, options) for options in (overrides, stored or []))
    if stored is not None and now != then:
        raise UserError(
            f"{folder} holds a run with {' '.join(sorted(then - now)) or 'fewer options'} where this sweep has "
            f"{' '.join(sorted(now - then)) or 'fewer options'}: go on with its own options (resume=<the sweep's "
            "folder>), or sweep in another hydra.sweep.dir"
        )
    return before


def options_outside(sections: Sequence[str], overrides: Sequence[str]) -> set[str]:
    """Return the overrides outside these sections, and trainer.seed, without quotes, so that equal ones compare so."""
    kept = set()
    for option in overrides:
        key = override_key(option)
        section = key.partition("@")[0].partition(".")[0].partition("/")[0]
        if section not in sections or key == "trainer.seed":
            kept.add(printable(option).replace("'", "").replace('"', "").lstrip("+"))
    return kept


def is_finished(status: Status, objective: SweepObjective, overrides: list[str]) -> bool:
    """Return whether a run is done with these options and its status has every metric of the objective."""
    has_metrics = not objective.metrics or set(objective.metrics) == set(status.objective)
    same = options_outside(IDLE_SECTIONS, overrides) == options_outside(IDLE_SECTIONS, status.overrides)
    return status.state == "done" and status.settled and has_metrics and same


def note_failure(folder: Path, overrides: list[str], error: Exception, values: dict[str, float]) -> None:
    """Write to a run's status that it failed, and why.

    A run that is done, was stopped, or is being trained by another process keeps its status.
    """
    before = read_status(folder)
    if before is not None and (before.state in ("done", "stopped") or is_running_elsewhere(before)):
        return
    if before is None or before.starts == 0:
        start_status(folder, overrides, slurm_job_id())
    verdict = {"verdict": "diverged"} if isinstance(error, NonFiniteError) else {}
    update_status(folder, {"state": "failed", "reason": error_message(error), "objective": values, **verdict})


def _failed(
    folder: Path, overrides: list[str], error: Exception, objective: SweepObjective
) -> float | tuple[float, ...] | None:
    values = objective.failed()
    if not isinstance(error, NonFiniteError):  # a learning rate at which training diverges is a result
        failed_jobs.add(folder.name)
    if read_launch().rank == 0:
        with warn_if_not_written(f"the status of {folder}"):
            note_failure(folder, overrides, error, values)
    return as_returned(values)
