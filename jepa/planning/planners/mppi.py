"""MPPI: the mean of samples, weighted by their costs."""

from __future__ import annotations

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
        scale = self.temperature * costs.std(dim=1, correction=0, keepdim=True).clamp(min=1e-12)
        weights = ((costs[:, :1] - costs) / scale).softmax(dim=1)[:, :, None, None]
        mean = (weights * elites).sum(dim=1, keepdim=True)
        return mean, (weights * (elites - mean).square()).sum(dim=1, keepdim=True).sqrt()
