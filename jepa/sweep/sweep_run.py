"""A run of a sweep in its launcher: options, folder, job and result."""

from __future__ import annotations

import logging
from dataclasses import dataclass, field
from pathlib import Path
from typing import Any

from hydra.core.utils import JobReturn, JobStatus

from jepa.config.job import note_failure
from jepa.config.sweep_objective import SweepObjective, as_returned
from jepa.utils.errors import UserError
from jepa.utils.run_status import STATUS_FILE, Status, is_collapse, read_status, write_status


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
        if self.job is None and self.before is None:
            (self.folder / STATUS_FILE).unlink(missing_ok=True)
        elif self.job is None:
            write_status(self.folder, self.before)

    def read_result(self) -> None:
        """Read what the job returned, or the error that ended it outside of the run."""
        from submitit.core.utils import pickle_load

        paths = self.job.task(0).paths
        outcome, result = pickle_load(paths.result_pickle)  # submitit's own first waits for the process to end
        if outcome == "success":
            self.result = result
            status = read_status(self.folder)
            self.value = dict(status.objective) if status is not None else {}
        else:
            last_line = result.strip().splitlines()[-1]  # of the traceback
            self.fail(UserError(f"{last_line} (see {paths.stderr})"))

    def fail(self, error: UserError) -> None:
        """Count the run as failed, and note the reason in its status."""
        note_failure(self.folder, self.options, error, self.objective.failed())
        self.value = self.objective.failed()

    def job_return(self) -> JobReturn:
        """Return what Hydra's sweepers expect. They raise an error that would hit every run of the sweep."""
        if self.result is not None:
            if self.result.status == JobStatus.FAILED:
                self.result._return_value.reported = False  # it was printed to the job's own log alone
            return self.result
        result = JobReturn(overrides=self.overrides, status=JobStatus.COMPLETED)
        result.return_value = as_returned(self.value)
        return result

    def log_changes(self, log: logging.Logger) -> None:
        """Log the state of the run if it has changed."""
        line = self._state_line(read_status(self.folder))
        if line and line != self._logged:
            log.info(f"#{self.number} {line}")
            self._logged = line

    def _state_line(self, status: Status | None) -> str:
        if status is None or status.state == "queued":
            return ""
        if status.state == "running":
            again = f", started {status.starts} times" if status.starts > 1 else ""
            return f"running on {status.host}{again}"
        if status.state == "preempted":
            return f"preempted at step {status.step}, waits to be started again"
        values = ", ".join(f"{name} {value:.4g}" for name, value in (self.value or status.objective).items())
        if status.state == "done":
            reason = status.reason or (status.verdict if is_collapse(status.verdict) else None)
            line = f"done{': ' if values else ''}{values}{f' ({reason})' if reason else ''}"
            return line if self.value is not None else ""
        return f"{status.state}: {status.reason}{f' (counts as {values})' if values and self.value is not None else ''}"
