"""Episodes of an environment, all at once: a policy acts, rules say which are solved.

n episodes    m that still run    s width of a true state    A width of an action
"""

from __future__ import annotations

import time
from collections import deque
from collections.abc import Sequence
from dataclasses import dataclass
from typing import Protocol

import torch
from torch import Tensor

from jepa.planning.rules import Rules


class World(Protocol):
    """An environment with n episodes set up, each with a goal; `rows` are the numbers (m,) of episodes.

    low, high: bounds of an action, (A,). `jepa.worlds.two_rooms_task` has the one there is.
    """

    low: Sequence[float]
    high: Sequence[float]
    start: Tensor
    goal: Tensor

    def reset(self, state: Tensor) -> Tensor:
        """Return the observations (n, ...) at states (n, s), at which the episodes then are."""

    def step(self, action: Tensor) -> tuple[Tensor, Tensor]:
        """Return observations (n, ...) and states (n, s) after actions (n, A)."""

    def distance(self, state: Tensor, rows: Tensor) -> Tensor:
        """Return the distances (m,) of states (m, s) from the goals."""

    def way(self, state: Tensor, rows: Tensor) -> Tensor:
        """Return the lengths (m,) of the shortest ways from states (m, s) to the goals."""

    def move(self, state: Tensor, action: Tensor, rows: Tensor) -> Tensor:
        """Return where states (m, s) are after actions (m, A), without any effect."""

    def straight(self, state: Tensor, rows: Tensor) -> Tensor:
        """Return the actions (m, A) straight towards the goals."""

    def expert(self, state: Tensor, rows: Tensor) -> Tensor:
        """Return the actions (m, A) of one who knows the way."""

    def places(self, row: int) -> Tensor:
        """Return states (h, w, s) all over the world of an episode; for pictures, as is `observed`."""

    def observed(self, state: Tensor, rows: Tensor) -> Tensor:
        """Return the observations (m, ...) at states (m, s)."""


@dataclass(frozen=True)
class Situation:
    """What a policy sees of the m episodes that still run.

    rows: (m,), their numbers. step: steps taken. state: (m, s), true, for baselines alone.
    observations: (m, k, ...), the last ones, at most `past` + 1 of them, and actions (m, k - 1, A) between them.
    """

    rows: Tensor
    step: int
    state: Tensor
    observations: Tensor
    actions: Tensor


class Policy(Protocol):
    """Chooses actions. past: observations before the present one that it wants to see."""

    past: int

    def begin(self, goal: Tensor) -> None:
        """Called before the first step with the observations (n, ...) of the goals."""

    def __call__(self, situation: Situation) -> Tensor:
        """Return the next actions (m, k, A), one or more."""


@dataclass(frozen=True)
class Episodes:
    """What happened: states (n, T + 1, s), distances (n, T) after each step, solved (n,), seconds of all of it.

    Of an episode that was over earlier the last state is repeated. path: (n,), what was covered up to the first step at
    the goal. actions: (n, T, A). observations: those that were asked for, a list of (n, ...).
    """

    states: Tensor
    actions: Tensor
    distances: Tensor
    solved: Tensor
    path: Tensor
    seconds: float
    observations: list[Tensor]


@torch.no_grad()
def run_episodes(world: World, policy: Policy, rules: Rules, *, keep: int = 0) -> Episodes:
    """Return the episodes of a world under a policy; those whose outcome is settled stop.

    keep: of so many episodes the observations are returned.
    """
    begun = time.perf_counter()
    policy.begin(world.reset(world.goal))
    observation, state = world.reset(world.start), world.start
    rows = torch.arange(len(state))
    width = len(world.low)
    states, taken, seen = [state], [], [observation[:keep]]
    recent, between = deque([observation], maxlen=policy.past + 1), deque(maxlen=policy.past)
    distances = torch.empty(len(state), 0)
    while len(rows) and len(taken) < rules.steps:
        past = torch.stack(list(between), dim=1)[rows] if between else torch.zeros(len(rows), 0, width)
        now = Situation(rows, len(taken), state[rows], torch.stack(list(recent), dim=1)[rows], past)
        for chosen in policy(now).unbind(1)[: rules.steps - len(taken)]:
            action = torch.zeros(len(state), width)
            action[rows] = chosen
            observation, moved = world.step(action)
            state = state.clone()
            state[rows] = moved[rows]
            recent.append(observation)
            between.append(action)
            states.append(state)
            taken.append(action)
            seen.append(observation[:keep])
            distances = torch.cat([distances, world.distance(state, torch.arange(len(state))).unsqueeze(1)], dim=1)
        rows = (~rules.solved(distances)).nonzero().flatten() if rules.hold else rows
    seconds = time.perf_counter() - begun
    path = torch.stack(states, dim=1)
    return Episodes(
        path,
        torch.stack(taken, dim=1),
        distances,
        rules.solved(distances),
        path_length(path, distances < rules.distance),
        seconds,
        seen if keep else [],
    )


def path_length(states: Tensor, near: Tensor) -> Tensor:
    """Return the lengths (n,) of paths (n, T + 1, s) up to the first step that is near (n, T), or of all steps."""
    steps = torch.linalg.vector_norm(states.diff(dim=1), dim=-1)
    before = near.cumsum(dim=1) - near.long() == 0  # up to and with the first near one
    return (steps * before).sum(dim=1)
