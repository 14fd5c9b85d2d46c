"""Weighted k-nearest-neighbour classification: what features are worth before anything is fitted to them."""

from __future__ import annotations

import logging

import torch
from torch import Tensor
from torch.nn import functional as F

from jepa.evaluation.features import Features

log = logging.getLogger("jepa")

_CHUNK_ENTRIES = 2**25
"""Similarities held at a time: 128 MiB, whatever the sizes of the splits."""


class KNNProbe:
    """k-NN on cosine similarity; a neighbour's vote weighs exp(similarity / temperature).

    Wu et al. 2018 (arXiv 1805.01978, section 3.4) with the settings of DINO (arXiv 2104.14294).

    neighbours: k; more than there are training samples means all of them, which is logged.
    temperature: the lower, the more the nearest ones count; cosine similarity is at most 1.
    """

    uses_seed = False

    def __init__(self, *, neighbours: int = 20, temperature: float = 0.07) -> None:
        if neighbours < 1:
            raise ValueError(f"evaluation.probes.knn.neighbours must be at least 1, got {neighbours}")
        if temperature <= 0:
            raise ValueError(f"evaluation.probes.knn.temperature must be above 0, got {temperature}")
        self.neighbours = neighbours
        self.temperature = temperature

    def __call__(self, train: Features, test: Features, *, classes: int, seed: int = 0) -> float:
        """Accuracy on the test features, in [0, 1]; nothing is random, so the seed is not used."""
        return float((self.predict(train, test.x, classes=classes) == test.labels).double().mean())

    def predict(self, train: Features, x: Tensor, *, classes: int) -> Tensor:
        """The most voted class (N,) of features x (N, D)."""
        k = min(self.neighbours, len(train))
        if k < self.neighbours:
            log.warning("k-NN: only %d training samples, so k is %d instead of %d", k, k, self.neighbours)
        bank = F.normalize(train.x, dim=1)
        rows = max(1, _CHUNK_ENTRIES // len(train))
        return torch.cat([self._vote(chunk, bank, train.labels, k, classes) for chunk in x.split(rows)])

    def _vote(self, x: Tensor, bank: Tensor, labels: Tensor, k: int, classes: int) -> Tensor:
        similarity, index = (F.normalize(x, dim=1) @ bank.T).topk(k, dim=1)  # (n, k)
        # Only the ratio of votes matters: counting from the nearest keeps exp finite at any temperature.
        weights = ((similarity - similarity[:, :1]) / self.temperature).exp()
        return weights.new_zeros(len(x), classes).scatter_add_(1, labels[index], weights).argmax(dim=1)
