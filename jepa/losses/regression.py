"""Regression of target latents: smooth-L1 (I-JEPA), L1 (V-JEPA), mean squared error."""

from __future__ import annotations

import torch
from torch import Tensor, nn
from torch.nn import functional as F

from jepa.types import Latents


class Regression(nn.Module):
    """Mean over features, target tokens, samples and masks of an elementwise distance.

    Latents.target_weights, where given, weigh the tokens; their mean over the whole batch is 1, so that ranks and
    micro-batches add up to it. A subclass gives the distance. Targets come layer-normed and without gradient from the
    model.
    """

    prevents_collapse = False
    batch_statistics = False
    needs = ("predictions", "targets")

    def distance(self, prediction: Tensor, target: Tensor) -> Tensor:
        """Elementwise distance, (B, M, P, D) -> (B, M, P, D)."""
        raise TypeError("Regression has no distance of its own: use SmoothL1, L1 or MSE")

    def forward(self, latents: Latents) -> Tensor:
        """The loss, an fp32 scalar."""
        weights = latents.target_weights or [None] * len(latents.targets)
        means = [
            _mean(self.distance(prediction.float(), target.float()), weight)
            for prediction, target, weight in zip(latents.predictions, latents.targets, weights)
        ]
        return torch.stack(means).mean()


class SmoothL1(Regression):
    """Huber-like: d^2 / (2 beta) below beta, d - beta / 2 above. Published I-JEPA uses beta 1."""

    def __init__(self, *, beta: float = 1.0) -> None:
        super().__init__()
        if beta <= 0:
            raise ValueError(f"beta must be positive, got {beta}; use loss=l1 for beta 0")
        self.beta = beta

    def distance(self, prediction: Tensor, target: Tensor) -> Tensor:
        """Elementwise smooth-L1."""
        return F.smooth_l1_loss(prediction, target, reduction="none", beta=self.beta)


class L1(Regression):
    """Absolute error."""

    def distance(self, prediction: Tensor, target: Tensor) -> Tensor:
        """Elementwise absolute error."""
        return (prediction - target).abs()


class MSE(Regression):
    """Squared error."""

    def distance(self, prediction: Tensor, target: Tensor) -> Tensor:
        """Elementwise squared error."""
        return (prediction - target).square()


def _mean(distance: Tensor, weight: Tensor | None) -> Tensor:
    """Mean of distances (B, M, P, D), tokens weighted by (B, M, P)."""
    return distance.mean() if weight is None else (distance.mean(-1) * weight).mean()
