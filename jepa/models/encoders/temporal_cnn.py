"""A dilated temporal CNN that keeps the contract of masked encoders: hidden tokens leave no trace.

    python train.py model=temporal_cnn data=ucr data.root=DIR data.name=ECG5000

The residual network of dilated convolutions of Bai et al. 2018 (arXiv 1803.01271), not causal, on the tokens of a stem.
A transformer drops hidden tokens. A convolution needs its neighbours in place, so here they are zero wherever a
convolution reads: at the input and again in every layer, as norms and biases would fill them, and what a layer wrote
there from its neighbours would else tell the next one what was hidden beyond. The end of a sequence, padding and hidden
tokens thus look alike.
"""

from __future__ import annotations

import math
from collections.abc import Callable, Sequence
from typing import Literal

import torch
from torch import Tensor, nn
from torch.nn import functional as F

from jepa.models.positions import SinCosPositions
from jepa.models.transformer_blocks import pick_layers
from jepa.models.weight_init import init_transformer
from jepa.types import Grid
from jepa.utils.tensors import gather_tokens, token_valid


class DilatedBlock(nn.Module):
    """Norm, dilated convolution over neighbouring visible tokens, GELU, linear layer; added to its input."""

    def __init__(self, *, embed_dim: int, kernel_size: int, dilation: int, dropout: float = 0.0) -> None:
        super().__init__()
        self.norm = nn.LayerNorm(embed_dim, eps=1e-6)
        reach = dilation * (kernel_size // 2)
        self.convolve = nn.Conv1d(embed_dim, embed_dim, kernel_size, dilation=dilation, padding=reach)
        nn.init.zeros_(self.convolve.bias)
        self.project = nn.Linear(embed_dim, embed_dim)
        self.dropout = nn.Dropout(dropout)

    def forward(self, x: Tensor, visible: Tensor) -> Tensor:
        """x (R, N, D) -> (R, N, D), 0 where visible (R, N, 1) bool is False."""
        read = self.norm(x).masked_fill(~visible, 0.0)
        convolved = self.convolve(read.transpose(1, 2)).transpose(1, 2)
        change = self.project(F.gelu(convolved))
        return (x + self.dropout(change)).masked_fill(~visible, 0.0)


class TemporalCNN(nn.Module):
    """Stem, positions, dilated residual blocks, final norm (`jepa.types.Encoder`).

    stem: called with `embed_dim=` to be completed. On a grid of several axes, such as (channels, time), it convolves
        along the last one, every row by itself.
    kernel_size: taps of a convolution, odd. max_dilation: block i has dilation 2^i, beginning again at 1 after this.
    positions: "sincos" added to the tokens, or "none"; without, features do not know where in the series they are.

    Raises ValueError for an even kernel, and counts below 1.
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
        super().__init__()
        if kernel_size < 1 or kernel_size % 2 == 0:
            raise ValueError(f"model.encoder.kernel_size must be odd and above 0, got {kernel_size}")
        for name, value in {"embed_dim": embed_dim, "depth": depth, "max_dilation": max_dilation}.items():
            if value < 1:
                raise ValueError(f"model.encoder.{name} must be at least 1, got {value}")
        if positions not in ("sincos", "none"):
            raise ValueError(f"model.encoder.positions: got {positions!r}, expected 'sincos' or 'none'")
        self.embed_dim, self.depth = embed_dim, depth
        self.stem = stem(embed_dim=embed_dim)
        self.token_values: int = self.stem.token_values
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
        """Features of inputs x; arguments as of `TransformerEncoder.forward`."""
        grid = self.grid(x)
        tokens = self.stem(x)  # (B, N, D)
        if self.positions is not None:
            tokens = tokens + self.positions(grid, x.device)
        visible = self._visible(tokens, x, keep, valid).unsqueeze(-1)  # (B, N, 1)
        tokens = tokens.masked_fill(~visible, 0.0)
        rows, visible = (t.reshape(-1, grid[-1], t.shape[-1]) for t in (tokens, visible))  # (B * rows, time, D or 1)
        outputs: dict[int, Tensor] = {}
        for number, block in enumerate(self.blocks):
            rows = block(rows, visible)
            if layers is not None and number in layers:
                outputs[number] = self._finish(rows, tokens, keep)
        return self._finish(rows, tokens, keep) if layers is None else pick_layers(outputs, layers, self.depth)

    def _visible(self, tokens: Tensor, x: Tensor, keep: Tensor | None, valid: Tensor | None) -> Tensor:
        """Which tokens (B, N) bool may be read."""
        real = self.token_valid(x)
        if keep is None:
            visible = real if valid is None else valid
            return torch.ones_like(tokens[..., 0], dtype=torch.bool) if visible is None else visible
        if valid is None:
            valid = torch.ones_like(keep, dtype=torch.bool) if real is None else real.gather(1, keep)
        # Entries that are not valid repeat a token, which is visible only where a valid one names it.
        counts = torch.zeros(tokens.shape[:2], dtype=torch.int64, device=tokens.device)
        return counts.scatter_add_(1, keep, valid.long()) > 0

    def _finish(self, rows: Tensor, like: Tensor, keep: Tensor | None) -> Tensor:
        """Features (B, K or N, D) through the final norm."""
        features = rows.view_as(like)
        return self.norm(features if keep is None else gather_tokens(features, keep))
