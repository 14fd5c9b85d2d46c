"""Image encoders: Vision Transformers without class token, with fixed 2-D sine-cosine positions.

`vision_transformer` builds a ViT by its sizes that computes the same as timm's, without timm's import of two seconds;
`timm_vision_transformer` builds any of timm's by name. Both return an `ImageEncoder`; weights have timm's names.
"""

from __future__ import annotations

from collections.abc import Sequence

import torch
from torch import Tensor, nn

from jepa.models.positions import SinCosPositions
from jepa.models.transformer import block_list, check_heads, init_transformer, run_blocks
from jepa.types import Grid
from jepa.utils.linear_layer import linear
from jepa.utils.tensors import attention_mask, gather_tokens


class PatchEmbed(nn.Module):
    """The weights of the patch embedding, with timm's names; `ImageEncoder` applies them."""

    def __init__(self, patch_size: tuple[int, int], channels: int, embed_dim: int) -> None:
        super().__init__()
        self.patch_size = patch_size
        self.proj = nn.Conv2d(channels, embed_dim, kernel_size=patch_size, stride=patch_size)
        self.norm = nn.Identity()


class VisionTransformer(nn.Module):
    """The modules of a ViT, with timm's names."""

    def __init__(self, *, patch_embed: PatchEmbed, blocks: nn.ModuleList, dropout: float) -> None:
        super().__init__()
        self.embed_dim = patch_embed.proj.out_channels
        self.patch_embed = patch_embed
        self.pos_drop = nn.Dropout(dropout)
        self.norm_pre = nn.Identity()
        self.blocks = blocks
        self.norm = nn.LayerNorm(self.embed_dim, eps=1e-6)


class ImageEncoder(nn.Module):
    """A `jepa.types.Encoder` around a ViT, ours or timm's, for images of any size."""

    def __init__(self, vit: nn.Module) -> None:
        super().__init__()
        self.vit = vit
        self.embed_dim: int = vit.embed_dim
        self.depth: int = len(vit.blocks)
        self.num_heads: int = vit.blocks[0].attn.num_heads
        self.patch_size: tuple[int, int] = tuple(vit.patch_embed.patch_size)
        self.channels: int = vit.patch_embed.proj.in_channels
        self.token_values: int = self.channels * self.patch_size[0] * self.patch_size[1]
        self.positions = SinCosPositions(self.embed_dim)

    def grid(self, x: Tensor) -> Grid:
        """Return (rows, columns) of tokens of images (B, C, H, W). Raise ValueError if patches do not divide them."""
        channels, *size = x.shape[1:]
        if channels != self.channels or len(size) != 2:
            hint = "; for clips use model=video" if len(size) == 3 else ""
            raise ValueError(f"expected pictures (B, {self.channels}, H, W), got {tuple(x.shape)}{hint}")
        check_patch_size(tuple(size), self.patch_size)
        return tuple(side // patch for side, patch in zip(size, self.patch_size))

    def token_inputs(self, x: Tensor) -> Tensor:
        return patchify(x, self.grid(x))

    def forward(
        self, x: Tensor, keep: Tensor | None = None, valid: Tensor | None = None, layers: Sequence[int] | None = None
    ) -> Tensor | list[Tensor]:
        """Return features (B, K or N, D) of images x (B, C, H, W).

        keep (B, K): encode only these tokens. valid (B, K or N) bool: the tokens that may be attended to.
        layers: block numbers from 0; returns a list with the output of each, through the final norm.
        """
        positions = self.positions(self.grid(x), x.device)  # (N, D); also checks x
        patches = self.token_inputs(x)
        if keep is not None:
            patches, positions = gather_tokens(patches, keep), positions[keep]  # (B, K, ...)
        tokens = self.vit.norm_pre(self.vit.pos_drop(self._embed(patches) + positions))
        return run_blocks(
            self.vit.blocks, tokens, attention_mask(valid), finish=lambda x, _: self.vit.norm(x), layers=layers
        )

    def _embed(self, patches: Tensor) -> Tensor:
        """Return embeddings (B, K, D) by a matrix product: timm's convolution takes 16 times as long on CPUs."""
        embed = self.vit.patch_embed
        return embed.norm(linear(patches, embed.proj.weight.flatten(1), embed.proj.bias))


def vision_transformer(
    *,
    image_size: int | Sequence[int],
    channels: int,
    patch_size: int | Sequence[int],
    embed_dim: int,
    depth: int,
    num_heads: int,
    mlp_ratio: float = 4.0,
    qkv_bias: bool = True,
    dropout: float = 0.0,
    attention_dropout: float = 0.0,
    drop_path: float = 0.0,
) -> ImageEncoder:
    """Return a pre-norm ViT (arXiv 2010.11929); LayerNorm epsilon 1e-6 as in I-JEPA.

    dropout: after adding positions and after every linear layer of a block. drop_path: rate of stochastic depth in the
    last block; it grows linearly from 0 in the first.

    Raises ValueError if patch_size does not divide image_size or num_heads does not divide embed_dim.
    """
    image_size, patch_size = pair(image_size), pair(patch_size)
    check_patch_size(image_size, patch_size)
    check_heads(embed_dim, num_heads, "model.encoder")
    blocks = block_list(depth, embed_dim, num_heads, mlp_ratio, dropout, attention_dropout, drop_path, qkv_bias)
    patch_embed = PatchEmbed(patch_size, channels, embed_dim)
    vit = VisionTransformer(patch_embed=patch_embed, blocks=blocks, dropout=dropout)
    init_transformer(vit, vit.blocks)
    return ImageEncoder(vit)


def timm_vision_transformer(
    *,
    name: str,
    image_size: int | Sequence[int],
    channels: int,
    patch_size: int | Sequence[int] | None = None,
    dropout: float = 0.0,
    attention_dropout: float = 0.0,
    drop_path: float = 0.0,
) -> ImageEncoder:
    """Return one of timm's plain ViTs by name (`vit_small_patch16_224`, ...), untrained.

    Its blocks (layer scale, query-key norm, SwiGLU) and weight initialisation are kept; class token, registers and
    learned positions are left out. patch_size: None takes the one in the name.

    Raises ValueError if timm does not know the name or the model is not a plain ViT.
    """
    import timm  # takes two seconds

    if not timm.is_model(name):
        close = timm.list_models(f"*{name.split('_patch')[0]}*")[:8] or timm.list_models("vit_*_patch16_224")
        raise ValueError(f"model.encoder.name: timm has no model {name!r}; it has {', '.join(close)}, ...")
    with torch.device("meta"):  # allocates no weights
        kind = type(timm.create_model(name, pretrained=False))
    if not issubclass(kind, timm.models.VisionTransformer):
        raise ValueError(f"model.encoder.name: {name!r} is not one of timm's plain Vision Transformers (vit_*)")
    sizes = {} if patch_size is None else {"patch_size": pair(patch_size)}
    vit = timm.create_model(
        name,
        pretrained=False,
        img_size=pair(image_size),
        in_chans=channels,
        num_classes=0,
        global_pool="",
        class_token=False,
        reg_tokens=0,
        pos_embed="none",
        pos_drop_rate=dropout,
        proj_drop_rate=dropout,
        attn_drop_rate=attention_dropout,
        drop_path_rate=drop_path,
        **sizes,
    )
    check_patch_size(pair(image_size), tuple(vit.patch_embed.patch_size))
    vit.patch_embed.strict_img_size = False  # positions are computed for any grid
    return ImageEncoder(vit)


def patchify(x: Tensor, grid: Grid) -> Tensor:
    """Return patches (B, N, C * h * w) of images (B, C, H, W) on a grid of (rows, columns)."""
    rows, columns = grid
    patches = x.unflatten(3, (columns, -1)).unflatten(2, (rows, -1))  # (B, C, rows, h, columns, w)
    return patches.permute(0, 2, 4, 1, 3, 5).flatten(3).flatten(1, 2)


def pair(size: int | Sequence[int]) -> tuple[int, int]:
    """Return (height, width) of a side or a pair. Raise ValueError for anything else."""
    sides = (size, size) if isinstance(size, int) else tuple(size)
    if len(sides) != 2 or min(sides) < 1:
        raise ValueError(f"expected a positive side or [height, width], got {size}")
    return sides


def check_patch_size(
    image_size: tuple[int, int], patch_size: tuple[int, int], key: str = "model.encoder.patch_size"
) -> None:
    """Raise ValueError, which names the key and the nearest sizes that fit, unless patches tile the image."""
    for side, patch in zip(image_size, patch_size):
        if side % patch or side < patch:
            below, above = side - side % patch, side - side % patch + patch
            near = f"{below} or {above}" if below else f"{above}"
            fits = [p for p in range(1, side + 1) if side % p == 0]
            raise ValueError(
                f"{key}={patch} does not divide data.image_size={side}: "
                f"use an image size of {near}, or a patch of {', '.join(map(str, fits))}"
            )
