"""Telling the C library to keep the memory that training frees and asks for again at every step."""

from __future__ import annotations

import ctypes
import sys

M_TRIM_THRESHOLD, M_MMAP_MAX = -1, -4  # malloc.h of glibc


def keep_freed_memory() -> bool:
    """Let malloc reuse large freed blocks instead of handing each back to the system; gives whether it could.

    glibc maps every block above 32 MiB anew, so that each large tensor of each step is paged in and zeroed again:
    on a CPU that took half of the time of the default training step. Does nothing outside Linux with glibc.
    """
    if not sys.platform.startswith("linux"):
        return False
    try:
        mallopt = ctypes.CDLL("libc.so.6").mallopt
    except (OSError, AttributeError):
        return False  # another C library
    return bool(mallopt(M_MMAP_MAX, 0) and mallopt(M_TRIM_THRESHOLD, 2**31 - 1))
