"""Invariance: the distance between the projections of a sample's views."""

from __future__ import annotations

from typing import Literal

from torch import Tensor

from jepa.losses.objective import Term
from jepa.types import Latents
from jepa.utils.errors import check_choice


class Invariance(Term):
    """Mean squared distance between the projections (V, B, E) of a sample's views.

    reference: what a view is compared with.
        "mean": the mean over all views of the sample.
        "global": the mean over its first `Latents.global_views` views; LeJEPA's invariance (arXiv 2511.08544) with
            local crops. The same as "mean" where all views are global.
        "pairs": every other view; mean over pairs of |z - z'|^2 / E, VICReg's s(Z, Z') (arXiv 2105.04906, equation 5)
            as its code normalises it. With V views it is 2 V / (V - 1) times "mean".

    Gradients reach the reference too. Raises ValueError for a single view.
    """

    needs = ("projections",)

    def __init__(self, *, reference: Literal["mean", "global", "pairs"] = "mean") -> None:
        super().__init__()
        check_choice("loss.terms.invariance.term.reference", reference, ("mean", "global", "pairs"))
        self.reference = reference

    def forward(self, latents: Latents) -> Tensor:
        views = latents.projections.float()
        if len(views) < 2:
            raise ValueError(
                "loss.terms.invariance compares views of a sample and there is one: set data.views=2, "
                "or draw several masks"
            )
        globals_only = views[: latents.global_views] if self.reference == "global" else views
        distance = (views - globals_only.mean(dim=0)).square().mean()
        # Squared distances to the mean of V numbers sum to 1 / V times those of all pairs.
        return distance * (2 * len(views) / (len(views) - 1)) if self.reference == "pairs" else distance
