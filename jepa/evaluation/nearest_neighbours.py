"""Probes without training, by cosine similarity: k-nearest-neighbour classification and recall at k."""

from __future__ import annotations

import logging
from collections.abc import Iterator, Mapping, Sequence

import torch
from torch import Tensor
from torch.nn import functional as F

from jepa.evaluation.features import Features

log = logging.getLogger("jepa")

_CHUNK_ENTRIES = 2**25  # similarities computed at a time: 128 MiB, whatever the sizes of the splits


def similarities(queries: Tensor, bank: Tensor) -> Iterator[tuple[Tensor, Tensor]]:
    """Yield the indices (n,) of the next queries and their cosine similarity (n, N) to the rows of a bank (N, D)."""
    bank = F.normalize(bank, dim=1)
    for index in torch.arange(len(queries), device=bank.device).split(max(1, _CHUNK_ENTRIES // len(bank))):
        yield index, F.normalize(queries[index], dim=1) @ bank.T


class KNNProbe:
    """k-NN on cosine similarity; a neighbour's vote weighs exp(similarity / temperature).

    Wu et al. 2018 (arXiv 1805.01978, section 3.4) with the settings of DINO (arXiv 2104.14294).

    k: neighbours; all training samples where these are fewer, which is logged.
    temperature: the lower, the more the nearest neighbours count.
    """

    uses_seed = False

    def __init__(self, *, k: int = 20, temperature: float = 0.07) -> None:
        if k < 1:
            raise ValueError(f"evaluation.probes.knn.k must be at least 1, got {k}")
        if temperature <= 0:
            raise ValueError(f"evaluation.probes.knn.temperature must be above 0, got {temperature}")
        self.k = k
        self.temperature = temperature
        self._told: set[int] = set()

    def __call__(self, train: Features, test: Features, *, classes: int, seed: int = 0) -> float:
        """Return the accuracy on the test features, in [0, 1]; the seed is not used."""
        return float((self.predict(train, test.x, classes=classes) == test.labels).double().mean())

    def predict(self, train: Features, x: Tensor, *, classes: int) -> Tensor:
        """Return the class (N,) with the most votes for features x (N, D)."""
        k = min(self.k, len(train))
        if k < self.k and k not in self._told:
            self._told.add(k)
            log.warning("k-NN: only %d training samples, so k is %d instead of %d", k, k, self.k)
        predictions = []
        for _, similarity in similarities(x, train.x):
            nearest, neighbours = similarity.topk(k, dim=1)  # (n, k)
            # Only the ratio of votes matters: relative to the nearest, exp stays finite at any temperature.
            weights = ((nearest - nearest[:, :1]) / self.temperature).exp()
            votes = weights.new_zeros(len(weights), classes).scatter_add_(1, train.labels[neighbours], weights)
            predictions.append(votes.argmax(dim=1))
        return torch.cat(predictions)


class Retrieval:
    """Recall at k by cosine similarity within the test split, each sample being the query once.

    The share of queries that have at least one sample of their class among the k nearest of the other samples, as is
    usual for CUB and Stanford Online Products (Oh Song et al. 2016, arXiv 1511.06452). Training samples are not used. A
    query that is the only one of its class counts as a miss; a k beyond the other samples takes all of them.

    at: the k, each at least 1; ValueError for less.
    """

    uses_seed = False

    def __init__(self, *, at: Sequence[int] = (1, 5, 10)) -> None:
        check_depths("recall", at)
        self.at = tuple(at)

    def __call__(self, train: Features, test: Features, *, classes: int, seed: int) -> dict[str, float]:
        """Return the recall in [0, 1] by k: {"at_1": ..., ...}."""
        neighbours = min(max(self.at), len(test) - 1)
        hits = torch.zeros(max(self.at), dtype=torch.int64, device=test.x.device)  # of the queries, by k
        for queries, similarity in similarities(test.x, test.x):
            similarity[torch.arange(len(queries), device=queries.device), queries] = -torch.inf  # not itself
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
        check_depths("retrieval", at)
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


def check_depths(probe: str, at: Sequence[int]) -> None:
    """Raise ValueError unless the k of a recall are numbers from 1."""
    if not at or min(at) < 1:
        raise ValueError(f"evaluation.probes.{probe}.at: got {list(at)}, expected numbers of neighbours, at least 1")


def chance_recall(matches: Tensor, total: int, k: int) -> float:
    """Return the mean probability that k of `total` samples, drawn at random, include one of the `matches` (N,)."""
    miss = torch.ones(len(matches), dtype=torch.float64)
    for drawn in range(min(k, total)):
        miss *= ((total - drawn - matches.cpu().double()) / (total - drawn)).clamp(min=0)
    return float((1 - miss).mean())
