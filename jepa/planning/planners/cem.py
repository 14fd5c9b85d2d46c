"""The cross-entropy method: a normal distribution of plans, fitted to its best samples again and again."""

from __future__ import annotations

from collections.abc import Sequence
from dataclasses import dataclass

import torch
from torch import Tensor

from jepa.planning.planners.planner import Cost, Planner, best
from jepa.utils.errors import check_at_least


@dataclass(kw_only=True, eq=False)
class CEM(Planner):
    """Cross-entropy method (Rubinstein, 1999); the plan is the mean of the last elites.

    iterations: of drawing and fitting; again: as many where the search begins with a plan, None for `iterations`.
    elites: the best samples, to which the next are fitted.
    exponent: of the noise, see `Planner.noise`.
    finest: share of the deviation that the last of the samples has; those before it have more, the first all of it.
        Below 1 a search over long ways also finds plans that stay where they are.

    Raises ValueError also where there are more elites than samples, and for a `finest` outside of (0, 1].
    """

    iterations: int = 8
    again: int | None = None
    elites: int = 12
    exponent: float = 0.0
    finest: float = 1.0

    def __post_init__(self) -> None:
        super().__post_init__()
        check_at_least("planner", 1, iterations=self.iterations, again=self.again, elites=self.elites)
        if self.elites > self.samples:
            raise ValueError(f"planner.elites={self.elites}: expected at most planner.samples={self.samples}")
        if not 0 < self.finest <= 1:
            raise ValueError(f"planner.finest={self.finest}: expected above 0 and at most 1")

    def __call__(self, cost: Cost, plan: Tensor | None, generators: Sequence[torch.Generator]) -> Tensor:
        mean, deviation = self.begin(plan, len(generators)).unsqueeze(1), self.deviation
        for _ in range(self.turns(plan)):
            samples = self.bounded(self.drawn(mean, deviation, generators, self.samples))
            mean, deviation = self.fitted(*best(samples, cost(samples), self.elites))
        return mean.squeeze(1)

    def drawn(self, mean: Tensor, deviation: Tensor, generators: Sequence[torch.Generator], count: int) -> Tensor:
        """Return plans (B, count, H, A) about a mean (B, 1, H, A), from coarse to fine."""
        scale = self.finest ** torch.linspace(0, 1, count).view(-1, 1, 1)
        return mean + scale * deviation * self.noise(generators, count, self.exponent)

    def turns(self, plan: Tensor | None) -> int:
        """Return how many iterations there are for a plan to begin with."""
        return self.iterations if plan is None or self.again is None else self.again

    def fitted(self, elites: Tensor, costs: Tensor) -> tuple[Tensor, Tensor]:
        """Return mean and standard deviation (B, 1, H, A) of elites (B, E, H, A) with costs (B, E)."""
        return elites.mean(dim=1, keepdim=True), elites.std(dim=1, correction=0, keepdim=True)
