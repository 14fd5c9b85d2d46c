"""The stem of pictures beside other modalities: patches of pixels, for trunks that serve all (`ModalityEncoders`)."""

from __future__ import annotations

from torch import Tensor, nn

from jepa.types import Grid


class ImageStem(nn.Module):
    """Pictures (B, C, H, W) to tokens on a grid of (rows, columns), each of patch_size x patch_size pixels.

    embed_dim: width of the tokens. Pixels that are NaN are missing: a patch of nothing else is padding. Raises
    ValueError for sides that patches do not divide.
    """

    def __init__(self, *, embed_dim: int, channels: int, patch_size: int) -> None:
        super().__init__()
        self.channels, self.patch_size = channels, patch_size
        self.token_values: int = channels * patch_size**2
        self.project = nn.Linear(self.token_values, embed_dim)

    def grid(self, x: Tensor) -> Grid:
        """Patches along height and width."""
        if x.ndim != 4 or x.shape[1] != self.channels or x.shape[2] % self.patch_size or x.shape[3] % self.patch_size:
            raise ValueError(
                f"got inputs of shape {tuple(x.shape)}, expected (B, {self.channels}, H, W) with sides divisible by "
                f"patch_size={self.patch_size}"
            )
        return x.shape[2] // self.patch_size, x.shape[3] // self.patch_size

    def _patches(self, x: Tensor) -> Tensor:
        (rows, columns), side = self.grid(x), self.patch_size
        patches = x.view(len(x), self.channels, rows, side, columns, side).permute(0, 2, 4, 1, 3, 5)
        return patches.reshape(len(x), rows * columns, self.token_values)

    def token_valid(self, x: Tensor) -> Tensor:
        """Which tokens (B, N) bool hold a pixel that is not missing."""
        return ~self._patches(x).isnan().all(dim=2)

    def token_inputs(self, x: Tensor) -> Tensor:
        """Pixels (B, N, C * patch_size^2) of every patch, 0 where they are missing."""
        return self._patches(x).nan_to_num(nan=0.0)

    def forward(self, x: Tensor) -> Tensor:
        """Tokens (B, N, embed_dim), without positions."""
        return self.project(self.token_inputs(x))
