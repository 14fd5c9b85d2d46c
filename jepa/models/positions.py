"""Fixed sine-cosine positions on an n-dimensional token grid."""

from __future__ import annotations

import torch
from torch import Tensor, nn

from jepa.types import Grid


def sincos_positions(dim: int, grid: Grid) -> Tensor:
    """Sine-cosine codes (N, dim) of every cell of a grid, row-major, fp32.

    The width is shared equally by the axes, last axis first; within an axis come all sines, then all cosines, at
    frequencies 10000^(-k / n), k = 0 .. n-1. This is the layout of MAE and of the published I-JEPA weights.

    Raises ValueError when dim cannot be split into sine-cosine pairs for every axis.
    """
    if dim % (2 * len(grid)):
        raise ValueError(
            f"sine-cosine positions on {len(grid)} axes need a width divisible by {2 * len(grid)}, got {dim}"
        )
    pairs = dim // (2 * len(grid))
    frequency = 10000.0 ** (-torch.arange(pairs, dtype=torch.float64) / pairs)
    axes = torch.meshgrid(*(torch.arange(n, dtype=torch.float64) for n in grid), indexing="ij")
    angles = [axis.reshape(-1, 1) * frequency for axis in reversed(axes)]  # each (N, pairs)
    return torch.cat([part for angle in angles for part in (angle.sin(), angle.cos())], dim=1).float()


class SinCosPositions(nn.Module):
    """Positions of whatever grid comes, computed on first sight; no parameters, nothing in the state dict."""

    def __init__(self, dim: int) -> None:
        super().__init__()
        self.dim = dim
        self._cache: dict[tuple[Grid, torch.device], Tensor] = {}

    def forward(self, grid: Grid, device: torch.device) -> Tensor:
        """Positions (N, D) of a grid."""
        key = (grid, device)
        if key not in self._cache:
            self._cache[key] = sincos_positions(self.dim, grid).to(device)
        return self._cache[key]
