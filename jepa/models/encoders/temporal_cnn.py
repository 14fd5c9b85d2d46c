"""A dilated temporal CNN as a masked encoder: features do not depend on hidden tokens.

    python train.py model=temporal_cnn data=ucr data.root=DIR data.name=ECG5000

The residual network of dilated convolutions of Bai et al. 2018 (arXiv 1803.01271), not causal, on the tokens of a stem.
A transformer drops hidden tokens. A convolution needs a regular grid, so hidden tokens are set to zero at the input and
again in every layer: norms, biases and convolutions would otherwise fill them and pass information through them. The
end of a sequence, padding and hidden tokens look the same to a convolution.
"""

from __future__ import annotations

import math
from collections.abc import Callable, Sequence
from typing import Literal

import torch
from torch import Tensor, nn
from torch.nn import functional as F

from jepa.models.encoders.stem_encoder import StemEncoder
from jepa.models.positions import SinCosPositions
from jepa.models.transformer import init_transformer, run_blocks
from jepa.utils.errors import check_at_least, check_choice
from jepa.utils.tensors import gather_tokens


class DilatedBlock(nn.Module):
    """Residual block: norm, dilated convolution over the visible tokens, GELU, linear layer."""

    def __init__(self, *, embed_dim: int, kernel_size: int, dilation: int, dropout: float = 0.0) -> None:
        super().__init__()
        self.norm = nn.LayerNorm(embed_dim, eps=1e-6)
        padding = dilation * (kernel_size // 2)
        self.convolve = nn.Conv1d(embed_dim, embed_dim, kernel_size, dilation=dilation, padding=padding)
        nn.init.zeros_(self.convolve.bias)
        self.project = nn.Linear(embed_dim, embed_dim)
        self.dropout = nn.Dropout(dropout)

    def forward(self, x: Tensor, visible: Tensor) -> Tensor:
        """Return (R, N, D) of x (R, N, D), 0 where visible (R, N, 1) bool is False."""
        masked = self.norm(x).masked_fill(~visible, 0.0)
        convolved = self.convolve(masked.transpose(1, 2)).transpose(1, 2)
        residual = self.project(F.gelu(convolved))
        return (x + self.dropout(residual)).masked_fill(~visible, 0.0)


class TemporalCNN(StemEncoder):
    """Stem, positions, dilated residual blocks, final norm (`jepa.types.Encoder`).

    stem: called with `embed_dim=` to be completed. On a grid of several axes, such as (channels, time), convolutions
        run along the last one, separately for each row.
    kernel_size: of the convolutions, odd. max_dilation: block i has dilation 2^i, starting again at 1 above this.
    """

    def __init__(
        self,
        *,
        stem: Callable[..., nn.Module],
        embed_dim: int,
        depth: int,
        kernel_size: int = 3,
        max_dilation: int = 64,
        positions: Literal["sincos", "none"] = "sincos",
        dropout: float = 0.0,
    ) -> None:
        if kernel_size < 1 or kernel_size % 2 == 0:
            raise ValueError(f"model.encoder.kernel_size must be odd and above 0, got {kernel_size}")
        check_at_least("model.encoder", 1, embed_dim=embed_dim, depth=depth, max_dilation=max_dilation)
        check_choice("model.encoder.positions", positions, ("sincos", "none"))
        super().__init__(stem, embed_dim)
        self.depth = depth
        cycle = int(math.log2(max_dilation)) + 1
        self.blocks = nn.ModuleList(
            DilatedBlock(embed_dim=embed_dim, kernel_size=kernel_size, dilation=2 ** (i % cycle), dropout=dropout)
            for i in range(depth)
        )
        self.norm = nn.LayerNorm(embed_dim, eps=1e-6)
        init_transformer(self, self.blocks)
        with torch.no_grad():
            for number, block in enumerate(self.blocks, start=1):
                block.project.weight.div_(math.sqrt(number))
        self.positions = SinCosPositions(embed_dim) if positions == "sincos" else None

    def forward(
        self, x: Tensor, keep: Tensor | None = None, valid: Tensor | None = None, layers: Sequence[int] | None = None
    ) -> Tensor | list[Tensor]:
        grid = self.grid(x)
        tokens = self.stem(x)  # (B, N, D)
        if self.positions is not None:
            tokens = tokens + self.positions(grid, x.device)
        visible = self._visible(tokens, x, keep, valid).unsqueeze(-1)  # (B, N, 1)
        tokens = tokens.masked_fill(~visible, 0.0)
        rows, visible = (t.reshape(-1, grid[-1], t.shape[-1]) for t in (tokens, visible))  # (B * rows, time, D or 1)

        def finish(rows: Tensor, number: int) -> Tensor:
            features = rows.view_as(tokens)
            return self.norm(features if keep is None else gather_tokens(features, keep))

        return run_blocks(self.blocks, rows, visible, finish=finish, layers=layers)

    def _visible(self, tokens: Tensor, x: Tensor, keep: Tensor | None, valid: Tensor | None) -> Tensor:
        """Return which tokens (B, N) bool are visible."""
        not_padding = self.token_valid(x)
        if keep is None:
            visible = not_padding if valid is None else valid
            return torch.ones_like(tokens[..., 0], dtype=torch.bool) if visible is None else visible
        if valid is None:
            valid = torch.ones_like(keep, dtype=torch.bool) if not_padding is None else not_padding.gather(1, keep)
        # Invalid entries of `keep` repeat a token, which is visible only if a valid entry names it too.
        counts = torch.zeros(tokens.shape[:2], dtype=torch.int64, device=tokens.device)
        return counts.scatter_add_(1, keep, valid.long()) > 0
