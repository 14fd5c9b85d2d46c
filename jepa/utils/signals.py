"""Signals: the first one asks a run to stop after its step, a second one ends the process at once."""

from __future__ import annotations

import contextlib
import os
import signal
import threading
import time
from collections.abc import Callable, Iterator
from types import FrameType

NAMES = ("SIGINT", "SIGTERM", "SIGUSR1", "SIGUSR2")
SIGNALS = tuple(getattr(signal, name) for name in NAMES if hasattr(signal, name))  # Windows has the first two
USER_SIGNALS = SIGNALS[2:]
ECHO_SECONDS = 3.0
"""torchrun passes on a signal that the terminal has sent to every process already; such an echo is no second signal."""

END = b"\0"


class EarlySignal:
    """A handler that keeps the first signal for the `StopRequest` that follows.

    For the seconds in which a job imports what it needs, where a signal would else be lost, or end it at once.
    """

    def __init__(self) -> None:
        self.number: int | None = None

    def install(self, *numbers: int) -> None:
        """Handle these signals; only in the main thread, where Python allows handlers."""
        for number in numbers:
            signal.signal(number, self)

    def __call__(self, number: int, frame: FrameType | None) -> None:
        """Keep the number."""
        self.number = self.number or number


class StopRequest:
    """A context in which SIGINT, SIGTERM, SIGUSR1 and SIGUSR2 only set `number`, until a second one.

    The second one ends the process with 128 + its number, also where Python's own handlers would wait: in an exchange
    with a rank that never comes. So a thread counts them, woken by the file that the C handler writes to.
    Outside the main thread, where Python allows no handlers, it does nothing.
    """

    def __init__(self) -> None:
        self.number: int | None = None
        self._stop: Callable[[int], BaseException] | None = None
        self._previous: dict[int, object] = {}

    def __enter__(self) -> StopRequest:
        if threading.current_thread() is threading.main_thread():
            self._reading, self._writing = os.pipe()
            if hasattr(os, "set_blocking"):  # Windows asks for none
                os.set_blocking(self._writing, False)
            self._previous_file = signal.set_wakeup_fd(self._writing, warn_on_full_buffer=False)
            self._previous = {number: signal.signal(number, self._handle) for number in SIGNALS}
            early = (handler.number for handler in self._previous.values() if isinstance(handler, EarlySignal))
            self.number = next((number for number in early if number is not None), None)
            self._thread = threading.Thread(target=self._count, name="signals", daemon=True)
            self._thread.start()
        return self

    def __exit__(self, *exception: object) -> None:
        if not self._previous:
            return
        for number, handler in self._previous.items():
            signal.signal(number, handler)
        signal.set_wakeup_fd(self._previous_file)
        os.write(self._writing, END)  # not its closing: a child forked meanwhile keeps it open
        self._thread.join()
        os.close(self._writing)
        os.close(self._reading)
        self._previous = {}

    @contextlib.contextmanager
    def at_once(self, stop: Callable[[int], BaseException]) -> Iterator[None]:
        """A context in which the first signal raises stop(number) then and there, also one from just before."""
        self._stop = stop
        try:
            if self.number is not None:
                raise stop(self.number)
            yield
        finally:
            self._stop = None

    def _handle(self, number: int, frame: FrameType | None) -> None:
        if self.number is None:
            self.number = number
            if self._stop is not None:
                raise self._stop(number)

    def _count(self) -> None:
        echo_until = None
        while (byte := os.read(self._reading, 1)) != END:
            number = byte[0]
            if number not in SIGNALS:
                continue
            if echo_until is None:
                echo_until = time.monotonic() + (ECHO_SECONDS if "TORCHELASTIC_RUN_ID" in os.environ else 0)
            elif time.monotonic() >= echo_until:
                os._exit(128 + number)
