"""Encoders of one frame to one vector: the residual network of IMPALA for pictures, an MLP for vectors."""

from __future__ import annotations

from collections.abc import Sequence

import torch
from torch import Tensor, nn
from torch.nn import functional as F

from jepa.types import Grid
from jepa.utils.errors import check_at_least


class FrameEncoder(nn.Module):
    """A `jepa.types.Encoder` whose grid is a single token, of which nothing can be hidden; subclasses define `embed`.

    input_shape: of a frame, (C, H, W) or (d,).
    """

    num_heads = 1

    def __init__(self, *, embed_dim: int, input_shape: Sequence[int]) -> None:
        super().__init__()
        check_at_least("model.encoder", 1, embed_dim=embed_dim)
        self.embed_dim, self.input_shape = embed_dim, tuple(input_shape)

    def embed(self, x: Tensor) -> Tensor:
        """Return features (B, D) of frames (B, *input_shape)."""
        raise NotImplementedError

    def grid(self, x: Tensor) -> Grid:
        """Return (1,). Raise ValueError for frames of another shape."""
        if tuple(x.shape[1:]) != self.input_shape:
            raise ValueError(f"expected frames (B, {', '.join(map(str, self.input_shape))}), got {tuple(x.shape)}")
        return (1,)

    def forward(
        self, x: Tensor, keep: Tensor | None = None, valid: Tensor | None = None, layers: Sequence[int] | None = None
    ) -> Tensor:
        """Return features (B, 1, D) of frames. Raise ValueError where tokens are to be hidden, or blocks named."""
        self.grid(x)
        if keep is not None or valid is not None or layers is not None:
            raise ValueError(
                f"{type(self).__name__} gives one vector for a frame, so that no part of it is hidden and no block "
                "named: it goes with model=world"
            )
        return self.embed(x).unsqueeze(1)


class IMPALA(FrameEncoder):
    """The convolutional network of IMPALA (Espeholt et al. 2018, arXiv 1802.01561, figure 3, right), as in eb_jepa.

    For each width of `widths`: a 3 x 3 convolution, max-pooling by 2, and residual blocks; then a linear layer from all
    places to embed_dim. image_size, channels: of a frame, from the data. blocks: residual blocks of every stack, or of
    each. pool: False halves the side by the convolution's stride, which is cheaper.
    """

    def __init__(
        self,
        *,
        image_size: int | Sequence[int],
        channels: int,
        embed_dim: int = 512,
        widths: Sequence[int] = (16, 32, 32),
        blocks: int | Sequence[int] = 2,
        pool: bool = True,
    ) -> None:
        size = (image_size, image_size) if isinstance(image_size, int) else tuple(image_size)
        blocks = [blocks] * len(widths) if isinstance(blocks, int) else list(blocks)
        super().__init__(embed_dim=embed_dim, input_shape=(channels, *size))
        if min(size) < 1 or not widths or min(widths) < 1:
            raise ValueError(
                f"model.encoder: got frames of {size} pixels and widths {list(widths)}, expected both above 0 (frames "
                "that are vectors, of size 0, take model/encoder=vector)"
            )
        if len(blocks) != len(widths) or min(blocks) < 0:
            raise ValueError(
                f"model.encoder: got blocks {blocks} for widths {list(widths)}, expected a number of residual blocks "
                "for each width"
            )
        self.stacks = nn.ModuleList(Stack(*each, pool) for each in zip([channels, *widths], widths, blocks))
        for _ in widths:
            size = tuple((side + 1) // 2 for side in size)
        self.project = nn.Linear(widths[-1] * size[0] * size[1], embed_dim)
        self.to(memory_format=torch.channels_last)  # on CPUs a step takes half the time

    def embed(self, x: Tensor) -> Tensor:
        x = x.contiguous(memory_format=torch.channels_last)
        for stack in self.stacks:
            x = stack(x)
        return self.project(F.relu(x).flatten(1))


class Stack(nn.Module):
    """Convolution, max-pooling by 2 (or a stride of 2), then residual blocks of two convolutions, or a ReLU."""

    def __init__(self, channels: int, width: int, blocks: int, pool: bool) -> None:
        super().__init__()
        self.pool = pool
        self.first = nn.Conv2d(channels, width, 3, padding=1, stride=1 if pool else 2)
        self.blocks = nn.ModuleList(
            nn.ModuleList(nn.Conv2d(width, width, 3, padding=1) for _ in range(2)) for _ in range(blocks)
        )

    def forward(self, x: Tensor) -> Tensor:
        x = self.first(x)
        if self.pool:
            x = F.max_pool2d(x, 3, stride=2, padding=1)
        for first, second in self.blocks:
            x = x + second(F.relu(first(F.relu(x))))
        return x if len(self.blocks) else F.relu(x)


class VectorEncoder(FrameEncoder):
    """An MLP of frames that are vectors (B, channels), with layers of width `hidden` and GELU between."""

    def __init__(self, *, channels: int, embed_dim: int = 128, hidden: Sequence[int] = (256, 256)) -> None:
        super().__init__(embed_dim=embed_dim, input_shape=(channels,))
        widths = [channels, *hidden]
        layers = [layer for a, b in zip(widths, hidden) for layer in (nn.Linear(a, b), nn.GELU())]
        self.layers = nn.Sequential(*layers, nn.Linear(widths[-1], embed_dim))

    def embed(self, x: Tensor) -> Tensor:
        return self.layers(x)
