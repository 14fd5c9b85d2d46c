"""Planning by the gradient of the cost with respect to the actions, from several beginnings."""

from __future__ import annotations

from collections.abc import Sequence
from dataclasses import dataclass

import torch
from torch import Tensor

from jepa.planning.planners.planner import Cost, Planner, best
from jepa.utils.errors import check_at_least


@dataclass(kw_only=True, eq=False)
class Gradient(Planner):
    """Adam on the actions of each sample, brought within the bounds after every step; the best seen is the plan.

    iterations: steps of Adam. learning_rate: in halves of the range of actions.
    exponent: of the noise that samples begin with, see `Planner.noise`.
    """

    samples: int = 8
    iterations: int = 30
    learning_rate: float = 0.1
    exponent: float = 1.0

    def __post_init__(self) -> None:
        super().__post_init__()
        check_at_least("planner", 1, iterations=self.iterations)
        if not self.learning_rate > 0:
            raise ValueError(f"planner.learning_rate must be above 0, got {self.learning_rate}")

    def __call__(self, cost: Cost, plan: Tensor | None, generators: Sequence[torch.Generator]) -> Tensor:
        begin = self.begin(plan, len(generators)).unsqueeze(1)
        noise = self.deviation * self.noise(generators, self.samples - 1, self.exponent)
        found, least = None, None
        with torch.enable_grad():
            free = (self.bounded(torch.cat([begin, begin + noise], dim=1)) / self.half).requires_grad_()
            optimizer = torch.optim.Adam([free], lr=self.learning_rate)
            for _ in range(self.iterations + 1):
                costs = cost(free * self.half)
                chosen, lowest = best(free.detach() * self.half, costs.detach(), 1)
                better = None if found is None else (lowest < least)
                found = chosen if better is None else torch.where(better[:, :, None, None], chosen, found)
                least = lowest if better is None else torch.minimum(lowest, least)
                (gradient,) = torch.autograd.grad(costs.sum(), free)  # not backward: a model's weights keep theirs
                free.grad = gradient.nan_to_num(nan=0.0, posinf=0.0, neginf=0.0)
                optimizer.step()
                with torch.no_grad():
                    free.copy_(self.bounded(free * self.half) / self.half)
        return found[:, 0]
