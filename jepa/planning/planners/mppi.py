"""MPPI: the mean of samples, weighted by their costs."""

from __future__ import annotations

import math
from dataclasses import dataclass

from torch import Tensor

from jepa.planning.planners.cem import CEM


@dataclass(kw_only=True, eq=False)
class MPPI(CEM):
    """Model predictive path integral control (Williams et al., 2015, arXiv 1509.01149), repeated as in TD-MPC.

    CEM whose elites are weighted by exp(-cost / temperature).

    temperature: in standard deviations of the elites' costs, so that it fits costs of any scale; a large one weighs
        all alike, which is CEM.
    """

    temperature: float = 0.5

    def __post_init__(self) -> None:
        super().__post_init__()
        if not self.temperature > 0:
            raise ValueError(f"planner.temperature must be above 0, got {self.temperature}")

    def fitted(self, elites: Tensor, costs: Tensor) -> tuple[Tensor, Tensor]:
        worse = (costs - costs[:, :1]).nan_to_num(nan=0.0, posinf=math.inf)  # where none is finite, all alike
        finite = worse.masked_fill(worse.isinf(), math.nan)
        deviation = (finite - finite.nanmean(dim=1, keepdim=True)).square().nanmean(dim=1, keepdim=True).sqrt()
        weights = (-worse / (self.temperature * deviation.clamp(min=1e-12))).softmax(dim=1)[:, :, None, None]
        mean = (weights * elites).sum(dim=1, keepdim=True)
        return mean, (weights * (elites - mean).square()).sum(dim=1, keepdim=True).sqrt()
