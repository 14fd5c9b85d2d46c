"""Heartbeats of ranks: when one fails or dies, the others end soon, with its reason."""

from __future__ import annotations

import os
import sys
import threading
import time

from torch.distributed import PrefixStore, Store

from jepa.utils.errors import OtherRankError, UserError, error_message

HEARTBEAT_SECONDS = 1.0
TIMEOUT_SECONDS = 60.0  # a rank without a heartbeat for so long counts as dead
GRACE_SECONDS = 10.0  # that the main thread has to end by itself after another rank has failed
ACKNOWLEDGE_HEARTBEATS = 4  # that rank 0, which holds the store, waits for the others to read its failure


class RankWatch:
    """A thread that sends heartbeats, and ends this process when another rank has failed or stopped sending.

    store: shared by all ranks; holds the reason of the first failure.
    """

    def __init__(self, store: Store, rank: int, world_size: int) -> None:
        self.rank, self.world_size = rank, world_size
        self.failed = False
        self._job = 0  # of a sweep: keys of one job's failure do not end the next
        self._failure: str | None = None  # that the thread has read
        self._store = PrefixStore("jepa/ranks", store)
        self._thread_store = PrefixStore("jepa/ranks", store.clone())  # a connection of its own
        self._closed = threading.Event()
        self._thread = threading.Thread(target=self._watch, name="rank watch", daemon=True)
        self._thread.start()

    def report(self, error: BaseException) -> BaseException:
        """Report that this rank has failed; return the error to raise: an OtherRankError if another rank was first.

        After a lost connection it waits a little for the rank behind it to report its own error.
        """
        self.failed = True
        lost = is_connection_error(error)
        own = f"rank {self.rank} failed: {describe(error)}"
        try:
            if lost:
                self._wait_for(["failure"], GRACE_SECONDS / 2)
                own = f"rank {self.rank} lost another rank, which was killed or has crashed ({describe(error)})"
            first = self._store.compare_set(self._key("failure"), "", own).decode()
            self._store.set(self._key(f"acknowledged/{self.rank}"), "")
            if self.rank == 0:
                others = [f"acknowledged/{rank}" for rank in range(1, self.world_size)]
                self._wait_for(others, ACKNOWLEDGE_HEARTBEATS * HEARTBEAT_SECONDS)
        except (RuntimeError, OSError) as gone:  # the store lives in another process
            if self._failure is not None:
                return OtherRankError(self._failure)
            return UserError(
                f"rank {self.rank} lost the other ranks: rank 0 or its launcher is gone ({describe(gone)})"
            )
        if first != own:
            return OtherRankError(first)
        return UserError(own) if lost else error

    def start_next_job(self) -> None:
        """Leave a failed job of a sweep, together with every other rank.

        Raises SystemExit when one does not leave: the failure was not that of all ranks, and it may wait for this one.
        """
        self._store.set(self._key(f"left/{self.rank}"), "")
        if not self._wait_for([f"left/{rank}" for rank in range(self.world_size)], GRACE_SECONDS):
            raise SystemExit(1)
        self._failure, self.failed = None, False
        self._job += 1

    def _wait_for(self, names: list[str], seconds: float) -> bool:
        """Wait until the store has all keys of this job; return whether it has."""
        end = time.monotonic() + seconds
        while not self._store.check([self._key(name) for name in names]):
            if time.monotonic() > end:
                return False
            time.sleep(HEARTBEAT_SECONDS / 20)
        return True

    def _key(self, name: str) -> str:
        return f"{self._job}/{name}"

    def close(self) -> None:
        self._closed.set()
        self._thread.join(timeout=5 * HEARTBEAT_SECONDS)

    def _watch(self) -> None:
        watched = range(1, self.world_size) if self.rank == 0 else [0]
        last_beats = {rank: (b"", time.monotonic()) for rank in watched}
        while not self._closed.wait(HEARTBEAT_SECONDS):
            try:
                self._thread_store.set(f"beat/{self.rank}", str(time.monotonic()))
                if self._thread_store.check([self._key("failure")]):
                    self._failure = self._thread_store.get(self._key("failure")).decode()
                    self._thread_store.set(self._key(f"acknowledged/{self.rank}"), "")
                    self._end(self._failure)
                for rank in last_beats:
                    self._check_heartbeat(rank, last_beats)
            except (RuntimeError, OSError) as error:  # the store lives in another process, which is gone
                self._end(f"the store of the ranks is gone, so rank 0 or its launcher is: {describe(error)}")

    def _check_heartbeat(self, rank: int, last_beats: dict[int, tuple[bytes, float]]) -> None:
        now = time.monotonic()
        beat = self._thread_store.get(f"beat/{rank}") if self._thread_store.check([f"beat/{rank}"]) else b""
        if beat != last_beats[rank][0]:
            last_beats[rank] = (beat, now)
        elif now - last_beats[rank][1] > TIMEOUT_SECONDS:
            reason = f"rank {rank} has not been heard of for {TIMEOUT_SECONDS:.0f} s: it was killed or hangs"
            self._end(self._thread_store.compare_set(self._key("failure"), "", reason).decode())

    def _end(self, reason: str) -> None:
        """End this process, which may wait for a dead rank, unless it ends by itself in GRACE_SECONDS."""
        job, end = self._job, time.monotonic() + GRACE_SECONDS
        while time.monotonic() < end:
            if self._closed.wait(HEARTBEAT_SECONDS) or self._job != job:
                return
        if not self.failed:
            print(f"error: rank {self.rank} ends, as {reason}", file=sys.stderr, flush=True)
        os._exit(1)


def is_connection_error(error: BaseException) -> bool:
    """Return whether a collective failed because a rank is gone."""
    text = f"{type(error).__name__} {error}".lower()
    words = ("connection", "gloo", "nccl", "timed out", "distbackenderror", "broken pipe", "recvvalue", "sendbytes")
    return isinstance(error, RuntimeError) and any(word in text for word in words)


def describe(error: BaseException) -> str:
    """Return the first line of an error's message."""
    return error_message(error).partition("\n")[0]
