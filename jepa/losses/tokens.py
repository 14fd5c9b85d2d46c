"""Target tokens: their weighted mean, and numbers for their places."""

from __future__ import annotations

import torch
from torch import Tensor
from torch.nn import functional as F


def token_mean(values: Tensor, weight: Tensor | None) -> Tensor:
    """Mean over all tokens, (B, M, P) -> scalar, weighted by (B, M, P) weights.

    The weights have mean 1 over the whole batch, so that plain means of ranks and micro-batches add up to the mean.
    """
    return values.mean() if weight is None else (values * weight).mean()


def place_numbers(positions: Tensor) -> Tensor:
    """One number for each place, equal where all axes are: (..., A) int64 >= 0 -> (...)."""
    numbers = torch.zeros_like(positions[..., 0])
    for axis in positions.unbind(-1):
        numbers = numbers * (axis.max() + 1) + axis  # row-major in the smallest grid that holds them
    return numbers


def group_equal(numbers: Tensor) -> Tensor:
    """Groups of equal numbers along the last axis, numbered from 0 in rising order: (..., P) -> (..., P) below P."""
    ordered, order = numbers.sort(dim=-1)
    groups = F.pad((ordered.diff(dim=-1) != 0).long(), (1, 0)).cumsum(dim=-1)
    return torch.empty_like(groups).scatter_(-1, order, groups)
