"""The prediction of the tokens that are seen, beside that of those that are hidden."""

from __future__ import annotations

from torch import Tensor, nn

from jepa.losses.regression import Regression
from jepa.types import Latents


class ContextPrediction(nn.Module):
    """A regression at the context's tokens, near hidden ones most: V-JEPA 2.1's dense loss (arXiv 2603.14482).

    distance: between two tokens, such as L1. The model weighs a token by 1 / sqrt(distance to the nearest hidden one);
    weighted False counts all alike, as in the published cool-down. Needs model.predictor.predict_context=true.
    """

    prevents_collapse = False
    batch_statistics = False
    needs = ("context",)

    def __init__(self, *, distance: Regression, weighted: bool = True) -> None:
        super().__init__()
        self.distance = distance
        self.weighted = weighted

    def forward(self, latents: Latents) -> Tensor:
        """The loss, an fp32 scalar."""
        seen = latents.context
        if not self.weighted:
            weights = [None if weight is None else (weight > 0).float() for weight in seen.target_weights]
            seen = Latents(predictions=seen.predictions, targets=seen.targets, target_weights=weights)
        return self.distance(seen)
