"""Predictors of world models: from states and actions to the states that follow.

Each has `context`, how many states it looks at, and takes states (B, n, D) of up to so many consecutive frames with the
actions (B, n, A) that follow each of them. Output t, of (B, n, D), is what follows state t, from the states up to t.
`WorldModel` completes them with `embed_dim=` (D) and `action_dim=` (A), and normalises their output as it does states.
"""

from __future__ import annotations

from collections.abc import Sequence
from itertools import pairwise

import torch
from torch import Tensor, nn
from torch.nn import functional as F

from jepa.models.transformer import Attention, Mlp, check_heads, init_transformer
from jepa.utils.errors import check_at_least
from jepa.utils.linear_layer import Linear


class GRUPredictor(nn.Module):
    """One gated recurrent unit whose hidden state is the model's state and whose input is the action (eb_jepa)."""

    context = 1

    def __init__(self, *, embed_dim: int, action_dim: int) -> None:
        super().__init__()
        self.cell = nn.GRUCell(action_dim, embed_dim)

    def forward(self, states: Tensor, actions: Tensor) -> Tensor:
        return self.cell(actions.flatten(0, 1), states.flatten(0, 1)).unflatten(0, states.shape[:2])


class MLPPredictor(nn.Module):
    """The state, plus what an MLP of state and action adds to it.

    hidden: widths of hidden layers with GELU.
    """

    context = 1

    def __init__(self, *, embed_dim: int, action_dim: int, hidden: Sequence[int] = (512,)) -> None:
        super().__init__()
        widths = [embed_dim + action_dim, *hidden]
        layers = [layer for a, b in pairwise(widths) for layer in (nn.Linear(a, b), nn.GELU())]
        self.layers = nn.Sequential(*layers, nn.Linear(widths[-1], embed_dim))

    def forward(self, states: Tensor, actions: Tensor) -> Tensor:
        return states + self.layers(torch.cat([states, actions], dim=-1))


class CausalPredictor(nn.Module):
    """A transformer over a few frames, one token each, that sees no later one; actions condition every block (LeWM).

    The action that follows a frame scales, shifts and gates what each block does with the frame's token (AdaLN-zero,
    DiT, arXiv 2212.09748, section 3.2): at first no block does anything.

    context: frames it sees. width, depth, num_heads, mlp_ratio, dropout: of the transformer; width None: embed_dim.
    """

    def __init__(
        self,
        *,
        embed_dim: int,
        action_dim: int,
        context: int = 3,
        width: int | None = None,
        depth: int = 6,
        num_heads: int = 4,
        mlp_ratio: float = 4.0,
        dropout: float = 0.0,
    ) -> None:
        super().__init__()
        width = width or embed_dim
        check_at_least("model.predictor", 1, context=context, depth=depth, width=width)
        check_heads(width, num_heads, "model.predictor")
        self.context = context
        self.embed = Linear(embed_dim, width)
        self.embed_action = nn.Sequential(Linear(action_dim, width), nn.SiLU(), Linear(width, width))
        self.positions = nn.Parameter(0.02 * torch.randn(context, width))
        self.blocks = nn.ModuleList(ConditionedBlock(width, num_heads, mlp_ratio, dropout) for _ in range(depth))
        self.norm = nn.LayerNorm(width, eps=1e-6)
        self.project = Linear(width, embed_dim)
        init_transformer(self, self.blocks)
        for block in self.blocks:
            nn.init.zeros_(block.condition.weight)

    def forward(self, states: Tensor, actions: Tensor) -> Tensor:
        frames = states.shape[1]
        tokens = self.embed(states) + self.positions[:frames]
        conditions = F.silu(self.embed_action(actions))
        earlier = torch.ones(frames, frames, dtype=torch.bool, device=states.device).tril()
        for block in self.blocks:
            tokens = block(tokens, conditions, earlier)
        return self.project(self.norm(tokens))


class ConditionedBlock(nn.Module):
    """A transformer block whose attention and MLP are scaled, shifted and gated by a condition of each token."""

    def __init__(self, width: int, num_heads: int, mlp_ratio: float, dropout: float) -> None:
        super().__init__()
        self.attn = Attention(embed_dim=width, num_heads=num_heads)
        self.mlp = Mlp(width, int(width * mlp_ratio), dropout)
        self.dropout = nn.Dropout(dropout)
        self.condition = Linear(width, 6 * width)

    def forward(self, x: Tensor, condition: Tensor, attn_mask: Tensor) -> Tensor:
        """Return tokens (B, n, W) of tokens x and conditions (B, n, W). attn_mask (n, n): see `Attention`."""
        shift, scale, gate, mlp_shift, mlp_scale, mlp_gate = self.condition(condition).chunk(6, dim=-1)
        x = x + gate * self.dropout(self.attn(modulated(x, shift, scale), attn_mask))
        return x + mlp_gate * self.mlp(modulated(x, mlp_shift, mlp_scale))


def modulated(x: Tensor, shift: Tensor, scale: Tensor) -> Tensor:
    """Return layer-normed tokens, scaled by 1 + scale and shifted."""
    return F.layer_norm(x, x.shape[-1:], eps=1e-6) * (1 + scale) + shift
