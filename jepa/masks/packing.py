"""From the set of hidden tokens of each sample to index tensors of one shape."""

from __future__ import annotations

import torch
from torch import Tensor

from jepa.masks.multiblock import pick_ranks
from jepa.types import Mask


def pack(members: Tensor, size: int, generator: torch.Generator | None = None) -> tuple[Tensor, Tensor]:
    """Indices (B, size) int64, ascending, of each sample's members (B, N) bool, and which of them are real, bool.

    Of more members than `size` that many are picked, all equally likely. Fewer are followed by entries marked False,
    which repeat a real one (or token 0 where there is none).
    """
    count = members.sum(dim=1)  # (B,)
    ranks = torch.arange(size, device=members.device).expand(len(members), -1)
    ranks = torch.where((count > size)[:, None], pick_ranks(count.clamp(min=size), size, generator), ranks)
    real = ranks < count[:, None]
    ranks = ranks.minimum((count - 1).clamp(min=0)[:, None])
    index = torch.searchsorted(members.cumsum(dim=1), ranks.contiguous() + 1)
    return index.clamp(max=members.shape[1] - 1), real


def split_tokens(
    hidden: Tensor,
    valid: Tensor | None,
    *,
    context_size: int,
    target_size: int,
    generator: torch.Generator | None = None,
) -> Mask:
    """The mask that shows what is not hidden, (B, N) bool, and asks for what is, as one target block.

    valid (B, N) bool: padding is neither shown nor asked for. Surplus tokens are dropped evenly (`pack`); the valid
    flags are None where every sample fills both sizes, which is only looked at without padding.
    """
    seen = ~hidden
    if valid is not None:
        hidden, seen = hidden & valid, seen & valid
    context, context_valid = pack(seen, context_size, generator)
    targets, target_valid = pack(hidden, target_size, generator)
    targets, target_valid = targets.unsqueeze(1), target_valid.unsqueeze(1)  # (B, 1, P)
    if valid is None:
        context_valid = None if bool(context_valid.all()) else context_valid
        target_valid = None if bool(target_valid.all()) else target_valid
    return Mask(context, targets, context_valid, target_valid)
