"""Random masks: single tokens instead of blocks."""

from __future__ import annotations

import torch
from torch import Tensor

from jepa.masks.hidden_tokens import fixed_size_indices
from jepa.types import Grid, Mask
from jepa.utils.errors import check_at_least


class RandomMask:
    """Masker that keeps a random share of the tokens as context and predicts a random share of the others.

    context_share, target_share: shares of the grid's tokens, together at most 1; target_share None predicts all
    other tokens. num_masks: independent masks per sample, each of which is another view of it.
    """

    def __init__(self, *, context_share: float = 0.4, target_share: float | None = None, num_masks: int = 1) -> None:
        rest = 1 - context_share
        target_share = rest if target_share is None else target_share
        if not (0 < context_share < 1 and 0 < target_share <= rest + 1e-9):
            raise ValueError(
                f"model.mask: got context_share={context_share} and target_share={target_share}, "
                "expected shares above 0 that add up to at most 1"
            )
        check_at_least("model.mask", 1, num_masks=num_masks)
        self.context_share = context_share
        self.target_share = target_share
        self.num_masks = num_masks

    def __call__(
        self, batch_size: int, grid: Grid, *, valid: Tensor | None = None, generator: torch.Generator | None = None
    ) -> list[Mask]:
        """Return `num_masks` masks with one target block (B, 1, P) each; shares are those of what is not padding.

        valid (B, N) bool: False at padding. Raises ValueError for a grid of too few tokens.
        """
        tokens = torch.Size(grid).numel()
        keep = max(1, round(self.context_share * tokens))
        size = max(1, min(round(self.target_share * tokens), tokens - keep))
        if keep + size > tokens:
            told = f"masks of context_share={self.context_share:g} do not fit a grid of {tokens} tokens"
            raise ValueError(f"{told}: use smaller patches (data.hints.patch_size, or patch_size of the encoder)")
        device = torch.device("cpu") if generator is None else generator.device
        masks = []
        for _ in range(self.num_masks):
            order = torch.rand(batch_size, tokens, device=device, generator=generator)
            if valid is None:
                order = order.argsort(dim=1)  # (B, N)
                context, targets = (part.sort(dim=1).values for part in (order[:, :keep], order[:, keep : keep + size]))
                masks.append(Mask(context, targets.unsqueeze(1)))
            else:
                masks.append(self._padded_mask(order, keep, size, valid, generator))
        return masks

    def _padded_mask(
        self, order: Tensor, keep: int, size: int, valid: Tensor, generator: torch.Generator | None
    ) -> Mask:
        """Return the mask of padded samples, whose valid tokens (B, N) are taken by rising order (B, N) < 1."""
        rank = (order + ~valid).argsort(dim=1).argsort(dim=1)  # (B, N), padding last
        count = valid.sum(dim=1, keepdim=True)  # (B, 1)
        kept = (count.double() * self.context_share).round().long().clamp(min=1)
        predicted = (count.double() * self.target_share).round().long().clamp(min=1).minimum(count - kept)
        context, context_valid = fixed_size_indices((rank < kept) & valid, keep, generator)
        targets, target_valid = fixed_size_indices((rank >= kept) & (rank < kept + predicted) & valid, size, generator)
        return Mask(context, targets.unsqueeze(1), context_valid, target_valid.unsqueeze(1))
