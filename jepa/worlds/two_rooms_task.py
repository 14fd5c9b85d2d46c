"""Two rooms as a task for planning: pairs of starts and goals, and the world in which they are tried."""

from __future__ import annotations

import torch
from torch import Tensor

from jepa.worlds.two_rooms import MAX_ACTION, Pairs, RoomLayout, check_free, expert, move, pairs, render

LISTS = {"validation": 1, "test": 2}
"""Name -> seed of a list of pairs: settings are chosen on one and reported on the other."""


class TwoRoomsTask:
    """Pairs of starts and goals in different rooms.

    random_walls: another layout in each episode; otherwise the fixed one. start, goal: [x, y] of every episode; None
        for those of the list.

    Raises UserError for a start or goal that is in no room.
    """

    low = high = (-MAX_ACTION, -MAX_ACTION)
    high = (MAX_ACTION, MAX_ACTION)

    def __init__(
        self, *, random_walls: bool = False, start: list[float] | None = None, goal: list[float] | None = None
    ) -> None:
        self.random_walls, self.start, self.goal = random_walls, start, goal

    def pairs(self, split: str, count: int) -> Pairs:
        """Return `count` pairs of the "validation" or "test" list, of which each is the same for any count."""
        found = pairs(LISTS[split], count, random_walls=self.random_walls)
        for name in ("start", "goal"):
            if getattr(self, name) is not None:
                place = torch.tensor([[float(value) for value in getattr(self, name)]]).expand(count, -1)
                check_free(f"environment.{name}", place, found.layout)
                found = found._replace(**{name: place, "sha256": ""})
        return found

    def open(self, pairs: Pairs, radius: float) -> TwoRoomsWorld:
        """Return the world of pairs, for agents of a radius in pixels where they meet walls."""
        return TwoRoomsWorld(pairs, radius)


class TwoRoomsWorld:
    """A room for each pair; `jepa.planning.episodes.World` says what the methods do."""

    low, high = TwoRoomsTask.low, TwoRoomsTask.high

    def __init__(self, pairs: Pairs, radius: float) -> None:
        self.start, self.goal, self.layout, self.radius = pairs.start, pairs.goal, pairs.layout, radius
        self.state = pairs.start

    def reset(self, state: Tensor) -> Tensor:
        self.state = state
        return self.observed(state, self.layout)

    def step(self, action: Tensor) -> tuple[Tensor, Tensor]:
        self.state = move(self.state, action, self.layout, self.radius)
        return self.observed(self.state, self.layout), self.state

    def observed(self, state: Tensor, layout: RoomLayout) -> Tensor:
        return render(state, layout)

    def move(self, state: Tensor, action: Tensor, rows: Tensor) -> Tensor:
        return move(state, action, self.layout[rows], self.radius)

    def distance(self, state: Tensor, rows: Tensor) -> Tensor:
        return torch.linalg.vector_norm(state - self.goal[rows], dim=-1)

    def way(self, state: Tensor, rows: Tensor) -> Tensor:
        goal, layout = self.goal[rows], self.layout[rows]
        door = torch.stack((layout.wall_x, layout.door_y), dim=1)
        by_door = torch.linalg.vector_norm(state - door, dim=1) + torch.linalg.vector_norm(door - goal, dim=1)
        same_room = (state[:, 0] < layout.wall_x) == (goal[:, 0] < layout.wall_x)
        return torch.where(same_room, self.distance(state, rows), by_door)

    def straight(self, state: Tensor, rows: Tensor) -> Tensor:
        way = self.goal[rows] - state
        return way / (way.abs().amax(1, keepdim=True) / MAX_ACTION).clamp(min=1)

    def expert(self, state: Tensor, rows: Tensor) -> Tensor:
        return expert(state, self.goal[rows], self.layout[rows], self.radius)
