"""Span masks: a share of a sequence is hidden in runs of neighbouring tokens."""

from __future__ import annotations

import math

import torch
from torch import Tensor

from jepa.masks.token_indices import mask_from_hidden
from jepa.types import Grid, Mask
from jepa.utils.errors import check_at_least


class SpanMask:
    """Masker of sequences: hides `mask_ratio` of the tokens in spans of `mask_length` that do not overlap.

    mask_ratio: share of a sample's tokens to hide, rounded to whole spans; at least one token is hidden and one seen.
    mask_length: tokens of a span, 1 for single tokens; shorter where a sample has too few tokens.
    num_masks: independent masks per sample, each of which is another view of it.

    Spans wrap around the end of the sequence, so that every token is hidden equally often. Padding is left out, and the
    share is that of the tokens which are not padding. On a grid of several axes tokens are counted row by row.
    """

    def __init__(self, *, mask_ratio: float = 0.6, mask_length: int = 1, num_masks: int = 1) -> None:
        if not 0 < mask_ratio < 1:
            raise ValueError(f"model.mask.mask_ratio={mask_ratio}: expected a share between 0 and 1")
        check_at_least("model.mask", 1, mask_length=mask_length, num_masks=num_masks)
        self.mask_ratio = mask_ratio
        self.mask_length = mask_length
        self.num_masks = num_masks

    def __call__(
        self,
        batch_size: int,
        grid: Grid,
        *,
        valid: Tensor | None = None,
        generator: torch.Generator | None = None,
    ) -> list[Mask]:
        """Return `num_masks` masks with one target block (B, 1, P) each. valid (B, N) bool: False at padding.

        Raises ValueError when the grid has a single token.
        """
        tokens = math.prod(grid)
        if tokens < 2:
            raise ValueError(
                f"masks need at least 2 tokens, got a grid of {grid}: use smaller patches or longer inputs"
            )
        device = torch.device("cpu") if generator is None else generator.device
        real = torch.ones(batch_size, tokens, dtype=torch.bool, device=device) if valid is None else valid
        lengths = torch.arange(1, tokens + 1) if valid is not None else torch.tensor([tokens])
        spans, span = self._spans(lengths)
        target_size = int((spans * span).max())
        context_size = int((lengths - spans * span).max())
        masks = []
        for _ in range(self.num_masks):
            hidden = self._hide(real, int(spans.max()), generator)
            masks.append(
                mask_from_hidden(
                    hidden, valid, context_size=context_size, target_size=max(1, target_size), generator=generator
                )
            )
        return masks

    def hidden_count(self, lengths: Tensor) -> Tensor:
        """Return how many tokens of samples of these lengths are hidden, int64; none of fewer than two."""
        spans, span = self._spans(lengths)
        return spans.clamp(min=0) * span

    def hide(self, valid: Tensor, generator: torch.Generator | None = None) -> Tensor:
        """Return which tokens are hidden, (B, N) bool, N > 1; valid (B, N) bool: False at padding."""
        spans, _ = self._spans(torch.arange(valid.shape[1] + 1))
        return self._hide(valid, int(spans.max()), generator)

    def _spans(self, lengths: Tensor) -> tuple[Tensor, Tensor]:
        """Return the number and length of the spans of samples of these lengths; no spans of a single token."""
        span = torch.minimum(torch.full_like(lengths, self.mask_length), (lengths * self.mask_ratio).round().long())
        span = span.minimum(lengths - 1).clamp(min=1)  # leaves at least one token to see
        most = (lengths - 1) // span
        spans = (lengths * self.mask_ratio / span).round().long().clamp(min=1)
        return spans.minimum(most), span

    def _hide(self, valid: Tensor, most: int, generator: torch.Generator | None) -> Tensor:
        """Return which tokens are hidden, (B, N) bool; most: the largest number of spans."""
        batch, tokens = valid.shape
        draws = torch.rand(batch, most + 1, device=valid.device, generator=generator)
        lengths = valid.sum(dim=1)  # (B,)
        spans, span = (t[:, None] for t in self._spans(lengths))
        free = lengths[:, None] - spans * span  # tokens between the spans
        number = torch.arange(most, device=valid.device)
        used = number < spans  # (B, most)
        # Sorted starts among the free tokens, shifted by the spans before them: uniform, without overlap.
        starts = torch.where(used, (draws[:, :most] * (free + 1)).long().minimum(free), tokens).sort(dim=1).values
        first = starts + number * span
        shift = (draws[:, most:] * lengths[:, None]).long()
        ring = (valid.cumsum(dim=1) - 1 - shift) % lengths.clamp(min=1)[:, None]  # position after the shift
        inside = (ring[:, None] >= first[..., None]) & (ring[:, None] < (first + span)[..., None])  # (B, most, N)
        return (inside & used[..., None]).any(dim=1) & valid
