"""Clips to tokens: cuboids of a few frames and some pixels, each through one matrix; single pictures beside them."""

from __future__ import annotations

import math

import torch
from torch import Tensor, nn

from jepa.types import Grid


class TubeletStem(nn.Module):
    """Stem of clips (B, C, T, H, W): tubelets of `tubelet_size` frames by `patch_size` pixels (V-JEPA, 2404.08471, 3).

    patch_size: pixels, a side or [rows, columns]. tubelet_size: frames of a token.
    images: take pictures too, (B, C, H, W) or clips of one frame, through a matrix of their own, and mark each kind of
        input by a learned vector (V-JEPA 2.1, arXiv 2603.14482). A picture gives a grid of one time step. Under DDP a
        batch of one kind leaves the matrix of the other without gradient: set trainer.find_unused_parameters=true.

    Raises ValueError for sizes below 1, and inputs that are not whole tubelets.
    """

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
        self.patch_size = (patch_size, patch_size) if isinstance(patch_size, int) else tuple(patch_size)
        if len(self.patch_size) != 2 or min(*self.patch_size, channels, tubelet_size) < 1:
            raise ValueError(
                f"model.encoder.stem: got channels={channels}, patch_size={patch_size}, tubelet_size={tubelet_size}, "
                "expected numbers of at least 1, and patch_size a side or [rows, columns]"
            )
        self.channels, self.tubelet_size, self.images = channels, tubelet_size, images
        pixels = channels * math.prod(self.patch_size)
        self.token_values = pixels * tubelet_size
        # A matrix product on patches: what Conv3d computes, many times faster on CPUs.
        self.proj = nn.Linear(self.token_values, embed_dim)
        self.picture_proj = nn.Linear(pixels, embed_dim) if images else None
        self.modality = nn.Parameter(torch.empty(2, embed_dim)) if images else None  # of clips, of pictures
        if images:
            nn.init.normal_(self.modality, std=1e-6)  # as released: small enough to change nothing at first

    def is_picture(self, x: Tensor) -> bool:
        """Whether inputs are pictures rather than clips, for this stem."""
        return self.images and (x.ndim == 4 or (x.ndim == 5 and x.shape[2] == 1))

    def grid(self, x: Tensor) -> Grid:
        """(time steps, rows, columns) of tokens. Raises ValueError for inputs that do not fit."""
        clip = x.unsqueeze(2) if self.is_picture(x) and x.ndim == 4 else x
        if clip.ndim != 5 or clip.shape[1] != self.channels:
            wanted = f"clips (B, {self.channels}, T, H, W)"
            hint = "; pictures are taken with model.encoder.stem.images=true"
            if self.images:
                wanted, hint = f"{wanted} or pictures (B, {self.channels}, H, W)", ""
            raise ValueError(f"expected {wanted}, got {tuple(x.shape)}{hint}")
        frames = 1 if self.is_picture(x) else self.tubelet_size
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
        """Pixels of each tubelet (B, N, C * frames * rows * columns); of pictures, which are repeated over its time."""
        tubelets = self._tubelets(x)  # (B, N, C, t, h, w)
        if self.is_picture(x):
            tubelets = tubelets.expand(-1, -1, -1, self.tubelet_size, -1, -1)
        return tubelets.flatten(2)

    def forward(self, x: Tensor) -> Tensor:
        """Tokens (B, N, D) of clips or pictures, time step by time step, row by row."""
        picture = self.is_picture(x)
        tokens = (self.picture_proj if picture else self.proj)(self._tubelets(x).flatten(2))
        return tokens if self.modality is None else tokens + self.modality[int(picture)]

    def _tubelets(self, x: Tensor) -> Tensor:
        """Cuboids of pixels (B, N, C, t, h, w)."""
        steps, rows, columns = self.grid(x)
        clip = x.unsqueeze(2) if x.ndim == 4 else x
        height, width = self.patch_size
        cut = clip.unflatten(4, (columns, width)).unflatten(3, (rows, height)).unflatten(2, (steps, -1))
        return cut.permute(0, 2, 4, 6, 1, 3, 5, 7).flatten(1, 3)  # from (B, C, T', t, H', h, W', w)
