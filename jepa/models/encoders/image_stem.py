"""The stem of images: patches of pixels, for a `TransformerEncoder` that may share its trunk with other modalities."""

from __future__ import annotations

from torch import Tensor, nn

from jepa.models.encoders.image_encoder import patchify
from jepa.models.encoders.stem_encoder import Stem
from jepa.types import Grid


class ImageStem(Stem):
    """Images (B, C, H, W) to tokens on a grid of (rows, columns), each of patch_size x patch_size pixels.

    NaN marks missing pixels; a patch of missing pixels is padding.
    """

    def __init__(self, *, embed_dim: int, channels: int, patch_size: int) -> None:
        super().__init__()
        self.channels, self.patch_size = channels, patch_size
        self.token_values: int = channels * patch_size**2
        self.project = nn.Linear(self.token_values, embed_dim)

    def grid(self, x: Tensor) -> Grid:
        if x.ndim != 4 or x.shape[1] != self.channels or x.shape[2] % self.patch_size or x.shape[3] % self.patch_size:
            raise ValueError(
                f"got inputs of shape {tuple(x.shape)}, expected (B, {self.channels}, H, W) with sides divisible by "
                f"patch_size={self.patch_size}"
            )
        return x.shape[2] // self.patch_size, x.shape[3] // self.patch_size

    def token_valid(self, x: Tensor) -> Tensor:
        return ~patchify(x, self.grid(x)).isnan().all(dim=2)

    def token_inputs(self, x: Tensor) -> Tensor:
        return patchify(x, self.grid(x)).nan_to_num(nan=0.0)
