"""Memory of this process: malloc settings, available bytes, peak."""

from __future__ import annotations

import contextlib
import ctypes
import threading
from collections.abc import Callable, Iterator
from pathlib import Path
from typing import Any

import psutil
import torch

M_TRIM_THRESHOLD, M_MMAP_MAX = -1, -4  # malloc.h of glibc
SAMPLE_SECONDS = 0.002
OUT_OF_MEMORY = ("out of memory", "can't allocate memory", "not enough memory")  # of a RuntimeError on MPS and the CPU


def keep_freed_memory() -> bool:
    """Let malloc reuse large freed blocks instead of returning them to the system; return whether it could.

    glibc maps every block above 32 MiB anew, so that each large tensor of a step is paged in and zeroed again: on a CPU
    that took half of the time of the default training step. Does nothing outside Linux with glibc.
    """
    mallopt = _glibc("mallopt")
    return mallopt is not None and bool(mallopt(M_MMAP_MAX, 0) and mallopt(M_TRIM_THRESHOLD, 2**31 - 1))


def release_freed_memory() -> None:
    """Return what glibc's malloc keeps of freed memory to the system, so that the resident set is what is in use."""
    if trim := _glibc("malloc_trim"):
        trim(0)


def _glibc(function: str) -> Any:
    """Return a function of glibc; None where there is another system or C library."""
    try:
        return getattr(ctypes.CDLL("libc.so.6"), function)
    except (OSError, AttributeError):
        return None


def is_out_of_memory(error: RuntimeError) -> bool:
    """Return whether it says that torch found no memory on the device."""
    return isinstance(error, torch.OutOfMemoryError) or any(text in str(error).lower() for text in OUT_OF_MEMORY)


def available_memory() -> int:
    """Return the bytes that this process can still allocate, within the limit of a container."""
    available = psutil.virtual_memory().available
    try:
        limit = Path("/sys/fs/cgroup/memory.max").read_text().strip()
        used = int(Path("/sys/fs/cgroup/memory.current").read_text())
    except (OSError, ValueError):
        return available  # no container, or an older kernel
    return available if limit == "max" else max(0, min(available, int(limit) - used))


@contextlib.contextmanager
def peak_memory() -> Iterator[Callable[[], float]]:
    """A context that measures the largest resident set of this process; gives a function that returns it in bytes.

    A thread samples it every few milliseconds. Shorter peaks are missed unless malloc keeps the memory, as it does
    after `keep_freed_memory`.
    """
    process, ended, peak = psutil.Process(), threading.Event(), 0

    def sample() -> None:
        nonlocal peak
        peak = max(peak, process.memory_info().rss)

    def watch() -> None:
        while not ended.wait(SAMPLE_SECONDS):
            sample()

    sample()
    thread = threading.Thread(target=watch, daemon=True)
    thread.start()
    try:
        yield lambda: float(peak)
    finally:
        ended.set()
        thread.join()
        sample()
