"""How many tokens masks keep and predict, and how evenly they cover the grid."""

from __future__ import annotations

import math

import torch
from torch import Tensor

from jepa.types import Grid, Mask


def mask_statistics(mask: Mask, grid: Grid) -> dict[str, str]:
    """Return statistics of one mask group over a batch: tokens per sample, and shares of the samples."""
    tokens = math.prod(grid)
    seen, predicted = seen_and_predicted(mask, (tokens,))

    def count(where: Tensor) -> str:
        mean = where.float().sum(dim=1).mean().item()
        return f"{mean:.1f} ({mean / tokens:.0%})"

    def shares(where: Tensor) -> str:
        share = where.float().mean(dim=0)
        return f"{share.min().item():.0%} to {share.max().item():.0%} of samples"

    return {
        "context tokens kept": str(mask.context.shape[1]),
        "targets, blocks x tokens": f"{mask.targets.shape[1]} x {mask.targets.shape[2]}",
        "distinct tokens seen": count(seen),
        "distinct tokens predicted": count(predicted),
        "neither seen nor predicted": count(~seen & ~predicted),
        "both seen and predicted": count(seen & predicted),
        "a token is seen in": shares(seen),
        "a token is predicted in": shares(predicted),
    }


def seen_and_predicted(mask: Mask, grid: Grid) -> tuple[Tensor, Tensor]:
    """Return whether a token is in a sample's context, and in at least one of its targets, each (B, *grid) bool."""
    return tokens_in(mask.context, mask.context_valid, grid), target_blocks(mask, grid).any(dim=1)


def target_blocks(mask: Mask, grid: Grid) -> Tensor:
    """Return whether a token is in each target block, (B, blocks, *grid) bool."""
    return tokens_in(mask.targets, mask.target_valid, grid)


def tokens_in(index: Tensor, valid: Tensor | None, grid: Grid) -> Tensor:
    """Return which tokens are among the valid indices (..., K), as (..., *grid) bool on the CPU."""
    padding = math.prod(grid)
    index = index if valid is None else index.masked_fill(~valid, padding)
    inside = torch.zeros(*index.shape[:-1], padding + 1, dtype=torch.bool)
    return inside.scatter_(-1, index.cpu(), True)[..., :-1].unflatten(-1, grid)
