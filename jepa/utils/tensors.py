"""Small pure functions on token tensors."""

from __future__ import annotations

import sys
from collections.abc import Iterable

import torch
from torch import Tensor
from torch.nn import functional as F

from jepa.types import Grid


def is_dtensor(value: object) -> bool:
    """Return whether it is a tensor sharded over ranks; nothing is imported for a run that shards none."""
    module = sys.modules.get("torch.distributed.tensor")
    return module is not None and isinstance(value, module.DTensor)


def gather_tokens(tokens: Tensor, index: Tensor) -> Tensor:
    """Pick tokens by index: (B, N, D) at (B, ...) int64 -> (B, ..., D)."""
    flat = index.flatten(1)  # (B, anything)
    picked = torch.gather(tokens, 1, flat.unsqueeze(-1).expand(-1, -1, tokens.shape[-1]))
    return picked.unflatten(1, index.shape[1:])


def positions_on(grid: Grid, index: Tensor) -> Tensor:
    """Places (..., A) on the A axes of a grid, of row-major flat indices (...)."""
    places = []
    for size in reversed(grid):
        places.append(index % size)
        index = index // size
    return torch.stack(places[::-1], dim=-1)


def token_valid(encoder: object, x: Tensor) -> Tensor | None:
    """Which tokens (B, N) bool of inputs x hold more than padding; None for an encoder that takes no padding."""
    find = getattr(encoder, "token_valid", None)
    return None if find is None else find(x)


def attention_mask(valid: Tensor | None) -> Tensor | None:
    """What attention takes: (B, K) bool, False for padding -> (B, 1, 1, K); None stays None.

    A sample without a single valid token attends to all of them: softmax over none is NaN, and nobody reads it.
    """
    return None if valid is None else (valid | ~valid.any(dim=1, keepdim=True))[:, None, None, :]


def layer_norm(features: Tensor) -> Tensor:
    """Layer norm over the last axis, without parameters, in fp32 (I-JEPA, arXiv 2301.08243, `forward_target`)."""
    return F.layer_norm(features.float(), features.shape[-1:])


def masked_mean(tokens: Tensor, valid: Tensor | None = None) -> Tensor:
    """Mean over tokens, (B, K, D) -> (B, D) in fp32; padding, marked False in valid (B, K), does not count."""
    tokens = tokens.float()
    if valid is None:
        return tokens.mean(dim=1)
    weights = valid.unsqueeze(-1).to(tokens.dtype)
    return (tokens * weights).sum(dim=1) / weights.sum(dim=1).clamp(min=1)


def masked_max(tokens: Tensor, valid: Tensor | None = None) -> Tensor:
    """Largest value over tokens, (B, K, D) -> (B, D) in fp32; padding, marked False in valid (B, K), does not count."""
    tokens = tokens.float()
    if valid is not None:
        tokens = tokens.masked_fill(~(valid | ~valid.any(dim=1, keepdim=True)).unsqueeze(-1), float("-inf"))
    return tokens.amax(dim=1)


def sample_entries(tensors: Iterable[Tensor], most: int = 2048) -> list[Tensor]:
    """Every n-th entry of each tensor, at most `most`, in fp32; of sharded tensors (DTensor) from this rank's part."""
    local = [(t.to_local() if hasattr(t, "to_local") else t).detach().reshape(-1) for t in tensors]
    filled = [t if t.numel() else t.new_zeros(1) for t in local]  # a rank's shard may be empty
    return [t[:: -(-t.numel() // most)].float() for t in filled]
