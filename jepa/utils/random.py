"""Random streams as functions of (seed, purpose, counters), so that no random state has to be saved."""

from __future__ import annotations

import contextlib
import hashlib
from collections.abc import Iterator

import torch


def derive_seed(seed: int, stream: str, *counters: int) -> int:
    """Return a 63-bit seed for one purpose (`stream`) and counters; the same on every machine and process."""
    text = f"{seed}/{stream}/{'/'.join(map(str, counters))}"
    return int.from_bytes(hashlib.blake2b(text.encode(), digest_size=8).digest(), "little") >> 1


def generator(device: torch.device | str, seed: int, stream: str, *counters: int) -> torch.Generator:
    """Return a generator on `device`, seeded by `derive_seed`."""
    return torch.Generator(device).manual_seed(derive_seed(seed, stream, *counters))


@contextlib.contextmanager
def seeded(seed: int, stream: str, *counters: int) -> Iterator[None]:
    """A context with torch's global CPU generator seeded by `derive_seed`; restores its state."""
    with torch.random.fork_rng(devices=()):
        torch.manual_seed(derive_seed(seed, stream, *counters))
        yield
