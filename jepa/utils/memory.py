"""Memory of this process: malloc settings, available bytes, peak."""

from __future__ import annotations

import ctypes
import sys
import threading
from pathlib import Path

import psutil

M_TRIM_THRESHOLD, M_MMAP_MAX = -1, -4  # malloc.h of glibc


def keep_freed_memory() -> bool:
    """Let malloc reuse large freed blocks instead of returning them to the system; return whether it could.

    glibc maps every block above 32 MiB anew, so that each large tensor of a step is paged in and zeroed again: on a CPU
    that took half of the time of the default training step. Does nothing outside Linux with glibc.
    """
    if not sys.platform.startswith("linux"):
        return False
    try:
        mallopt = ctypes.CDLL("libc.so.6").mallopt
    except (OSError, AttributeError):
        return False  # another C library
    return bool(mallopt(M_MMAP_MAX, 0) and mallopt(M_TRIM_THRESHOLD, 2**31 - 1))


def release_freed_memory() -> bool:
    """Return freed memory that malloc keeps to the system, so that the resident set is what is in use.

    Return whether it could; does nothing outside Linux with glibc.
    """
    if not sys.platform.startswith("linux"):
        return False
    try:
        ctypes.CDLL("libc.so.6").malloc_trim(0)
    except (OSError, AttributeError):
        return False
    return True


def available_memory() -> int:
    """Return the bytes that this process can still allocate, within the limit of a container."""
    available = psutil.virtual_memory().available
    try:
        limit = Path("/sys/fs/cgroup/memory.max").read_text().strip()
        used = int(Path("/sys/fs/cgroup/memory.current").read_text())
    except (OSError, ValueError):
        return available  # no container, or an older kernel
    return available if limit == "max" else max(0, min(available, int(limit) - used))


class PeakMemory:
    """A context that measures the largest resident set of this process, in bytes: `peak`.

    A thread samples it every few milliseconds. Shorter peaks are missed unless malloc keeps the memory, as it does
    after `keep_freed_memory`.
    """

    def __init__(self, seconds: float = 0.002) -> None:
        self.peak = 0
        self._seconds = seconds
        self._process = psutil.Process()

    def __enter__(self) -> PeakMemory:
        self._ended = threading.Event()
        self._sample()
        self._thread = threading.Thread(target=self._watch, daemon=True)
        self._thread.start()
        return self

    def __exit__(self, *exception: object) -> None:
        self._ended.set()
        self._thread.join()
        self._sample()

    def _watch(self) -> None:
        while not self._ended.wait(self._seconds):
            self._sample()

    def _sample(self) -> None:
        self.peak = max(self.peak, self._process.memory_info().rss)
