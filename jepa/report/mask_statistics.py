"""How many tokens masks keep and predict, and how evenly they cover the grid."""

from __future__ import annotations

import math
from dataclasses import dataclass

import torch
from torch import Tensor

from jepa.types import Grid, Mask


@dataclass(frozen=True)
class MaskStatistics:
    """Counts of one mask group over a batch, in tokens per sample.

    tokens: of the grid. context: kept. seen, predicted, neither, both: distinct tokens, means over the batch.
    seen_share, predicted_share: of samples in which a token is, for the rarest and the most frequent token.
    """

    tokens: int
    context: int
    blocks: int
    block_tokens: int
    seen: float
    predicted: float
    neither: float
    both: float
    seen_share: tuple[float, float]
    predicted_share: tuple[float, float]


def mask_statistics(mask: Mask, grid: Grid) -> MaskStatistics:
    """Return the statistics of one mask group."""
    tokens = math.prod(grid)
    seen, predicted = (token_membership(mask, part, tokens) for part in ("context", "targets"))

    def per_sample(where: Tensor) -> float:
        return where.float().sum(dim=1).mean().item()

    def extremes(where: Tensor) -> tuple[float, float]:
        shares = where.float().mean(dim=0)
        return shares.min().item(), shares.max().item()

    return MaskStatistics(
        tokens=tokens,
        context=mask.context.shape[1],
        blocks=mask.targets.shape[1],
        block_tokens=mask.targets.shape[2],
        seen=per_sample(seen),
        predicted=per_sample(predicted),
        neither=per_sample(~seen & ~predicted),
        both=per_sample(seen & predicted),
        seen_share=extremes(seen),
        predicted_share=extremes(predicted),
    )


def token_membership(mask: Mask, part: str, tokens: int) -> Tensor:
    """Return (B, N) bool: whether a token is in a sample's "context", or in at least one of its "targets"."""
    result = torch.zeros(mask.context.shape[0], tokens, dtype=torch.bool)
    for sample in range(len(result)):
        result[sample, token_indices(mask, part, sample)] = True
    return result


def token_indices(mask: Mask, part: str, sample: int, block: int | None = None) -> Tensor:
    """Return the token indices of a sample's "context" or "targets", without padding, on the CPU."""
    index, valid = (mask.context, mask.context_valid) if part == "context" else (mask.targets, mask.target_valid)
    index, valid = index[sample], None if valid is None else valid[sample]
    if block is not None:
        index, valid = index[block], None if valid is None else valid[block]
    return (index if valid is None else index[valid]).flatten().cpu()
