"""Two rooms as a task for planning: pairs of starts and goals, and the rooms in which they are tried."""

from __future__ import annotations

from collections.abc import Mapping, Sequence
from typing import Any

import torch
from torch import Tensor

from jepa.utils.errors import UserError
from jepa.worlds.two_rooms import HIGH, LOW, MAX_ACTION, Pairs, expert, hashed, move, pairs, render

LISTS = {"validation": 1, "test": 2}
"""Name -> seed of a list of pairs: settings are chosen on one and reported on the other."""


class TwoRoomsTask:
    """Pairs of starts and goals in different rooms.

    random_walls: another layout in each episode; otherwise the fixed one.
    start, goal: [x, y] of every episode, in place of the list's. With one of them, the other is the point of the pair
        that is in the other room.
    options: of `TwoRoomsVector.reset`: agent_size, speed, distractors, noise.

    Raises ValueError for what is no point, UserError for options that pairs set.
    """

    low, high, max_norm = (-MAX_ACTION, -MAX_ACTION), (MAX_ACTION, MAX_ACTION), MAX_ACTION

    def __init__(
        self,
        *,
        random_walls: bool = False,
        start: Sequence[float] | None = None,
        goal: Sequence[float] | None = None,
        options: Mapping[str, Any] | None = None,
    ) -> None:
        self.random_walls, self.options = random_walls, dict(options or {})
        self.given = {name: point for name, point in {"start": start, "goal": goal}.items() if point is not None}
        for name, point in self.given.items():
            if len(point) != 2:
                raise ValueError(f"{name}={list(point)}: expected [x, y]")
        for name in ("state", "goal", "layout"):
            if name in self.options:
                raise UserError(f"options.{name}: pairs set it; settings take start, goal and random_walls")

    def pairs(self, split: str, count: int) -> Pairs:
        """Return `count` pairs of the "validation" or "test" list, of which each is the same for any count.

        Raises UserError for a start and a goal that are given, in one room.
        """
        start, goal, layout, _ = found = pairs(LISTS[split], count, random_walls=self.random_walls)
        if not self.given:
            return found
        places = {name: torch.tensor([point]).float().expand(count, -1) for name, point in self.given.items()}
        first = next(iter(places.values()))
        in_start_room = (first[:, :1] < layout.wall_x[:, None]) == (start[:, :1] < layout.wall_x[:, None])
        other = torch.where(in_start_room, goal, start)
        start, goal = (places.get(name, other) for name in ("start", "goal"))
        if bool(((start[:, 0] < layout.wall_x) == (goal[:, 0] < layout.wall_x)).any()):
            where = "in some of the layouts, " if self.random_walls else ""
            raise UserError(f"{where}start={self.given['start']} and goal={self.given['goal']} are in one room")
        return hashed(start, goal, layout)

    def open(self, pairs: Pairs, radius: float) -> TwoRoomsWorld:
        """Return the rooms of pairs, for agents of a radius in pixels where they meet walls.

        Raises UserError for a start or goal in no room, and for options that there are not.
        """
        return TwoRoomsWorld(pairs, radius, self.options)


class TwoRoomsWorld:
    """Rooms with an agent in each; `jepa.planning.episodes.World` says what the methods do."""

    low, high = TwoRoomsTask.low, TwoRoomsTask.high

    def __init__(self, pairs: Pairs, radius: float, options: Mapping[str, Any]) -> None:
        from jepa.worlds.environment import TwoRoomsVector  # needs gymnasium

        self.start, self.goal, self.layout, self.radius, self.options = (*pairs[:3], radius, options)
        self.rooms = TwoRoomsVector(len(self.start), radius=radius)
        self.reset(self.start)  # which checks start, goal and options
        self.speed = self.rooms.speed

    def reset(self, state: Tensor) -> Tensor:
        walls = torch.stack((self.layout.wall_x, self.layout.door_y), dim=1)
        options = {**self.options, "state": state, "goal": self.goal, "layout": walls}
        return torch.from_numpy(self.rooms.reset(seed=0, options=options)[0])

    def step(self, action: Tensor) -> tuple[Tensor, Tensor]:
        observation, _, _, _, info = self.rooms.step(action)
        return torch.from_numpy(observation), torch.from_numpy(info["state"])

    def move(self, state: Tensor, action: Tensor, rows: Tensor) -> Tensor:
        return move(state, action * self.speed[rows].unsqueeze(1), self.layout[rows], self.radius)

    def distance(self, state: Tensor, rows: Tensor) -> Tensor:
        return torch.linalg.vector_norm(state - self.goal[rows], dim=-1)

    def way(self, state: Tensor, rows: Tensor) -> Tensor:
        goal, layout = self.goal[rows], self.layout[rows]
        door = torch.stack((layout.wall_x, layout.door_y), dim=1)
        by_door = torch.linalg.vector_norm(state - door, dim=1) + torch.linalg.vector_norm(door - goal, dim=1)
        same_room = (state[:, 0] < layout.wall_x) == (goal[:, 0] < layout.wall_x)
        return torch.where(same_room, self.distance(state, rows), by_door)

    def straight(self, state: Tensor, rows: Tensor) -> Tensor:
        way = (self.goal[rows] - state) / self.speed[rows].unsqueeze(1)
        return way / (way.abs().amax(1, keepdim=True) / MAX_ACTION).clamp(min=1)

    def expert(self, state: Tensor, rows: Tensor) -> Tensor:
        return expert(state, self.goal[rows], self.layout[rows], self.radius) / self.speed[rows, None].clamp(min=1)

    def places(self, row: int, apart: int = 2) -> Tensor:
        line = torch.arange(LOW, HIGH + 1, apart).float()
        return torch.stack(torch.meshgrid(line, line, indexing="xy"), dim=-1)

    def observed(self, state: Tensor, rows: Tensor) -> Tensor:
        return render(state, self.layout[rows], self.rooms.agent_size[rows])
