"""The I-JEPA predictor: from context features, the features at hidden positions."""

from __future__ import annotations

from collections.abc import Sequence
from typing import Literal

import torch
from torch import Tensor, nn

from jepa.models.positions import RotaryPositions, SinCosPositions
from jepa.models.transformer_blocks import block_list, check_heads
from jepa.models.weight_init import init_transformer
from jepa.types import Encoder, Grid, Mask
from jepa.utils.tensors import attention_mask


class Predictor(nn.Module):
    """A narrow ViT over context tokens and one learned mask token per hidden position (arXiv 2301.08243, 3).

    Every target block is predicted from the same context and independently of the other blocks: blocks become
    extra batch entries. Both kinds of token know their places by fixed sine-cosine positions of the predictor's own
    width, or by rotary ones in every block.

    encoder: gives the input width; num_heads None takes the encoder's number of heads, as published.
    out_dim: width of the targets, None for the encoder's.
    positions: "sincos", or "rotary". sincos_layout: see `sincos_positions`. rotary_convention, rotary_reference_side:
        see `RotaryPositions`.
    mask_tokens: how many mask tokens there are to learn; mask group g takes token g modulo this (V-JEPA: one for each).
    zero_mask_tokens: they start at zero, as V-JEPA's, and not at random.

    Of V-JEPA 2.1 (arXiv 2603.14482):
    context_layers: blocks of the encoder, from 0, whose features side by side are the context, brought to the
        encoder's width by a layer of its own; the last one must be the encoder's last. None: its output alone.
    predict_context: predict the tokens that are seen as well, by a head of their own; a call then gives both.
    modality_vectors: add a learned vector to all tokens of a grid of one time step (pictures), another to all others.

    Raises ValueError for values outside these.
    """

    def __init__(
        self,
        *,
        encoder: Encoder,
        out_dim: int | None = None,
        embed_dim: int = 384,
        depth: int = 12,
        num_heads: int | None = None,
        positions: Literal["sincos", "rotary"] = "sincos",
        sincos_layout: Literal["equal", "half_time", "uniform_power"] = "equal",
        rotary_convention: Literal["interleaved", "tiled"] = "interleaved",
        rotary_reference_side: int | None = None,
        mask_tokens: int = 1,
        zero_mask_tokens: bool = False,
        context_layers: Sequence[int] | None = None,
        predict_context: bool = False,
        modality_vectors: bool = False,
        mlp_ratio: float = 4.0,
        dropout: float = 0.0,
        attention_dropout: float = 0.0,
        drop_path: float = 0.0,
    ) -> None:
        super().__init__()
        num_heads = getattr(encoder, "num_heads", None) if num_heads is None else num_heads
        if num_heads is None:
            raise ValueError(
                f"model.predictor.num_heads: {type(encoder).__name__} has none to take over: give a number"
            )
        check_heads(embed_dim, num_heads, "model.predictor")
        if positions not in ("sincos", "rotary"):
            raise ValueError(f"model.predictor.positions: got {positions!r}, expected 'sincos' or 'rotary'")
        if mask_tokens < 1:
            raise ValueError(f"model.predictor.mask_tokens must be at least 1, got {mask_tokens}")
        self.context_layers = None if context_layers is None else check_context_layers(context_layers, encoder)
        self.embed = nn.Linear(encoder.embed_dim, embed_dim)
        if self.context_layers is not None:
            fuse = nn.Linear(encoder.embed_dim * len(self.context_layers), encoder.embed_dim)
            self.embed = nn.Sequential(fuse, nn.GELU(), self.embed)
        self.mask_token = nn.Parameter(torch.zeros(mask_tokens, 1, embed_dim))
        self.positions = SinCosPositions(embed_dim, sincos_layout) if positions == "sincos" else None
        self.rotary = None
        if positions == "rotary":
            self.rotary = RotaryPositions(
                embed_dim // num_heads, convention=rotary_convention, reference_side=rotary_reference_side
            )
        self.dropout = nn.Dropout(dropout)
        self.blocks = block_list(
            depth=depth,
            drop_path=drop_path,
            embed_dim=embed_dim,
            num_heads=num_heads,
            mlp_ratio=mlp_ratio,
            dropout=dropout,
            attention_dropout=attention_dropout,
        )
        self.norm = nn.LayerNorm(embed_dim, eps=1e-6)
        self.project = nn.Linear(embed_dim, encoder.embed_dim if out_dim is None else out_dim)
        self.project_context = nn.Linear(embed_dim, self.project.out_features) if predict_context else None
        self.modality = nn.Parameter(torch.zeros(2, embed_dim)) if modality_vectors else None  # of clips, of pictures
        init_transformer(self, self.blocks)
        if not zero_mask_tokens:
            nn.init.trunc_normal_(self.mask_token, std=0.02)

    @property
    def predicts_context(self) -> bool:
        """Whether a call gives predictions at the context's tokens as well."""
        return self.project_context is not None

    def forward(
        self, context: Tensor | Sequence[Tensor], mask: Mask, grid: Grid, group: int = 0
    ) -> Tensor | tuple[Tensor, Tensor]:
        """Predicted features (B, M, P, D) at mask.targets from the context's features (B, K, D).

        context: with `context_layers` one (B, K, D) for each of them. group: number of the mask among those of a step.
        With `predict_context` gives those at the context's tokens (B, M, K, D) as well, of which each target block
        has its own.
        """
        if self.context_layers is not None:
            context = torch.cat(list(context), dim=-1)
        batch, blocks, size = mask.targets.shape
        wanted_at = mask.targets.flatten(0, 1)  # (B * M, P)
        known = self.embed(context)  # (B, K, dim)
        wanted = self.mask_token[group % len(self.mask_token)].to(known.dtype).expand(batch * blocks, size, -1)
        if self.positions is not None:
            positions = self.positions(grid, context.device)  # (N, dim)
            known = known + positions[mask.context]
            wanted = (wanted + positions[wanted_at]).to(known.dtype)
        tokens = torch.cat([known.repeat_interleave(blocks, dim=0), wanted], dim=1)
        if self.modality is not None:
            tokens = tokens + self.modality[int(len(grid) < 3 or grid[0] == 1)]
        tokens = self.dropout(tokens)  # (B * M, K + P, dim)
        rotate = None
        if self.rotary is not None:
            places = torch.cat([mask.context.repeat_interleave(blocks, dim=0), wanted_at], dim=1)
            rotate = self.rotary.rotation(grid, context.device, places)
        hidden = attention_mask(self._valid(mask))
        for block in self.blocks:
            tokens = block(tokens, hidden, rotate)
        if self.project_context is None:
            predicted = self.project(self.norm(tokens[:, -size:]))  # (B * M, P, D)
            return predicted.unflatten(0, (batch, blocks))
        tokens = self.norm(tokens)
        predicted, seen = self.project(tokens[:, -size:]), self.project_context(tokens[:, :-size])
        return predicted.unflatten(0, (batch, blocks)), seen.unflatten(0, (batch, blocks))

    @staticmethod
    def _valid(mask: Mask) -> Tensor | None:
        """(B * M, K + P) bool, False at padding; None when nothing is padded."""
        if mask.context_valid is None and mask.target_valid is None:
            return None
        context = torch.ones_like(mask.context, dtype=torch.bool) if mask.context_valid is None else mask.context_valid
        targets = torch.ones_like(mask.targets, dtype=torch.bool) if mask.target_valid is None else mask.target_valid
        context = context.repeat_interleave(targets.shape[1], dim=0)  # (B * M, K)
        return torch.cat([context, targets.flatten(0, 1)], dim=1)


def check_context_layers(layers: Sequence[int], encoder: Encoder) -> list[int]:
    """The layers as a list. Raises ValueError unless they are blocks of the encoder that rise to its last."""
    layers, depth = list(layers), getattr(encoder, "depth", 0)
    if not layers or sorted(set(layers)) != layers or layers[0] < 0 or layers[-1] != depth - 1:
        raise ValueError(
            f"model.predictor.context_layers={layers}: expected rising block numbers from 0 that end with {depth - 1}, "
            "the encoder's last block"
        )
    return layers
