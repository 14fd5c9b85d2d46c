"""V-JEPA 2.1's dense loss: the prediction of context tokens, beside that of the hidden ones."""

from __future__ import annotations

from torch import Tensor

from jepa.losses.objective import Term
from jepa.losses.regression import Regression
from jepa.types import Latents


class ContextPrediction(Term):
    """A regression of the context tokens: V-JEPA 2.1's dense loss (arXiv 2603.14482).

    distance: between two tokens, such as L1. weighted: by 1 / sqrt(distance to the nearest hidden token), as the model
    computes it; False weighs all alike, as in the published cool-down. Needs model.predictor.predict_context=true.
    """

    needs = ("context",)

    def __init__(self, *, distance: Regression, weighted: bool = True) -> None:
        super().__init__()
        self.distance = distance
        self.weighted = weighted

    def forward(self, latents: Latents) -> Tensor:
        context = latents.context
        if not self.weighted:
            weights = [None if weight is None else (weight > 0).float() for weight in context.target_weights]
            context = Latents(predictions=context.predictions, targets=context.targets, target_weights=weights)
        return self.distance(context)
