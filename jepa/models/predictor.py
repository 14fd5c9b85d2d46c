"""The I-JEPA predictor: from context features, the features at hidden positions."""

from __future__ import annotations

from functools import partial

import torch
from timm.models.vision_transformer import Block
from torch import Tensor, nn

from jepa.models.encoders.image import check_heads
from jepa.models.init import init_transformer
from jepa.models.positions import SinCosPositions
from jepa.types import Encoder, Grid, Mask


class Predictor(nn.Module):
    """A narrow ViT over context tokens and one learned mask token per hidden position (arXiv 2301.08243, 3).

    Every target block is predicted from the same context and independently of the other blocks: blocks become
    extra batch entries. Both kinds of token carry fixed sine-cosine positions of the predictor's own width.

    encoder: gives the input and output width; heads None takes the encoder's number of heads, as published.
    """

    def __init__(
        self,
        *,
        encoder: Encoder,
        dim: int = 384,
        depth: int = 12,
        heads: int | None = None,
        mlp_ratio: float = 4.0,
        dropout: float = 0.0,
        attention_dropout: float = 0.0,
        drop_path: float = 0.0,
    ) -> None:
        super().__init__()
        heads = encoder.heads if heads is None else heads
        check_heads(dim, heads, "model.predictor")
        self.embed = nn.Linear(encoder.dim, dim)
        self.mask_token = nn.Parameter(torch.zeros(1, 1, dim))
        self.positions = SinCosPositions(dim)
        self.dropout = nn.Dropout(dropout)
        self.blocks = nn.ModuleList(
            Block(
                dim=dim,
                num_heads=heads,
                mlp_ratio=mlp_ratio,
                qkv_bias=True,
                proj_drop=dropout,
                attn_drop=attention_dropout,
                drop_path=drop_path * number / max(depth - 1, 1),
                norm_layer=partial(nn.LayerNorm, eps=1e-6),
            )
            for number in range(depth)
        )
        self.norm = nn.LayerNorm(dim, eps=1e-6)
        self.project = nn.Linear(dim, encoder.dim)
        init_transformer(self, self.blocks)
        nn.init.trunc_normal_(self.mask_token, std=0.02)

    def forward(self, context: Tensor, mask: Mask, grid: Grid) -> Tensor:
        """Predicted features (B, M, P, D) at mask.targets from the context's features (B, K, D)."""
        batch, blocks, size = mask.targets.shape
        positions = self.positions(grid, context.device)  # (N, dim)
        known = self.embed(context) + positions[mask.context]  # (B, K, dim)
        wanted = self.mask_token + positions[mask.targets.flatten(0, 1)]  # (B * M, P, dim)
        tokens = torch.cat([known.repeat_interleave(blocks, dim=0), wanted.to(known.dtype)], dim=1)
        tokens = self.dropout(tokens)  # (B * M, K + P, dim)
        attention_mask = self._attention_mask(mask)
        for block in self.blocks:
            tokens = block(tokens, attn_mask=attention_mask)
        predicted = self.project(self.norm(tokens[:, -size:]))  # (B * M, P, D)
        return predicted.unflatten(0, (batch, blocks))

    @staticmethod
    def _attention_mask(mask: Mask) -> Tensor | None:
        """(B * M, 1, 1, K + P) bool, False at padding; None when nothing is padded."""
        if mask.context_valid is None and mask.target_valid is None:
            return None
        context = torch.ones_like(mask.context, dtype=torch.bool) if mask.context_valid is None else mask.context_valid
        targets = torch.ones_like(mask.targets, dtype=torch.bool) if mask.target_valid is None else mask.target_valid
        context = context.repeat_interleave(targets.shape[1], dim=0)  # (B * M, K)
        return torch.cat([context, targets.flatten(0, 1)], dim=1)[:, None, None, :]
