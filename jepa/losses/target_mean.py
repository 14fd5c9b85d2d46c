"""The mean over target tokens and masks that every prediction term ends with."""

from __future__ import annotations

from collections.abc import Sequence

import torch
from torch import Tensor


def mean_over_targets(errors: Sequence[Tensor], weights: Sequence[Tensor | None] | None) -> Tensor:
    """Return the mean over masks, samples and target tokens of errors, one (B, M, P) per mask.

    weights: `Latents.target_weights`. They have mean 1 over the batch of all ranks and micro-batches, so that the plain
        means of these average to the weighted mean of the batch.
    """
    weights = weights or [None] * len(errors)
    means = [(error if weight is None else error * weight).mean() for error, weight in zip(errors, weights)]
    return torch.stack(means).mean()
