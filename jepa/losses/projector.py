"""The head between embeddings and the terms that compare them."""

from __future__ import annotations

from collections.abc import Sequence
from itertools import pairwise
from typing import Literal

from torch import Tensor, nn


class Projector(nn.Module):
    """Linear layers with a norm and GELU between them; the last layer is plain.

    hidden: widths of the inner layers. out_dim: width of the projections. norm: "batch", over all views of all
    samples of the batch together, or "layer". Batch norm blows up the little that is left of embeddings which
    shrink, and so hides their collapse from the terms behind it; layer norm does not.
    """

    def __init__(
        self,
        *,
        in_dim: int,
        hidden: Sequence[int] = (2048, 2048),
        out_dim: int = 128,
        norm: Literal["batch", "layer"] = "batch",
    ) -> None:
        super().__init__()
        if norm not in ("batch", "layer"):
            raise ValueError(f"loss.projector.norm: got {norm!r}, expected 'batch' or 'layer'")
        make_norm = nn.BatchNorm1d if norm == "batch" else nn.LayerNorm
        widths = [in_dim, *hidden]
        layers: list[nn.Module] = []
        for before, after in pairwise(widths):
            layers += [nn.Linear(before, after, bias=False), make_norm(after), nn.GELU()]
        self.layers = nn.Sequential(*layers, nn.Linear(widths[-1], out_dim))

    def forward(self, embeddings: Tensor) -> Tensor:
        """(V, B, D) -> (V, B, out_dim)."""
        return self.layers(embeddings.flatten(0, 1)).unflatten(0, embeddings.shape[:2])
