"""Recall at k: whether the nearest neighbours of a sample are of its class, within a split or between modalities."""

from __future__ import annotations

from collections.abc import Mapping, Sequence

import torch
from torch import Tensor
from torch.nn import functional as F

from jepa.evaluation.features import Features

_CHUNK_ENTRIES = 2**25
"""Similarities computed at a time: 128 MiB, whatever the size of the split."""


class Retrieval:
    """Recall at k by cosine similarity within the test split, each sample being the query once.

    The share of queries that have at least one sample of their class among the k nearest of the other samples, as is
    usual for CUB and Stanford Online Products (Oh Song et al. 2016, arXiv 1511.06452). Training samples are not used. A
    query that is the only one of its class counts as a miss; a k beyond the other samples takes all of them.

    at: the k, each at least 1; ValueError for less.
    """

    uses_seed = False

    def __init__(self, *, at: Sequence[int] = (1, 5, 10)) -> None:
        if not at or min(at) < 1:
            raise ValueError(f"evaluation.probes.recall.at: got {list(at)}, expected numbers of neighbours, at least 1")
        self.at = tuple(at)

    def __call__(self, train: Features, test: Features, *, classes: int, seed: int) -> dict[str, float]:
        """Return the recall in [0, 1] by k: {"at_1": ..., ...}."""
        bank = F.normalize(test.x, dim=1)
        neighbours = min(max(self.at), len(test) - 1)
        hits = torch.zeros(max(self.at), dtype=torch.int64, device=bank.device)  # of the queries, by k
        rows = max(1, _CHUNK_ENTRIES // len(test))
        for queries in torch.arange(len(test), device=bank.device).split(rows):
            similarity = bank[queries] @ bank.T
            similarity[torch.arange(len(queries), device=bank.device), queries] = -torch.inf  # not itself
            index = similarity.topk(neighbours, dim=1).indices  # (n, neighbours)
            hit = test.labels[index] == test.labels[queries, None]
            hits[:neighbours] += hit.cummax(dim=1).values.sum(dim=0)
            hits[neighbours:] += hit.any(dim=1).sum()
        return {f"at_{k}": float(hits[k - 1]) / len(test) for k in self.at}


class CrossModalRetrieval:
    """Recall at k between the modalities of test pairs, by cosine similarity where the loss compares them.

    The share of queries for which one of the k nearest of the other modality has the query's label: its class, or, for
    pairs without classes, the number of the pair. Raw input has no common space and no such row.

    at: the k, each at least 1; ValueError for less.
    """

    needs = "pairs"
    uses_seed = False

    def __init__(self, *, at: Sequence[int] = (1, 5, 10)) -> None:
        if not at or min(at) < 1:
            raise ValueError(f"evaluation.probes.retrieval.at: got {list(at)}, expected numbers from 1")
        self.at = tuple(at)

    def __call__(self, embeddings: Mapping[str, Tensor], labels: Tensor) -> dict[str, float]:
        """Return {"a_to_b/recall_at_1": ..., "a_to_b/recall_at_1_chance": ...} of name -> (N, E) and labels (N,)."""
        scores = {}
        same = labels[:, None] == labels
        for one, queries in embeddings.items():
            for other, bank in embeddings.items():
                if one == other:
                    continue
                order = (F.normalize(queries, dim=1) @ F.normalize(bank, dim=1).T).argsort(dim=1, descending=True)
                hits = same.gather(1, order)
                for k in self.at:
                    scores[f"{one}_to_{other}/recall_at_{k}"] = float(hits[:, :k].any(dim=1).float().mean())
                    scores[f"{one}_to_{other}/recall_at_{k}_chance"] = chance_recall(same.sum(dim=1), len(labels), k)
        return scores


def chance_recall(matches: Tensor, total: int, k: int) -> float:
    """Return the mean probability that k of `total` samples, drawn at random, include one of the `matches` (N,)."""
    miss = torch.ones(len(matches), dtype=torch.float64)
    for drawn in range(min(k, total)):
        miss *= ((total - drawn - matches.cpu().double()) / (total - drawn)).clamp(min=0)
    return float((1 - miss).mean())
