"""What transformers are built from: blocks, positions on a token grid and the initialisation of weights.

Blocks compute the same as timm's, with the same weight names. timm's cannot rotate a subset of the tokens, and
importing timm takes two seconds.
"""

from __future__ import annotations

import math
from collections.abc import Callable, Iterable, Sequence

import torch
from torch import Tensor, nn
from torch.nn import functional as F

from jepa.types import Grid

Rotate = Callable[[Tensor], Tensor]
"""Queries or keys (B, heads, K, head_dim) -> the same, rotated."""


class Attention(nn.Module):
    """Multi-head self-attention (arXiv 1706.03762, section 3.2.2), with optional rotation of queries and keys."""

    def __init__(self, *, embed_dim: int, num_heads: int, qkv_bias: bool = True, dropout: float = 0.0) -> None:
        super().__init__()
        self.num_heads = num_heads
        self.fused_attn = True  # as timm's: False multiplies explicitly, where the fused kernel is slow
        self.qkv = nn.Linear(embed_dim, 3 * embed_dim, bias=qkv_bias)
        self.proj = nn.Linear(embed_dim, embed_dim)
        self.dropout = dropout

    def forward(self, x: Tensor, attn_mask: Tensor | None = None, rotate: Rotate | None = None) -> Tensor:
        """Return (B, K, D) of x (B, K, D). attn_mask: bool, broadcast to (B, heads, K, K), False for no attention."""
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
    """Two linear layers with a GELU between."""

    def __init__(self, embed_dim: int, hidden_dim: int, dropout: float) -> None:
        super().__init__()
        self.fc1 = nn.Linear(embed_dim, hidden_dim)
        self.fc2 = nn.Linear(hidden_dim, embed_dim)
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

    def forward(self, x: Tensor, attn_mask: Tensor | None = None, rotate: Rotate | None = None) -> Tensor:
        x = x + self.drop_path(self.dropout(self.attn(self.norm1(x), attn_mask, rotate)))
        return x + self.drop_path(self.mlp(self.norm2(x)))


def sincos_positions(embed_dim: int, grid: Grid, layout: str = "equal") -> Tensor:
    """Return sine-cosine positions (N, embed_dim) of a grid, row-major, fp32.

    An axis with 2n channels has n sines, then n cosines, at frequencies 10000^(-k / n), k = 0 .. n-1. The layout sets
    how many channels each axis has:

    "equal": the same number, the last axis first, as in MAE and the published I-JEPA weights.
    "half_time": for clips, half for time, then a quarter each for rows and columns, the default of V-JEPA.
    "uniform_power": for clips, a third each for time, rows and columns, rounded up to pairs and cut at the end, as in
        V-JEPA's recipes (`uniform_power: true` in facebookresearch/jepa).

    Raises ValueError if embed_dim cannot be split into sine-cosine pairs for every axis, or for another layout.
    """
    pairs_per_axis = sincos_pairs(embed_dim, len(grid), layout)
    axes = torch.meshgrid(*(torch.arange(n, dtype=torch.float64) for n in grid), indexing="ij")
    codes = []
    for axis, pairs in zip(reversed(axes) if layout == "equal" else axes, pairs_per_axis):
        frequency = 10000.0 ** (-torch.arange(pairs, dtype=torch.float64) / pairs)
        angle = axis.reshape(-1, 1) * frequency  # (N, pairs)
        codes += [angle.sin(), angle.cos()]
    return torch.cat(codes, dim=1)[:, :embed_dim].float()


def sincos_pairs(embed_dim: int, axes: int, layout: str) -> list[int]:
    """Return the number of sine-cosine pairs of each axis, in the order of the layout; see `sincos_positions`."""
    if layout != "equal" and axes != 3:
        raise ValueError(f"sincos_layout={layout} is for clips, on three axes, got {axes}: use sincos_layout=equal")
    if layout == "uniform_power":
        return [-(-embed_dim // 6)] * 3
    divisor = 2 * axes if layout == "equal" else 8
    if embed_dim % divisor:
        raise ValueError(
            f"sincos_layout={layout} on {axes} axes needs a width (embed_dim) divisible by {divisor}, got {embed_dim}"
        )
    unit = embed_dim // divisor
    return [unit] * axes if layout == "equal" else [2 * unit, unit, unit]


class SinCosPositions(nn.Module):
    """Sine-cosine positions of any grid, computed once per grid and device; no parameters or buffers."""

    def __init__(self, embed_dim: int, layout: str = "equal") -> None:
        super().__init__()
        if layout not in ("equal", "half_time", "uniform_power"):
            raise ValueError(f"sincos_layout: got {layout!r}, expected one of equal, half_time, uniform_power")
        self.embed_dim, self.layout = embed_dim, layout
        self._cache: dict[tuple[Grid, torch.device], Tensor] = {}

    def forward(self, grid: Grid, device: torch.device) -> Tensor:
        key = (grid, device)
        if key not in self._cache:
            self._cache[key] = sincos_positions(self.embed_dim, grid, self.layout).to(device)
        return self._cache[key]


class LearnedPositions(nn.Module):
    """One learned vector per position of a 1-D grid, as in BERT (arXiv 1810.04805)."""

    def __init__(self, embed_dim: int, max_length: int) -> None:
        super().__init__()
        self.table = nn.Parameter(torch.empty(max_length, embed_dim))
        nn.init.trunc_normal_(self.table, std=0.02)

    def forward(self, grid: Grid, device: torch.device) -> Tensor:
        """Return positions (N, D). Raise ValueError for a longer grid, or one of several axes."""
        if len(grid) != 1 or grid[0] > len(self.table):
            raise ValueError(
                f"learned positions are for sequences of at most {len(self.table)} tokens, got a grid of {grid}: "
                "raise model.encoder.max_length, or use positions=rotary"
            )
        return self.table[: grid[0]]


class RotaryPositions:
    """Rotary positions on an n-D grid (RoPE, arXiv 2104.09864; several axes as in V-JEPA 2, arXiv 2506.09985).

    Each axis rotates 2 * floor(floor(head_dim / axes) / 2) channels of a head; the remaining channels are not rotated.
    Pair k of an axis is rotated by position * 10000^(-k / pairs).

    convention: "interleaved": the angle of pair k rotates channels 2k and 2k + 1, as in the paper and V-JEPA 2.1.
        "tiled": as released with V-JEPA 2, channel i takes the angle of pair i mod pairs, which is not a rotation; only
        for its weights.
    reference_side: scale rows and columns (the last two axes) so that the last of each has position reference_side - 1,
        as V-JEPA 2.1 does at other resolutions than its first. None: no scaling.

    Raises ValueError if heads are too narrow for one pair per axis, or for another convention.
    """

    def __init__(self, head_dim: int, convention: str = "interleaved", reference_side: int | None = None) -> None:
        if convention not in ("interleaved", "tiled"):
            raise ValueError(f"rotary_convention: got {convention!r}, expected 'interleaved' or 'tiled'")
        if reference_side is not None and reference_side < 2:
            raise ValueError(f"rotary_reference_side: got {reference_side}, expected at least 2 or null")
        self.head_dim, self.convention, self.reference_side = head_dim, convention, reference_side
        self._cache: dict[tuple[Grid, torch.device], tuple[Tensor, Tensor]] = {}

    def rotation(self, grid: Grid, device: torch.device, index: Tensor | None = None) -> Rotate:
        """Return the rotation of queries and keys of the tokens `index` (B, K), or of all tokens of the grid."""
        cos, sin = self._tables(grid, device)  # (N, rotated)
        if index is not None:
            cos, sin = cos[index].unsqueeze(1), sin[index].unsqueeze(1)  # (B, 1, K, rotated)
        rotated = cos.shape[-1]

        def rotate(x: Tensor) -> Tensor:
            pairs, rest = x[..., :rotated], x[..., rotated:]
            first, second = pairs.unflatten(-1, (-1, 2)).unbind(-1)
            orthogonal = torch.stack((-second, first), dim=-1).flatten(-2)
            return torch.cat([(pairs * cos + orthogonal * sin).to(x.dtype), rest], dim=-1)

        return rotate

    def _tables(self, grid: Grid, device: torch.device) -> tuple[Tensor, Tensor]:
        key = (grid, device)
        if key not in self._cache:
            pairs = self.head_dim // len(grid) // 2
            if pairs < 1:
                raise ValueError(
                    f"rotary positions on {len(grid)} axes need heads of at least {2 * len(grid)} channels, "
                    f"got {self.head_dim}: use fewer heads or a larger width"
                )
            frequency = 10000.0 ** (-torch.arange(pairs, dtype=torch.float64) / pairs)
            axes = torch.meshgrid(*self._coordinates(grid), indexing="ij")
            angles = [axis.reshape(-1, 1) * frequency for axis in axes]  # each (N, pairs)
            tiled = self.convention == "tiled"
            angles = torch.cat([a.repeat(1, 2) if tiled else a.repeat_interleave(2, dim=1) for a in angles], dim=1)
            self._cache[key] = angles.cos().float().to(device), angles.sin().float().to(device)
        return self._cache[key]

    def _coordinates(self, grid: Grid) -> list[Tensor]:
        axes = [torch.arange(n, dtype=torch.float64) for n in grid]
        if self.reference_side is None:
            return axes
        first = max(0, len(grid) - 2)
        return axes[:first] + [axis * (self.reference_side - 1) / max(1, len(axis) - 1) for axis in axes[first:]]


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
        raise ValueError(f"{key}.num_heads={num_heads} does not divide {key}.embed_dim={embed_dim}: use one of {fits}")


def check_layers(layers: Sequence[int], depth: int, key: str) -> list[int]:
    """Return the layers as a list. Raise ValueError unless they are rising block numbers that end with depth - 1."""
    layers = list(layers)
    if not layers or sorted(set(layers)) != layers or layers[0] < 0 or layers[-1] != depth - 1:
        raise ValueError(
            f"{key}={layers}: expected rising block numbers from 0 that end with {depth - 1}, the last block of the "
            "encoder"
        )
    return layers
