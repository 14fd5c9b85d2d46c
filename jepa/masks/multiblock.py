"""Multi-block masks on a grid of any number of axes, drawn for all samples at once.

One context block, without the tokens of several target blocks (I-JEPA, arXiv 2301.08243, section 3). Unlike the
published collator, which `PublishedMultiBlockMask` reproduces:

- blocks reach every row and column (the published ones never the last);
- scale and aspect ratio are drawn independently;
- every sample draws its own block shapes; all of a batch have one area, so that every target is a whole rectangle;
- the number of context tokens depends on the grid and the area, not on the batch size.
"""

from __future__ import annotations

import functools
import itertools
import math
import random
from collections.abc import Sequence
from dataclasses import dataclass
from typing import TypeAlias

import torch
from torch import Tensor

from jepa.types import Grid, Mask
from jepa.utils.errors import check_at_least
from jepa.utils.random import generator as make_generator

CALIBRATION_DRAWS = 2048
REDRAWN_SHARE = 0.05  # share of samples with fewer than K context tokens, which are drawn again; K is set to meet it
MAX_AREAS = 4  # areas that target blocks of a grid may have, so that a compiled step meets few shapes
Range: TypeAlias = tuple[float, float]  # the least and the most of what is drawn uniformly
Layouts: TypeAlias = tuple[int, Tensor, Tensor]
"""K, blocks (2, R, 1 + M, axes) with at least K context tokens, and these tokens (R, N) bool."""


class MultiBlockMask:
    """Masker of `num_targets` target blocks and one context block per sample.

    context_scale, target_scale: (least, most) share of the grid that a block covers.
    aspect_ratio: (least, most) height / width of a target block on the last two axes; the context block has the
        grid's own shape. Blocks span leading axes (time, in video); on a 1-D grid blocks are spans.
    min_context: fewest context tokens that are accepted.
    allow_overlap: let the context keep tokens that are also targets.

    rectangles: predict every token of a target block; False samples P tokens of it, as runs before 2026-12 do.

    P, the tokens predicted per block, is one of at most 4 areas of blocks within the ranges (`block_areas`), drawn for
    each batch; every block draws its own sides of that area. Without `rectangles` P is the least target scale times the
    grid. K, the context tokens, is the 5 % quantile of the context tokens outside the targets, over draws of a fixed
    seed for each grid and P; a sample with fewer is replaced by one of these draws with at least K.
    """

    def __init__(
        self,
        *,
        num_targets: int = 4,
        context_scale: Sequence[float] = (0.85, 1.0),
        target_scale: Sequence[float] = (0.15, 0.2),
        aspect_ratio: Sequence[float] = (0.75, 1.5),
        min_context: int = 10,
        allow_overlap: bool = False,
        rectangles: bool = True,
    ) -> None:
        check_at_least("model.mask", 1, num_targets=num_targets, min_context=min_context)
        self.num_targets = num_targets
        self.context_scale = check_range("model.mask.context_scale", context_scale, most=1.0)
        self.target_scale = check_range("model.mask.target_scale", target_scale, most=1.0)
        self.aspect_ratio = check_range("model.mask.aspect_ratio", aspect_ratio)
        self.min_context = min_context
        self.allow_overlap = allow_overlap
        self.rectangles = rectangles
        self._areas: dict[Grid, list[BlockArea]] = {}
        self._layouts: dict[tuple[Grid, int, torch.device], Layouts] = {}

    def __call__(
        self, batch_size: int, grid: Grid, *, valid: Tensor | None = None, generator: torch.Generator | None = None
    ) -> list[Mask]:
        """Return one `Mask` for the batch. valid (B, N) bool: False at padding; blocks may include it, marked as such.

        Raises ValueError when the settings leave fewer than min_context tokens on this grid.
        """
        grid, generator = tuple(grid), generator or torch.default_generator
        device = generator.device
        area = self._draw_area(grid, generator) if self.rectangles else None
        tokens = min_tokens(self.target_scale, grid) if area is None else area.tokens
        if (grid, tokens, device) not in self._layouts:
            self._layouts[grid, tokens, device] = self._calibrate(grid, area, device)
        keep, spare_blocks, spare_members = self._layouts[grid, tokens, device]
        blocks = self._draw(batch_size, grid, area, generator)  # (2, B, 1 + M, axes)
        members = self._context(blocks, grid)  # (B, N)
        short = members.sum(-1) < keep  # (B,)
        again = torch.randint(len(spare_members), (batch_size,), device=device, generator=generator)
        blocks = torch.where(short[:, None, None], spare_blocks[:, again], blocks)
        members = torch.where(short[:, None], spare_members[again], members)
        rank = members.cumsum(dim=-1, dtype=torch.int32)
        context = torch.searchsorted(rank, systematic_sample(rank[:, -1], keep, generator) + 1)
        return [mark_padding(context, self._pick_targets(blocks[:, :, 1:], grid, tokens, generator), valid)]

    def _draw_area(self, grid: Grid, generator: torch.Generator) -> BlockArea:
        """Return the area of a batch's target blocks, without waiting for the device of the generator."""
        if grid not in self._areas:
            self._areas[grid] = block_areas(grid, self.target_scale, self.aspect_ratio)
        areas = self._areas[grid]
        if generator.device.type == "cuda":
            drawn = random.Random(f"{generator.initial_seed()}/{generator.get_offset()}").random()
        else:
            drawn = float(torch.rand((), device=generator.device, generator=generator))
        edges = itertools.accumulate(area.share for area in areas)
        return next((area for area, edge in zip(areas, edges) if drawn < edge), areas[-1])

    def _draw(self, batch_size: int, grid: Grid, area: BlockArea | None, generator: torch.Generator) -> Tensor:
        """Return the first cells and sides (2, B, 1 + M, axes) of the context block and the targets."""
        ratio = grid[-2] / grid[-1] if len(grid) > 1 else 1.0
        context = draw_blocks((batch_size, 1), grid, self.context_scale, (ratio, ratio), generator)
        shape = (batch_size, self.num_targets)
        if area is None:
            targets = draw_blocks(shape, grid, self.target_scale, self.aspect_ratio, generator)
        else:
            drawn = torch.rand(shape, device=generator.device, generator=generator)
            sides, edges = area.on(drawn.device)
            # The last edge is 1 but for rounding, and left out.
            targets = place_blocks(sides[torch.bucketize(drawn, edges[:-1], right=True)], grid, generator)
        return torch.cat([context, targets], dim=2)

    def _context(self, blocks: Tensor, grid: Grid) -> Tensor:
        """Return the tokens (B, N) bool of the context block outside the targets."""
        context = cover(blocks[:, :, :1], grid)
        return context if self.allow_overlap else context & ~cover(blocks[:, :, 1:], grid)

    def _pick_targets(self, blocks: Tensor, grid: Grid, tokens: int, generator: torch.Generator) -> Tensor:
        """Return P = `tokens` cells of each block (2, B, M, axes), as flat indices (B, M, P)."""
        start, sides = blocks.int()
        local = systematic_sample(sides.prod(dim=-1), tokens, generator)
        flat, stride = torch.zeros_like(local), 1
        for axis in reversed(range(len(grid))):
            side = sides[..., axis, None]
            outer = local // side
            flat += (start[..., axis, None] + local - outer * side) * stride
            local, stride = outer, stride * grid[axis]
        return flat.long()

    def _calibrate(self, grid: Grid, area: BlockArea | None, device: torch.device) -> Layouts:
        fixed = make_generator("cpu", 0, "mask calibration")
        blocks = self._draw(CALIBRATION_DRAWS, grid, area, fixed)
        members = self._context(blocks, grid)
        context_tokens = members.sum(-1)
        keep = max(int(context_tokens.float().quantile(REDRAWN_SHARE, interpolation="lower")), self.min_context)
        enough = context_tokens >= keep
        if enough.float().mean() < 0.5:
            raise ValueError(
                f"masks do not fit a grid of {' x '.join(map(str, grid))} tokens: {self.num_targets} targets of "
                f"{self.target_scale[0]} to {self.target_scale[1]} of the grid leave {int(context_tokens.median())} "
                f"context tokens (median), fewer than model.mask.min_context={self.min_context}: use fewer targets "
                "(model.mask.num_targets), smaller ones (model.mask.target_scale), smaller patches "
                "(model.encoder.patch_size), or accept fewer context tokens"
            )
        return keep, blocks[:, enough].to(device), members[enough].to(device)


def draw_blocks(
    shape: tuple[int, ...], grid: Grid, scale: Range, aspect_ratio: Range, generator: torch.Generator
) -> Tensor:
    """Return the first cells and sides (2, *shape, axes) of blocks; scale and aspect ratio are uniform, independent."""
    draws = torch.rand(2, *shape, device=generator.device, generator=generator)
    area = scale[0] + (scale[1] - scale[0]) * draws[0]
    ratio = aspect_ratio[0] + (aspect_ratio[1] - aspect_ratio[0]) * draws[1]
    return place_blocks(block_sides(area, ratio, grid, min_tokens(scale, grid)), grid, generator)


def place_blocks(sides: Tensor, grid: Grid, generator: torch.Generator) -> Tensor:
    """Return first cells, uniform among those that keep a block on the grid, and its sides, (2, ..., axes) int64."""
    # Possible first cells; a tensor of the grid's sides would be copied to the device, and waited for.
    room = torch.stack([total - side + 1 for total, side in zip(grid, sides.unbind(-1))], dim=-1)
    start = (torch.rand(sides.shape, device=sides.device, generator=generator) * room).long()
    return torch.stack([torch.minimum(start, room - 1), sides])


@dataclass(frozen=True, eq=False)
class BlockArea:
    """Blocks of one number of tokens. share: of the batches that draw it.

    sides (S, axes): the shapes. edges (S,): cumulated probability of each.
    """

    tokens: int
    share: float
    sides: Tensor
    edges: Tensor

    @functools.cache  # noqa: B019 (a masker has few of them, which live as long as it)
    def on(self, device: torch.device) -> tuple[Tensor, Tensor]:
        """Return sides and edges on a device."""
        return self.sides.to(device), self.edges.to(device)


def block_areas(grid: Grid, scale: Range, aspect_ratio: Range) -> list[BlockArea]:
    """Return at most `MAX_AREAS` areas of blocks whose scale and aspect ratio lie in the ranges, by size.

    A shape is as likely as it is among blocks whose scale and ratio are uniform and independent, and whose sides are
    rounded. On small grids, where no whole block lies in both ranges, those that rounding gives count whatever their
    ratio: of 4 x 4 tokens, 15 to 20 % are blocks of 1 x 2, 2 x 1 and 2 x 2.
    """
    steps = (torch.arange(64) + 0.5) / 64
    areas, ratios = (low + (high - low) * steps for low, high in (scale, aspect_ratio))
    areas, ratios = (values.flatten() for values in torch.meshgrid(areas, ratios, indexing="ij"))
    least = min_tokens(scale, grid)
    sides, count = block_sides(areas, ratios, grid, least).unique(dim=0, return_counts=True)
    tokens = sides.prod(dim=-1)
    most = scale[1] * math.prod(grid)
    fits = tokens <= math.ceil(most)
    if len(grid) > 1:
        ratio = sides[:, -2] / sides[:, -1]
        inside = fits & (ratio >= aspect_ratio[0] - 1e-6) & (ratio <= aspect_ratio[1] + 1e-6)
        fits = inside if bool((tokens[inside] <= most).any()) else fits
    if not fits.any():
        fits = tokens == tokens.min()
    sides, count, tokens = sides[fits], count[fits].double(), tokens[fits]
    sizes = tokens.unique()
    share = torch.stack([count[tokens == size].sum() for size in sizes]) / count.sum()
    group = ((share.cumsum(0) - share / 2) * MAX_AREAS).long()  # of equal shares, from small areas to large ones
    found = []
    for members in (group == number for number in group.unique()):
        size = sizes[members][share[members].argmax()]
        shapes = tokens == size
        edges = (count[shapes] / count[shapes].sum()).cumsum(0).float()
        found.append(BlockArea(int(size), float(share[members].sum()), sides[shapes], edges))
    return found


def min_tokens(scale: Range, grid: Grid) -> int:
    """Return the fewest tokens of a block of this scale."""
    return max(1, int(scale[0] * math.prod(grid)))


def block_sides(area: Tensor, ratio: Tensor, grid: Grid, least: int) -> Tensor:
    """Return sides (..., axes) of blocks that cover about a share `area` of the grid, and at least `least` tokens."""
    if len(grid) == 1:
        return (area * grid[0]).round().long().clamp(least, grid[0]).unsqueeze(-1)
    *leading, rows, columns = grid
    depth = math.prod(leading)
    height = (area * rows * columns * ratio).sqrt().round().long().clamp(1, rows)
    width = (area * rows * columns / ratio).sqrt().round().long().clamp(1, columns)
    need = -(-least // depth)  # cells in a plane, rounded up
    width = torch.maximum(width, (need + height - 1) // height).clamp(max=columns)
    height = torch.maximum(height, (need + width - 1) // width)
    return torch.stack([*(torch.full_like(height, side) for side in leading), height, width], dim=-1)


def cover(blocks: Tensor, grid: Grid) -> Tensor:
    """Return which cells (B, N) bool lie in any of a sample's blocks (2, B, M, axes)."""
    start, end = blocks[0], blocks[0] + blocks[1]
    *leading, last = [
        ((cell >= start[..., axis, None]) & (cell < end[..., axis, None])).float()  # (B, M, side)
        for axis, cell in enumerate(torch.arange(side, device=blocks.device) for side in grid)
    ]
    planes = torch.ones_like(last[..., :1])
    for along in leading:
        planes = (planes.unsqueeze(-1) * along.unsqueeze(-2)).flatten(-2)
    return (planes.transpose(1, 2) @ last).flatten(1) > 0  # a sum over blocks


def systematic_sample(sizes: Tensor, count: int, generator: torch.Generator | None) -> Tensor:
    """Return `count` different members (..., count), numbered from 0, of sets of at least so many; sizes (...).

    Evenly spaced from a random start, so that every member is equally likely, without sorting.
    """
    start = 0.999 * torch.rand(sizes.shape, device=sizes.device, generator=generator)  # below 1 after rounding too
    spaced = torch.arange(count, device=sizes.device) + start.unsqueeze(-1)
    return (spaced * (sizes / count).unsqueeze(-1)).int().minimum(sizes.unsqueeze(-1).int() - 1)


def mark_padding(context: Tensor, targets: Tensor, valid: Tensor | None) -> Mask:
    """Return the mask of context (B, K) and targets (B, M, P); valid (B, N) bool: False at padding."""
    if valid is None:
        return Mask(context, targets)
    return Mask(context, targets, valid.gather(1, context), valid.gather(1, targets.flatten(1)).view_as(targets))


def check_range(key: str, values: Sequence[float], most: float = math.inf) -> Range:
    """Return (low, high) as floats. Raises ValueError unless 0 < low <= high <= most."""
    low, high = map(float, values) if len(values) == 2 else (0.0, 0.0)
    if not 0 < low <= high <= most:
        raise ValueError(f"{key}: got {list(values)}, expected [low, high] with 0 < low <= high <= {most}")
    return low, high
