"""The console: a progress bar in a terminal, plain lines elsewhere."""

from __future__ import annotations

import time
from collections.abc import Mapping
from typing import TYPE_CHECKING, Any

from jepa.trainer.gradients import PREFIX
from jepa.trainer.loggers import Logger, RunInfo

if TYPE_CHECKING:
    from rich.progress import Progress

FEW_STEPS = 20


class Console(Logger):
    """Epoch, step, loss, learning rate, samples per second and time left.

    seconds_between_lines: when the output is not a terminal, at most one line of training in that time; a run of at
        most 20 steps shows all.
    show_gradients: with every line also the gradient norms of the top-level modules.
    """

    def __init__(self, *, seconds_between_lines: float = 5.0, show_gradients: bool = False) -> None:
        from rich.console import Console as RichConsole

        self.seconds_between_lines, self.show_gradients = seconds_between_lines, show_gradients
        self._console = RichConsole(highlight=False, soft_wrap=True, markup=False, emoji=False)
        self._progress: Progress | None = None
        self._status = self._values = ""

    def open(self, run: RunInfo) -> None:
        """Start the bar, or the clock of the plain lines."""
        self._horizon, self._first_step = run.run_length, run.step
        self._begun, self._last_line = time.monotonic(), -float("inf")
        if self._console.is_terminal:
            from rich.progress import BarColumn, Progress, TextColumn, TimeRemainingColumn

            columns = (
                TextColumn("{task.fields[epoch]}"),
                BarColumn(bar_width=24),
                TextColumn("{task.completed:.0f}/{task.total:.0f}"),
                TextColumn("{task.fields[values]}"),
                TimeRemainingColumn(compact=True),
            )
            self._progress = Progress(*columns, console=self._console, refresh_per_second=4)
            self._task = self._progress.add_task(
                "", total=run.run_length.max_steps, completed=run.step, epoch=self._epoch(run.step), values=""
            )
            self._progress.start()

    def advance(self, step: int) -> None:
        if self._progress:
            self._progress.update(self._task, completed=step, epoch=self._epoch(step))

    def log(self, metrics: Mapping[str, float], step: int) -> None:
        """Show a line of training; evaluation is announced as messages."""
        if "train/loss" not in metrics:
            return
        speed = f"{metrics['samples_per_second']:,.0f} samples/s"
        self._values = f"loss {metrics['train/loss']:.4f}  lr {metrics['lr']:.2e}  {speed}"
        if self._progress:
            self._show_values()
        else:
            now, steps = time.monotonic(), self._horizon.max_steps
            last, few = step == steps, steps <= FEW_STEPS
            if now - self._last_line < self.seconds_between_lines and not (last or few):
                return
            self._last_line = now
            left = (now - self._begun) / max(1, step - self._first_step) * (steps - step)
            position = f"{self._epoch(step)}  step {step}/{steps}"
            self._console.print(f"{position}  {self._values_and_status()}  {duration(left)} left")
        self._show_gradients(metrics)

    def message(self, text: Any) -> None:
        self._console.print(text)

    def status(self, text: str) -> None:
        """Show it beside the values from now on."""
        self._status = text
        self._show_values()

    def close(self) -> None:
        """Leave the bar as it stands."""
        if self._progress:
            self._progress.stop()
            self._progress = None

    def _show_values(self) -> None:
        if self._progress:
            self._progress.update(self._task, values=self._values_and_status())

    def _values_and_status(self) -> str:
        """Return the values and, unless nothing is known yet, the status."""
        return "  ".join(part for part in (self._values, self._status) if part not in ("", "unknown"))

    def _show_gradients(self, metrics: Mapping[str, float]) -> None:
        parts = [(name.removeprefix(PREFIX), value) for name, value in metrics.items() if name.startswith(PREFIX)]
        modules = [f"{name} {value:.2e}" for name, value in parts if "." not in name]
        if self.show_gradients and modules:
            self._console.print(f"  gradient norms  {'  '.join(modules)}")

    def _epoch(self, step: int) -> str:
        total = self._horizon.epoch(self._horizon.max_steps)
        digits = 0 if total >= 10 else 1
        return f"epoch {self._horizon.epoch(step):.{digits}f}/{total:.{digits}f}"


def duration(seconds: float) -> str:
    """Return 1:02:03, or 2:03 under an hour."""
    minutes, rest = divmod(round(seconds), 60)
    hours, minutes = divmod(minutes, 60)
    return f"{hours}:{minutes:02d}:{rest:02d}" if hours else f"{minutes}:{rest:02d}"
