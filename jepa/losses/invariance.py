"""Invariance: the views of a sample should share one projection."""

from __future__ import annotations

from torch import Tensor, nn

from jepa.types import Latents


class Invariance(nn.Module):
    """Mean squared distance of each view's projection (V, B, E) to the mean over the sample's views.

    LeJEPA's invariance term (arXiv 2511.08544), with all views in the mean. Raises ValueError for a single view.
    """

    prevents_collapse = False
    batch_statistics = False
    needs = ("projections",)

    def forward(self, latents: Latents) -> Tensor:
        """The distance, an fp32 scalar."""
        views = latents.projections.float()
        if len(views) < 2:
            raise ValueError(
                "loss.terms.invariance compares views of a sample and there is one: set data.views=2, "
                "or draw several masks"
            )
        return (views - views.mean(dim=0)).square().mean()
