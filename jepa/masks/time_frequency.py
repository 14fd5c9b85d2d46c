"""Spectrogram masks: spans of time and bands of frequency are hidden (SpecAugment, arXiv 1904.08779).

Complete columns and rows, as neighbouring bands or moments would reveal a single token.
"""

from __future__ import annotations

import torch
from torch import Tensor

from jepa.masks.hidden_tokens import HiddenTokensMask, possible_lengths
from jepa.masks.span import SpanMask
from jepa.types import Grid
from jepa.utils.errors import check_at_least


class SpectrogramMask(HiddenTokensMask):
    """Masker on a grid of (frequency, time): hides spans of columns and bands of rows, and predicts all their tokens.

    time_share: share of a sample's columns that is hidden, in spans of time_length columns; 0 for none.
    frequency_share: share of the rows, in bands of frequency_length rows; 0 for none.
    num_masks: independent masks per sample, each of which is another view of it.
    wrap: see `SpanMask`, for spans and bands.

    Each axis as by `SpanMask`: shares are rounded to spans, and at least one row and one column are seen. The share of
    time is that of the columns which are not padding.
    """

    exact = True

    def __init__(
        self,
        *,
        time_share: float = 0.5,
        time_length: int = 4,
        frequency_share: float = 0.25,
        frequency_length: int = 1,
        num_masks: int = 1,
        wrap: bool = False,
    ) -> None:
        super().__init__(num_masks=num_masks)
        for name, share in {"time_share": time_share, "frequency_share": frequency_share}.items():
            if not 0 <= share < 1:
                raise ValueError(f"model.mask.{name}={share}: expected a share from 0 (none) to below 1")
        if not (time_share or frequency_share):
            raise ValueError("model.mask: time_share and frequency_share are both 0, and nothing would be hidden")
        check_at_least("model.mask", 1, time_length=time_length, frequency_length=frequency_length)
        self._time = SpanMask(mask_ratio=time_share, mask_length=time_length, wrap=wrap) if time_share else None
        self._frequency = (
            SpanMask(mask_ratio=frequency_share, mask_length=frequency_length, wrap=wrap) if frequency_share else None
        )

    def sizes(self, grid: Grid, padded: bool) -> tuple[int, int]:
        """Return the most tokens that are seen and hidden. Raise ValueError for a grid that has not two axes."""
        if len(grid) != 2:
            raise ValueError(
                f"model.mask: spectrogram masks need a grid of frequency and time, got {len(grid)} axes: "
                "use model/mask=random or model/mask=multiblock"
            )
        rows, columns = grid
        lengths = possible_lengths(columns, padded)
        seen_rows = rows - _hidden_count(self._frequency, torch.tensor(rows))
        context = (lengths - _hidden_count(self._time, lengths)) * seen_rows
        hidden = lengths * rows - context
        if not int(hidden.max()):
            raise ValueError(
                f"masks hide nothing on a grid of {rows} x {columns} (frequency x time): use smaller patches "
                "(model.encoder.stem.patch_size), or raise model.mask.time_share where there is a single row"
            )
        return max(1, int(context.max())), int(hidden.max())

    def hide(self, real: Tensor, generator: torch.Generator) -> Tensor:
        _, rows, columns = real.shape
        hidden = torch.zeros_like(real)
        if self._time is not None and columns > 1:
            hidden = hidden | self._time.hide(real.any(dim=1), generator).unsqueeze(1)
        if self._frequency is not None and rows > 1:
            hidden = hidden | self._frequency.hide(torch.ones_like(real[:, :, 0]), generator).unsqueeze(2)
        return hidden


def _hidden_count(axis: SpanMask | None, lengths: Tensor) -> Tensor:
    """Return how many rows or columns of these lengths are hidden; 0 for None."""
    return torch.zeros_like(lengths) if axis is None else axis.hidden_count(lengths)
