"""Watching the other ranks, so that one that dies brings the others down soon and with its reason."""

from __future__ import annotations

import os
import sys
import threading
import time

from torch.distributed import PrefixStore, Store

from jepa.utils.errors import OtherRankError, UserError

BEAT_SECONDS = 1.0
SILENCE_SECONDS = 60.0
"""A rank that was not heard of for so long counts as dead."""
GRACE_SECONDS = 10.0
"""Time that the main thread gets to end by itself once another rank has failed."""
HEARING_BEATS = 4
"""Beats that rank 0, whose end takes the store along, waits for the others to hear of its failure."""


class RankWatch:
    """A thread that tells the others we are alive, and ends this process when another has failed or gone silent.

    store: shared by all ranks. The first failure's reason is kept there.
    """

    def __init__(self, store: Store, rank: int, world_size: int) -> None:
        self.rank, self.world_size = rank, world_size
        self.failed = False
        self._job = 0  # of a sweep; a failure that all ranks share leaves the others of its jobs alone
        self._heard: str | None = None  # the failure that the thread has read
        self._store = PrefixStore("jepa/peers", store)
        self._thread_store = PrefixStore("jepa/peers", store.clone())  # a connection of its own
        self._closed = threading.Event()
        self._thread = threading.Thread(target=self._watch, name="peers", daemon=True)
        self._thread.start()

    def tell(self, error: BaseException) -> BaseException:
        """Say that this rank has failed; gives the error to raise: a OtherRankError where another rank was first.

        An error that looks like a lost connection waits a little for the rank behind it to tell its own.
        """
        self.failed = True
        lost = is_connection_error(error)
        own = f"rank {self.rank} failed: {describe(error)}"
        try:
            end = time.monotonic() + GRACE_SECONDS / 2
            while lost and not self._store.check([self._key("failure")]) and time.monotonic() < end:
                time.sleep(0.1)
            if lost:
                own = f"rank {self.rank} lost another rank, which was killed or has crashed ({describe(error)})"
            first = self._store.compare_set(self._key("failure"), "", own).decode()
            self._store.set(self._key(f"heard/{self.rank}"), "")
            if self.rank == 0:
                self._wait_for_ears()
        except (RuntimeError, OSError) as gone:  # the store lives in another process
            if self._heard is not None:
                return OtherRankError(self._heard)
            return UserError(
                f"rank {self.rank} lost the other ranks: rank 0 or its launcher is gone ({describe(gone)})"
            )
        if first != own:
            return OtherRankError(first)
        return UserError(own) if lost else error

    def _wait_for_ears(self) -> None:
        end = time.monotonic() + HEARING_BEATS * BEAT_SECONDS
        ears = [self._key(f"heard/{rank}") for rank in range(1, self.world_size)]
        while not self._store.check(ears) and time.monotonic() < end:
            time.sleep(BEAT_SECONDS / 20)

    def next_job(self) -> None:
        """Leave a job of a sweep that has failed, once every rank has. Raises SystemExit when one does not.

        Then the failure was not of all ranks, and one may still wait for this rank in the middle of that job.
        """
        left = [self._key(f"left/{rank}") for rank in range(self.world_size)]
        self._store.set(left[self.rank], "")
        end = time.monotonic() + GRACE_SECONDS
        while not self._store.check(left):
            if time.monotonic() > end:
                raise SystemExit(1)
            time.sleep(BEAT_SECONDS / 20)
        self._heard = None
        self._job += 1
        self.failed = False

    def _key(self, name: str) -> str:
        return f"{self._job}/{name}"

    def close(self) -> None:
        """End the watch, as all ranks have come to their end."""
        self._closed.set()
        self._thread.join(timeout=5 * BEAT_SECONDS)

    def _watch(self) -> None:
        heard = {rank: (b"", time.monotonic()) for rank in self._watched()}
        beats = 0
        while not self._closed.wait(BEAT_SECONDS):
            try:
                beats += 1
                self._thread_store.set(f"beat/{self.rank}", str(beats))
                if self._thread_store.check([self._key("failure")]):
                    self._heard = self._thread_store.get(self._key("failure")).decode()
                    self._thread_store.set(self._key(f"heard/{self.rank}"), "")
                    self._end(self._heard)
                for rank in heard:
                    self._listen(rank, heard)
            except (RuntimeError, OSError) as error:  # the store lives in another process, which is gone
                self._end(f"the store of the ranks is gone, so rank 0 or its launcher is: {describe(error)}")

    def _watched(self) -> list[int]:
        """Rank 0 listens to all others, they listen to it."""
        return [rank for rank in range(self.world_size) if rank != 0] if self.rank == 0 else [0]

    def _listen(self, rank: int, heard: dict[int, tuple[bytes, float]]) -> None:
        now = time.monotonic()
        beat = self._thread_store.get(f"beat/{rank}") if self._thread_store.check([f"beat/{rank}"]) else b""
        if beat != heard[rank][0]:
            heard[rank] = (beat, now)
        elif now - heard[rank][1] > SILENCE_SECONDS:
            reason = f"rank {rank} has not been heard of for {SILENCE_SECONDS:.0f} s: it was killed or hangs"
            self._end(self._thread_store.compare_set(self._key("failure"), "", reason).decode())

    def _end(self, reason: str) -> None:
        """End this process, unless it does so by itself in a while; it may wait for a rank that never comes."""
        job, end = self._job, time.monotonic() + GRACE_SECONDS
        while time.monotonic() < end:
            if self._closed.wait(BEAT_SECONDS) or self._job != job:
                return
        if not self.failed:
            print(f"error: rank {self.rank} ends, as {reason}", file=sys.stderr, flush=True)
        os._exit(1)


def is_connection_error(error: BaseException) -> bool:
    """Whether an exchange with other ranks failed, as it does when one of them is gone."""
    text = f"{type(error).__name__} {error}".lower()
    words = ("connection", "gloo", "nccl", "timed out", "distbackenderror", "broken pipe", "recvvalue", "sendbytes")
    return isinstance(error, RuntimeError) and any(word in text for word in words)


def describe(error: BaseException) -> str:
    """An error in one line."""
    text = (str(error).strip() or type(error).__name__).splitlines()[0]
    return text if type(error).__module__.startswith("jepa") else f"{type(error).__name__}: {text}"
