"""A profile of a few steps: a trace for chrome://tracing or ui.perfetto.dev, and a table of what took longest."""

from __future__ import annotations

import contextlib
import os
from collections.abc import Callable, Iterator
from pathlib import Path
from typing import TYPE_CHECKING, Any

import torch
from torch.autograd import DeviceType
from torch.profiler import ProfilerAction, ProfilerActivity, profile

if TYPE_CHECKING:
    from rich.table import Table

ROWS = 15  # operations in the table


@contextlib.contextmanager
def profiling(
    enabled: bool, show: Callable[[Any], None], *, folder: Path, start: int, stop: int, device: torch.device
) -> Iterator[Callable[[int], None]]:
    """Return a context with a function to call after every step, which records some of them, as of `window`.

    Once they are made, or the context is left, `profile/trace.json` is in the run folder, and `show` gets the table, or
    a sentence where there was no such step. The recorded steps are slower.

    folder: the run folder. start, stop: the steps that lie behind when the run starts or goes on, and when it ends.
    """
    if not enabled:
        yield lambda step: None
        return
    first, last = window(start, stop)
    step, path, shown = start, folder / "profile" / "trace.json", False

    def action(made: int) -> ProfilerAction:
        """Return what to do in the step after so many of this process."""
        if not first <= start + made < last:
            return ProfilerAction.NONE
        return ProfilerAction.RECORD_AND_SAVE if start + made == last - 1 else ProfilerAction.RECORD

    def finish(profiler: profile) -> None:
        nonlocal shown
        if step > first:
            write_trace(profiler, path)
            show(make_table(profiler, f"Profile of steps {first + 1} to {step}; trace: {path}", device))
            shown = True

    def advance(step_made: int) -> None:
        nonlocal step
        step = step_made
        if device.type == "cuda" and step in (first, last):
            torch.cuda.synchronize(device)  # so that the window holds its own steps only
        profiler.step()

    activities = [ProfilerActivity.CPU, *([ProfilerActivity.CUDA] * (device.type == "cuda"))]
    with profile(activities=activities, schedule=action, on_trace_ready=finish, acc_events=True) as profiler:
        yield advance
    if not shown:
        show(f"no profile: the run made no step of the window of steps {first + 1} to {last}")


def window(start: int, stop: int, first_step: int = 3, steps: int = 5) -> tuple[int, int]:
    """Return the steps that lie behind when the window begins and ends: `steps` of them after leaving `first_step` out.

    A run from start to stop that is too short for it gets a shorter warm-up, then a shorter window.
    """
    left = max(0, stop - start)
    steps = min(steps, left)
    first = start + min(first_step, left - steps)
    return first, first + steps


def write_trace(profiler: profile, path: Path) -> None:
    """Write the trace atomically, and make its folder."""
    path.parent.mkdir(parents=True, exist_ok=True)
    temporary = path.with_name(f".{path.name}.writing")
    profiler.export_chrome_trace(str(temporary))
    os.replace(temporary, path)


def make_table(profiler: profile, title: str, device: torch.device) -> Table:
    """Return the operations with the most time of their own: on the device under CUDA, else on the CPU."""
    from rich import box
    from rich.table import Table

    cuda = device.type == "cuda"
    operations = [
        event
        for event in profiler.key_averages()
        if event.device_type == DeviceType.CPU and not event.key.startswith("ProfilerStep")
    ]

    def own(event: Any) -> float:
        return event.self_device_time_total if cuda else event.self_cpu_time_total

    total = sum(map(own, operations)) or 1.0
    table = Table(title=title, title_justify="left", box=box.SIMPLE_HEAD, pad_edge=False)
    table.add_column("operation", overflow="fold")
    for name in ("calls", "CPU ms", *(["CUDA ms"] * cuda), "share"):
        table.add_column(name, justify="right", no_wrap=True)
    for event in sorted(operations, key=own, reverse=True)[:ROWS]:
        times = [event.self_cpu_time_total, *([event.self_device_time_total] * cuda)]  # microseconds
        table.add_row(
            event.key, str(event.count), *(f"{time / 1e3:.2f}" for time in times), f"{own(event) / total:.1%}"
        )
    return table
