"""What plans cost: how far from the goal a world model, or the world itself, says that they lead.

B episodes    S samples    H steps of a plan    A width of an action    D width of a state
"""

from __future__ import annotations

from collections.abc import Callable
from dataclasses import dataclass
from typing import Any, Literal, TypeAlias

import torch
from torch import Tensor

from jepa.utils.errors import UserError

Measure: TypeAlias = Callable[[Tensor, Tensor], Tensor]
"""Predicted states (b, S, H, D) and those of the goals (b, D) -> costs (b, S)."""


@dataclass(frozen=True, kw_only=True)
class GoalDistance:
    """Mean squared difference of predicted states from the goal's.

    over: "sum" of all steps of a plan, or the "last" one. Raises ValueError for anything else.
    """

    over: Literal["sum", "last"] = "sum"

    def __post_init__(self) -> None:
        check_over(self.over)

    def __call__(self, predicted: Tensor, goal: Tensor) -> Tensor:
        distances = (predicted - goal[:, None, None]).square().mean(dim=-1)
        return distances.sum(dim=-1) if self.over == "sum" else distances[..., -1]


def check_over(over: str) -> None:
    """Raise ValueError for what is neither "sum" nor "last"."""
    if over not in ("sum", "last"):
        raise ValueError(f"cost.over={over!r}: expected 'sum' or 'last'")


@dataclass(kw_only=True)
class ModelCost:
    """The cost of actions by the states that a world model predicts.

    history: encoded states (B, h, D). past: the actions (B, h - 1, A) between them. goal: (B, D).
    together: episodes in a call of the model. Every call has as many, so that numbers, which depend on the size of a
        matrix product, and with them plans, are the same whichever episodes there are.

    Raises UserError where `measure` gives costs of another shape.
    """

    model: Any
    measure: Measure
    history: Tensor
    past: Tensor
    goal: Tensor
    together: int = 1

    def __call__(self, actions: Tensor) -> Tensor:
        parts = []
        for rows in torch.arange(len(actions)).split(self.together):
            full = torch.cat([rows, rows[-1:].expand(self.together - len(rows))])
            costs = self.measure(self.predicted(actions[full], full), self.goal[full.to(self.goal.device)])
            if costs.shape != (self.together, actions.shape[1]):
                expected = f"expected ({self.together}, {actions.shape[1]}), one for each episode and sample"
                raise UserError(f"cost: got costs of shape {tuple(costs.shape)}, {expected}")
            parts.append(costs[: len(rows)].cpu())
        return torch.cat(parts)

    def predicted(self, actions: Tensor, rows: Tensor) -> Tensor:
        """Return the states (b, S, H, D) that follow in episodes `rows` (b,) under actions (b, S, H, A)."""
        samples, on = actions.shape[1], rows.to(self.history.device)
        history = self.history[on].repeat_interleave(samples, dim=0)
        past = self.past[on].repeat_interleave(samples, dim=0)
        ahead = torch.cat([past, actions.flatten(0, 1).to(past)], dim=1)
        return self.model.rollout(history, ahead).float().unflatten(0, (-1, samples))


@dataclass(kw_only=True)
class StateCost:
    """The cost of actions by the true states that they lead to.

    move: states (n, s) and actions (n, A) of rows (n,) of the episodes -> states (n, s). distance: of states (n, s) of
    rows to their goals. over: as in `GoalDistance`.
    """

    move: Callable[[Tensor, Tensor, Tensor], Tensor]
    distance: Callable[[Tensor, Tensor], Tensor]
    state: Tensor
    over: Literal["sum", "last"] = "sum"

    def __post_init__(self) -> None:
        check_over(self.over)

    def __call__(self, actions: Tensor) -> Tensor:
        samples = actions.shape[1]
        rows = torch.arange(len(actions)).repeat_interleave(samples)
        state, costs = self.state.repeat_interleave(samples, dim=0), []
        for action in actions.flatten(0, 1).unbind(1):
            state = self.move(state, action, rows)
            costs.append(self.distance(state, rows))
        total = torch.stack(costs).sum(dim=0) if self.over == "sum" else costs[-1]
        return total.unflatten(0, (-1, samples))
