"""A run of a sweep as its launcher knows it, from its options to what it was worth."""

from __future__ import annotations

import logging
from dataclasses import dataclass, field
from pathlib import Path
from typing import Any

from hydra.core.utils import JobReturn, JobStatus

from jepa.sweep.job import note_failure
from jepa.sweep.objective import Objective, as_returned
from jepa.utils.errors import UserError
from jepa.utils.run_status import STATUS_FILE, Status, is_collapse, read_status, write_status


@dataclass
class PlannedRun:
    """One run.

    overrides: what is swept. options: all of its options, as its own configuration lists them. processes: how many of
    them it is meant for, and on what. before: its status before this sweep was to start it.
    job: submitit's. value: what it was worth, or counts as, once that is known.
    """

    number: int
    overrides: list[str]
    options: list[str]
    folder: Path
    objective: Objective
    processes: dict[str, Any]
    before: Status | None = None
    job: Any | None = None
    value: dict[str, float] | None = None
    gone_since: float | None = None
    result: JobReturn | None = None
    _said: str = field(default="", repr=False)

    def unqueue(self) -> None:
        """Its status is again what it was before it was to be started, unless it has a job."""
        if self.job is None and self.before is None:
            (self.folder / STATUS_FILE).unlink(missing_ok=True)
        elif self.job is None:
            write_status(self.folder, self.before)

    def take_result(self) -> None:
        """Take what the job has left: what the run returned, or an error from outside of it."""
        from submitit.core.utils import pickle_load

        paths = self.job.task(0).paths
        outcome, result = pickle_load(paths.result_pickle)  # submitit's own would first wait for the process to end
        if outcome == "success":
            self.result = result
            status = read_status(self.folder)
            self.value = dict(status.objective) if status is not None else {}
            return
        reason = result.strip().splitlines()[-1]  # of a traceback
        note_failure(self.folder, self.options, UserError(f"{reason} (see {paths.stderr})"), self.objective.bad())
        self.value = self.objective.bad()

    def returned(self) -> JobReturn:
        """What Hydra's sweepers are given. An error that no run of the sweep can do without is raised by them."""
        if self.result is not None:
            if self.result.status == JobStatus.FAILED:
                self.result._return_value.reported = False  # to the job's own log alone
            return self.result
        result = JobReturn(overrides=self.overrides, status=JobStatus.COMPLETED)
        result.return_value = as_returned(self.value)
        return result

    def say(self, log: logging.Logger, status: Status | None) -> None:
        """Log what has become of the run, where it is something new."""
        words = self._in_words(status)
        if words and words != self._said:
            log.info(f"#{self.number} {words}")
            self._said = words

    def _in_words(self, status: Status | None) -> str:
        if status is None or status.state == "queued":
            return ""
        if status.state == "running":
            again = f", started {status.starts} times" if status.starts > 1 else ""
            return f"running on {status.host}{again}"
        if status.state == "preempted":
            return f"preempted at step {status.step}, waits to be started again"
        shown = ", ".join(f"{name} {value:.4g}" for name, value in (self.value or status.objective).items())
        if status.state == "done":
            why = status.reason or (status.verdict if is_collapse(status.verdict) else None)
            why = f" ({why})" if why else ""
            return f"done{': ' if shown else ''}{shown}{why}" if self.value is not None else ""
        return f"{status.state}: {status.reason}{f' (counts as {shown})' if shown and self.value is not None else ''}"
