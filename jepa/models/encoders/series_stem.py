"""Tokens of time series: patches over time, as in PatchTST (arXiv 2211.14730), of all channels or of each by itself."""

from __future__ import annotations

from typing import Literal

import torch
from torch import Tensor, nn
from torch.nn import functional as F

from jepa.types import Grid


class SeriesStem(nn.Module):
    """Series (B, C, T) to tokens that cover `patch_size` steps each; NaN marks what is missing, or padding.

    channels: C. embed_dim: width of the tokens.
    channel_independent: False lets a token hold its steps of all channels, on a grid (N,). True gives each channel
        tokens of its own, all made by the same weights, on a grid (C, N), row-major.
    missing: missing values are filled with 0, the mean of z-scored data. "indicator" adds a learned vector for each
        missing step, so that missing is not taken for the mean; without missing values it adds nothing.

    A length that is no multiple of the patch is padded with NaN at its end. Tokens of nothing but NaN are padding
    (`token_valid`). Patches do not overlap: a hidden token must leave no trace in its neighbours (PatchTST's may).

    Raises ValueError for values outside these.
    """

    def __init__(
        self,
        *,
        embed_dim: int,
        channels: int,
        patch_size: int,
        channel_independent: bool = False,
        missing: Literal["indicator", "zero"] = "indicator",
    ) -> None:
        super().__init__()
        for name, value in {"channels": channels, "patch_size": patch_size}.items():
            if value < 1:
                raise ValueError(f"model.encoder.stem.{name} must be at least 1, got {value}")
        if missing not in ("indicator", "zero"):
            raise ValueError(f"model.encoder.stem.missing: got {missing!r}, expected 'indicator' or 'zero'")
        self.channels, self.patch_size, self.channel_independent = channels, patch_size, channel_independent
        self.token_values = patch_size * (1 if channel_independent else channels)
        # Products of matrices: convolutions over patches are many times slower on CPUs.
        self.project = nn.Linear(self.token_values, embed_dim)
        self.absent = nn.Linear(self.token_values, embed_dim, bias=False) if missing == "indicator" else None

    def grid(self, x: Tensor) -> Grid:
        """(N,), or (C, N) for independent channels. Raises ValueError for inputs that are not (B, C, T)."""
        if x.ndim != 3 or not x.is_floating_point() or x.shape[1] != self.channels:
            raise ValueError(
                f"model=series and model=temporal_cnn take series (batch, {self.channels} channels, time) of floats, "
                f"got {str(x.dtype).removeprefix('torch.')} {tuple(x.shape)}: use data=ucr, ett or series_csv, or set "
                "model.encoder.stem.channels"
            )
        patches = -(-x.shape[2] // self.patch_size)
        return (self.channels, patches) if self.channel_independent else (patches,)

    def token_inputs(self, x: Tensor) -> Tensor:
        """The values at each token, (B, N, token_values), channel by channel; 0 where they are missing."""
        return self._patches(x).nan_to_num(0.0)

    def token_valid(self, x: Tensor) -> Tensor:
        """Which tokens (B, N) bool hold any value."""
        return ~self._patches(x).isnan().all(dim=2)

    def forward(self, x: Tensor) -> Tensor:
        """Tokens (B, N, D)."""
        patches = self._patches(x)
        absent = patches.isnan()
        tokens = self.project(torch.where(absent, 0.0, patches))
        return tokens if self.absent is None else tokens + self.absent(absent.to(tokens.dtype))

    def _patches(self, x: Tensor) -> Tensor:
        """(B, C, T) -> (B, N, token_values), padded with NaN at the end."""
        self.grid(x)
        x = F.pad(x, (0, -x.shape[2] % self.patch_size), value=float("nan"))
        patches = x.unflatten(2, (-1, self.patch_size))  # (B, C, N, P)
        return patches.flatten(1, 2) if self.channel_independent else patches.transpose(1, 2).flatten(2)
