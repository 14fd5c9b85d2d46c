"""The stem of time series: patches over time, as in PatchTST (arXiv 2211.14730), of all channels or of each one."""

from __future__ import annotations

from typing import Literal

import torch
from torch import Tensor, nn
from torch.nn import functional as F

from jepa.models.encoders.stem_encoder import Stem, kept
from jepa.types import Grid
from jepa.utils.errors import check_at_least, check_choice


class SeriesStem(Stem):
    """Series (B, C, T) to tokens of `patch_size` time steps each; NaN marks missing values and padding.

    channel_independent: False: a token covers all channels, on a grid (N,). True: every channel has its own tokens, by
        the same weights, on a grid (C, N), row-major.
    missing: "zero" replaces missing values by 0, the mean of z-scored data. "indicator" also adds a learned vector per
        missing value, so that the model can tell missing values from the mean.

    Series are padded with NaN at the end to whole patches. Tokens of NaN only are padding (`token_valid`). Patches do
    not overlap, unlike PatchTST's, so that a hidden token does not leak through its neighbours.
    """

    time_axis = -1

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
        check_at_least("model.encoder.stem", 1, channels=channels, patch_size=patch_size)
        check_choice("model.encoder.stem.missing", missing, ("indicator", "zero"))
        self.channels, self.patch_size, self.channel_independent = channels, patch_size, channel_independent
        self.token_values = patch_size * (1 if channel_independent else channels)
        # Matrix products: convolutions over patches are many times slower on CPUs.
        self.project = nn.Linear(self.token_values, embed_dim)
        self.absent = nn.Linear(self.token_values, embed_dim, bias=False) if missing == "indicator" else None

    def grid(self, x: Tensor) -> Grid:
        """Return (N,), or (C, N) with independent channels. Raise ValueError for inputs that are not (B, C, T)."""
        if x.ndim != 3 or not x.is_floating_point() or x.shape[1] != self.channels:
            raise ValueError(
                f"model=series and model=temporal_cnn take series (batch, {self.channels} channels, time) of floats, "
                f"got {str(x.dtype).removeprefix('torch.')} {tuple(x.shape)}: use data=ucr, ett or series_csv, or set "
                "model.encoder.stem.channels"
            )
        patches = -(-x.shape[2] // self.patch_size)
        return (self.channels, patches) if self.channel_independent else (patches,)

    def token_inputs(self, x: Tensor) -> Tensor:
        """Return the values of each token, channel by channel; 0 where they are missing."""
        return self._patches(x).nan_to_num(0.0)

    def token_valid(self, x: Tensor) -> Tensor:
        """Return which tokens (B, N) bool have a value that is not missing."""
        return ~self._patches(x).isnan().all(dim=2)

    def forward(self, x: Tensor, keep: Tensor | None = None) -> Tensor:
        patches = kept(self._patches(x), keep)
        missing = patches.isnan()
        tokens = self.project(torch.where(missing, 0.0, patches))
        return tokens if self.absent is None else tokens + self.absent(missing.to(tokens.dtype))

    def _patches(self, x: Tensor) -> Tensor:
        """Return patches (B, N, token_values) of x (B, C, T), padded with NaN at the end."""
        self.grid(x)
        x = F.pad(x, (0, -x.shape[2] % self.patch_size), value=float("nan"))
        patches = x.unflatten(2, (-1, self.patch_size))  # (B, C, N, P)
        return patches.flatten(1, 2) if self.channel_independent else patches.transpose(1, 2).flatten(2)
