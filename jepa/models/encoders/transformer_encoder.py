"""A transformer encoder behind any stem, for text, series, audio and video.

Images have `ImageEncoder`, whose weights have timm's names.
"""

from __future__ import annotations

import inspect
from collections.abc import Callable, Sequence
from typing import Literal

import torch
from torch import Tensor, nn

from jepa.models.encoders.stem_encoder import StemEncoder, kept
from jepa.models.positions import LearnedPositions, RotaryPositions, SinCosPositions
from jepa.models.transformer import block_list, check_heads, check_layers, init_transformer, run_blocks
from jepa.types import Grid
from jepa.utils.errors import check_choice
from jepa.utils.tensors import attention_mask


class TransformerEncoder(StemEncoder):
    """Stem, positions, pre-norm blocks, final norm (`jepa.types.Encoder`).

    stem: called with `embed_dim=` to be completed. Of the tokens that are dropped, nothing is computed.
    attention: "full", or "block_causal": tokens attend to those of their own time step and of earlier ones, so that the
        features of a step do not change with what comes after it (LeVJEPA, arXiv 2608.27395); for stems with a
        `time_axis`.
    positions: "sincos" or "learned" (1-D grids of up to max_length tokens) are added, "rotary" rotate in every block.
    sincos_layout: see `sincos_positions`. rotary_convention, rotary_reference_side: see `RotaryPositions`.
    level_layers: blocks, numbered from 0, whose outputs have their own norm when requested by `layers`; the last one is
        the last block and has the final norm (V-JEPA 2.1, arXiv 2603.14482). None: the final norm for all.
    dropout, drop_path: see `vision_transformer`.
    final_norm: False gives the last block's output as it is. Layer norm divides each token by its own deviation, which
        bends what is linear in the input: the amplitude of a series.
    """

    def __init__(
        self,
        *,
        stem: Callable[..., nn.Module],
        embed_dim: int,
        depth: int,
        num_heads: int,
        mlp_ratio: float = 4.0,
        qkv_bias: bool = True,
        attention: Literal["full", "block_causal"] = "full",
        positions: Literal["sincos", "learned", "rotary"] = "sincos",
        sincos_layout: Literal["equal", "half_time", "uniform_power"] = "equal",
        rotary_convention: Literal["interleaved", "tiled"] = "interleaved",
        rotary_reference_side: int | None = None,
        level_layers: Sequence[int] | None = None,
        max_length: int | None = None,
        dropout: float = 0.0,
        attention_dropout: float = 0.0,
        drop_path: float = 0.0,
        final_norm: bool = True,
    ) -> None:
        check_heads(embed_dim, num_heads, "model.encoder")
        check_choice("model.encoder.positions", positions, ("sincos", "learned", "rotary"))
        check_choice("model.encoder.attention", attention, ("full", "block_causal"))
        if positions == "learned" and max_length is None:
            raise ValueError(
                "model.encoder.positions=learned needs model.encoder.max_length, the longest input in tokens"
            )
        super().__init__(stem, embed_dim)
        self.causal = attention == "block_causal"
        if self.causal and getattr(self.stem, "time_axis", None) is None:
            raise ValueError(
                f"model.encoder.attention=block_causal: {type(self.stem).__name__} has no axis of time (time_axis): "
                "use attention=full, or a stem of clips, sound, series or text"
            )
        self.stem_drops = "keep" in inspect.signature(self.stem.forward).parameters
        self.depth, self.num_heads = depth, num_heads
        self.blocks = block_list(
            depth, embed_dim, num_heads, mlp_ratio, dropout, attention_dropout, drop_path, qkv_bias
        )
        self.dropout = nn.Dropout(dropout)
        self.norm = nn.LayerNorm(embed_dim, eps=1e-6) if final_norm else nn.Identity()
        self.level_layers: list[int] = []
        if level_layers is not None:
            self.level_layers = check_layers(level_layers, depth, "model.encoder.level_layers")
        self.level_norms = nn.ModuleList(nn.LayerNorm(embed_dim, eps=1e-6) for _ in self.level_layers[:-1])
        init_transformer(self, self.blocks)
        self.positions: nn.Module | None = None
        self.rotary: RotaryPositions | None = None
        if positions == "rotary":
            self.rotary = RotaryPositions(embed_dim // num_heads, rotary_convention, rotary_reference_side)
        elif positions == "sincos":
            self.positions = SinCosPositions(embed_dim, sincos_layout)
        else:
            self.positions = LearnedPositions(embed_dim, max_length)

    def forward(
        self, x: Tensor, keep: Tensor | None = None, valid: Tensor | None = None, layers: Sequence[int] | None = None
    ) -> Tensor | list[Tensor]:
        """Return features (B, K or N, D) of inputs x.

        keep (B, K): encode only these tokens. valid (B, K or N) bool: the tokens that may be attended to; None takes
        those that are not padding. layers: block numbers from 0; returns a list with the output of each, through the
        final norm or the norm of its level.
        """
        grid = self.grid(x)
        if valid is None and (valid := self.token_valid(x)) is not None and keep is not None:
            valid = valid.gather(1, keep)
        tokens = self.stem(x, keep=keep) if self.stem_drops else kept(self.stem(x), keep)  # (B, K or N, D)
        if self.positions is not None:
            positions = self.positions(grid, x.device)  # (N, D)
            tokens = tokens + (positions if keep is None else positions[keep])
        rotate = None if self.rotary is None else self.rotary.rotation(grid, x.device, keep)
        tokens, mask = self.dropout(tokens), attention_mask(valid)
        if self.causal:
            mask = block_causal_mask(grid, self.stem.time_axis, keep, mask, x.device)
        return run_blocks(self.blocks, tokens, mask, rotate, finish=self._layer_norm, layers=layers)

    def _layer_norm(self, features: Tensor, number: int) -> Tensor:
        """Return the output of a block through the norm of its level, or the final norm."""
        levels = self.level_layers[:-1]
        return (self.level_norms[levels.index(number)] if number in levels else self.norm)(features)


def block_causal_mask(grid: Grid, axis: int, keep: Tensor | None, mask: Tensor | None, device: torch.device) -> Tensor:
    """Return the attention mask (B or 1, 1, K, K) bool of tokens that see no later time step.

    axis: of the grid, that of time. keep (B, K): the tokens; None: all. mask (B, 1, 1, K): False at padding. A token
    sees itself in any case, as softmax over none is NaN.
    """
    tokens = torch.arange(torch.Size(grid).numel(), device=device).unsqueeze(0) if keep is None else keep
    time = torch.unravel_index(tokens, grid)[axis]  # (B or 1, K)
    past = (time.unsqueeze(2) >= time.unsqueeze(1)).unsqueeze(1)
    itself = torch.eye(time.shape[1], dtype=torch.bool, device=device)
    return past if mask is None else past & mask | itself
