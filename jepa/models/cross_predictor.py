"""The predictor across modalities: from the tokens of one, the features of another."""

from __future__ import annotations

import torch
from torch import Tensor, nn

from jepa.models.cross_modal_jepa import ModalityEncoders
from jepa.models.positions import SinCosPositions
from jepa.models.transformer import block_list, check_heads, init_transformer
from jepa.types import Grid, Mask
from jepa.utils.tensors import attention_mask


class CrossPredictor(nn.Module):
    """A narrow transformer over the context tokens of one modality and queries for the features of another.

    encoder: `ModalityEncoders`. out_dim: width of the targets; None takes the encoder's.

    A context token is the sum of its projected feature, a learned vector of its modality and sine-cosine positions. A
    query is a learned vector of the target modality, plus positions if it asks for one token and not for the mean of
    all. One predictor serves all pairs of modalities.
    """

    def __init__(
        self,
        *,
        encoder: ModalityEncoders,
        out_dim: int | None = None,
        embed_dim: int = 96,
        depth: int = 2,
        num_heads: int = 4,
        mlp_ratio: float = 4.0,
        dropout: float = 0.0,
    ) -> None:
        super().__init__()
        check_heads(embed_dim, num_heads, "model.predictor")
        names = list(encoder.encoders)
        self.embed = nn.Linear(encoder.embed_dim, embed_dim)
        self.sources = nn.ParameterDict({name: torch.zeros(embed_dim) for name in names})
        self.queries = nn.ParameterDict({name: torch.zeros(embed_dim) for name in names})
        self.positions = SinCosPositions(embed_dim)
        self.blocks = block_list(depth, embed_dim, num_heads, mlp_ratio, dropout)
        self.norm = nn.LayerNorm(embed_dim, eps=1e-6)
        self.project = nn.Linear(embed_dim, encoder.embed_dim if out_dim is None else out_dim)
        init_transformer(self, self.blocks)
        for vector in [*self.sources.values(), *self.queries.values()]:
            nn.init.trunc_normal_(vector, std=0.02)

    def forward(
        self,
        context: Tensor,
        source: tuple[str, Grid, Mask],
        target: tuple[str, Grid],
        index: Tensor | None,
        index_valid: Tensor | None = None,
    ) -> Tensor:
        """Return predictions (B, P, D) of the target modality's tokens `index` (B, P), or (B, 1, D) of their mean.

        context (B, K, D): features of the source's context tokens. source: its name, grid and mask. target: its name
        and grid. index: None predicts the mean. index_valid (B, P) bool: False at padding.
        """
        name, grid, mask = source
        tokens = self.embed(context) + self.sources[name] + self.positions(grid, context.device)[mask.context]
        queries = self.queries[target[0]].expand(len(context), 1, -1)
        if index is not None:
            queries = queries + self.positions(target[1], context.device)[index]
        valid = None
        if mask.context_valid is not None or index_valid is not None:
            parts = [(tokens, mask.context_valid), (queries, index_valid)]
            valid = [torch.ones_like(t[..., 0], dtype=torch.bool) if v is None else v for t, v in parts]
            valid = attention_mask(torch.cat(valid, dim=1))
        tokens = torch.cat([tokens, queries.to(tokens.dtype)], dim=1)  # (B, K + P, embed_dim)
        for block in self.blocks:
            tokens = block(tokens, valid)
        return self.project(self.norm(tokens[:, -queries.shape[1] :]))
