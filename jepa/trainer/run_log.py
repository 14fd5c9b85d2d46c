"""Where metrics and messages of a run go: its loggers."""

from __future__ import annotations

import contextlib
from collections.abc import Iterator, Mapping
from typing import Any

from jepa.trainer.loggers import Logger, RunInfo
from jepa.trainer.run_folder import RunFolder
from jepa.trainer.run_state import RunState
from jepa.types import RunLength


class RunLog:
    """Passes metrics and messages to the loggers of a run, which only rank 0 has.

    monitor: the collapse monitor, whose verdict is shown; None without one.
    """

    def __init__(
        self,
        loggers: Mapping[str, Logger],
        *,
        state: RunState,
        run_length: RunLength,
        folder: RunFolder,
        monitor: Any | None,
    ) -> None:
        self._loggers, self._state, self._run_length = loggers, state, run_length
        self._folder, self._monitor = folder, monitor

    @contextlib.contextmanager
    def open(self) -> Iterator[None]:
        """Return a context in which the loggers are open."""
        with contextlib.ExitStack() as stack:
            for logger in self._loggers.values():
                logger.open(self._info(redo=self._state.pending))
                stack.callback(logger.close)
            self.show_verdict()
            yield

    def reopen(self) -> None:
        """Open the loggers at an earlier step, as on a resume, so that no step stands twice."""
        for logger in self._loggers.values():
            logger.close()
            logger.open(self._info(redo=False))
        self.show_verdict()

    def advance(self) -> None:
        """Count a step."""
        for logger in self._loggers.values():
            logger.advance(self._state.step)

    def log(self, metrics: Mapping[str, float]) -> None:
        """Log metrics of the step."""
        for logger in self._loggers.values():
            logger.log({"epoch": self._run_length.epoch(self._state.step), **metrics}, self._state.step)

    def say(self, text: Any) -> None:
        """Show something to a person."""
        for logger in self._loggers.values():
            logger.message(text)

    def show_verdict(self) -> None:
        """Show the monitor's verdict for as long as it stands."""
        if self._monitor is not None:
            for logger in self._loggers.values():
                logger.status(self._monitor.verdict.name)

    def progress(self) -> dict[str, Any]:
        """Return where the run is, for its status."""
        where = {"step": self._state.step, "max_steps": self._run_length.max_steps}
        verdict = None if self._monitor is None else self._monitor.verdict.name
        return {**where, "train_seconds": self._state.train_seconds, "verdict": verdict}

    def _info(self, redo: bool) -> RunInfo:
        return RunInfo(self._folder.path, self._state.step, self._run_length, self._folder.config, redo=redo)
