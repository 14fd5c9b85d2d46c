"""The stem of images: patches of pixels, for a `TransformerEncoder` that may share its trunk with other modalities."""

from __future__ import annotations

from collections.abc import Sequence

from torch import Tensor, nn

from jepa.models.encoders.image_encoder import check_patch_size, patchify
from jepa.models.encoders.stem_encoder import Stem, kept
from jepa.types import Grid


class ImageStem(Stem):
    """Images (B, C, H, W) to tokens on a grid of (rows, columns), each of patch_size x patch_size pixels.

    NaN marks missing pixels; a patch of missing pixels is padding.

    widths: channels of convolutions within each patch, 3 x 3 of stride 2, whose output is projected and normalised; as
        in the stem of Touvron et al. 2022 (arXiv 2203.09795) none sees another patch, so masks hide what they should.
        None are given: pixels are projected.
    """

    def __init__(self, *, embed_dim: int, channels: int, patch_size: int, widths: Sequence[int] = ()) -> None:
        super().__init__()
        self.channels, self.patch_size = channels, patch_size
        self.token_values: int = channels * patch_size**2
        layers: list[nn.Module] = []
        side, before = patch_size, channels
        for width in widths:
            layers += [nn.Conv2d(before, width, 3, stride=2, padding=1), nn.GELU()]
            side, before = -(-side // 2), width
        self.convolutions = nn.Sequential(*layers)
        self.project = nn.Linear(before * side**2, embed_dim)
        self.norm = nn.LayerNorm(embed_dim, eps=1e-6) if layers else nn.Identity()

    def grid(self, x: Tensor) -> Grid:
        if x.ndim != 4 or x.shape[1] != self.channels:
            raise ValueError(f"got inputs of shape {tuple(x.shape)}, expected pictures (B, {self.channels}, H, W)")
        check_patch_size(x.shape[2:], (self.patch_size, self.patch_size), "model.encoder.stem.patch_size")
        return x.shape[2] // self.patch_size, x.shape[3] // self.patch_size

    def token_valid(self, x: Tensor) -> Tensor:
        return ~patchify(x, self.grid(x)).isnan().all(dim=2)

    def token_inputs(self, x: Tensor) -> Tensor:
        return patchify(x, self.grid(x)).nan_to_num(nan=0.0)

    def forward(self, x: Tensor, keep: Tensor | None = None) -> Tensor:
        values = kept(self.token_inputs(x), keep)
        patches = values.reshape(-1, self.channels, self.patch_size, self.patch_size)
        return self.norm(self.project(self.convolutions(patches).reshape(*values.shape[:2], -1)))
