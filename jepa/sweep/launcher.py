"""What the launchers of sweeps share: runs are submitit's jobs, which outlive the launcher, and are waited for."""

from __future__ import annotations

import contextlib
import logging
import signal
import tempfile
import time
from collections.abc import Sequence
from pathlib import Path
from typing import Any

from hydra.core.hydra_config import HydraConfig
from hydra.core.singleton import Singleton
from hydra.core.utils import JobReturn, configure_log, setup_globals
from hydra_plugins.hydra_submitit_launcher.submitit_launcher import BaseSubmititLauncher
from omegaconf import OmegaConf, open_dict

from jepa.config.compose import register_resolvers
from jepa.distributed.launch import read_launch
from jepa.sweep.job import check_folder, is_finished, note_failure, objective_of
from jepa.sweep.planned import PlannedRun
from jepa.sweep.wording import plural
from jepa.utils.errors import Interrupted, UserError
from jepa.utils.run_status import Status, read_status, update_status
from jepa.utils.signals import EarlySignal

log = logging.getLogger(__name__)

LOST_SECONDS = 20.0
"""How long a job may be gone without a result before it counts as lost: a shared file system may be slow to show it."""

QUEUED = {"state": "queued", "reason": None, "objective": {}, "settled": False}
QUEUED |= {"host": None, "pid": None, "pid_created": None, "job": None}
"""What a status says of a run that waits; of one that was started before, the rest stays."""

PROCESSES = ("nodes", "devices", "device")
"""Settings of the trainer that a launcher reads once for all runs."""


class JobLauncher(BaseSubmititLauncher):
    """Starts the runs of a sweep as submitit's jobs and waits for them, saying what becomes of each.

    A run that is done is not started again, and one whose job still waits or runs is waited for, so the same sweep may
    be started again after its launcher was killed. A run that fails counts as `sweep.failed_value` and ends no other.
    """

    def launch(self, job_overrides: Sequence[Sequence[str]], initial_job_idx: int) -> list[JobReturn]:
        """Run the jobs; gives what each returned.

        Raises UserError for runs that cannot be started together, before any is, and when nothing can be submitted.
        """
        setup_globals()
        configure_log(self.config.hydra.hydra_logging, self.config.hydra.verbose)
        runs = [self._plan(initial_job_idx + place, list(options)) for place, options in enumerate(job_overrides)]
        self._check(runs)
        for run in runs:
            self._find_out(run)
        fresh = [run for run in runs if run.value is None and run.job is None]
        found = {"done before": sum(run.value is not None for run in runs)}
        found["under way already"] = len(runs) - len(fresh) - found["done before"]
        others = "".join(f", {count} {what}" for what, count in found.items() if count)
        log.info(f"{plural(len(runs), 'run')} in {self.config.hydra.sweep.dir}: {len(fresh)} to start{others}")
        told = varied([run.overrides for run in runs])
        for run, words in zip(runs, told):
            log.info(f"\t#{run.number} : {words}")
        for run in fresh:
            run.before = read_status(run.folder)
            update_status(run.folder, {**QUEUED, "overrides": run.options})
        try:
            self._run(fresh, [run for run in runs if run.job is not None])
        except BaseException as error:
            for run in fresh:
                run.unqueue()
            if isinstance(error, KeyboardInterrupt):
                self._interrupted([run for run in runs if run.value is None])
            raise
        return [run.returned() for run in runs]

    # What the two kinds differ in.

    def _job_of(self, status: Status, run: PlannedRun) -> Any | None:
        """The submitit job that a run is being trained by or waits in; None if it needs a new one."""
        raise NotImplementedError

    def _submit(self, runs: Sequence[PlannedRun]) -> None:
        """Submit what can be submitted of these now, and set their jobs."""
        raise NotImplementedError

    def _living(self, runs: Sequence[PlannedRun]) -> set[int] | None:
        """Numbers of the runs whose jobs wait or run; None where that cannot be said now."""
        raise NotImplementedError

    def _how_it_ended(self, run: PlannedRun) -> str:
        """What became of a job that left no result."""
        raise NotImplementedError

    def _interrupted(self, runs: Sequence[PlannedRun]) -> None:
        """A person has interrupted the launcher while these had not ended."""
        raise NotImplementedError

    def _give_back(self, stop: Interrupted, folder: Path) -> None:
        """In the job: the run in a folder has saved because of a signal."""
        raise NotImplementedError

    # In the launcher.

    def _plan(self, number: int, overrides: list[str]) -> PlannedRun:
        """A run of the sweep: where it goes and what it is worth if it fails."""
        if not any(option.startswith("resume=") for option in overrides):
            overrides = [*overrides, "resume=auto"]
        config = self.hydra_context.config_loader.load_sweep_config(self.config, overrides)
        with open_dict(config):
            config.hydra.job.num, config.hydra.job.id = number, str(number)
        before = HydraConfig.instance().cfg
        HydraConfig.instance().set_config(config)
        try:
            folder = Path(config.hydra.sweep.dir) / str(config.hydra.sweep.subdir)
            options = list(config.hydra.overrides.task)
        finally:
            HydraConfig.instance().cfg = before
        objective = objective_of(config)
        processes = {key: OmegaConf.select(config, f"trainer.{key}") for key in PROCESSES}
        return PlannedRun(number, overrides, options, folder.resolve(), objective, processes)

    def _check(self, runs: Sequence[PlannedRun]) -> None:
        """Raise UserError where runs need different numbers of processes, which are read once for all."""
        own = {key: OmegaConf.select(self.config, f"trainer.{key}") for key in PROCESSES}
        for run in runs:
            other = {key: value for key, value in run.processes.items() if value != own[key]}
            if other:
                key, value = next(iter(other.items()))
                raise UserError(
                    f"trainer.{key} cannot be swept over (run {run.number} has {value}, the sweep as a whole "
                    f"{own[key]}): the launcher reads it once, and starts the same processes for every run; make it a "
                    "sweep for each"
                )

    def _find_out(self, run: PlannedRun) -> None:
        """Whether a run is done, or its job under way."""
        status = read_status(run.folder)
        if status is None:
            return
        check_folder(run.folder, run.options)
        if is_finished(status, run.objective, run.options):
            run.value = dict(status.objective)
        else:
            run.job = self._job_of(status, run)

    def _run(self, waiting: list[PlannedRun], running: list[PlannedRun]) -> None:
        """Submit, and wait until every run has its value."""
        pause = 0.2
        while waiting or running:
            if waiting:
                self._submit(waiting)
                running += [run for run in waiting if run.job is not None]
                waiting = [run for run in waiting if run.job is None]
            living = self._living(running)
            for run in running:
                self._look_at(run, living is None or run.number in living)
            running = [run for run in running if run.value is None]
            if waiting or running:
                time.sleep(pause)
                pause = min(pause * 1.5, self.params["poll_seconds"])

    def _look_at(self, run: PlannedRun, lives: bool) -> None:
        """Say what has changed for a run, and take what it is worth where it has ended."""
        status = read_status(run.folder)
        paths = run.job.task(0).paths
        if paths.result_pickle.exists():
            run.take_result()
        elif lives:
            run.gone_since = None
        elif status is not None and is_finished(status, run.objective, run.options):
            run.value = dict(status.objective)
        else:
            run.gone_since = run.gone_since or time.monotonic()
            if time.monotonic() - run.gone_since > LOST_SECONDS or (status is not None and status.state == "stopped"):
                self._lose(run)
        run.say(log, read_status(run.folder))

    def _lose(self, run: PlannedRun) -> None:
        """Give a run up whose job has gone without a result, and say what is known of why."""
        reason = f"its job {run.job.job_id} left no result: {self._how_it_ended(run)}"
        note_failure(run.folder, run.options, UserError(reason), run.objective.bad())
        status = read_status(run.folder)
        if status is not None and status.state == "stopped":  # which it says itself, but not by whom
            log.info(f"#{run.number}: {reason}")
        run.value = run.objective.bad()
        path = run.job.task(0).paths.stderr
        lines = path.read_text(errors="replace").splitlines()[-3:] if path.exists() else []
        if lines:
            log.info("\n".join([f"#{run.number}: the end of {path}:", *lines]))

    # In the job.

    def __call__(
        self, overrides: list[str], number: int, folder: Path, singleton_state: dict[type, Singleton]
    ) -> JobReturn:
        """Run one job of the sweep, in one of its processes; only rank 0 leaves what Hydra writes."""
        register_resolvers()
        EarlySignal().install(signal.SIGTERM, signal.SIGINT)  # submitit would ignore the first while torch is imported
        with contextlib.ExitStack() as stack:
            if read_launch().rank > 0:
                elsewhere = stack.enter_context(tempfile.TemporaryDirectory())
                overrides = [*overrides, f"hydra.sweep.dir={elsewhere}"]
            try:
                return super().__call__(overrides, "hydra.sweep.dir", number, str(number), singleton_state)
            except Interrupted as stop:
                self._give_back(stop, folder)
                raise SystemExit(stop.exit_code) from stop

    def _arguments(self, run: PlannedRun) -> tuple[Any, ...]:
        """What the job is called with."""
        return (run.overrides, run.number, run.folder, Singleton.get_state())


def check_poll_seconds(seconds: float) -> None:
    """Raise ValueError for a pause that is none."""
    if not isinstance(seconds, (int, float)) or not seconds > 0:
        raise ValueError(f"hydra.launcher.poll_seconds={seconds!r}: expected seconds, above 0")


def varied(options: Sequence[Sequence[str]]) -> list[str]:
    """Of the options of several runs, those that are not the same in all of them; all of a single run's."""
    common = set.intersection(*map(set, options)) if len(options) > 1 else set()
    return [" ".join(option for option in each if option not in common) for each in options]
