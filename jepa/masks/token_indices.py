"""Sets of tokens, one per sample, as index tensors of one size for the batch."""

from __future__ import annotations

import torch
from torch import Tensor

from jepa.types import Mask


def systematic_sample(sizes: Tensor, count: int, generator: torch.Generator | None) -> Tensor:
    """Return `count` different members (..., count), numbered from 0, of sets of at least so many; sizes (...).

    Evenly spaced from a random start, so that every member is equally likely, without sorting.
    """
    start = 0.999 * torch.rand(sizes.shape, device=sizes.device, generator=generator)  # below 1 after rounding too
    spaced = torch.arange(count, device=sizes.device) + start.unsqueeze(-1)
    return (spaced * (sizes / count).unsqueeze(-1)).int().minimum(sizes.unsqueeze(-1).int() - 1)


def fixed_size_indices(members: Tensor, size: int, generator: torch.Generator | None = None) -> tuple[Tensor, Tensor]:
    """Return indices (B, size) int64, ascending, of each sample's members (B, N) bool, and which are valid, bool.

    Of more than `size` members that many are sampled, all equally likely. Fewer are padded with entries marked False,
    which repeat a member (or token 0 where there is none).
    """
    count = members.sum(dim=1)  # (B,)
    ranks = torch.arange(size, device=members.device).expand(len(members), -1)
    ranks = torch.where((count > size)[:, None], systematic_sample(count.clamp(min=size), size, generator), ranks)
    valid = ranks < count[:, None]
    ranks = ranks.minimum((count - 1).clamp(min=0)[:, None])
    index = torch.searchsorted(members.cumsum(dim=1), ranks.contiguous() + 1)
    return index.clamp(max=members.shape[1] - 1), valid


def mask_from_hidden(
    hidden: Tensor,
    valid: Tensor | None,
    *,
    context_size: int,
    target_size: int,
    generator: torch.Generator | None = None,
) -> Mask:
    """Return the mask whose one target block are the tokens hidden (B, N) bool, and whose context are the others.

    valid (B, N) bool: False at padding, which is neither context nor target. Surplus tokens are dropped evenly
    (`fixed_size_indices`). Without padding the mask has no valid flags where every sample fills both sizes.
    """
    seen = ~hidden
    if valid is not None:
        hidden, seen = hidden & valid, seen & valid
    context, context_valid = fixed_size_indices(seen, context_size, generator)
    targets, target_valid = fixed_size_indices(hidden, target_size, generator)
    targets, target_valid = targets.unsqueeze(1), target_valid.unsqueeze(1)  # (B, 1, P)
    if valid is None:
        context_valid = None if bool(context_valid.all()) else context_valid
        target_valid = None if bool(target_valid.all()) else target_valid
    return Mask(context, targets, context_valid, target_valid)
