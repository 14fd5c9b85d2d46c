"""The one error class for mistakes a user can mend; everything else is a bug and keeps its traceback."""

from __future__ import annotations

import contextlib
import errno
from collections.abc import Iterator

SYSTEM_ERRORS = {
    getattr(errno, name)
    for name in ("ENOSPC", "EDQUOT", "EROFS", "EACCES", "EPERM", "ENOTDIR", "EEXIST", "ENAMETOOLONG")
    if hasattr(errno, name)
}
"""What the system may refuse: a full disk, a read-only folder. Other OSErrors are taken for bugs."""


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


class PeerError(UserError):
    """Another rank has failed; the message is its reason."""


def in_words(error: BaseException) -> str:
    """An error as a reason: a UserError's message, of any other its kind too."""
    return str(error).strip() if isinstance(error, UserError) else f"{type(error).__name__}: {error}"


class Interrupted(KeyboardInterrupt):
    """The run was asked to stop by a signal, and has saved its checkpoint.

    A KeyboardInterrupt, so that it also ends a sweep. exit_code is 128 + the signal's number. agreed: whether all ranks
    stop at the same point; else none may wait for another.
    """

    def __init__(self, message: str, signal_number: int, *, agreed: bool = True) -> None:
        super().__init__(message)
        self.signal_number, self.agreed = signal_number, agreed
        self.exit_code = 128 + signal_number


@contextlib.contextmanager
def system_errors() -> Iterator[None]:
    """A context in which what the system refuses becomes a UserError."""
    try:
        yield
    except OSError as error:
        if error.errno not in SYSTEM_ERRORS:
            raise
        raise UserError(system_error(error)) from error


def system_error(error: OSError) -> str:
    """What the system refused, and where."""
    where = f"{error.filename}: " if error.filename else ""
    return f"{where}{error.strerror}: make room or write elsewhere with hydra.run.dir=<folder>"
