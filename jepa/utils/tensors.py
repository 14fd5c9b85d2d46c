"""Pure functions on token tensors, and on batches whose values may be dicts of tensors."""

from __future__ import annotations

import sys
from collections.abc import Callable, Iterable, Iterator, Mapping
from typing import Any

import torch
from torch import Tensor
from torch.nn import functional as F

from jepa.types import Grid


def is_dtensor(value: object) -> bool:
    """Return whether it is a tensor sharded over ranks; nothing is imported for a run that shards none."""
    module = sys.modules.get("torch.distributed.tensor")
    return module is not None and isinstance(value, module.DTensor)


def gather_tokens(tokens: Tensor, index: Tensor) -> Tensor:
    """Return tokens by index: (B, N, D) at (B, ...) int64 -> (B, ..., D)."""
    flat = index.flatten(1)  # (B, anything)
    picked = torch.gather(tokens, 1, flat.unsqueeze(-1).expand(-1, -1, tokens.shape[-1]))
    return picked.unflatten(1, index.shape[1:])


def grid_positions(grid: Grid, index: Tensor) -> Tensor:
    """Return the positions (..., A) on the A axes of a grid of row-major flat indices (...)."""
    positions = []
    for size in reversed(grid):
        positions.append(index % size)
        index = index // size
    return torch.stack(positions[::-1], dim=-1)


def position_ids(positions: Tensor) -> Tensor:
    """Return one int64 per position, equal where the position is: (..., A) >= 0 -> (...)."""
    ids = torch.zeros_like(positions[..., 0])
    for axis in positions.unbind(-1):
        ids = ids * (axis.max() + 1) + axis  # row-major in the smallest grid that holds them
    return ids


def token_valid(encoder: object, x: Tensor) -> Tensor | None:
    """Return which tokens (B, N) bool of inputs x are not padding; None for an encoder that takes no padding."""
    find = getattr(encoder, "token_valid", None)
    return None if find is None else find(x)


def attention_mask(valid: Tensor | None) -> Tensor | None:
    """Return the attention mask (B, 1, 1, K) bool of valid (B, K) bool, False at padding; None for None.

    A sample without a valid token attends to all tokens, as softmax over none is NaN; its features are not used.
    """
    return None if valid is None else (valid | ~valid.any(dim=1, keepdim=True))[:, None, None, :]


def layer_norm(features: Tensor) -> Tensor:
    """Return the layer norm over the last axis, without parameters, in fp32 (I-JEPA's code, `forward_target`)."""
    return F.layer_norm(features.float(), features.shape[-1:])


def masked_mean(tokens: Tensor, valid: Tensor | None = None) -> Tensor:
    """Return the mean over tokens, (B, K, D) -> (B, D) fp32, without padding: valid (B, K) bool is False there."""
    tokens = tokens.float()
    if valid is None:
        return tokens.mean(dim=1)
    weights = valid.unsqueeze(-1).to(tokens.dtype)
    return (tokens * weights).sum(dim=1) / weights.sum(dim=1).clamp(min=1)


def masked_max(tokens: Tensor, valid: Tensor | None = None) -> Tensor:
    """Return the maximum over tokens, (B, K, D) -> (B, D) fp32, without padding: valid (B, K) bool is False there."""
    tokens = tokens.float()
    if valid is not None:
        tokens = tokens.masked_fill(~(valid | ~valid.any(dim=1, keepdim=True)).unsqueeze(-1), float("-inf"))
    return tokens.amax(dim=1)


def sample_entries(tensors: Iterable[Tensor], most: int = 2048) -> list[Tensor]:
    """Return every n-th entry of each tensor, at most `most`, in fp32; of a DTensor those of this rank's shard."""
    local = [(t.to_local() if hasattr(t, "to_local") else t).detach().reshape(-1) for t in tensors]
    filled = [t if t.numel() else t.new_zeros(1) for t in local]  # a rank's shard may be empty
    return [t[:: -(-t.numel() // most)].float() for t in filled]


def map_tensors(value: Any, function: Callable[[Tensor], Any]) -> Any:
    """Return the value with `function` applied to its tensors: a tensor or nested dicts of them; others are kept."""
    if isinstance(value, Tensor):
        return function(value)
    if isinstance(value, Mapping):
        return {name: map_tensors(item, function) for name, item in value.items()}
    return value


def tensors_in(value: Any) -> Iterator[Tensor]:
    """Yield the tensors of a value, as `map_tensors` finds them."""
    if isinstance(value, Tensor):
        yield value
    elif isinstance(value, Mapping):
        for item in value.values():
            yield from tensors_in(item)


def batch_length(batch: Mapping[str, Any]) -> int:
    """Return the number of samples of a batch."""
    return len(next(tensors_in(batch)))


def batch_slice(batch: Mapping[str, Any], samples: slice) -> dict[str, Any]:
    """Return some samples of a batch that the model has not prepared."""
    return map_tensors(batch, lambda tensor: tensor[samples])
