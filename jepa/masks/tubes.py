"""V-JEPA's masks: blocks through the time of a clip, in groups of many small and few large ones.

The tokens in any block of a group are predicted, all others are the context (arXiv 2404.08471, 3.2; facebookresearch/
vjepa2 src/masks/multiseq_multiblock3d.py). Unlike the published code:

- every block of every sample has its own size, where there all samples of a batch share one;
- the numbers of context and predicted tokens depend on the grid and the settings, not on the batch. The published code
  cuts both to the shortest of the batch and keeps the first tokens, of the early frames; here surplus tokens are
  dropped evenly, and fewer of them.
"""

from __future__ import annotations

import math
from collections.abc import Mapping, Sequence
from typing import TypeAlias

import torch
from torch import Tensor

from jepa.masks.hidden_tokens import fixed_size_indices
from jepa.masks.multiblock import CALIBRATION_DRAWS, REDRAWN_SHARE, check_range, cover, mark_padding, place_blocks
from jepa.types import Grid, Mask
from jepa.utils.errors import check_at_least
from jepa.utils.random import generator as make_generator

MIN_FITTING_SHARE = 0.02  # share of draws with min_context tokens below which the settings are refused
Sizes: TypeAlias = tuple[int, int, Tensor]  # K, P, and sets of hidden tokens (R, N) bool that fill both


class BlockGroup:
    """One group of blocks.

    num_blocks: blocks per sample, which may overlap. spatial_scale: (least, most) share of a frame that a block covers.
    temporal_scale: (least, most) share of the time steps that it covers. aspect_ratio: (least, most) height / width.
    """

    def __init__(
        self,
        *,
        num_blocks: int,
        spatial_scale: Sequence[float],
        temporal_scale: Sequence[float] = (1.0, 1.0),
        aspect_ratio: Sequence[float] = (0.75, 1.5),
    ) -> None:
        check_at_least("model.mask: BlockGroup", 1, num_blocks=num_blocks)
        self.num_blocks = num_blocks
        self.spatial_scale = check_range("model.mask: spatial_scale", spatial_scale, most=1.0)
        self.temporal_scale = check_range("model.mask: temporal_scale", temporal_scale, most=1.0)
        self.aspect_ratio = check_range("model.mask: aspect_ratio", aspect_ratio)

    def draw(self, batch_size: int, grid: Grid, generator: torch.Generator) -> Tensor:
        """Return the first cells and sides (2, B, M, 3) of blocks."""
        draws = torch.rand(3, batch_size, self.num_blocks, device=generator.device, generator=generator)
        ranges = (self.spatial_scale, self.temporal_scale, self.aspect_ratio)
        area, time, ratio = (low + (high - low) * draw for (low, high), draw in zip(ranges, draws))
        steps, rows, columns = grid
        cells = (area * rows * columns + 1e-4).floor()  # as published, but for rounding errors of fp32
        sides = torch.stack(
            [
                (time * steps + 1e-4).floor().clamp(1, steps),
                (cells * ratio).sqrt().round().clamp(1, rows),
                (cells / ratio).sqrt().round().clamp(1, columns),
            ],
            dim=-1,
        ).long()
        return place_blocks(sides, grid, generator)


class TubeMask:
    """Masker of clips on (time steps, rows, columns), with one mask per group.

    groups: name -> BlockGroup; None removes one.
    images: the group for grids of one time step, that is for images; None: the groups of clips.
    min_context: fewest context tokens that are accepted.
    max_temporal_keep: share of the time steps, the first ones, that the context may come from.

    K, the context tokens, and P, those predicted, are the 5 % quantiles over draws of a fixed seed with at least
    min_context; a sample with fewer of either is replaced by one of these draws. A grid of two axes is one time step.
    """

    def __init__(
        self,
        *,
        groups: Mapping[str, BlockGroup | None],
        images: BlockGroup | None = None,
        min_context: int = 1,
        max_temporal_keep: float = 1.0,
    ) -> None:
        self.groups = {name: group for name, group in groups.items() if group is not None}
        if not self.groups:
            raise ValueError("model.mask.groups is empty: give at least one group of blocks")
        check_at_least("model.mask", 1, min_context=min_context)
        if not 0 < max_temporal_keep <= 1:
            raise ValueError(f"model.mask.max_temporal_keep={max_temporal_keep}: expected a share above 0, at most 1")
        self.images, self.min_context, self.max_temporal_keep = images, min_context, max_temporal_keep
        self._sizes: dict[tuple[str, Grid, torch.device], Sizes] = {}

    def __call__(
        self, batch_size: int, grid: Grid, *, valid: Tensor | None = None, generator: torch.Generator | None = None
    ) -> list[Mask]:
        """Return one mask with one target block (B, 1, P) per group. valid (B, N) bool: False at padding.

        Raises ValueError for other grids, and when the blocks leave no context.
        """
        if len(grid) not in (2, 3):
            raise ValueError(f"tube masks are for clips, on three axes, got a grid of {grid}: use model/mask=random")
        grid = (1, *grid) if len(grid) == 2 else tuple(grid)
        groups = {"images": self.images} if grid[0] == 1 and self.images is not None else self.groups
        generator = generator or torch.default_generator
        device = generator.device
        masks = []
        for name, group in groups.items():
            if (name, grid, device) not in self._sizes:
                self._sizes[name, grid, device] = self._calibrate(name, group, grid, device)
            keep, size, spare = self._sizes[name, grid, device]
            hidden = cover(group.draw(batch_size, grid, generator), grid)  # (B, N)
            seen = self._seen(hidden, grid)
            again = torch.randint(len(spare), (batch_size,), device=device, generator=generator)
            short = (seen.sum(dim=1) < keep) | (hidden.sum(dim=1) < size)
            hidden = torch.where(short[:, None], spare[again], hidden)
            context, _ = fixed_size_indices(self._seen(hidden, grid), keep, generator)
            targets, _ = fixed_size_indices(hidden, size, generator)
            masks.append(mark_padding(context, targets.unsqueeze(1), valid))
        return masks

    def _seen(self, hidden: Tensor, grid: Grid) -> Tensor:
        """Return the tokens (B, N) bool that may be in the context."""
        steps = max(1, int(grid[0] * self.max_temporal_keep + 1e-4))
        early = torch.arange(hidden.shape[1], device=hidden.device) < steps * grid[1] * grid[2]
        return ~hidden & early

    def _calibrate(self, name: str, group: BlockGroup, grid: Grid, device: torch.device) -> Sizes:
        fixed = make_generator("cpu", 0, "mask calibration")
        hidden = cover(group.draw(CALIBRATION_DRAWS, grid, fixed), grid)
        seen, count = self._seen(hidden, grid).sum(dim=1), hidden.sum(dim=1)
        fits = seen >= self.min_context
        if fits.float().mean() < MIN_FITTING_SHARE:
            where = "model.mask.images" if name == "images" else f"model.mask.groups.{name}"
            raise ValueError(
                f"{where}: {group.num_blocks} blocks of {group.spatial_scale[0]:g} to {group.spatial_scale[1]:g} of a "
                f"frame leave fewer than {self.min_context} of {math.prod(grid)} tokens to see on a grid of "
                f"{' x '.join(map(str, grid))} (time, rows, columns): use smaller blocks or fewer ones, smaller "
                "patches (model.encoder.stem.patch_size), or leave the group out (=null)"
            )
        keep, size = (
            int(number[fits].float().quantile(REDRAWN_SHARE, interpolation="lower")) for number in (seen, count)
        )
        enough = fits & (seen >= keep) & (count >= size)
        return keep, size, hidden[enough].to(device)
