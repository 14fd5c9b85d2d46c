"""Weighted k-nearest-neighbour classification: a probe without training."""

from __future__ import annotations

import logging

import torch
from torch import Tensor
from torch.nn import functional as F

from jepa.evaluation.features import Features

log = logging.getLogger("jepa")

_CHUNK_ENTRIES = 2**25
"""Similarities computed at a time: 128 MiB, whatever the sizes of the splits."""


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

    def __call__(self, train: Features, test: Features, *, classes: int, seed: int = 0) -> float:
        """Return the accuracy on the test features, in [0, 1]; the seed is not used."""
        return float((self.predict(train, test.x, classes=classes) == test.labels).double().mean())

    def predict(self, train: Features, x: Tensor, *, classes: int) -> Tensor:
        """Return the class (N,) with the most votes for features x (N, D)."""
        k = min(self.k, len(train))
        if k < self.k:
            log.warning("k-NN: only %d training samples, so k is %d instead of %d", k, k, self.k)
        bank = F.normalize(train.x, dim=1)
        rows = max(1, _CHUNK_ENTRIES // len(train))
        return torch.cat([self._vote(chunk, bank, train.labels, k, classes) for chunk in x.split(rows)])

    def _vote(self, x: Tensor, bank: Tensor, labels: Tensor, k: int, classes: int) -> Tensor:
        similarity, index = (F.normalize(x, dim=1) @ bank.T).topk(k, dim=1)  # (n, k)
        # Only the ratio of votes matters: relative to the nearest, exp stays finite at any temperature.
        weights = ((similarity - similarity[:, :1]) / self.temperature).exp()
        return weights.new_zeros(len(x), classes).scatter_add_(1, labels[index], weights).argmax(dim=1)
