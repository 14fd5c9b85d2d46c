"""The masks of the published I-JEPA collator, defects included, to reproduce papers.

See facebookresearch/ijepa src/masks/multiblock.py, and `MultiBlockMask` for the differences. Loops over samples on the
CPU, as the published code does.
"""

from __future__ import annotations

import math

import torch
from torch import Tensor

from jepa.masks.multiblock import MultiBlockMask
from jepa.types import Grid, Mask

TRIES = 20  # failed draws after which the context may overlap one more target block


class PublishedMultiBlockMask(MultiBlockMask):
    """Masker of facebookresearch/ijepa; 2-D grids only. Arguments as of `MultiBlockMask`.

    One uniform number per batch sets both scale and aspect ratio of the targets; all samples share block sizes; a block
    never reaches the last row and column; every context is cut to the first indices, as many as the shortest of the
    batch has. So the number of context tokens falls as batch_size grows. A block must hold more than min_context
    tokens.
    """

    def __call__(
        self, batch_size: int, grid: Grid, *, valid: Tensor | None = None, generator: torch.Generator | None = None
    ) -> list[Mask]:
        """Return one `Mask` for the batch. Raises ValueError for padding, or blocks too small for min_context."""
        if len(grid) != 2 or valid is not None:
            raise ValueError(f"model.mask.compat=published serves 2-D grids without padding, got a grid of {grid}")
        device = torch.device("cpu") if generator is None else generator.device
        seed = torch.randint(2**62, (), device=device, generator=generator).item()
        rng = torch.Generator().manual_seed(seed)
        target_size = self._block_size(grid, self.target_scale, self.aspect_ratio, rng)
        context_size = self._block_size(grid, self.context_scale, (1.0, 1.0), rng)
        contexts, targets = [], []
        for _ in range(batch_size):
            blocks = [self._block(grid, target_size, [], rng) for _ in range(self.num_targets)]
            regions = [] if self.allow_overlap else [~block for block in blocks]
            targets.append([block.flatten().nonzero().squeeze(1) for block in blocks])
            contexts.append(self._block(grid, context_size, regions, rng).flatten().nonzero().squeeze(1))
        keep = min(len(context) for context in contexts)
        return [
            Mask(
                torch.stack([context[:keep] for context in contexts]).to(device),
                torch.stack([torch.stack(blocks) for blocks in targets]).to(device),
            )
        ]

    def _block_size(
        self, grid: Grid, scale: tuple[float, float], aspect_ratio: tuple[float, float], rng: torch.Generator
    ) -> tuple[int, int]:
        share = torch.rand(1, generator=rng).item()  # one number for both, as published
        cells = int(grid[0] * grid[1] * (scale[0] + share * (scale[1] - scale[0])))
        ratio = aspect_ratio[0] + share * (aspect_ratio[1] - aspect_ratio[0])
        height = min(round(math.sqrt(cells * ratio)), grid[0] - 1)
        width = min(round(math.sqrt(cells / ratio)), grid[1] - 1)
        if height * width <= self.min_context:
            raise ValueError(
                f"model.mask.compat=published: a block of {height} x {width} tokens on a grid of {grid[0]} x {grid[1]} "
                f"does not hold more than model.mask.min_context={self.min_context}: lower that, raise the scales, "
                "or use smaller patches (the published code loops for ever here)"
            )
        return height, width

    def _block(self, grid: Grid, size: tuple[int, int], regions: list[Tensor], rng: torch.Generator) -> Tensor:
        """Return a block (H, W) bool inside the regions, of which the last are dropped one by one if none fits."""
        for dropped in range(len(regions) + 1):
            allowed = torch.ones(grid, dtype=torch.bool)
            for region in regions[: len(regions) - dropped]:
                allowed &= region
            for _ in range(TRIES):
                top = int(torch.randint(grid[0] - size[0], (), generator=rng))  # exclusive: never the last row
                left = int(torch.randint(grid[1] - size[1], (), generator=rng))
                block = torch.zeros(grid, dtype=torch.bool)
                block[top : top + size[0], left : left + size[1]] = True
                block &= allowed
                if int(block.sum()) > self.min_context:
                    return block
        raise AssertionError("unreachable: a block without constraints holds more than min_context tokens")
