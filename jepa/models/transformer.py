"""What transformers are built from: blocks and the initialisation of their weights.

Blocks compute the same as timm's, with the same weight names. timm's cannot rotate a subset of the tokens, and
importing timm takes two seconds.
"""

from __future__ import annotations

import math
from collections.abc import Callable, Iterable, Sequence

import torch
from torch import Tensor, nn
from torch.nn import functional as F

from jepa.models.positions import Rotate
from jepa.utils.linear_layer import Linear, linear


class Attention(nn.Module):
    """Multi-head self-attention (arXiv 1706.03762, section 3.2.2), with optional rotation of queries and keys."""

    def __init__(self, *, embed_dim: int, num_heads: int, qkv_bias: bool = True, dropout: float = 0.0) -> None:
        super().__init__()
        self.num_heads = num_heads
        self.fused_attn = True  # as timm's: False multiplies explicitly, where the fused kernel is slow
        self.qkv = Linear(embed_dim, 3 * embed_dim, bias=qkv_bias)
        self.proj = Linear(embed_dim, embed_dim)
        self.dropout = dropout

    def forward(
        self,
        x: Tensor,
        attn_mask: Tensor | None = None,
        rotate: Rotate | None = None,
        *,
        prefix: Tensor | None = None,
        last: int | None = None,
    ) -> Tensor:
        """Return (B, K, D) of x (B, K, D). attn_mask: bool, broadcast to (B, heads, K, K), False for no attention.

        prefix, last: see `Block`.
        """
        if last is None:
            qkv = join_prefix(None if prefix is None else self.qkv(prefix), self.qkv(x))
            query, key, value = self._heads(qkv, 3)
        else:
            width = x.shape[-1]
            weight, bias = self.qkv.weight, self.qkv.bias
            x = join_prefix(prefix, x)
            query = linear(x[:, -last:], weight[:width], None if bias is None else bias[:width])
            (query,) = self._heads(query, 1)
            key, value = self._heads(linear(x, weight[width:], None if bias is None else bias[width:]), 2)
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

    def _heads(self, projected: Tensor, parts: int) -> tuple[Tensor, ...]:
        """Return parts (B, heads, K, D / heads) of (B, K, parts * D)."""
        return projected.unflatten(-1, (parts, self.num_heads, -1)).permute(2, 0, 3, 1, 4).unbind(0)


class Mlp(nn.Module):
    """Two linear layers with a GELU between."""

    def __init__(self, embed_dim: int, hidden_dim: int, dropout: float) -> None:
        super().__init__()
        self.fc1 = Linear(embed_dim, hidden_dim)
        self.fc2 = Linear(hidden_dim, embed_dim)
        self.dropout = nn.Dropout(dropout)

    def forward(self, x: Tensor) -> Tensor:
        return self.dropout(self.fc2(self.dropout(F.gelu(self.fc1(x)))))


class DropPath(nn.Module):
    """Stochastic depth (arXiv 1603.09382): in training, zero samples at this rate and scale up the others."""

    def __init__(self, rate: float) -> None:
        super().__init__()
        self.rate = rate

    def forward(self, x: Tensor) -> Tensor:
        if not self.training:
            return x
        kept = x.new_empty(len(x), *[1] * (x.ndim - 1)).bernoulli_(1 - self.rate)
        return x * (kept.div_(1 - self.rate) if self.rate < 1 else kept)


class Block(nn.Module):
    """Pre-norm transformer block: attention and MLP, each with a residual connection."""

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

    def forward(
        self,
        x: Tensor,
        attn_mask: Tensor | None = None,
        rotate: Rotate | None = None,
        *,
        prefix: Tensor | None = None,
        last: int | None = None,
    ) -> Tensor:
        """Return the tokens (B, K, D) after the block.

        prefix (B / n, L, D): tokens before those of x that n samples in a row share, projected once;
            all L + K are returned. last: return so many tokens at the end, to which the others are keys and values.
        """
        normed = None if prefix is None else self.norm1(prefix)
        attended = self.attn(self.norm1(x), attn_mask, rotate, prefix=normed, last=last)
        x = join_prefix(prefix, x)
        x = (x if last is None else x[:, -last:]) + self.drop_path(self.dropout(attended))
        return x + self.drop_path(self.mlp(self.norm2(x)))


def join_prefix(prefix: Tensor | None, x: Tensor) -> Tensor:
    """Return x (B, K, D) with tokens (B / n, L, D) before it that n samples in a row share; None: none."""
    if prefix is None:
        return x
    return torch.cat([prefix.repeat_interleave(len(x) // len(prefix), dim=0), x], dim=1)


def block_list(
    depth: int,
    embed_dim: int,
    num_heads: int,
    mlp_ratio: float = 4.0,
    dropout: float = 0.0,
    attention_dropout: float = 0.0,
    drop_path: float = 0.0,
    qkv_bias: bool = True,
) -> nn.ModuleList:
    """Return `depth` blocks; stochastic depth grows linearly to `drop_path`."""
    sizes = {"embed_dim": embed_dim, "num_heads": num_heads, "mlp_ratio": mlp_ratio, "qkv_bias": qkv_bias}
    rates = torch.linspace(0, drop_path, depth, device="cpu").tolist() if depth else []
    return nn.ModuleList(
        Block(**sizes, dropout=dropout, attention_dropout=attention_dropout, drop_path=rate) for rate in rates
    )


def run_blocks(
    blocks: Sequence[nn.Module],
    tokens: Tensor,
    *arguments: object,
    finish: Callable[[Tensor, int], Tensor],
    layers: Sequence[int] | None,
) -> Tensor | list[Tensor]:
    """Return the features of the last block, or with `layers` (block numbers from 0) a list of those of each.

    arguments: of every block. finish: (output of a block, its number) -> features.
    Raises ValueError for layers that do not exist.
    """
    if missing := set(layers or []) - set(range(len(blocks))):
        raise ValueError(f"layers {sorted(missing)} do not exist: the encoder has {len(blocks)}, from 0")
    outputs = {}
    for number, block in enumerate(blocks):
        tokens = block(tokens, *arguments)
        if layers is not None and number in layers:
            outputs[number] = finish(tokens, number)
    return finish(tokens, len(blocks) - 1) if layers is None else [outputs[number] for number in layers]


def init_transformer(module: nn.Module, blocks: Iterable[nn.Module]) -> None:
    """Initialise weights from a truncated normal of standard deviation 1 / sqrt(3 fan_in), and biases with 0.

    For a ViT-B and 16 x 16 RGB patches that is the published 0.02. It is larger for narrower layers and smaller
    patches, where 0.02 makes blocks contribute almost nothing and patch embeddings vanish beside the positions. The
    output layers of block l (from 1) are divided by sqrt(2 l), as in I-JEPA's constructors; the published code then
    undoes this by initialising every Linear again, which is not copied here.
    """
    for layer in module.modules():
        if isinstance(layer, (nn.Linear, nn.Conv2d)):
            nn.init.trunc_normal_(layer.weight, std=(3 * layer.weight[0].numel()) ** -0.5)
            if layer.bias is not None:
                nn.init.zeros_(layer.bias)
    with torch.no_grad():
        for depth, block in enumerate(blocks, start=1):
            for name, layer in block.named_modules():
                if name in ("attn.proj", "mlp.fc2"):
                    layer.weight.div_(math.sqrt(2 * depth))


def share_trunks(encoders: Sequence[nn.Module], key: str) -> None:
    """Use the `blocks` and final `norm` of the first encoder in all. Raise ValueError if they cannot be shared.

    key: of the configuration that asks for it.
    """
    shapes = []
    for encoder in encoders:
        if not all(isinstance(getattr(encoder, part, None), nn.Module) for part in ("blocks", "norm")):
            raise ValueError(f"{key}: {type(encoder).__name__} has no blocks and norm to share")
        trunk = nn.ModuleList([encoder.blocks, encoder.norm])
        shapes.append([getattr(encoder, "num_heads", None), *((name, p.shape) for name, p in trunk.named_parameters())])
    if any(shape != shapes[0] for shape in shapes):
        raise ValueError(f"{key}: the encoders differ in width, depth, num_heads or mlp_ratio: give them the same")
    for encoder in encoders:
        encoder.blocks, encoder.norm = encoders[0].blocks, encoders[0].norm


def check_heads(embed_dim: int, num_heads: int, key: str) -> None:
    """Raise ValueError unless num_heads divides embed_dim. key: of the configuration, such as "model.encoder"."""
    if num_heads < 1 or embed_dim % num_heads:
        fits = [h for h in range(1, min(embed_dim, 32) + 1) if embed_dim % h == 0]
        raise ValueError(f"{key}.num_heads={num_heads} does not divide the width {embed_dim}: use one of {fits}")


def check_layers(layers: Sequence[int], depth: int, key: str) -> list[int]:
    """Return the layers as a list. Raise ValueError unless they are rising block numbers that end with depth - 1."""
    layers = list(layers)
    if not layers or sorted(set(layers)) != layers or layers[0] < 0 or layers[-1] != depth - 1:
        raise ValueError(
            f"{key}={layers}: expected rising block numbers from 0 that end with {depth - 1}, the last block of the "
            "encoder"
        )
    return layers
