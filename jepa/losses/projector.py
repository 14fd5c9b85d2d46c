"""The head between embeddings and the terms that compare them."""

from __future__ import annotations

from collections.abc import Sequence

from torch import Tensor, nn


class Projector(nn.Module):
    """Linear layers with batch norm and GELU between them; the last layer is plain.

    hidden: widths of the inner layers. out_dim: width of the projections. The batch norm sees all views of all
    samples of the batch together.
    """

    def __init__(self, *, in_dim: int, hidden: Sequence[int] = (2048, 2048), out_dim: int = 128) -> None:
        super().__init__()
        widths = [in_dim, *hidden]
        layers: list[nn.Module] = []
        for before, after in zip(widths, widths[1:]):
            layers += [nn.Linear(before, after, bias=False), nn.BatchNorm1d(after), nn.GELU()]
        self.layers = nn.Sequential(*layers, nn.Linear(widths[-1], out_dim))

    def forward(self, embeddings: Tensor) -> Tensor:
        """(V, B, D) -> (V, B, out_dim)."""
        return self.layers(embeddings.flatten(0, 1)).unflatten(0, embeddings.shape[:2])
