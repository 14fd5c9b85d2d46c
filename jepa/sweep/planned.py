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
from jepa.utils.status import Status, read_status


@dataclass
class PlannedRun:
    """One run.

    overrides: what is swept. options: all of its options, as its own configuration lists them. processes: how many of
    them it is meant for, and on what. starts: how often it was started by earlier sweeps. job: submitit's.
    value: what it was worth, or counts as, once that is known.
    """

    number: int
    overrides: list[str]
    options: list[str]
    folder: Path
    objective: Objective
    processes: dict[str, Any]
    starts: int = 0
    job: Any | None = None
    value: dict[str, float] | None = None
    gone_since: float | None = None
    result: JobReturn | None = None
    _said: str = field(default="", repr=False)

    def settle(self, value: dict[str, float]) -> None:
        """The run has ended, worth this."""
        self.value = value

    def take_result(self) -> None:
        """Take what the job has left: what the run returned, or an error from outside of it."""
        job = self.job.task(0)
        error = job.exception()
        if error is None:
            self.result = job.result()
            status = read_status(self.folder)
            self.settle(dict(status.objective) if status is not None else {})
            return
        trace = str(error).partition("You can check full logs")[0]  # the error's own last line stands before that
        reason = next((line for line in reversed(trace.splitlines()) if line.strip("- ")), type(error).__name__)
        note_failure(self.folder, self.options, UserError(f"{reason} (see {job.paths.stderr})"), self.objective.bad())
        self.settle(self.objective.bad())

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
        if status is None:
            return ""
        if status.state == "queued":
            return f"queued{f' as job {status.job}' if status.job else ''}"
        if status.state == "running":
            again = f", started {status.starts} times" if status.starts > 1 else ""
            return f"running on {status.host}{again}"
        if status.state == "preempted":
            return f"preempted at step {status.step}, waits to be started again"
        shown = ", ".join(f"{name} {value:.4g}" for name, value in (self.value or status.objective).items())
        if status.state == "done":
            why = f" ({status.reason})" if status.reason else ""
            return f"done{': ' if shown else ''}{shown}{why}" if self.value is not None else ""
        return f"{status.state}: {status.reason}{f' (counts as {shown})' if shown and self.value is not None else ''}"
