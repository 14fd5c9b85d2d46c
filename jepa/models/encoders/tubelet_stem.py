"""The stem of video: tubelets of a few frames by some pixels, and optionally patches of single images."""

from __future__ import annotations

import math

import torch
from torch import Tensor, nn

from jepa.models.encoders.image_encoder import pair
from jepa.models.encoders.stem_encoder import Stem, kept
from jepa.types import Grid
from jepa.utils.errors import check_at_least


class TubeletStem(Stem):
    """Clips (B, C, T, H, W) to tokens of `tubelet_size` frames by `patch_size` pixels (V-JEPA, arXiv 2404.08471).

    patch_size: a side or [rows, columns].
    images: also take images, (B, C, H, W) or clips of one frame, with their own projection, and add a learned vector
        per kind of input (V-JEPA 2.1, arXiv 2603.14482). An image has a grid of one time step. With DDP a batch of one
        kind leaves the projection of the other without gradient: set trainer.find_unused_parameters=true.
    """

    time_axis = 0

    def __init__(
        self,
        *,
        embed_dim: int,
        channels: int = 3,
        patch_size: int | list[int] = 16,
        tubelet_size: int = 2,
        images: bool = False,
    ) -> None:
        super().__init__()
        self.patch_size = pair(patch_size)
        check_at_least("model.encoder.stem", 1, channels=channels, tubelet_size=tubelet_size)
        self.channels, self.tubelet_size, self.images = channels, tubelet_size, images
        pixels = channels * math.prod(self.patch_size)
        self.token_values = pixels * tubelet_size
        # A matrix product: the same as Conv3d, many times faster on CPUs.
        self.proj = nn.Linear(self.token_values, embed_dim)
        self.picture_proj = nn.Linear(pixels, embed_dim) if images else None
        self.modality = nn.Parameter(torch.empty(2, embed_dim)) if images else None  # of clips, of images
        if images:
            nn.init.normal_(self.modality, std=1e-6)  # as in the released code

    def is_image(self, x: Tensor) -> bool:
        return self.images and (x.ndim == 4 or (x.ndim == 5 and x.shape[2] == 1))

    def grid(self, x: Tensor) -> Grid:
        """Return (time steps, rows, columns) of tokens. Raise ValueError for inputs of another form or size."""
        clip = x.unsqueeze(2) if self.is_image(x) and x.ndim == 4 else x
        if clip.ndim != 5 or clip.shape[1] != self.channels:
            wanted = f"clips (B, {self.channels}, T, H, W)"
            hint = (
                "; pictures go with model=vit, model=lejepa, or model.encoder.stem.images=true" if x.ndim == 4 else ""
            )
            if self.images:
                wanted, hint = f"{wanted} or pictures (B, {self.channels}, H, W)", ""
            raise ValueError(f"expected {wanted}, got {tuple(x.shape)}{hint}")
        frames = 1 if self.is_image(x) else self.tubelet_size
        if clip.shape[2] % frames:
            raise ValueError(
                f"clips of {clip.shape[2]} frames are not whole tubelets of {frames}: change data.num_frames or "
                "model.encoder.stem.tubelet_size, or take single frames as pictures with model.encoder.stem.images=true"
            )
        for side, patch, name in zip(clip.shape[3:], self.patch_size, ("rows", "columns")):
            if side % patch:
                raise ValueError(
                    f"{side} {name} of pixels are not whole patches of {patch}: change data.image_size or "
                    "model.encoder.stem.patch_size"
                )
        return (clip.shape[2] // frames, *(side // patch for side, patch in zip(clip.shape[3:], self.patch_size)))

    def token_inputs(self, x: Tensor) -> Tensor:
        """Return the pixels of each tubelet (B, N, C * t * h * w); images are repeated over its t frames."""
        tubelets = self._tubelets(x)  # (B, N, C, t, h, w)
        if self.is_image(x):
            tubelets = tubelets.expand(-1, -1, -1, self.tubelet_size, -1, -1)
        return tubelets.flatten(2)

    def forward(self, x: Tensor, keep: Tensor | None = None) -> Tensor:
        """Return tokens (B, N, embed_dim) of clips or images, row-major on the grid, without positions."""
        is_image = self.is_image(x)
        tokens = (self.picture_proj if is_image else self.proj)(kept(self._tubelets(x).flatten(2), keep))
        return tokens if self.modality is None else tokens + self.modality[int(is_image)]

    def _tubelets(self, x: Tensor) -> Tensor:
        """Return tubelets of pixels (B, N, C, t, h, w)."""
        steps, rows, columns = self.grid(x)
        clip = x.unsqueeze(2) if x.ndim == 4 else x
        height, width = self.patch_size
        tubelets = clip.unflatten(4, (columns, width)).unflatten(3, (rows, height)).unflatten(2, (steps, -1))
        return tubelets.permute(0, 2, 4, 6, 1, 3, 5, 7).flatten(1, 3)  # from (B, C, T', t, H', h, W', w)
