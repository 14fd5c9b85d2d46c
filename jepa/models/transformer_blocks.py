"""Transformer blocks whose attention may rotate queries and keys by their places on the grid.

Without rotation a block computes what timm's does and its weights have the same names; timm's has no rotation that
takes the places of a subset of the tokens, and importing it takes two seconds.
"""

from __future__ import annotations

from collections.abc import Callable, Mapping, Sequence

import torch
from torch import Tensor, nn
from torch.nn import functional as F

Rotate = Callable[[Tensor], Tensor]
"""Queries or keys (B, heads, K, head width) to the same, rotated."""


class Attention(nn.Module):
    """Multi-head self-attention (arXiv 1706.03762, 3.2.2); queries and keys are rotated where a rotation is given."""

    def __init__(self, *, embed_dim: int, num_heads: int, qkv_bias: bool = True, dropout: float = 0.0) -> None:
        super().__init__()
        self.num_heads = num_heads
        self.fused_attn = True  # as timm's: False multiplies explicitly, where the fused kernel is slow
        self.qkv = nn.Linear(embed_dim, 3 * embed_dim, bias=qkv_bias)
        self.proj = nn.Linear(embed_dim, embed_dim)
        self.dropout = dropout

    def forward(self, x: Tensor, attn_mask: Tensor | None = None, rotate: Rotate | None = None) -> Tensor:
        """x (B, K, D) -> (B, K, D). attn_mask: bool, broadcast to (B, heads, K, K), False where nobody may look."""
        qkv = self.qkv(x).unflatten(-1, (3, self.num_heads, -1)).permute(2, 0, 3, 1, 4)  # (3, B, heads, K, D / heads)
        query, key, value = qkv.unbind(0)
        if rotate is not None:
            query, key = rotate(query), rotate(key)
        dropout = self.dropout if self.training else 0.0
        if self.fused_attn:
            x = F.scaled_dot_product_attention(query, key, value, attn_mask=attn_mask, dropout_p=dropout)
        else:
            scores = (query * query.shape[-1] ** -0.5) @ key.transpose(-2, -1)  # (B, heads, K, K)
            scores = scores if attn_mask is None else scores.masked_fill(~attn_mask, float("-inf"))
            x = F.dropout(scores.softmax(dim=-1), dropout) @ value
        return self.proj(x.transpose(1, 2).flatten(2))


class Mlp(nn.Module):
    """Two linear layers with a GELU between them."""

    def __init__(self, embed_dim: int, hidden_dim: int, dropout: float) -> None:
        super().__init__()
        self.fc1 = nn.Linear(embed_dim, hidden_dim)
        self.fc2 = nn.Linear(hidden_dim, embed_dim)
        self.dropout = nn.Dropout(dropout)

    def forward(self, x: Tensor) -> Tensor:
        """x (B, K, D) -> (B, K, D)."""
        return self.dropout(self.fc2(self.dropout(F.gelu(self.fc1(x)))))


class DropPath(nn.Module):
    """Stochastic depth (arXiv 1603.09382): in training, set samples to zero at this rate and scale up the others."""

    def __init__(self, rate: float) -> None:
        super().__init__()
        self.rate = rate

    def forward(self, x: Tensor) -> Tensor:
        """x (B, ...) -> the same shape."""
        if not self.training:
            return x
        kept = x.new_empty(len(x), *[1] * (x.ndim - 1)).bernoulli_(1 - self.rate)
        return x * (kept.div_(1 - self.rate) if self.rate < 1 else kept)


class Block(nn.Module):
    """Pre-norm transformer block: attention, then a two-layer perceptron, each added to its input."""

    def __init__(
        self,
        *,
        embed_dim: int,
        num_heads: int,
        mlp_ratio: float = 4.0,
        qkv_bias: bool = True,
        dropout: float = 0.0,
        attention_dropout: float = 0.0,
        drop_path: float = 0.0,
    ) -> None:
        super().__init__()
        self.norm1 = nn.LayerNorm(embed_dim, eps=1e-6)
        self.attn = Attention(embed_dim=embed_dim, num_heads=num_heads, qkv_bias=qkv_bias, dropout=attention_dropout)
        self.drop_path = DropPath(drop_path) if drop_path > 0 else nn.Identity()
        self.dropout = nn.Dropout(dropout)
        self.norm2 = nn.LayerNorm(embed_dim, eps=1e-6)
        self.mlp = Mlp(embed_dim, int(embed_dim * mlp_ratio), dropout)

    def forward(self, x: Tensor, attn_mask: Tensor | None = None, rotate: Rotate | None = None) -> Tensor:
        """x (B, K, D) -> (B, K, D); the other arguments are those of `Attention`."""
        x = x + self.drop_path(self.dropout(self.attn(self.norm1(x), attn_mask, rotate)))
        return x + self.drop_path(self.mlp(self.norm2(x)))


def block_list(*, depth: int, drop_path: float = 0.0, **sizes: object) -> nn.ModuleList:
    """`depth` blocks; stochastic depth grows linearly to `drop_path`. sizes: the other arguments of `Block`."""
    rates = torch.linspace(0, drop_path, depth, device="cpu").tolist() if depth else []
    return nn.ModuleList(Block(drop_path=rate, **sizes) for rate in rates)


def check_heads(embed_dim: int, num_heads: int, key: str) -> None:
    """Raise ValueError when the heads do not share the width equally."""
    if num_heads < 1 or embed_dim % num_heads:
        fits = [h for h in range(1, min(embed_dim, 32) + 1) if embed_dim % h == 0]
        raise ValueError(f"{key}.num_heads={num_heads} does not divide {key}.embed_dim={embed_dim}: use one of {fits}")


def pick_layers(outputs: Mapping[int, Tensor], layers: Sequence[int], depth: int) -> list[Tensor]:
    """The outputs of the asked layers, in that order. Raises ValueError for layers there are not."""
    if missing := set(layers) - set(outputs):
        raise ValueError(f"layers {sorted(missing)} do not exist: the encoder has {depth}, from 0")
    return [outputs[number] for number in layers]
