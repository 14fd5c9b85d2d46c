"""iCEM: the cross-entropy method with slow noise, fewer samples from turn to turn, and elites that stay."""

from __future__ import annotations

from collections.abc import Sequence
from dataclasses import dataclass

import torch
from torch import Tensor

from jepa.planning.planners.cem import CEM
from jepa.planning.planners.planner import Cost, best


@dataclass(kw_only=True, eq=False)
class ICEM(CEM):
    """Improved CEM (Pinneri et al., 2020, arXiv 2008.06389); the plan is the best sample of the last turn.

    keep: share of the elites that stay among the samples, at least one. momentum: of mean and deviation.
    decay: divides the number of samples from turn to turn, down to twice the elites.
    """

    exponent: float = 1.0
    keep: float = 0.3
    momentum: float = 0.1
    decay: float = 1.25

    def __post_init__(self) -> None:
        super().__post_init__()
        if not (0 <= self.keep <= 1 and 0 <= self.momentum < 1 and self.decay >= 1):
            raise ValueError(
                f"planner: got keep={self.keep}, momentum={self.momentum} and decay={self.decay}, expected keep in "
                "[0, 1], momentum in [0, 1) and decay of at least 1"
            )

    def __call__(self, cost: Cost, plan: Tensor | None, generators: Sequence[torch.Generator]) -> Tensor:
        mean, deviation = self.begin(plan, len(generators)).unsqueeze(1), self.deviation
        elites = mean  # what was planned before is a sample too, and so is the mean of the last turn
        for turn in range(self.turns(plan)):
            count = max(int(self.samples / self.decay**turn), min(2 * self.elites, self.samples))
            kept = elites[:, : max(1, round(self.keep * self.elites))]
            samples = self.bounded(torch.cat([kept, mean, self.drawn(mean, deviation, generators, count)], dim=1))
            elites, costs = best(samples, cost(samples), self.elites)
            fitted = self.fitted(elites, costs)
            mean, deviation = (
                self.momentum * old + (1 - self.momentum) * new for old, new in zip((mean, deviation), fitted)
            )
        return elites[:, 0]
