"""Retrieval: whether what lies near a sample is of its class."""

from __future__ import annotations

from collections.abc import Sequence

import torch
from torch.nn import functional as F

from jepa.evaluation.features import Features

_CHUNK_ENTRIES = 2**25
"""Similarities held at a time: 128 MiB, whatever the size of the split."""


class Retrieval:
    """Recall at k by cosine similarity within the test split, each sample being the query once.

    The share of queries that have at least one sample of their class among the k nearest of the others, as is usual
    for CUB and Stanford Online Products (Oh Song et al. 2016, arXiv 1511.06452). Training samples take no part. A
    query that is the only one of its class can find none and counts as a miss; a k beyond the other samples takes
    all of them.

    at: the k, each at least 1; ValueError for less.
    """

    uses_seed = False

    def __init__(self, *, at: Sequence[int] = (1, 5, 10)) -> None:
        if not at or min(at) < 1:
            raise ValueError(f"evaluation.probes.recall.at: got {list(at)}, expected numbers of neighbours, at least 1")
        self.at = tuple(at)

    def __call__(self, train: Features, test: Features, *, classes: int, seed: int) -> dict[str, float]:
        """Recall in [0, 1] by k: {"at_1": ..., ...}."""
        bank = F.normalize(test.x, dim=1)
        nearest = min(max(self.at), len(test) - 1)
        found = torch.zeros(max(self.at), dtype=torch.int64, device=bank.device)
        rows = max(1, _CHUNK_ENTRIES // len(test))
        for queries in torch.arange(len(test), device=bank.device).split(rows):
            similarity = bank[queries] @ bank.T
            similarity[torch.arange(len(queries), device=bank.device), queries] = -torch.inf  # not itself
            index = similarity.topk(nearest, dim=1).indices  # (n, nearest)
            hit = test.labels[index] == test.labels[queries, None]
            found[:nearest] += hit.cummax(dim=1).values.sum(dim=0)
            found[nearest:] += hit.any(dim=1).sum()
        return {f"at_{k}": float(found[k - 1]) / len(test) for k in self.at}
