"""Positions on a token grid: fixed sine-cosine codes, learned vectors, and rotations of queries and keys."""

from __future__ import annotations

import torch
from torch import Tensor, nn

from jepa.models.transformer_blocks import Rotate
from jepa.types import Grid

SINCOS_LAYOUTS = ("equal", "half_time", "uniform_power")


def sincos_positions(embed_dim: int, grid: Grid, layout: str = "equal") -> Tensor:
    """Sine-cosine codes (N, dim) of every cell of a grid, row-major, fp32.

    Within an axis come all sines, then all cosines, at frequencies 10000^(-k / n), k = 0 .. n-1, for its share of 2n
    of the width. The layout says how the width is shared:

    "equal": equally, the last axis first. This is the layout of MAE and of the published I-JEPA weights.
    "half_time": of clips, half for time, then a quarter each for rows and columns, as V-JEPA's default.
    "uniform_power": of clips, a third each for time, rows and columns, rounded up to pairs and cut at the end, as
        V-JEPA's recipes have it (`uniform_power: true` in facebookresearch/jepa).

    Raises ValueError when dim cannot be split into sine-cosine pairs for every axis, and for another layout.
    """
    shares = sincos_shares(embed_dim, len(grid), layout)
    axes = torch.meshgrid(*(torch.arange(n, dtype=torch.float64) for n in grid), indexing="ij")
    codes = []
    for axis, pairs in zip(reversed(axes) if layout == "equal" else axes, shares):
        frequency = 10000.0 ** (-torch.arange(pairs, dtype=torch.float64) / pairs)
        angle = axis.reshape(-1, 1) * frequency  # (N, pairs)
        codes += [angle.sin(), angle.cos()]
    return torch.cat(codes, dim=1)[:, :embed_dim].float()


def sincos_shares(embed_dim: int, axes: int, layout: str) -> list[int]:
    """How many sine-cosine pairs each axis has in a layout, in its order. Raises as `sincos_positions` does."""
    if layout not in SINCOS_LAYOUTS:
        raise ValueError(f"sincos_layout: got {layout!r}, expected one of {list(SINCOS_LAYOUTS)}")
    if layout == "equal":
        if embed_dim % (2 * axes):
            raise ValueError(
                f"sine-cosine positions on {axes} axes need a width divisible by {2 * axes}, got {embed_dim}"
            )
        return [embed_dim // (2 * axes)] * axes
    if axes != 3:
        raise ValueError(f"sincos_layout={layout} is for clips, on three axes, got {axes}: use sincos_layout=equal")
    if layout == "uniform_power":
        return [-(-embed_dim // 6)] * 3
    if embed_dim % 8:
        raise ValueError(f"sincos_layout=half_time needs a width divisible by 8, got {embed_dim}")
    return [embed_dim // 4, embed_dim // 8, embed_dim // 8]


class SinCosPositions(nn.Module):
    """Positions of whatever grid comes, computed on first sight; no parameters, nothing in the state dict."""

    def __init__(self, embed_dim: int, layout: str = "equal") -> None:
        super().__init__()
        if layout not in SINCOS_LAYOUTS:
            raise ValueError(f"sincos_layout: got {layout!r}, expected one of {list(SINCOS_LAYOUTS)}")
        self.embed_dim, self.layout = embed_dim, layout
        self._cache: dict[tuple[Grid, torch.device], Tensor] = {}

    def forward(self, grid: Grid, device: torch.device) -> Tensor:
        """Positions (N, D) of a grid."""
        key = (grid, device)
        if key not in self._cache:
            self._cache[key] = sincos_positions(self.embed_dim, grid, self.layout).to(device)
        return self._cache[key]


class LearnedPositions(nn.Module):
    """One learned vector per place of a 1-D grid, as in BERT (arXiv 1810.04805)."""

    def __init__(self, embed_dim: int, max_length: int) -> None:
        super().__init__()
        self.embed_dim = embed_dim
        self.table = nn.Parameter(torch.empty(max_length, embed_dim))
        nn.init.trunc_normal_(self.table, std=0.02)

    def forward(self, grid: Grid, device: torch.device) -> Tensor:
        """Positions (N, D). Raises ValueError for a grid that is longer than the table, or has several axes."""
        if len(grid) != 1 or grid[0] > len(self.table):
            raise ValueError(
                f"learned positions are for sequences of at most {len(self.table)} tokens, got a grid of {grid}: "
                "raise model.encoder.max_length, or use positions=rotary"
            )
        return self.table[: grid[0]]


class RotaryPositions:
    """Rotary positions on an n-dimensional grid (RoPE, arXiv 2104.09864; several axes as in V-JEPA 2, 2506.09985).

    The head's width is shared by the axes, 2 * floor(floor(head_dim / axes) / 2) channels each; what remains is not
    rotated. Within an axis, pair k turns by place * base^(-k / pairs).

    convention: "interleaved", adjacent channels (2k, 2k + 1) are a pair and turn by one angle, as V-JEPA 2.1 does and
        the paper means. "tiled", as V-JEPA 2 was released: adjacent channels are paired too, but the two take the
        angles of channels i mod pairs, so that it is no rotation; for its weights alone.
    reference_side: rows and columns (the last two axes) are stretched so that the last of each has the place
        reference_side - 1, however many there are, as V-JEPA 2.1 does at other resolutions than its first. None: as
        they are counted.

    Raises ValueError for heads too narrow to hold a pair for each axis, or another convention.
    """

    def __init__(
        self,
        head_dim: int,
        *,
        convention: str = "interleaved",
        base: float = 10000.0,
        reference_side: int | None = None,
    ) -> None:
        if convention not in ("interleaved", "tiled"):
            raise ValueError(f"rotary_convention: got {convention!r}, expected 'interleaved' or 'tiled'")
        if reference_side is not None and reference_side < 2:
            raise ValueError(f"rotary_reference_side: got {reference_side}, expected at least 2 or null")
        self.head_dim, self.convention, self.base = head_dim, convention, base
        self.reference_side = reference_side
        self._cache: dict[tuple[Grid, torch.device], tuple[Tensor, Tensor]] = {}

    def rotation(self, grid: Grid, device: torch.device, index: Tensor | None = None) -> Rotate:
        """The rotation of queries and keys of tokens at `index` (B, K), or of the whole grid."""
        cos, sin = self._tables(grid, device)  # (N, rotated)
        if index is not None:
            cos, sin = cos[index].unsqueeze(1), sin[index].unsqueeze(1)  # (B, 1, K, rotated)
        rotated = cos.shape[-1]

        def rotate(x: Tensor) -> Tensor:
            turned, rest = x[..., :rotated], x[..., rotated:]
            first, second = turned.unflatten(-1, (-1, 2)).unbind(-1)
            across = torch.stack((-second, first), dim=-1).flatten(-2)
            return torch.cat([(turned * cos + across * sin).to(x.dtype), rest], dim=-1)

        return rotate

    def _tables(self, grid: Grid, device: torch.device) -> tuple[Tensor, Tensor]:
        key = (grid, device)
        if key not in self._cache:
            pairs = self.head_dim // len(grid) // 2
            if pairs < 1:
                raise ValueError(
                    f"rotary positions on {len(grid)} axes need heads of at least {2 * len(grid)} channels, "
                    f"got {self.head_dim}: use fewer heads or a larger width"
                )
            frequency = self.base ** (-torch.arange(pairs, dtype=torch.float64) / pairs)
            axes = torch.meshgrid(*self._places(grid), indexing="ij")
            angles = [axis.reshape(-1, 1) * frequency for axis in axes]  # each (N, pairs)
            if self.convention == "interleaved":
                angles = torch.cat([angle.repeat_interleave(2, dim=1) for angle in angles], dim=1)
            else:
                angles = torch.cat([angle.repeat(1, 2) for angle in angles], dim=1)
            self._cache[key] = angles.cos().float().to(device), angles.sin().float().to(device)
        return self._cache[key]

    def _places(self, grid: Grid) -> list[Tensor]:
        """The places along each axis."""
        places = [torch.arange(n, dtype=torch.float64) for n in grid]
        if self.reference_side is None:
            return places
        first = max(0, len(grid) - 2)
        stretched = [place * (self.reference_side - 1) / max(1, len(place) - 1) for place in places[first:]]
        return places[:first] + stretched
