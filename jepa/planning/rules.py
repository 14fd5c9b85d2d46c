"""Rules by which an episode counts as solved, by name, and the share of solved ones with its interval."""

from __future__ import annotations

import math
from collections.abc import Mapping
from dataclasses import dataclass

from torch import Tensor

from jepa.utils.errors import UserError


@dataclass(frozen=True, kw_only=True)
class Rules:
    """When an agent has reached its goal.

    radius: of the agent where it meets walls. distance: below which it is at the goal, in units of the states.
    hold: consecutive steps that it has to be there, at any time; None: at the last step.
    steps: of an episode.
    """

    name: str
    text: str
    distance: float
    radius: float = 0.0
    hold: int | None = None
    steps: int = 200

    def solved(self, distances: Tensor) -> Tensor:
        """Return which episodes are solved (n,), of the distances to the goal (n, T) after each step up to now."""
        near = distances < self.distance
        if self.hold is None:
            return near[:, -1] & (distances.shape[1] >= self.steps)
        if distances.shape[1] < self.hold:
            return near.new_zeros(len(near))
        return near.unfold(1, self.hold, 1).all(dim=2).any(dim=1)


RULES = {
    rules.name: rules
    for rules in (
        Rules(
            name="published",
            text="start and goal in different rooms, under 4.5 px at the last of 200 steps",
            distance=4.5,
        ),
        Rules(
            name="strict",
            text="start and goal in different rooms, agent of radius 1.3 px, under 4.5 px for 5 steps in a row of 200",
            distance=4.5,
            radius=1.3,
            hold=5,
        ),
    )
}
"""Name -> rules of two rooms, and of tasks that bring none."""


def named_rules(name: str, known: Mapping[str, Rules] = RULES) -> Rules:
    """Return the rules of a name. Raise UserError for one that there is not."""
    if name not in known:
        raise UserError(f"rules={name}: expected {' or '.join(known)}")
    return known[name]


def wilson_interval(successes: int, count: int, quantile: float = 1.959964) -> tuple[float, float]:
    """Return the 95 % interval of Wilson for a share of successes among `count`."""
    share, square = successes / count, quantile**2 / count
    centre, half = share + square / 2, quantile * math.sqrt((share * (1 - share) + square / 4) / count)
    return max(0.0, (centre - half) / (1 + square)), min(1.0, (centre + half) / (1 + square))
