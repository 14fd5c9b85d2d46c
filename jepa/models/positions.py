"""Positions on a token grid: sine-cosine, learned, rotary."""

from __future__ import annotations

from collections.abc import Callable

import torch
from torch import Tensor, nn

from jepa.types import Grid
from jepa.utils.errors import check_choice

Rotate = Callable[[Tensor], Tensor]
"""Queries or keys (B, heads, K, head_dim) -> the same, rotated; of the last tokens where there are fewer."""


def sincos_positions(embed_dim: int, grid: Grid, layout: str = "equal") -> Tensor:
    """Return sine-cosine positions (N, embed_dim) of a grid, row-major, fp32.

    An axis with 2n channels has n sines, then n cosines, at frequencies 10000^(-k / n), k = 0 .. n-1. The layout sets
    how many channels each axis has:

    "equal": the same number, the last axis first, as in MAE and the published I-JEPA weights.
    "half_time": for clips, half for time, then a quarter each for rows and columns, the default of V-JEPA.
    "uniform_power": for clips, a third each for time, rows and columns, rounded up to pairs and cut at the end, as in
        V-JEPA's recipes (`uniform_power: true` in facebookresearch/jepa).

    Raises ValueError if embed_dim cannot be split into sine-cosine pairs for every axis, or for another layout.
    """
    pairs_per_axis = sincos_pairs(embed_dim, len(grid), layout)
    axes = torch.meshgrid(*(torch.arange(n, dtype=torch.float64) for n in grid), indexing="ij")
    codes = []
    for axis, pairs in zip(reversed(axes) if layout == "equal" else axes, pairs_per_axis):
        frequency = 10000.0 ** (-torch.arange(pairs, dtype=torch.float64) / pairs)
        angle = axis.reshape(-1, 1) * frequency  # (N, pairs)
        codes += [angle.sin(), angle.cos()]
    return torch.cat(codes, dim=1)[:, :embed_dim].float()


def sincos_pairs(embed_dim: int, axes: int, layout: str) -> list[int]:
    """Return the number of sine-cosine pairs of each axis, in the order of the layout; see `sincos_positions`."""
    if layout != "equal" and axes != 3:
        raise ValueError(f"sincos_layout={layout} is for clips, on three axes, got {axes}: use sincos_layout=equal")
    if layout == "uniform_power":
        return [-(-embed_dim // 6)] * 3
    divisor = 2 * axes if layout == "equal" else 8
    if embed_dim % divisor:
        raise ValueError(
            f"sincos_layout={layout} on {axes} axes needs a width (embed_dim) divisible by {divisor}, got {embed_dim}"
        )
    unit = embed_dim // divisor
    return [unit] * axes if layout == "equal" else [2 * unit, unit, unit]


class SinCosPositions(nn.Module):
    """Sine-cosine positions of any grid, computed once per grid and device; no parameters or buffers."""

    def __init__(self, embed_dim: int, layout: str = "equal") -> None:
        super().__init__()
        check_choice("sincos_layout", layout, ("equal", "half_time", "uniform_power"))
        self.embed_dim, self.layout = embed_dim, layout
        self._cache: dict[tuple[Grid, torch.device], Tensor] = {}

    def forward(self, grid: Grid, device: torch.device) -> Tensor:
        key = (grid, device)
        if key not in self._cache:
            self._cache[key] = sincos_positions(self.embed_dim, grid, self.layout).to(device)
        return self._cache[key]


class LearnedPositions(nn.Module):
    """One learned vector per position of a 1-D grid, as in BERT (arXiv 1810.04805)."""

    def __init__(self, embed_dim: int, max_length: int) -> None:
        super().__init__()
        self.table = nn.Parameter(torch.empty(max_length, embed_dim))
        nn.init.trunc_normal_(self.table, std=0.02)

    def forward(self, grid: Grid, device: torch.device) -> Tensor:
        """Return positions (N, D). Raise ValueError for a longer grid, or one of several axes."""
        if len(grid) != 1 or grid[0] > len(self.table):
            raise ValueError(
                f"learned positions are for sequences of at most {len(self.table)} tokens, got a grid of {grid}: "
                "raise model.encoder.max_length, or use positions=rotary"
            )
        return self.table[: grid[0]]


class RotaryPositions:
    """Rotary positions on an n-D grid (RoPE, arXiv 2104.09864; several axes as in V-JEPA 2, arXiv 2506.09985).

    Each axis rotates 2 * floor(floor(head_dim / axes) / 2) channels of a head; the remaining channels are not rotated.
    Pair k of an axis is rotated by position * 10000^(-k / pairs).

    convention: "interleaved": the angle of pair k rotates channels 2k and 2k + 1, as in the paper and V-JEPA 2.1.
        "tiled": as released with V-JEPA 2, channel i takes the angle of pair i mod pairs, which is not a rotation; only
        for its weights.
    reference_side: scale rows and columns (the last two axes) so that the last of each has position reference_side - 1,
        as V-JEPA 2.1 does at other resolutions than its first. None: no scaling.

    Raises ValueError if heads are too narrow for one pair per axis, or for another convention.
    """

    def __init__(self, head_dim: int, convention: str = "interleaved", reference_side: int | None = None) -> None:
        check_choice("rotary_convention", convention, ("interleaved", "tiled"))
        if reference_side is not None and reference_side < 2:
            raise ValueError(f"rotary_reference_side: got {reference_side}, expected at least 2 or null")
        self.head_dim, self.convention, self.reference_side = head_dim, convention, reference_side
        self._cache: dict[tuple[Grid, torch.device], tuple[Tensor, Tensor]] = {}

    def rotation(self, grid: Grid, device: torch.device, index: Tensor | None = None) -> Rotate:
        """Return the rotation of queries and keys of the tokens `index` (B, K), or of all tokens of the grid."""
        cos, sin = self._tables(grid, device)  # (N, rotated)
        if index is not None:
            cos, sin = cos[index].unsqueeze(1), sin[index].unsqueeze(1)  # (B, 1, K, rotated)
        rotated = cos.shape[-1]

        def rotate(x: Tensor) -> Tensor:
            tokens = x.shape[-2]  # all, or the last ones
            pairs, rest = x[..., :rotated], x[..., rotated:]
            first, second = pairs.unflatten(-1, (-1, 2)).unbind(-1)
            orthogonal = torch.stack((-second, first), dim=-1).flatten(-2)
            return torch.cat(
                [(pairs * cos[..., -tokens:, :] + orthogonal * sin[..., -tokens:, :]).to(x.dtype), rest], dim=-1
            )

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
            frequency = 10000.0 ** (-torch.arange(pairs, dtype=torch.float64) / pairs)
            axes = torch.meshgrid(*self._coordinates(grid), indexing="ij")
            angles = [axis.reshape(-1, 1) * frequency for axis in axes]  # each (N, pairs)
            tiled = self.convention == "tiled"
            angles = torch.cat([a.repeat(1, 2) if tiled else a.repeat_interleave(2, dim=1) for a in angles], dim=1)
            self._cache[key] = angles.cos().float().to(device), angles.sin().float().to(device)
        return self._cache[key]

    def _coordinates(self, grid: Grid) -> list[Tensor]:
        axes = [torch.arange(n, dtype=torch.float64) for n in grid]
        if self.reference_side is None:
            return axes
        first = max(0, len(grid) - 2)
        return axes[:first] + [axis * (self.reference_side - 1) / max(1, len(axis) - 1) for axis in axes[first:]]
