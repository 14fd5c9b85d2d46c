"""Random streams as functions of (seed, purpose, counters), so that no random state has to be saved."""

from __future__ import annotations

import contextlib
import hashlib
from collections.abc import Iterator, Sequence

import numpy as np
import torch
from torch import Tensor


def derive_seed(seed: int, stream: str, *counters: int) -> int:
    """Return a 63-bit seed for one purpose (`stream`) and counters; the same on every machine and process."""
    text = f"{seed}/{stream}/{'/'.join(map(str, counters))}"
    return int.from_bytes(hashlib.blake2b(text.encode(), digest_size=8).digest(), "little") >> 1


def generator(device: torch.device | str, seed: int, stream: str, *counters: int) -> torch.Generator:
    """Return a generator on `device`, seeded by `derive_seed`."""
    return torch.Generator(device).manual_seed(derive_seed(seed, stream, *counters))


def uniform(seed: int, stream: str, counters: Sequence[int], shape: tuple[int, int]) -> Tensor:
    """Return numbers (n, R, K) in [0, 1) for n counters; row r of one is a function of (seed, stream, counter, r).

    Of Philox (Salmon et al., 2011), whose state is a counter: those in a row are drawn at once.
    """
    rows, numbers = shape
    words = -(-numbers // 8) * 4  # of 64 bits, for two numbers; a state gives four
    starts = [i for i, counter in enumerate(counters) if i == 0 or counter != counters[i - 1] + 1]
    runs, key = list(zip(starts, [*starts[1:], len(counters)])), derive_seed(seed, stream)
    raw = [
        np.random.Philox(key=key, counter=counters[i] * words // 4 + (row << 64)).random_raw((j - i) * words)
        for row in range(rows)
        for i, j in runs
    ]
    bits = np.concatenate(raw).astype("<u8", copy=False).view("<u4").reshape(rows, len(counters), -1)[..., :numbers]
    return torch.from_numpy((bits >> 8).astype(np.float32) * np.float32(2**-24)).transpose(0, 1)


@contextlib.contextmanager
def seeded(seed: int, stream: str, *counters: int) -> Iterator[None]:
    """A context with torch's global CPU generator seeded by `derive_seed`; restores its state."""
    with torch.random.fork_rng(devices=()):
        torch.manual_seed(derive_seed(seed, stream, *counters))
        yield
