"""A transformer trunk behind any stem: the encoder of text, series, sound and video.

A stem turns its input into tokens on an n-D grid; the trunk adds or rotates in their positions and encodes those that
are kept. Pictures have timm's trunk instead (`image.py`), whose weights carry timm's names.
"""

from __future__ import annotations

from collections.abc import Callable, Sequence
from typing import Literal, Protocol

from torch import Tensor, nn

from jepa.models.positions import LearnedPositions, RotaryPositions, SinCosPositions
from jepa.models.transformer_blocks import block_list, check_heads, pick_layers
from jepa.models.weight_init import init_transformer
from jepa.types import Grid
from jepa.utils.tensors import attention_mask, gather_tokens, token_valid

POSITIONS = ("sincos", "learned", "rotary")


class Stem(Protocol):
    """Input to tokens; a module that is completed with `embed_dim=`, the width of the trunk.

    A token depends on no input but its own, so that a token that is not kept leaves no trace. Stems whose inputs may be
    padded have `token_valid(x) -> (B, N) bool` as well (see `jepa.types.Encoder`).
    """

    token_values: int

    def grid(self, x: Tensor) -> Grid:
        """The token grid of inputs x. Raises ValueError for inputs of another form."""

    def token_inputs(self, x: Tensor) -> Tensor:
        """What the input holds at each token: (B, N, token_values), or ids (B, N) int64."""

    def __call__(self, x: Tensor) -> Tensor:
        """Tokens (B, N, D), without positions."""


class TransformerEncoder(nn.Module):
    """Stem, positions, pre-norm blocks, final norm (`jepa.types.Encoder`).

    stem: called with `embed_dim=` to be completed.
    positions: "sincos" added, "learned" added (of a 1-D grid, up to max_length), or "rotary" in every block.
    sincos_layout: see `sincos_positions`. rotary_convention, rotary_reference_side: see `RotaryPositions`.
    level_layers: blocks, numbered from 0, whose outputs have a norm of their own when asked for by `layers`; the last
        block must be among them and has the final norm (V-JEPA 2.1, arXiv 2603.14482). None: the final norm serves all.
    dropout acts on tokens after the positions and after every linear layer of a block; drop_path (stochastic depth)
    grows linearly over the blocks to the given rate.

    Raises ValueError for values outside these, and heads that do not divide the width.
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
        positions: Literal["sincos", "learned", "rotary"] = "sincos",
        sincos_layout: Literal["equal", "half_time", "uniform_power"] = "equal",
        rotary_convention: Literal["interleaved", "tiled"] = "interleaved",
        rotary_reference_side: int | None = None,
        level_layers: Sequence[int] | None = None,
        max_length: int | None = None,
        dropout: float = 0.0,
        attention_dropout: float = 0.0,
        drop_path: float = 0.0,
    ) -> None:
        super().__init__()
        check_heads(embed_dim, num_heads, "model.encoder")
        if positions not in POSITIONS:
            raise ValueError(f"model.encoder.positions: got {positions!r}, expected one of {list(POSITIONS)}")
        if positions == "learned" and max_length is None:
            raise ValueError(
                "model.encoder.positions=learned needs model.encoder.max_length, the longest input in tokens"
            )
        self.embed_dim, self.depth, self.num_heads = embed_dim, depth, num_heads
        self.stem = stem(embed_dim=embed_dim)
        self.token_values: int = self.stem.token_values
        self.blocks = block_list(
            depth=depth,
            drop_path=drop_path,
            embed_dim=embed_dim,
            num_heads=num_heads,
            mlp_ratio=mlp_ratio,
            qkv_bias=qkv_bias,
            dropout=dropout,
            attention_dropout=attention_dropout,
        )
        self.dropout = nn.Dropout(dropout)
        self.norm = nn.LayerNorm(embed_dim, eps=1e-6)
        self.level_layers = check_levels(level_layers, depth)
        self.level_norms = nn.ModuleList(nn.LayerNorm(embed_dim, eps=1e-6) for _ in self.level_layers[:-1])
        init_transformer(self, self.blocks)
        self.positions: nn.Module | None = None
        self.rotary: RotaryPositions | None = None
        if positions == "rotary":
            self.rotary = RotaryPositions(
                embed_dim // num_heads, convention=rotary_convention, reference_side=rotary_reference_side
            )
        elif positions == "sincos":
            self.positions = SinCosPositions(embed_dim, sincos_layout)
        else:
            self.positions = LearnedPositions(embed_dim, max_length)

    def grid(self, x: Tensor) -> Grid:
        """The token grid of inputs x, as the stem says."""
        return self.stem.grid(x)

    def token_inputs(self, x: Tensor) -> Tensor:
        """What the input holds at each token, as the stem says."""
        return self.stem.token_inputs(x)

    def token_valid(self, x: Tensor) -> Tensor | None:
        """Which tokens (B, N) bool hold more than padding; None where the stem takes no padding."""
        return token_valid(self.stem, x)

    def forward(
        self,
        x: Tensor,
        keep: Tensor | None = None,
        valid: Tensor | None = None,
        layers: Sequence[int] | None = None,
    ) -> Tensor | list[Tensor]:
        """Features of inputs x.

        keep (B, K): encode only these tokens. valid (B, K or N) bool: the tokens that may be attended to; None takes
        those that are not padding. layers: block numbers from 0; gives one (B, K or N, D) per number, each through
        the final norm, or the norm of its level.
        """
        grid = self.grid(x)
        if valid is None and (valid := self.token_valid(x)) is not None and keep is not None:
            valid = valid.gather(1, keep)
        tokens = self.stem(x)  # (B, N, D)
        if self.positions is not None:
            tokens = tokens + self.positions(grid, x.device)
        if keep is not None:
            tokens = gather_tokens(tokens, keep)  # (B, K, D)
        return self.encode(self.dropout(tokens), valid, grid=grid, keep=keep, layers=layers)

    def encode(
        self,
        tokens: Tensor,
        valid: Tensor | None,
        *,
        grid: Grid,
        keep: Tensor | None = None,
        layers: Sequence[int] | None = None,
    ) -> Tensor | list[Tensor]:
        """The trunk alone: tokens (B, K, D), with their positions where these are added, to features."""
        rotate = None if self.rotary is None else self.rotary.rotation(grid, tokens.device, keep)
        mask = attention_mask(valid)
        outputs: dict[int, Tensor] = {}
        for number, block in enumerate(self.blocks):
            tokens = block(tokens, mask, rotate)
            if layers is not None and number in layers:
                outputs[number] = self._norm_of(number)(tokens)
        if layers is None:
            return self.norm(tokens)
        return pick_layers(outputs, layers, self.depth)

    def _norm_of(self, number: int) -> nn.Module:
        """The norm of a block's output."""
        levels = self.level_layers[:-1]
        return self.level_norms[levels.index(number)] if number in levels else self.norm


def check_levels(layers: Sequence[int] | None, depth: int) -> list[int]:
    """The levels as a list. Raises ValueError unless they are block numbers that rise to the last one."""
    if layers is None:
        return []
    layers = list(layers)
    if not layers or sorted(set(layers)) != layers or layers[0] < 0 or layers[-1] != depth - 1:
        raise ValueError(
            f"model.encoder.level_layers={layers}: expected rising block numbers from 0 that end with {depth - 1}, the "
            "last block"
        )
    return layers
