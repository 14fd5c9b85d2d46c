"""Masks of a spectrogram: whole spans of time and whole bands of frequency are hidden (SpecAugment, arXiv 1904.08779).

What is hidden of one moment cannot be read off the bands beside it, nor a band off the moments around.
"""

from __future__ import annotations

import torch
from torch import Tensor

from jepa.masks.span import SpanMask
from jepa.masks.token_indices import mask_from_hidden
from jepa.types import Grid, Mask


class SpectrogramMask:
    """Masker on a grid of (frequency, time): hides spans of columns and bands of rows, and asks for all they cover.

    time_share: share of a sample's columns that is hidden, in spans of time_length columns; 0 for none.
    frequency_share: share of the rows, in bands of frequency_length rows; 0 for none.
    num_masks: independent draws per sample, each of which is one more view of it.

    Each axis is drawn as by `SpanMask`: shares are rounded to whole spans, and at least one row and one column are
    seen. Of padded samples the share is that of the columns which are not padding.
    Raises ValueError for shares outside [0, 1), both 0, and lengths or a number below 1.
    """

    def __init__(
        self,
        *,
        time_share: float = 0.5,
        time_length: int = 4,
        frequency_share: float = 0.25,
        frequency_length: int = 1,
        num_masks: int = 1,
    ) -> None:
        for name, share in {"time_share": time_share, "frequency_share": frequency_share}.items():
            if not 0 <= share < 1:
                raise ValueError(f"model.mask.{name}={share}: expected a share from 0 (none) to below 1")
        if not (time_share or frequency_share):
            raise ValueError("model.mask: time_share and frequency_share are both 0, and nothing would be hidden")
        counts = {"time_length": time_length, "frequency_length": frequency_length, "num_masks": num_masks}
        for name, value in counts.items():
            if value < 1:
                raise ValueError(f"model.mask.{name} must be at least 1, got {value}")
        self.num_masks = num_masks
        self._time = SpanMask(mask_ratio=time_share, mask_length=time_length) if time_share else None
        self._frequency = (
            SpanMask(mask_ratio=frequency_share, mask_length=frequency_length) if frequency_share else None
        )

    def __call__(
        self,
        batch_size: int,
        grid: Grid,
        *,
        valid: Tensor | None = None,
        generator: torch.Generator | None = None,
    ) -> list[Mask]:
        """`num_masks` masks with one target block (B, 1, P) each. valid (B, N) bool: False at padding.

        Raises ValueError for a grid that has not two axes, or on which nothing can be hidden.
        """
        if len(grid) != 2:
            raise ValueError(
                f"model.mask: spectrogram masks need a grid of frequency and time, got {len(grid)} axes: "
                "use model/mask=random or model/mask=multiblock"
            )
        rows, columns = grid
        device = torch.device("cpu") if generator is None else generator.device
        lengths = torch.arange(columns + 1) if valid is not None else torch.tensor([columns])
        hidden_columns, hidden_rows = _most(self._time, lengths), _most(self._frequency, torch.tensor([rows]))
        context = (lengths - hidden_columns) * (rows - hidden_rows)
        target = lengths * rows - context
        if not int(target.max()):
            raise ValueError(
                f"masks hide nothing on a grid of {rows} x {columns} (frequency x time): use smaller patches "
                "(model.encoder.stem.patch_size), or raise model.mask.time_share where there is a single row"
            )
        everything = torch.ones(batch_size, *grid, dtype=torch.bool, device=device)
        real = everything if valid is None else valid.view(batch_size, *grid)
        masks = []
        for _ in range(self.num_masks):
            hidden = torch.zeros_like(everything)
            if self._time is not None and columns > 1:
                hidden = hidden | self._time.hide(real.any(dim=1), generator).unsqueeze(1)
            if self._frequency is not None and rows > 1:
                hidden = hidden | self._frequency.hide(everything.any(dim=2), generator).unsqueeze(2)
            masks.append(
                mask_from_hidden(
                    hidden.flatten(1),
                    valid,
                    context_size=max(1, int(context.max())),
                    target_size=int(target.max()),
                    generator=generator,
                )
            )
        return masks


def _most(axis: SpanMask | None, lengths: Tensor) -> Tensor:
    """How many of so many places an axis hides."""
    return torch.zeros_like(lengths) if axis is None else axis.hidden_of(lengths)
