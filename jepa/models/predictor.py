"""The I-JEPA predictor: from the features of context tokens, those of hidden tokens."""

from __future__ import annotations

from collections.abc import Sequence
from dataclasses import replace
from typing import Literal

import torch
from torch import Tensor, nn

from jepa.models.positions import RotaryPositions, SinCosPositions
from jepa.models.transformer import block_list, check_heads, check_layers, init_transformer
from jepa.types import Encoder, Grid, Mask
from jepa.utils.errors import check_at_least, check_choice
from jepa.utils.linear_layer import Linear
from jepa.utils.tensors import attention_mask

LEAST_HEAD_DIM = 6  # channels of a head: one rotary pair for each axis of a clip


class Predictor(nn.Module):
    """A narrow ViT over context tokens and one learned mask token per target token (arXiv 2301.08243, section 3).

    Every target block is predicted from the same context, independently of the others: blocks are extra batch entries.
    What a layer makes of the context alone is computed once for all blocks, and the last layer leaves the context out.

    joint: predict all blocks in one pass over one copy of the context, where they see each other's mask tokens: for
        four blocks half the operations. Not with `predict_context`.
    num_heads: None takes the encoder's, as published, or fewer: as many as divide embed_dim into heads of
        LEAST_HEAD_DIM or more. out_dim: width of the targets; None takes the encoder's.
    positions: "sincos", added to all tokens, or "rotary" in every layer. sincos_layout: see `sincos_positions`.
        rotary_convention, rotary_reference_side: see `RotaryPositions`.
    mask_tokens: number of learned mask tokens; mask group g takes token g modulo this (V-JEPA: one per group).
    zero_mask_tokens: initialise them with zeros, as V-JEPA does, instead of random values.

    Options of V-JEPA 2.1 (arXiv 2603.14482):
    context_layers: encoder blocks, from 0, whose concatenated features are the context, projected to the encoder's
        width; the last one must be the encoder's last block. None: the encoder's output.
    predict_context: also predict the context tokens, with a separate head; a call then returns both predictions.
    modality_vectors: add one learned vector to all tokens of images (grids of one time step), another to all others.
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
        joint: bool = False,
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
        if num_heads is None:
            most = getattr(encoder, "num_heads", None)
            if most is None:
                raise ValueError(
                    f"model.predictor.num_heads: {type(encoder).__name__} has none to take over: give a number"
                )
            fits = [heads for heads in range(1, most + 1) if embed_dim % heads == 0]
            num_heads = max([heads for heads in fits if embed_dim // heads >= LEAST_HEAD_DIM], default=1)
        check_heads(embed_dim, num_heads, "model.predictor")
        check_choice("model.predictor.positions", positions, ("sincos", "rotary"))
        check_at_least("model.predictor", 1, depth=depth, mask_tokens=mask_tokens)
        if joint and predict_context:
            raise ValueError("model.predictor: joint=true predicts no context, set it or predict_context to false")
        self.joint = joint
        self.context_layers = context_layers
        self.embed = Linear(encoder.embed_dim, embed_dim)
        if context_layers is not None:
            depth_of_encoder = getattr(encoder, "depth", 0)
            self.context_layers = check_layers(context_layers, depth_of_encoder, "model.predictor.context_layers")
            wide = Linear(encoder.embed_dim * len(context_layers), encoder.embed_dim)
            self.embed = nn.Sequential(wide, nn.GELU(), self.embed)
        self.mask_token = nn.Parameter(torch.zeros(mask_tokens, 1, embed_dim))
        self.positions = SinCosPositions(embed_dim, sincos_layout) if positions == "sincos" else None
        self.rotary = None
        if positions == "rotary":
            self.rotary = RotaryPositions(embed_dim // num_heads, rotary_convention, rotary_reference_side)
        self.dropout = nn.Dropout(dropout)
        self.blocks = block_list(depth, embed_dim, num_heads, mlp_ratio, dropout, attention_dropout, drop_path)
        self.norm = nn.LayerNorm(embed_dim, eps=1e-6)
        self.project = Linear(embed_dim, encoder.embed_dim if out_dim is None else out_dim)
        self.project_context = Linear(embed_dim, self.project.out_features) if predict_context else None
        self.modality = nn.Parameter(torch.zeros(2, embed_dim)) if modality_vectors else None  # of clips, of images
        init_transformer(self, self.blocks)
        if not zero_mask_tokens:
            nn.init.trunc_normal_(self.mask_token, std=0.02)

    @property
    def predicts_context(self) -> bool:
        """Whether a call also returns predictions at the context tokens."""
        return self.project_context is not None

    def forward(
        self, context: Tensor | Sequence[Tensor], mask: Mask, grid: Grid, group: int = 0
    ) -> Tensor | tuple[Tensor, Tensor]:
        """Return predicted features (B, M, P, D) at mask.targets, from the context features (B, K, D).

        context: with `context_layers` one (B, K, D) per layer. group: index of the mask among those of the step.
        With `predict_context` also return predictions (B, M, K, D) at the context tokens, one per target block.
        """
        if self.context_layers is not None:
            context = torch.cat(list(context), dim=-1)
        shape = mask.targets.shape[:3]
        if self.joint:
            mask = as_one_block(mask)
        batch, targets, size = mask.targets.shape
        target_index = mask.targets.flatten(0, 1)  # (B * M, P)
        context = self.embed(context)  # (B, K, embed_dim)
        queries = self.mask_token[group % len(self.mask_token)].to(context.dtype).expand(batch * targets, size, -1)
        if self.positions is not None:
            positions = self.positions(grid, context.device)  # (N, embed_dim)
            context = context + positions[mask.context]
            queries = (queries + positions[target_index]).to(context.dtype)
        if self.modality is not None:
            modality = self.modality[int(len(grid) < 3 or grid[0] == 1)]
            context, queries = context + modality, queries + modality
        context, tokens = self.dropout(context), self.dropout(queries)
        rotate = None
        if self.rotary is not None:
            index = torch.cat([mask.context.repeat_interleave(targets, dim=0), target_index], dim=1)
            rotate = self.rotary.rotation(grid, context.device, index)
        attn_mask = attention_mask(valid_tokens(mask))
        for number, layer in enumerate(self.blocks):
            first, last = number == 0, number == len(self.blocks) - 1
            tokens = layer(  # (B * M, K + P, embed_dim), without the context after the last
                tokens,
                attn_mask,
                rotate,
                prefix=context if first else None,
                last=size if last and self.project_context is None else None,
            )
        if self.project_context is None:
            return self.project(self.norm(tokens)).view(*shape, -1)  # (B, M, P, D)
        tokens = self.norm(tokens).unflatten(0, (batch, targets))
        return self.project(tokens[:, :, -size:]), self.project_context(tokens[:, :, :-size])


def as_one_block(mask: Mask) -> Mask:
    """Return the mask with the tokens of all its target blocks in a single one."""
    valid = mask.target_valid
    together = None if valid is None else valid.flatten(1).unsqueeze(1)
    return replace(mask, targets=mask.targets.flatten(1).unsqueeze(1), target_valid=together)


def valid_tokens(mask: Mask) -> Tensor | None:
    """Return which tokens (B * M, K + P) bool are not padding; None if none is."""
    if mask.context_valid is None and mask.target_valid is None:
        return None
    context, targets = (
        torch.ones_like(index, dtype=torch.bool) if valid is None else valid
        for index, valid in ((mask.context, mask.context_valid), (mask.targets, mask.target_valid))
    )
    return torch.cat([context.repeat_interleave(targets.shape[1], dim=0), targets.flatten(0, 1)], dim=1)
