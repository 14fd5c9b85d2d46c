"""Random shooting: many samples, the best of which is the plan."""

from __future__ import annotations

from collections.abc import Sequence
from dataclasses import dataclass

import torch
from torch import Tensor

from jepa.planning.planners.planner import Cost, Planner, best


@dataclass(kw_only=True, eq=False)
class RandomShooting(Planner):
    """Half of the samples are drawn about the plan before, half about the middle of the bounds; the best is the plan.

    exponent: of the noise, see `Planner.noise`.
    """

    samples: int = 1024
    exponent: float = 1.0

    def __call__(self, cost: Cost, plan: Tensor | None, generators: Sequence[torch.Generator]) -> Tensor:
        begin = self.begin(plan, len(generators)).unsqueeze(1)
        noise = self.deviation * self.noise(generators, self.samples, self.exponent)
        about = torch.where(torch.arange(self.samples)[:, None, None] % 2 == 0, begin, self.middle)
        samples = self.bounded(torch.cat([begin, about + noise], dim=1))
        return best(samples, cost(samples), 1)[0][:, 0]
