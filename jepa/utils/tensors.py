"""Pure functions on tokens, on features (nearest rows, rank), and on batches whose values may be dicts of tensors."""

from __future__ import annotations

import sys
from collections.abc import Callable, Iterable, Mapping, Sequence
from typing import Any

import torch
from torch import Tensor
from torch.nn import functional as F

from jepa.types import Grid


def is_dtensor(value: object) -> bool:
    """Return whether it is a tensor sharded over ranks; nothing is imported for a run that shards none."""
    module = sys.modules.get("torch.distributed.tensor")
    return module is not None and isinstance(value, module.DTensor)


def local_part(tensor: Tensor) -> Tensor:
    """Return this rank's shard of a DTensor, as a view; another tensor as it is."""
    return tensor.to_local() if is_dtensor(tensor) else tensor


def gather_tokens(tokens: Tensor, index: Tensor) -> Tensor:
    """Return tokens by index: (B, N, D) at (B, ...) int64 -> (B, ..., D)."""
    flat = index.flatten(1)  # (B, anything)
    picked = torch.gather(tokens, 1, flat.unsqueeze(-1).expand(-1, -1, tokens.shape[-1]))
    return picked.unflatten(1, index.shape[1:])


def grid_positions(grid: Grid, index: Tensor) -> Tensor:
    """Return the positions (..., A) on the A axes of a grid of row-major flat indices (...)."""
    return torch.stack(torch.unravel_index(index, grid), dim=-1)


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


def nan_at_padding(tokens: Tensor, valid: Tensor | None) -> Tensor:
    """Return tokens (B, K, D) as fp32, NaN where valid (B, K) bool is False."""
    return tokens.float() if valid is None else tokens.float().masked_fill(~valid.unsqueeze(-1), float("nan"))


def masked_max(tokens: Tensor, valid: Tensor | None = None) -> Tensor:
    """Return the maximum over tokens, (B, K, D) -> (B, D) fp32, without padding: valid (B, K) bool is False there."""
    tokens = tokens.float()
    if valid is not None:
        tokens = tokens.masked_fill(~(valid | ~valid.any(dim=1, keepdim=True)).unsqueeze(-1), float("-inf"))
    return tokens.amax(dim=1)


def sample_entries(tensors: Iterable[Tensor], most: int = 2048) -> list[Tensor]:
    """Return every n-th entry of each tensor, at most `most`, in fp32; of a DTensor those of this rank's shard."""
    local = [local_part(t).detach().reshape(-1) for t in tensors]
    filled = [t if t.numel() else t.new_zeros(1) for t in local]  # a rank's shard may be empty
    return [t[:: -(-t.numel() // most)].float() for t in filled]


def nearest_rows(
    features: Tensor, rows: Sequence[int], count: int, left_out: Tensor | None = None
) -> tuple[Tensor, Tensor]:
    """Return cosines and rows (n, count) of those of features (m, D) closest to some (n), nearest first, not itself.

    Fewer where there are no `count` others. left_out (m, m) bool: pairs that do not count, of cosine -inf.
    """
    index = torch.as_tensor(rows, dtype=torch.long, device=features.device)
    unit = F.normalize(features.float(), dim=1)
    cosines = unit[index] @ unit.T
    cosines[torch.arange(len(index), device=index.device), index] = -torch.inf
    if left_out is not None:
        cosines[left_out[index]] = -torch.inf
    values, indices = cosines.topk(min(count, len(unit) - 1), dim=1)
    return values, indices


def rankme(features: Tensor, eps: float = 1e-7) -> float:
    """Return the effective rank of features (N, D), between 1 and min(N, D).

    exp(-sum_k p_k log p_k) with p_k = s_k / sum(s) + eps over the singular values s of the uncentred matrix
    (RankMe, Garrido et al. 2023, arXiv 2210.02885; the paper takes 25,600 samples). Being uncentred, it
    counts the mean as one direction; zeros have rank 1.
    """
    return effective_rank(singular_values(features), eps)


def effective_rank(values: Tensor, eps: float = 1e-7) -> float:
    """Return exp(entropy) of values >= 0 divided by their sum, plus eps; 1 if all are zero."""
    p = values / values.sum().clamp(min=torch.finfo(values.dtype).tiny) + eps
    return float(torch.exp(-(p * p.log()).sum()))


def singular_values(features: Tensor) -> Tensor:
    """Return the singular values (min(N, D),) of features (N, D) in fp64, rising, by the smaller Gram matrix.

    The Gram matrix squares them, which leaves 8 of 16 digits, as many as fp32 features have.
    """
    features = features.detach()
    if features.device.type == "mps":  # has no fp64
        features = features.cpu()
    features = features.double()
    gram = features @ features.T if features.shape[0] <= features.shape[1] else features.T @ features
    return torch.linalg.eigvalsh(gram).clamp(min=0).sqrt()


def feature_std(features: Tensor) -> float:
    """Return the standard deviation over samples, averaged over the D features of (N, D); 0 is complete collapse."""
    return float(features.float().std(dim=0, correction=0).mean())


def map_tensors(value: Any, function: Callable[[Tensor], Any]) -> Any:
    """Return the value with `function` applied to its tensors: a tensor or nested dicts of them; others are kept."""
    if isinstance(value, Tensor):
        return function(value)
    if isinstance(value, Mapping):
        return {name: map_tensors(item, function) for name, item in value.items()}
    return value


def tensors_in(value: Any) -> list[Tensor]:
    """Return the tensors of a value, as `map_tensors` finds them."""
    found: list[Tensor] = []
    map_tensors(value, found.append)
    return found


def batch_length(batch: Mapping[str, Any]) -> int:
    """Return the number of samples of a batch."""
    return len(tensors_in(batch)[0])


def batch_slice(batch: Mapping[str, Any], samples: slice) -> dict[str, Any]:
    """Return some samples of a batch that the model has not prepared."""
    return map_tensors(batch, lambda tensor: tensor[samples])
