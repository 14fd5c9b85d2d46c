"""Errors that a user can fix, printed without a traceback, and the checks and messages they share."""

from __future__ import annotations

import contextlib
import os
import re
import shutil
from collections.abc import Callable, Iterable, Iterator
from errno import EACCES, EDQUOT, EEXIST, ENAMETOOLONG, ENOSPC, ENOTDIR, EPERM, EROFS
from pathlib import Path

SYSTEM_ERRORS = {ENOSPC, EDQUOT, EROFS, EACCES, EPERM, ENOTDIR, EEXIST, ENAMETOOLONG}
"""OSErrors that a user can fix, such as a full disk or a read-only folder. Others are bugs."""


NO_SHARED_MEMORY = (
    "there is no room in /dev/shm, through which the processes that read data hand over batches: make it larger "
    "(docker run --shm-size=8g), lower data.num_workers or data.prefetch_factor, or set data.num_workers=0"
)


class UserError(Exception):
    """Bad input: the message names the key or file, what was got, what was expected and how to fix it.

    `train.py` prints it without a traceback and exits with status 1.
    """


class CheckpointError(UserError):
    """A checkpoint that cannot be read or written, or that does not fit the model."""


class DataError(UserError):
    """Data that is missing, empty or damaged."""


class NonFiniteError(UserError):
    """A loss or gradient that is NaN or infinite; raised before the weights move."""


class OtherRankError(UserError):
    """Another rank has failed; the message is that of its error."""


def check_at_least(prefix: str, minimum: int, **values: float | None) -> None:
    """Raise ValueError for a value below the minimum, with its configuration key `prefix.name`; None passes."""
    for name, value in values.items():
        if value is not None and value < minimum:
            raise ValueError(f"{prefix}.{name} must be at least {minimum}, got {value}")


def check_choice(key: str, value: object, choices: Iterable[object]) -> None:
    """Raise ValueError for a value that is none of the choices. key: that of the configuration, or an argument."""
    if value not in (known := list(choices)):
        raise ValueError(f"{key}: got {value!r}, expected one of {', '.join(map(str, known))}")


def error_message(error: BaseException) -> str:
    """Return a UserError's message; of any other error with its class."""
    return str(error).strip() if isinstance(error, UserError) else f"{type(error).__name__}: {error}"


def first_line(error: BaseException) -> str:
    """Return the first line of an error's message, or its class."""
    return (str(error).strip() or type(error).__name__).splitlines()[0]


def reason(error: Exception, path: Path) -> str:
    """Return why a file could not be written, with the free space of its folder."""
    text = error.strerror if isinstance(error, OSError) and error.strerror else first_line(error)
    if "inline_container" in text:  # torch's writer hides the system's error
        text = os.strerror(ENOSPC)
    folder = path.parent if path.parent.is_dir() else Path(path.anchor or ".")
    return f"{text} ({shutil.disk_usage(folder).free / 2**20:,.0f} MiB free)"


class Interrupted(KeyboardInterrupt):
    """A signal stopped the run, after its checkpoint was saved.

    A KeyboardInterrupt, so that it also ends a sweep. exit_code is 128 + the signal's number. agreed: whether all ranks
    stop at the same step; otherwise no rank may wait for another.
    """

    def __init__(self, message: str, signal_number: int, *, agreed: bool = True) -> None:
        super().__init__(message)
        self.signal_number, self.agreed = signal_number, agreed
        self.exit_code = 128 + signal_number


@contextlib.contextmanager
def convert_system_errors(what_stands: Callable[[], str] = str) -> Iterator[None]:
    """A context that turns what `failure_message` knows into UserErrors.

    what_stands: returns what to add to the message.
    """
    try:
        yield
    except (OSError, RuntimeError) as error:
        message = failure_message(error)
        if message is None:
            raise
        raise UserError(message + what_stands()) from error


def failure_message(error: BaseException) -> str | None:
    """Return what the system refused or ended, and what to do; None for any other error, which is a bug."""
    if isinstance(error, OSError):
        return system_error_message(error) if error.errno in SYSTEM_ERRORS else None
    text = str(error)
    if is_shared_memory_error(text):
        return NO_SHARED_MEMORY
    if match := re.search(
        r"DataLoader worker \(pid\S* ([\d, ]+)\) (is killed by signal: \w+|exited unexpectedly)", text
    ):
        return worker_gone(f" (pid {match[1]}) {match[2].replace('is killed', 'was killed')}")
    return None


def worker_gone(how: str) -> str:
    """Return a message about a process of data.num_workers that is no more."""
    if "Terminated" in how:
        return f"a process that reads data{how}: something outside of the run ended it"
    cause = "most likely as memory ran out: give the job more of it, or lower data.num_workers or data.prefetch_factor"
    return f"a process that reads data{how}, {cause}"


def is_shared_memory_error(text: str) -> bool:
    """Return whether torch's message is that /dev/shm has no room for a batch."""
    return "</torch_" in text or "Bus error" in text or "shared memory" in text


def system_error_message(error: OSError) -> str:
    """Return what the system refused, and for which file."""
    where = f"{error.filename}: " if error.filename else ""
    return f"{where}{error.strerror}: make room or write elsewhere with hydra.run.dir=<folder>"
