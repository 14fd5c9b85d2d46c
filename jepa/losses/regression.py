"""Regression of target latents, the I-JEPA and V-JEPA loss: SmoothL1, L1, Lp, MSE, Cosine."""

from __future__ import annotations

from collections.abc import Sequence

import torch
from torch import Tensor
from torch.nn import functional as F

from jepa.losses.objective import Term
from jepa.types import Latents


class Regression(Term):
    """Mean over target tokens, samples and masks of a distance between two tokens.

    Latents.target_weights weigh the tokens. The model layer-norms and detaches targets. Subclasses define `distance`.
    """

    needs = ("predictions", "targets")

    def distance(self, prediction: Tensor, target: Tensor) -> Tensor:
        """Return the distance of each token, (..., D) and (..., D) -> (...)."""
        raise TypeError("Regression has no distance of its own: use SmoothL1, L1, Lp, MSE or Cosine")

    def forward(self, latents: Latents) -> Tensor:
        pairs = zip(latents.predictions, latents.targets)
        errors = [self.distance(prediction.float(), target.float()) for prediction, target in pairs]
        return mean_over_targets(errors, latents.target_weights)


class SmoothL1(Regression):
    """Huber-like: d^2 / (2 beta) below beta, d - beta / 2 above, mean over features.

    I-JEPA's released code uses this with beta 1; equation 1 of the paper (arXiv 2301.08243) is an L2 distance.
    """

    def __init__(self, *, beta: float = 1.0) -> None:
        super().__init__()
        if beta <= 0:
            raise ValueError(f"beta must be positive, got {beta}; use loss=l1 for beta 0")
        self.beta = beta

    def distance(self, prediction: Tensor, target: Tensor) -> Tensor:
        return F.smooth_l1_loss(prediction, target, reduction="none", beta=self.beta).mean(-1)


class L1(Regression):
    """Absolute error, mean over features (V-JEPA, arXiv 2404.08471, equation 1)."""

    def distance(self, prediction: Tensor, target: Tensor) -> Tensor:
        return (prediction - target).abs().mean(-1)


class Lp(Regression):
    """|d|^p / p, mean over features: the released V-JEPA's loss (arXiv 2404.08471), whose `loss_exp` is p.

    loss_exponent: p > 0; 1 is L1, 2 is half the squared error.
    """

    def __init__(self, *, loss_exponent: float = 1.0) -> None:
        super().__init__()
        if not loss_exponent > 0:
            raise ValueError(f"loss_exponent: got {loss_exponent}, expected a number above 0; 1 is the absolute error")
        self.loss_exponent = loss_exponent

    def distance(self, prediction: Tensor, target: Tensor) -> Tensor:
        error = (prediction - target).abs().clamp(min=1e-12)  # for p < 1 the gradient at 0 is infinite
        return error.pow(self.loss_exponent).mean(-1) / self.loss_exponent


class MSE(Regression):
    """Squared error, mean over features."""

    def distance(self, prediction: Tensor, target: Tensor) -> Tensor:
        return (prediction - target).square().mean(-1)


class Cosine(Regression):
    """1 - cosine similarity, in [0, 2] (BYOL, arXiv 2006.07733, half of equation 2)."""

    def distance(self, prediction: Tensor, target: Tensor) -> Tensor:
        return 1 - F.cosine_similarity(prediction, target, dim=-1)


def mean_over_targets(errors: Sequence[Tensor], weights: Sequence[Tensor | None] | None) -> Tensor:
    """Return the mean over masks, samples and target tokens of errors, one (B, M, P) per mask.

    weights: `Latents.target_weights`. They have mean 1 over the batch of all ranks and micro-batches, so that the plain
        means of these average to the weighted mean of the batch.
    """
    weights = weights or [None] * len(errors)
    means = [(error if weight is None else error * weight).mean() for error, weight in zip(errors, weights)]
    return torch.stack(means).mean()
