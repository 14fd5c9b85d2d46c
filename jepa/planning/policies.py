"""Policies: planning by a world model or by true states; beside it chance, a straight line and an expert."""

from __future__ import annotations

import time
from collections.abc import Callable, Sequence
from dataclasses import dataclass
from typing import Any, Literal

import torch
from torch import Tensor

from jepa.planning.costs import Measure, ModelCost, StateCost
from jepa.planning.episodes import Situation, World
from jepa.planning.planners.planner import Cost, Planner
from jepa.utils.errors import UserError
from jepa.utils.random import generator


class Baseline:
    """Acts by a function of true states (m, s) and the numbers (m,) of episodes."""

    past = 0

    def __init__(self, act: Callable[[Tensor, Tensor], Tensor]) -> None:
        self.act = act

    def begin(self, goal: Tensor) -> None: ...

    def __call__(self, situation: Situation) -> Tensor:
        return self.act(situation.state, situation.rows).unsqueeze(1)


class RandomActions:
    """Actions that are uniform within the bounds, of (seed, episode, step)."""

    past = 0

    def __init__(self, low: Sequence[float], high: Sequence[float], seed: int) -> None:
        self.low, self.high, self.seed = torch.tensor(low), torch.tensor(high), seed

    def begin(self, goal: Tensor) -> None: ...

    def __call__(self, situation: Situation) -> Tensor:
        generators = episode_generators(self.seed, "random actions", situation)
        numbers = torch.stack([torch.rand(10, len(self.low), generator=each) for each in generators])
        return self.low + numbers * (self.high - self.low)


def episode_generators(seed: int, purpose: str, situation: Situation) -> list[torch.Generator]:
    """Return a generator on the CPU for each episode, of (seed, its number, step)."""
    return [generator("cpu", seed, purpose, number, situation.step) for number in situation.rows.tolist()]


class Planned:
    """Makes a plan for each episode, acts by its first steps, and plans again with what is left of it.

    view: what turns a situation into the cost of actions. seed: of the planner, for each episode and step.
    watched: of so many episodes, the first, plans are kept. seconds, plans: spent so far on so many.
    last: the latest plans (n, H, A). trace: step -> watched episode -> its plan (H, A) and predicted states (H, D).
    """

    def __init__(self, planner: Planner, view: ModelView | StateView, seed: int, *, watched: int = 0) -> None:
        self.planner, self.view, self.seed, self.past, self.watched = planner, view, seed, view.past, watched
        self.seconds, self.plans = 0.0, 0
        self.last: Tensor | None = None
        self.trace: dict[int, dict[int, tuple[Tensor, Tensor]]] = {}

    def begin(self, goal: Tensor) -> None:
        self.last = None
        self.view.begin(goal)

    def __call__(self, situation: Situation) -> Tensor:
        begun, planner, rows = time.perf_counter(), self.planner, situation.rows
        rest = None if self.last is None else planner.rest(self.last[rows])
        cost = self.view.cost(situation)
        plan = planner(cost, rest, episode_generators(self.seed, "plan", situation))
        if self.last is None:
            self.last = plan
        self.last = self.last.index_copy(0, rows, plan)
        self.seconds, self.plans = self.seconds + time.perf_counter() - begun, self.plans + len(rows)
        for at in (rows < self.watched).nonzero().flatten():
            predicted = cost.predicted(plan[at, None, None], at[None])[0, 0].cpu()
            self.trace.setdefault(situation.step, {})[int(rows[at])] = plan[at], predicted
        return plan[:, : planner.execute].unflatten(-1, (planner.chunk, -1)).flatten(1, 2)


class StateView:
    """True states, with the distance to the goal by the way or as the crow flies: the ceiling of a planner."""

    past = 0

    def __init__(self, world: World, *, distance: Literal["way", "distance"], over: Literal["sum", "last"]) -> None:
        self.world, self.measure, self.over = world, getattr(world, distance), over

    def begin(self, goal: Tensor) -> None: ...

    def cost(self, situation: Situation) -> Cost:
        rows = situation.rows
        return StateCost(
            move=lambda state, action, at: self.world.move(state, action, rows[at]),
            distance=lambda state, at: self.measure(state, rows[at]),
            state=situation.state,
            over=self.over,
        )


@dataclass(kw_only=True)
class ModelView:
    """A world model (`jepa.models.WorldModel`), in evaluation mode, and what it needs to see an environment.

    normalised: observations (..., C, H, W) -> the model's inputs, as its data makes them.
    chunk: actions of the environment in a step of the model. together: see `ModelCost`.
    """

    model: Any
    normalised: Callable[[Tensor], Tensor]
    measure: Measure
    device: torch.device
    chunk: int = 1
    together: int = 1

    def __post_init__(self) -> None:
        self.history = getattr(self.model, "history", 1)
        self.past = (self.history - 1) * self.chunk

    def begin(self, goal: Tensor) -> None:
        self.goal = self._encoded(self.model.encode_target, goal.unsqueeze(1)).squeeze(1)

    def cost(self, situation: Situation) -> Cost:
        known = (situation.observations.shape[1] - 1) // self.chunk
        frames = situation.observations[:, -1 - known * self.chunk :: self.chunk]
        past = situation.actions[:, situation.actions.shape[1] - known * self.chunk :]
        past = past.reshape(len(past), known, self.chunk * past.shape[-1]).to(self.device)
        history = self._encoded(self.model.encode, frames)
        goal = self.goal[situation.rows.to(self.device)]
        return ModelCost(
            model=self.model, measure=self.measure, history=history, past=past, goal=goal, together=self.together
        )

    def landscape(self, world: World, row: int) -> tuple[Tensor, Tensor]:
        """Return the costs (h, w) of standing at each place of `world.places(row)`, and its states (h, w, D)."""
        places = world.places(row)
        rows = torch.full((places[..., 0].numel(),), row)
        states = self._encoded(self.model.encode_target, world.observed(places.flatten(0, 1), rows).unsqueeze(1))
        costs = self.measure(states[None], self.goal[row, None])  # plans of one step each
        return costs[0].view(places.shape[:2]).cpu(), states[:, 0].view(*places.shape[:2], -1).cpu()

    @torch.no_grad()
    def _encoded(self, encode: Callable[[Tensor], Tensor], frames: Tensor) -> Tensor:
        """Return states (n, T, D) of observations (n, T, ...), as many in each call."""
        parts = []
        for part in frames.split(self.together):
            full = torch.cat([part, part[-1:].expand(self.together - len(part), *part.shape[1:])])
            parts.append(encode(self.normalised(full).to(self.device))[: len(part)].float())
        states = torch.cat(parts)
        if not bool(states.isfinite().all()):
            raise UserError("the model's states of the environment's observations are NaN or infinite")
        return states


def together_on(device: torch.device) -> int:
    """Return how many episodes a call of the model takes: on a CPU one, whose matrices stay in its cache."""
    return 1 if device.type == "cpu" else 64
