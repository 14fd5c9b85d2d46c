"""A profile of a few steps: a trace for chrome://tracing or ui.perfetto.dev, and a table of what took longest."""

from __future__ import annotations

import contextlib
import os
from collections.abc import Callable, Iterator
from pathlib import Path
from typing import TYPE_CHECKING, Any

import torch
from torch.autograd import DeviceType
from torch.profiler import ProfilerActivity, profile

if TYPE_CHECKING:
    from rich.table import Table

ROWS = 15
"""Operations in the table."""


@contextlib.contextmanager
def profiling(enabled: bool, show: Callable[[Any], None], **window: Any) -> Iterator[Callable[[int], None]]:
    """Return a context with a function to call after every step. show: called with the table once it is there.

    enabled: False does nothing. window: as for `Profile`.
    """
    profile = Profile(**window) if enabled else None

    def advance(step: int) -> None:
        if profile is not None and (table := profile.advance(step)) is not None:
            show(table)

    try:
        yield advance
    finally:
        if profile is not None and (table := profile.close()) is not None:
            show(table)


class Profile:
    """Records `steps` steps after leaving out `first_step`, and writes `profile/trace.json` in the run folder.

    folder: the run folder. start, stop: the steps that lie behind when the run starts or goes on, and when it ends;
    a run too short for the window gets a shorter warm-up, then a shorter window. device: where the model is.

    Make it before the first step, as a window without warm-up begins at once; the steps it records are slower.
    """

    def __init__(
        self, *, folder: Path, start: int, stop: int, device: torch.device, first_step: int = 3, steps: int = 5
    ) -> None:
        if first_step < 0 or steps < 1:
            raise ValueError(f"got first_step={first_step}, steps={steps}, expected first_step >= 0 and steps >= 1")
        self.path = folder / "profile" / "trace.json"
        self.first, self.last = window(start, stop, first_step, steps)
        self._device = device
        self._profile: profile | None = None
        self._ended = False
        self._step = start
        self._begin_if_due()

    def advance(self, step: int) -> Table | None:
        """Count a step; return the table when the window has just ended."""
        self._step = step
        if self._ended:
            return None
        if self._profile is None:
            self._begin_if_due()
            return None
        return self._finish() if step >= self.last else None

    def close(self) -> Table | str | None:
        """End the window of a run that stops inside it, with the steps there are; a sentence when there are none."""
        if self._ended:
            return None
        if self._profile is not None and self._step > self.first:
            return self._finish()
        if self._profile is not None:
            self._profile.stop()
        self._ended, self._profile = True, None
        return f"no profile: the run made no step of the window of steps {self.first + 1} to {self.last}"

    def _begin_if_due(self) -> None:
        if self._step < self.first or self.last <= self.first:
            return
        activities = [ProfilerActivity.CPU]
        if self._device.type == "cuda":
            activities.append(ProfilerActivity.CUDA)
            torch.cuda.synchronize(self._device)  # so that the window holds its own steps only
        self._profile = profile(activities=activities, acc_events=True)
        self._profile.start()

    def _finish(self) -> Table:
        if self._device.type == "cuda":
            torch.cuda.synchronize(self._device)
        self._profile.stop()
        self.path.parent.mkdir(parents=True, exist_ok=True)
        temporary = self.path.with_name(f".{self.path.name}.writing")
        self._profile.export_chrome_trace(str(temporary))
        os.replace(temporary, self.path)
        table = self._table()
        self._ended, self._profile = True, None
        return table

    def _table(self) -> Table:
        """The operations with the most time of their own: on the device under CUDA, else on the CPU."""
        from rich import box
        from rich.table import Table

        cuda = self._device.type == "cuda"
        operations = [event for event in self._profile.key_averages() if event.device_type == DeviceType.CPU]

        def own(event) -> float:
            return event.self_device_time_total if cuda else event.self_cpu_time_total

        total = sum(map(own, operations)) or 1.0
        title = f"Profile of steps {self.first + 1} to {self._step}; trace: {self.path}"
        table = Table(title=title, title_justify="left", box=box.SIMPLE_HEAD, pad_edge=False)
        table.add_column("operation", overflow="fold")
        columns = ("calls", "CPU ms", *(["CUDA ms"] * cuda), "share")
        for name in columns:
            table.add_column(name, justify="right", no_wrap=True)
        for event in sorted(operations, key=own, reverse=True)[:ROWS]:
            times = [event.self_cpu_time_total, *([event.self_device_time_total] * cuda)]  # microseconds
            table.add_row(
                event.key, str(event.count), *(f"{time / 1e3:.2f}" for time in times), f"{own(event) / total:.1%}"
            )
        return table


def window(start: int, stop: int, first_step: int, steps: int) -> tuple[int, int]:
    """Steps that lie behind when a window begins and ends, within a run from start to stop."""
    left = max(0, stop - start)
    steps = min(steps, left)
    first = start + min(first_step, left - steps)
    return first, first + steps
