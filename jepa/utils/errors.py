"""Errors that a user can fix, printed without a traceback, and the checks and messages they share."""

from __future__ import annotations

import contextlib
import shutil
from collections.abc import Iterator
from errno import EACCES, EDQUOT, EEXIST, ENAMETOOLONG, ENOSPC, ENOTDIR, EPERM, EROFS
from pathlib import Path

SYSTEM_ERRORS = {ENOSPC, EDQUOT, EROFS, EACCES, EPERM, ENOTDIR, EEXIST, ENAMETOOLONG}
"""OSErrors that a user can fix, such as a full disk or a read-only folder. Others are bugs."""


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


def error_message(error: BaseException) -> str:
    """Return a UserError's message; of any other error with its class."""
    return str(error).strip() if isinstance(error, UserError) else f"{type(error).__name__}: {error}"


def first_line(error: BaseException) -> str:
    """Return the first line of an error's message, or its class."""
    return (str(error).strip() or type(error).__name__).splitlines()[0]


def reason(error: Exception, path: Path) -> str:
    """Return why a file could not be written, with the free space of its folder."""
    text = error.strerror if isinstance(error, OSError) and error.strerror else first_line(error)
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
def convert_system_errors() -> Iterator[None]:
    """A context that turns SYSTEM_ERRORS into UserErrors."""
    try:
        yield
    except OSError as error:
        if error.errno not in SYSTEM_ERRORS:
            raise
        raise UserError(system_error_message(error)) from error


def system_error_message(error: OSError) -> str:
    """Return what the system refused, and for which file."""
    where = f"{error.filename}: " if error.filename else ""
    return f"{where}{error.strerror}: make room or write elsewhere with hydra.run.dir=<folder>"
