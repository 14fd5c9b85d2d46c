"""Span masks: a share of a sequence is hidden in runs of neighbouring tokens."""

from __future__ import annotations

import logging
import math

import torch
from torch import Tensor

from jepa.masks.hidden_tokens import HiddenTokensMask, possible_lengths
from jepa.types import Grid
from jepa.utils.errors import check_at_least

log = logging.getLogger("jepa")


class SpanMask(HiddenTokensMask):
    """Masker of sequences: hides `mask_ratio` of the tokens in spans of `mask_length` that do not overlap.

    mask_ratio: share of a sample to hide, rounded to whole spans; at least one token is hidden and one seen.
    mask_length: length of a span in time steps, rounded to whole tokens, with a warning; shorter where a sample has too
        few tokens.
    num_masks: independent masks per sample, each of which is another view of it.
    steps_per_token: time steps of a token, the patch size of series; 1 where `mask_length` counts tokens.
    wrap: spans may go on at the beginning where the sequence ends, so that every token is hidden equally often.

    Without wrap all arrangements of n spans among the c tokens that are seen are equally likely. Tokens within a span's
    length of an end are then hidden less often, the outermost ones in n / (n + c) of the masks, unless spans are single
    tokens. Spans may touch.

    Padding is left out, and the share is that of the tokens which are not padding. On a grid of several axes tokens are
    counted row by row.
    """

    exact = True

    def __init__(
        self,
        *,
        mask_ratio: float = 0.6,
        mask_length: int = 1,
        num_masks: int = 1,
        steps_per_token: int = 1,
        wrap: bool = False,
    ) -> None:
        super().__init__(num_masks=num_masks)
        if not 0 < mask_ratio < 1:
            raise ValueError(f"model.mask.mask_ratio={mask_ratio}: expected a share between 0 and 1")
        check_at_least("model.mask", 1, mask_length=mask_length, steps_per_token=steps_per_token)
        self.mask_ratio = mask_ratio
        self.span_tokens = max(1, round(mask_length / steps_per_token))
        self.wrap = wrap
        if (steps := self.span_tokens * steps_per_token) != mask_length:
            log.warning(
                "model.mask.mask_length=%d is no whole number of tokens of %d time steps: spans are %d steps long",
                mask_length,
                steps_per_token,
                steps,
            )

    def sequences(self, grid: Grid) -> int:
        """Return the number of sequences that the tokens of a grid make up."""
        return 1

    def sizes(self, grid: Grid, padded: bool) -> tuple[int, int]:
        """Return the most tokens that are seen and hidden. Raise ValueError for sequences of one token."""
        sequences = self.sequences(grid)
        steps = math.prod(grid) // sequences
        if steps < 2:
            raise ValueError(
                f"masks need at least 2 tokens along time, got a grid of {grid}: use smaller patches or longer inputs"
            )
        lengths = possible_lengths(steps, padded)
        hidden = self.hidden_count(lengths)
        return sequences * int((lengths - hidden).max()), sequences * int(hidden.max())

    def hide(self, real: Tensor, generator: torch.Generator) -> Tensor:
        valid = real.flatten(1)
        hide = self._hide_on_a_ring if self.wrap else self._hide_on_a_line
        return (hide(valid, generator) & valid).view_as(real)

    def _hide_on_a_line(self, valid: Tensor, generator: torch.Generator) -> Tensor:
        """Return which tokens (B, N) are hidden: n of n + c places are drawn, and each becomes a span."""
        draws = torch.rand(valid.shape, device=valid.device, generator=generator)
        lengths = valid.sum(dim=1)  # (B,)
        spans, span = (t[:, None] for t in self._spans(lengths))
        place = torch.arange(valid.shape[1], device=valid.device)
        draws = draws.masked_fill(place >= lengths[:, None] - spans * (span - 1), 2.0)
        drawn = draws.argsort(dim=1, stable=True).argsort(dim=1) < spans  # the n smallest
        first = place + (drawn.cumsum(dim=1) - 1) * (span - 1)  # after the spans before it
        edges = torch.zeros_like(draws[:, :1], dtype=torch.int64).repeat(1, valid.shape[1] + 1)
        edges.scatter_add_(1, torch.where(drawn, first, valid.shape[1]), drawn.long())
        edges.scatter_add_(1, torch.where(drawn, first + span, valid.shape[1]), -drawn.long())
        inside = edges.cumsum(dim=1) > 0  # by position among the tokens that are not padding
        return inside.gather(1, (valid.cumsum(dim=1) - 1).clamp(min=0))

    def _hide_on_a_ring(self, valid: Tensor, generator: torch.Generator) -> Tensor:
        batch, tokens = valid.shape
        most = int(self._spans(torch.tensor(tokens))[0])
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
        return (inside & used[..., None]).any(dim=1)

    def hidden_count(self, lengths: Tensor) -> Tensor:
        """Return how many tokens of samples of these lengths are hidden, int64; none of fewer than two."""
        spans, span = self._spans(lengths)
        return spans * span

    def _spans(self, lengths: Tensor) -> tuple[Tensor, Tensor]:
        """Return the number and length of the spans of samples of these lengths; no spans of a single token."""
        span = torch.minimum(torch.full_like(lengths, self.span_tokens), (lengths * self.mask_ratio).round().long())
        span = span.minimum(lengths - 1).clamp(min=1)  # leaves at least one token to see
        most = ((lengths - 1) // span).clamp(min=0)
        spans = (lengths * self.mask_ratio / span).round().long().clamp(min=1)
        return spans.minimum(most), span
