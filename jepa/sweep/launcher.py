"""Base of our launchers: the runs of a sweep are submitit jobs, which outlive the launcher that waits for them."""

from __future__ import annotations

import contextlib
import logging
import os
import signal
import sys
import tempfile
import time
from collections.abc import Sequence
from dataclasses import dataclass, field
from pathlib import Path
from pickle import UnpicklingError
from typing import Any

from hydra.core.hydra_config import HydraConfig
from hydra.core.singleton import Singleton
from hydra.core.utils import JobReturn, JobStatus, configure_log, setup_globals
from hydra_plugins.hydra_submitit_launcher.submitit_launcher import BaseSubmititLauncher
from omegaconf import OmegaConf, open_dict
from submitit.core.utils import pickle_load

from jepa.config.command import leave_process_group
from jepa.config.compose import register_resolvers
from jepa.config.job import check_folder, is_finished, note_failure, objective_of
from jepa.config.sweep_objective import SweepObjective, as_returned
from jepa.distributed.launch import read_launch
from jepa.utils.errors import Interrupted, UserError, first_line
from jepa.utils.read_data import DamagedFileError, open_regular, printable
from jepa.utils.run_status import STATUS_FILE, Status, is_collapse, read_status, update_status, write_status
from jepa.utils.signals import EarlySignal

log = logging.getLogger(__name__)

LOST_SECONDS = 20.0  # that a job may be gone without a result, as shared file systems lag behind
MAX_TAIL = 4096  # bytes of a job's log that are searched for its last lines

UNREADABLE = (OSError, EOFError, ValueError, TypeError, LookupError, AttributeError, ImportError, UnpicklingError)
"""Errors of a damaged pickle."""

QUEUED = {"state": "queued", "reason": None, "objective": {}, "settled": False}
QUEUED |= dict.fromkeys(("host", "pid", "pid_created", "job"))
"""Fields of the status of a queued run. A run that was started before keeps its other fields."""

PROCESS_SETTINGS = ("nodes", "devices", "device")  # settings of the trainer that a launcher reads once for all runs


@dataclass
class SweepRun:
    """A run of a sweep.

    overrides: the swept options. options: all options, in the order of its own configuration. before: its status before
    this sweep queued it. job: submitit's. value: metric -> value once the run has ended. result: what the job returned.
    """

    number: int
    overrides: list[str]
    options: list[str]
    folder: Path
    objective: SweepObjective
    before: Status | None = None
    job: Any | None = None
    value: dict[str, float] | None = None
    missing_since: float | None = None
    result: JobReturn | None = None
    _logged: str = field(default="", repr=False)

    def restore_status(self) -> None:
        """Put back the status from before the sweep queued this run, unless it has a job."""
        if self.job is not None:
            return
        if self.before is None or self.before.state == "damaged":
            (self.folder / STATUS_FILE).unlink(missing_ok=True)
        else:
            write_status(self.folder, self.before)

    def read_result(self) -> None:
        """Read what the job returned, or the error that ended it outside of the run."""
        paths = self.job.task(0).paths
        try:
            outcome, result = pickle_load(paths.result_pickle)  # submitit's own first waits for the process to end
        except UNREADABLE as error:
            self.fail(f"the result of its job, {paths.result_pickle}, is damaged ({first_line(error)})")
            return
        if outcome == "success":
            self.result = result
            status = read_status(self.folder)
            self.value = dict(status.objective) if status is not None else {}
        else:
            last_line = str(result).strip().splitlines()[-1]  # of the traceback
            self.fail(f"{last_line} (see {paths.stderr})")

    def fail(self, reason: str) -> None:
        """Count the run as failed, and note the reason in its status."""
        self.value = self.objective.failed()
        note_failure(self.folder, self.options, UserError(reason), self.value)

    def job_return(self) -> JobReturn:
        """Return what Hydra's sweepers expect. They raise an error that would hit every run of the sweep."""
        if self.result is not None:
            if self.result.status == JobStatus.FAILED:
                self.result._return_value.reported = False  # it was printed to the job's own log alone
            return self.result
        result = JobReturn(overrides=self.overrides, status=JobStatus.COMPLETED)
        result.return_value = as_returned(self.value)
        return result

    def log_changes(self) -> None:
        status = read_status(self.folder)
        line = "" if status is None else self._state_line(status)
        if line and line != self._logged:
            log.info(f"#{self.number} {line}")
            self._logged = line

    def _state_line(self, status: Status) -> str:
        if status.state == "queued" or (status.state == "done" and self.value is None):
            return ""
        if status.state == "running":
            again = f", started {status.starts} times" if status.starts > 1 else ""
            return f"running on {status.host}{again}"
        if status.state == "preempted":
            return f"preempted at step {status.step}, waits to be started again"
        values = ", ".join(f"{name} {value:.4g}" for name, value in (self.value or {}).items())
        if status.state == "done":
            reason = status.reason or (status.verdict if is_collapse(status.verdict) else None)
            return f"done{': ' if values else ''}{values}{f' ({reason})' if reason else ''}"
        return f"{status.state}: {status.reason}{f' (counts as {values})' if values else ''}"


def last_lines(path: Path, count: int = 3) -> list[str]:
    """Return the last lines of a text file, printable; none of what is no regular file."""
    try:
        with open_regular(path, sys.maxsize) as file:
            file.seek(max(0, file.seek(0, os.SEEK_END) - MAX_TAIL))
            return [printable(line) for line in file.read().decode(errors="replace").splitlines()[-count:]]
    except DamagedFileError:
        return []


class JobLauncher(BaseSubmititLauncher):
    """Submit the runs of a sweep as submitit jobs, wait for them and log how each ends.

    Finished runs are not repeated, and runs whose jobs still wait or run are waited for, so a sweep can be started
    again after its launcher was killed. A failed run counts as `sweep.failed_value`, and the sweep goes on.

    Raise ValueError unless the pause between two looks at the jobs, `poll_seconds`, is above 0.
    """

    def __init__(self, **params: Any) -> None:
        seconds = params["poll_seconds"]
        if not isinstance(seconds, (int, float)) or not seconds > 0:
            raise ValueError(f"hydra.launcher.poll_seconds={seconds!r}: expected seconds, above 0")
        super().__init__(**params)

    def launch(self, job_overrides: Sequence[Sequence[str]], initial_job_idx: int) -> list[JobReturn]:
        """Run the jobs and return their results.

        Raise UserError, before anything is submitted, for runs that need different processes, and if submitting fails.
        """
        setup_globals()
        configure_log(self.config.hydra.hydra_logging, self.config.hydra.verbose)
        runs = [self._compose(initial_job_idx + index, list(options)) for index, options in enumerate(job_overrides)]
        for run in runs:
            self._find_earlier(run)
        new = [run for run in runs if run.value is None and run.job is None]
        done = sum(run.value is not None for run in runs)
        counts = {"to start": len(new), "done before": done, "under way already": len(runs) - len(new) - done}
        parts = ", ".join(f"{count} {what}" for what, count in counts.items() if count or what == "to start")
        log.info(f"{len(runs)} run{'s' * (len(runs) != 1)} in {self.config.hydra.sweep.dir}: {parts}")
        common = set.intersection(*(set(run.overrides) for run in runs)) if len(runs) > 1 else set()
        for run in runs:
            log.info(f"\t#{run.number} : {' '.join(option for option in run.overrides if option not in common)}")
        for run in new:
            run.before = read_status(run.folder)
            update_status(run.folder, {**QUEUED, "overrides": run.options})
        try:
            self._run(new, [run for run in runs if run.job is not None])
        except BaseException as error:
            for run in new:
                run.restore_status()
            if isinstance(error, KeyboardInterrupt):
                self._on_interrupt([run for run in runs if run.value is None])
            raise
        return [run.job_return() for run in runs]

    # What a launcher implements.

    def _find_job(self, status: Status, run: SweepRun) -> Any | None:
        """Return the submitit job that trains a run or waits to; None if it needs a new one."""
        raise NotImplementedError

    def _submit(self, runs: Sequence[SweepRun]) -> None:
        """Submit as many of the runs as fit now, and set their `job`."""
        raise NotImplementedError

    def _active(self, runs: Sequence[SweepRun]) -> set[int] | None:
        """Return the numbers of the runs whose jobs wait or run; None if that is unknown now."""
        raise NotImplementedError

    def _end_of_job(self, run: SweepRun) -> str:
        """Return why a job ended that left no result."""
        raise NotImplementedError

    def _on_interrupt(self, runs: Sequence[SweepRun]) -> None:
        """Handle Ctrl-C in the launcher. runs: those that have not ended."""
        raise NotImplementedError

    def _after_save(self, stop: Interrupted, folder: Path) -> None:
        """Handle, inside the job, a signal after which the run has saved."""

    # In the launcher's process.

    def _compose(self, number: int, overrides: list[str]) -> SweepRun:
        """Return a run by its number and swept options. Raise UserError if it needs other processes than the sweep."""
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
        for key in PROCESS_SETTINGS:
            value, common = (OmegaConf.select(c, f"trainer.{key}") for c in (config, self.config))
            if value != common:
                raise UserError(
                    f"trainer.{key} cannot be swept over (run {number} has {value}, the sweep as a whole {common}): "
                    "the launcher reads it once, and starts the same processes for every run; make it a sweep for each"
                )
        return SweepRun(number, overrides, options, folder.resolve(), objective_of(config))

    def _find_earlier(self, run: SweepRun) -> None:
        """Set the value or the job of a run that an earlier launcher started."""
        status = read_status(run.folder)
        if status is None:
            return
        check_folder(run.folder, run.options)
        if is_finished(status, run.objective, run.options):
            run.value = dict(status.objective)
        else:
            run.job = self._find_job(status, run)

    def _run(self, waiting: list[SweepRun], running: list[SweepRun]) -> None:
        """Submit, and wait until every run has its value."""
        pause = 0.2
        while waiting or running:
            if waiting:
                self._submit(waiting)
                running += [run for run in waiting if run.job is not None]
                waiting = [run for run in waiting if run.job is None]
            active = self._active(running)
            for run in running:
                self._poll(run, active is None or run.number in active)
            running = [run for run in running if run.value is None]
            if waiting or running:
                time.sleep(pause)
                pause = min(pause * 1.5, self.params["poll_seconds"])

    def _poll(self, run: SweepRun, active: bool) -> None:
        """Log changes of a run, and set its value if it has ended."""
        status = read_status(run.folder)
        if run.job.task(0).paths.result_pickle.exists():
            run.read_result()
        elif active:
            run.missing_since = None
        elif status is not None and is_finished(status, run.objective, run.options):
            run.value = dict(status.objective)
        else:
            run.missing_since = run.missing_since or time.monotonic()
            stopped = status is not None and status.state == "stopped"
            if stopped or time.monotonic() - run.missing_since > LOST_SECONDS:
                self._fail_lost(run, stopped)
        run.log_changes()

    def _fail_lost(self, run: SweepRun, stopped: bool) -> None:
        """Count a run as failed whose job is gone without a result, and log the reason."""
        reason = f"its job {run.job.job_id} left no result: {self._end_of_job(run)}"
        run.fail(reason)
        if stopped:  # its status stays, which does not know who stopped it
            log.info(f"#{run.number}: {reason}")
        path = run.job.task(0).paths.stderr
        if lines := last_lines(path):
            log.info("\n".join([f"#{run.number}: the end of {path}:", *lines]))

    # In the job's processes.

    def __call__(
        self, overrides: list[str], number: int, folder: Path, singleton_state: dict[type, Singleton]
    ) -> JobReturn:
        """Run one job in one of its processes; Hydra's files of ranks above 0 go to a temporary folder."""
        register_resolvers()
        EarlySignal().install(signal.SIGTERM, signal.SIGINT)  # submitit would ignore SIGTERM while torch is imported
        with contextlib.ExitStack() as stack:
            if read_launch().rank > 0:
                temporary = stack.enter_context(tempfile.TemporaryDirectory())
                overrides = [*overrides, f"hydra.sweep.dir={temporary}"]
            try:
                return super().__call__(overrides, "hydra.sweep.dir", number, str(number), singleton_state)
            except Interrupted as stop:
                if stop.agreed:  # all ranks have saved
                    leave_process_group()
                self._after_save(stop, folder)
                raise SystemExit(stop.exit_code) from stop

    def _job_arguments(self, run: SweepRun) -> tuple[Any, ...]:
        return (run.overrides, run.number, run.folder, Singleton.get_state())
