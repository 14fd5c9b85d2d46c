"""The projector: the MLP between embeddings and the terms that read projections."""

from __future__ import annotations

from collections.abc import Sequence
from itertools import pairwise
from typing import Literal

from torch import Tensor, nn

from jepa.utils.errors import check_choice


class Projector(nn.Module):
    """Linear layers with a norm and GELU between them.

    hidden: widths of the hidden layers. out_dim: width of the projections. norm: "batch", over all views of all samples
    together, or "layer". Batch norm scales up shrinking embeddings and so hides their collapse from the terms; layer
    norm does not.
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
        check_choice("loss.projector.norm", norm, ("batch", "layer"))
        make_norm = nn.BatchNorm1d if norm == "batch" else nn.LayerNorm
        widths = [in_dim, *hidden]
        layers: list[nn.Module] = []
        for in_width, out_width in pairwise(widths):
            layers += [nn.Linear(in_width, out_width, bias=False), make_norm(out_width), nn.GELU()]
        self.layers = nn.Sequential(*layers, nn.Linear(widths[-1], out_dim))

    def forward(self, embeddings: Tensor) -> Tensor:
        """Return projections, (V, B, D) -> (V, B, out_dim)."""
        return self.layers(embeddings.flatten(0, 1)).unflatten(0, embeddings.shape[:2])
