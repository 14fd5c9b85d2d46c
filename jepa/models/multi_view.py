"""Batches with several views of each sample, as one batch of views and back."""

from __future__ import annotations

from torch import Tensor

from jepa.types import Batch


def flatten_views(batch: Batch) -> tuple[Tensor, int]:
    """Return the batch's inputs (B * V, C, *S), the views of a sample adjacent, and V."""
    if "views" in batch:
        return batch["views"].flatten(0, 1), batch["views"].shape[1]
    return batch["x"], 1


def views_first(pooled: Tensor, views: int) -> Tensor:
    """Return (masks * V, B, D) of (masks, B * V, D), in which the views of a sample are adjacent."""
    return pooled.unflatten(1, (-1, views)).transpose(1, 2).flatten(0, 1)
