"""Sets of tokens as index tensors of one size for the batch, and the base class of maskers that hide such a set."""

from __future__ import annotations

import torch
from torch import Tensor

from jepa.masks.multiblock import systematic_sample
from jepa.types import Grid, Mask
from jepa.utils.errors import check_at_least


class HiddenTokensMask:
    """Base class of maskers whose one target block are the hidden tokens, and whose context are all others.

    num_masks: independent masks per sample, each of which is another view of it. Subclasses define `sizes` and `hide`.
    """

    exact = False  # True where samples without padding always hide as many tokens as `sizes` says

    def __init__(self, *, num_masks: int) -> None:
        check_at_least("model.mask", 1, num_masks=num_masks)
        self.num_masks = num_masks

    def sizes(self, grid: Grid, padded: bool) -> tuple[int, int]:
        """Return the most tokens that are seen, and that are hidden. Raise ValueError if the grid does not fit.

        padded: whether samples may be shorter than the grid.
        """
        raise NotImplementedError

    def hide(self, real: Tensor, generator: torch.Generator) -> Tensor:
        """Return which tokens are hidden, (B, *grid) bool; real (B, *grid) bool: False at padding."""
        raise NotImplementedError

    def __call__(
        self, batch_size: int, grid: Grid, *, valid: Tensor | None = None, generator: torch.Generator | None = None
    ) -> list[Mask]:
        """Return `num_masks` masks with one target block (B, 1, P) each.

        valid (B, N) bool: False at padding, which is neither context nor target. Surplus tokens are dropped evenly
        (`fixed_size_indices`). Without padding the masks have no valid flags where every sample fills both sizes.
        """
        context_size, target_size = self.sizes(grid, valid is not None)
        generator = generator or torch.default_generator
        shape = (batch_size, *grid)
        real = torch.ones(shape, dtype=torch.bool, device=generator.device) if valid is None else valid.view(shape)
        masks = []
        for _ in range(self.num_masks):
            hidden = self.hide(real, generator)
            context, context_valid = fixed_size_indices((real & ~hidden).flatten(1), context_size, generator)
            targets, target_valid = fixed_size_indices((real & hidden).flatten(1), target_size, generator)
            if valid is None:
                context_valid = None if self.exact or bool(context_valid.all()) else context_valid
                target_valid = None if self.exact or bool(target_valid.all()) else target_valid
            target_valid = None if target_valid is None else target_valid.unsqueeze(1)  # (B, 1, P)
            masks.append(Mask(context, targets.unsqueeze(1), context_valid, target_valid))
        return masks


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


def possible_lengths(steps: int, padded: bool) -> Tensor:
    """Return the lengths that samples of at most this many steps may have."""
    return torch.arange(1, steps + 1) if padded else torch.tensor([steps])
