"""How many tokens masks keep and predict, and how evenly they cover the grid."""

from __future__ import annotations

import math

import torch
from torch import Tensor

from jepa.types import Grid, Mask


def mask_statistics(mask: Mask, grid: Grid) -> dict[str, str]:
    """Return statistics of one mask group over a batch: tokens per sample, and shares of the samples."""
    tokens = math.prod(grid)
    seen, predicted = (token_membership(mask, part, tokens) for part in ("context", "targets"))

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


def token_membership(mask: Mask, part: str, tokens: int) -> Tensor:
    """Return (B, N) bool: whether a token is in a sample's "context", or in at least one of its "targets"."""
    result = torch.zeros(mask.context.shape[0], tokens, dtype=torch.bool)
    for sample in range(len(result)):
        result[sample, token_indices(mask, part, sample)] = True
    return result


def token_indices(mask: Mask, part: str, sample: int, block: int | None = None) -> Tensor:
    """Return the token indices of a sample's "context" or "targets", without padding, on the CPU."""
    index, valid = (mask.context, mask.context_valid) if part == "context" else (mask.targets, mask.target_valid)
    where = sample if block is None else (sample, block)
    return (index[where] if valid is None else index[where][valid[where]]).flatten().cpu()
