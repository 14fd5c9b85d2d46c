"""Signals that come before a run is ready for them."""

from __future__ import annotations

import signal
from types import FrameType


class EarlySignal:
    """A handler that notes the first signal, for whoever takes over (`jepa.trainer.signals.StopRequest`).

    For the seconds in which a job imports what it needs, where a signal would else be lost, or end it at once.
    """

    def __init__(self) -> None:
        self.number: int | None = None

    def install(self, *numbers: int) -> None:
        """Take over these signals; only in the main thread, where Python allows handlers."""
        for number in numbers:
            signal.signal(number, self)

    def __call__(self, number: int, frame: FrameType | None) -> None:
        """Note it."""
        self.number = self.number or number
