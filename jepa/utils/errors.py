"""The one error class for mistakes a user can mend; everything else is a bug and keeps its traceback."""


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


class Interrupted(KeyboardInterrupt):
    """The run was asked to stop by a signal, and has saved its checkpoint.

    A KeyboardInterrupt, so that it also ends a sweep. exit_code is 128 + the signal's number.
    """

    def __init__(self, message: str, signal_number: int) -> None:
        super().__init__(message)
        self.exit_code = 128 + signal_number
