"""MultiScale: the distance of predictions and targets averaged over cells of the grid, at several scales."""

from __future__ import annotations

import math
from collections.abc import Sequence

import torch
from torch import Tensor
from torch.nn import functional as F

from jepa.losses.objective import Term
from jepa.losses.regression import Regression, SmoothL1, mean_over_targets
from jepa.types import Latents
from jepa.utils.tensors import position_ids


class MultiScale(Term):
    """Sum over scales s of w_s * mean over cells of d(mean of predictions in the cell, mean of targets in the cell).

    At scale s the grid is divided into cells of s tokens along every axis, as in a spatial pyramid (Lazebnik et al.
    2006, "Beyond Bags of Features"). A cell is weighted by its predicted tokens: scale 1 alone is the plain regression.
    Of no published JEPA.

    scales: s, in tokens. weights: w_s, one for each scale; None for equal weights of sum 1.
    distance: d, a regression such as SmoothL1 (for None), L1, MSE, Cosine.
    """

    needs = ("predictions", "targets", "positions")

    def __init__(
        self,
        *,
        scales: Sequence[int] = (1, 2, 4),
        weights: Sequence[float] | None = None,
        distance: Regression | None = None,
    ) -> None:
        super().__init__()
        if not scales or any(type(s) is not int or s < 1 for s in scales):
            raise ValueError(
                f"scales: got {list(scales)}, expected whole numbers of tokens from 1 on, such as [1, 2, 4]"
            )
        weights = [1 / len(scales)] * len(scales) if weights is None else list(weights)
        if len(weights) != len(scales) or not all(0 <= w < math.inf for w in weights) or not sum(weights):
            raise ValueError(
                f"weights: got {weights} for the scales {list(scales)}, expected one number >= 0 for each, "
                "not all 0, or null to weigh them alike"
            )
        self.scales = list(scales)
        self.weights = weights
        self.regression = SmoothL1() if distance is None else distance

    def forward(self, latents: Latents) -> Tensor:
        token_weights = latents.target_weights or [None] * len(latents.targets)
        means = [
            sum(w * self._at_scale(s, *tensors) for s, w in zip(self.scales, self.weights))
            for tensors in zip(latents.predictions, latents.targets, latents.positions, token_weights)
        ]
        return torch.stack(means).mean()

    def _at_scale(
        self, scale: int, prediction: Tensor, target: Tensor, positions: Tensor, weight: Tensor | None
    ) -> Tensor:
        """Return the mean distance of pooled (B, M, P, D), with positions (B, M, P, A) and weights (B, M, P)."""
        if scale == 1:
            return mean_over_targets([self.regression.distance(prediction.float(), target.float())], [weight])
        cells = group_equal(position_ids(positions // scale))  # (B, M, P)
        weight = torch.ones_like(cells, dtype=torch.float32) if weight is None else weight.float()
        cell_weight = torch.zeros_like(weight).scatter_add(-1, cells, weight)  # 0 beyond the last cell
        token_share = (weight / cell_weight.gather(-1, cells).clamp(min=1e-12)).unsqueeze(-1)
        index = cells.unsqueeze(-1).expand_as(prediction)

        def pool(tokens: Tensor) -> Tensor:
            return torch.zeros_like(tokens).scatter_add(-2, index, tokens * token_share)

        distance = self.regression.distance(pool(prediction.float()), pool(target.float()))
        return mean_over_targets([distance], [cell_weight])


def group_equal(ids: Tensor) -> Tensor:
    """Return groups of equal ids along the last axis, numbered from 0 in rising order: (..., P) -> (..., P) < P."""
    ordered, order = ids.sort(dim=-1)
    groups = F.pad((ordered.diff(dim=-1) != 0).long(), (1, 0)).cumsum(dim=-1)
    return torch.empty_like(groups).scatter_(-1, order, groups)
