"""Walks in two rooms as data that is made as it is read: each walk is a function of (seed, number)."""

from __future__ import annotations

from collections.abc import Sequence
from dataclasses import dataclass, replace
from functools import lru_cache

import torch
from torch import Tensor

from jepa.utils.errors import check_at_least
from jepa.utils.random import uniform
from jepa.worlds import two_rooms
from jepa.worlds.two_rooms import DOOR_HALF, HIGH, LOW, MAX_ACTION, SIZE, STEPS, WALK_NUMBERS, WALL_HALF, RoomLayout

BLOCK = 1024
"""Walks that are made at once, as a step of many takes hardly longer than of one."""


@dataclass(frozen=True)
class WalkSplits:
    """Training and test walks; see `jepa.data.sources.Splits`."""

    train: Walks
    test: Walks
    lines: tuple[str, ...] = ()
    class_names: None = None

    def on_validation(self) -> WalkSplits:
        """Return the same with other walks to score on, which are neither trained nor tested on."""
        return replace(self, test=replace(self.test, name="validation"))


def two_rooms_walks(
    *,
    frames: int,
    frame_skip: int,
    max_bad_share: float,
    random_walls: bool = False,
    walks_per_layout: int = 1,
    radius: float = 0.0,
    train_walks: int = 100_000,
    test_walks: int = 10_000,
) -> WalkSplits:
    """Return windows of walks, each of another walk.

    frames, frame_skip: of a window. max_bad_share: of no meaning, as nothing is read. random_walls: another layout for
    each walk. walks_per_layout: training walks in a row that share one; with as many as in a batch, its states differ
    by where the agent is alone. radius: of the agent, in the rule of collision. train_walks: those of an epoch; every
    epoch has new ones.

    Raises ValueError for windows that are longer than a walk, agents that the door does not let through, and
    walks_per_layout where there is one layout.
    """
    check_at_least("data.source", 1, train_walks=train_walks, test_walks=test_walks, walks_per_layout=walks_per_layout)
    two_rooms.check_radius("data.source.radius", radius)
    if walks_per_layout > 1 and not random_walls:
        raise ValueError(
            f"data.source.walks_per_layout={walks_per_layout}: there is one layout; add data.source.random_walls=true"
        )
    if (frames - 1) * frame_skip > STEPS:
        raise ValueError(
            f"data.history + data.horizon = {frames} frames, data.frame_skip={frame_skip}: a walk has {STEPS} steps"
        )
    make = Walks("train", train_walks, frames, frame_skip, random_walls, radius, walks_per_layout)
    each = "each" if walks_per_layout == 1 else f"each {walks_per_layout} in a row"
    walls = f"a layout for {each}" if random_walls else "the wall at {}, its door at {}".format(*two_rooms.FIXED)
    line = f"two rooms: {train_walks:,} new walks an epoch, {test_walks:,} held out; {walls}; actions in pixels"
    return WalkSplits(make, replace(make, name="test", count=test_walks), (line,))


@dataclass(frozen=True)
class Walks:
    """Windows of `frames` pictures of walks. Items are made in batches, by `generate`."""

    name: str
    count: int
    frames: int
    frame_skip: int
    random_walls: bool
    radius: float
    walks_per_layout: int

    observation_shape = (2, SIZE, SIZE)
    is_pixels = True
    state_dim = 2
    factor_names = ("wall_x", "door_y")
    action_statistics = {"low": [-MAX_ACTION] * 2, "high": [MAX_ACTION] * 2, "mean": [0.0] * 2, "std": [1.0] * 2}

    def __len__(self) -> int:
        return self.count

    def __getitem__(self, index: int) -> tuple[dict[str, Tensor], None]:
        return {name: each[0] for name, each in self.generate([index], None).items()}, None

    def generate(self, numbers: Sequence[int], seed: int | None) -> dict[str, Tensor]:
        """Return windows of walks: `observations` (n, T, 2, 65, 65) uint8, `actions` (n, T - 1, A), `states` (n, T, 2).

        `factors` (n, 2) are where the wall and its door are.

        seed: of training, where numbers count samples; None for the walks of this split.
        """
        stream = f"two_rooms/{self.name}" if seed is None else "two_rooms/training"
        place = torch.as_tensor(numbers)
        blocks = sorted(set((place // BLOCK).tolist()))
        per_layout = 1 if seed is None else self.walks_per_layout
        shared = per_layout if self.random_walls else None
        made = [_block(0 if seed is None else seed, stream, block, shared, self.radius) for block in blocks]
        positions, actions, wall_x, door_y, share = (torch.cat(parts) for parts in zip(*made))
        rows = torch.searchsorted(torch.tensor(blocks), place // BLOCK) * BLOCK + place % BLOCK
        span = (self.frames - 1) * self.frame_skip
        first = (share[rows] * (STEPS - span + 1)).long().unsqueeze(1)
        steps = first + torch.arange(span + 1)
        return self._windows(
            positions[rows.unsqueeze(1), steps],
            actions[rows.unsqueeze(1), steps[:, :-1]],
            RoomLayout(wall_x[rows], door_y[rows]),
        )

    def _windows(self, positions: Tensor, actions: Tensor, layout: RoomLayout) -> dict[str, Tensor]:
        states = positions[:, :: self.frame_skip]
        actions = actions.reshape(len(actions), self.frames - 1, -1)
        factors = torch.stack((layout.wall_x, layout.door_y), dim=1)
        pictures = two_rooms.render(states, layout)
        return {"observations": pictures, "actions": actions, "states": states, "factors": factors}

    def events(self, numbers: Sequence[int]) -> dict[str, Tensor]:
        """Return walks that run into the wall, and what cannot happen there.

        `x` (n, T, 2, 65, 65) uint8: the agent is stopped at the wall; `wall`: from frame `event` (n,) on it goes on as
        if there were none; `teleport`: from there on it is elsewhere, half a room away. `actions` (n, T - 1, A) are
        those of all three.
        """
        values = uniform(0, f"two_rooms/{self.name}/events", numbers, (1, 8))[:, 0]
        layout = RoomLayout.drawn(values[:, :2]) if self.random_walls else RoomLayout.fixed(len(values))
        event = max(1, self.frames // 2)
        before = (event - 1) * self.frame_skip  # steps up to the last frame that is as usual
        span = (self.frames - 1) * self.frame_skip
        side = torch.where(values[:, 2] < 0.5, -1.0, 1.0)
        heading = 0.6 * (values[:, 3] - 0.5)
        length = (0.8 + 0.6 * values[:, 4]).clamp(max=12 / (before + 1))
        action = torch.stack((-side * heading.cos() * length, heading.sin() * length), dim=1)
        # It stands before the wall, beside the door, after a part of a step more than is possible.
        gap, edge = DOOR_HALF + self.radius + 1.5, LOW + 6
        below, above = (layout.door_y - gap - edge).clamp(min=0), (HIGH - 6 - layout.door_y - gap).clamp(min=0)
        y = values[:, 5] * (below + above)
        y = torch.where(y < below, edge + y, layout.door_y + gap + y - below)
        touch = torch.stack((layout.wall_x + side * (WALL_HALF + self.radius), y), dim=1)
        start = touch - action * (before + 0.1 + 0.8 * values[:, 6:7])
        usual, wall = [start], [start]
        for _ in range(span):
            usual.append(two_rooms.move(usual[-1], action, layout, self.radius))
            beyond = wall[-1] + action
            free = ((beyond >= LOW + self.radius) & (beyond <= HIGH - self.radius)).all(1, keepdim=True)
            wall.append(torch.where(free, beyond, wall[-1]))
        place = usual[before].clone()  # half a room further down or, past its end, up: always far away, and free
        place[:, 1] = LOW + (place[:, 1] - LOW + (HIGH - LOW) / 2) % (HIGH - LOW)
        teleport = [*usual[: before + 1], two_rooms.move(place, action, layout, self.radius)]
        while len(teleport) <= span:
            teleport.append(two_rooms.move(teleport[-1], action, layout, self.radius))
        made = {}
        for name, positions in (("x", usual), ("wall", wall), ("teleport", teleport)):
            made[name] = two_rooms.render(torch.stack(positions[:: self.frame_skip], dim=1), layout)
        actions = action.unsqueeze(1).expand(-1, span, -1).reshape(len(action), self.frames - 1, -1)
        return {**made, "actions": actions, "event": torch.full((len(action),), event)}


@lru_cache(maxsize=4)
def _block(seed: int, stream: str, block: int, per_layout: int | None, radius: float) -> tuple[Tensor, ...]:
    """Positions, actions, wall, door and a number in [0, 1) for the window of walks that are next to each other.

    per_layout: walks in a row that have the layout of the first of them; None for the fixed one.
    """
    places = torch.arange(block * BLOCK, (block + 1) * BLOCK)
    numbers = uniform(seed, stream, places.tolist(), (1, WALK_NUMBERS + 1))[:, 0]
    layout = RoomLayout.fixed(BLOCK)
    if per_layout is not None:
        first, rows = torch.unique(places // per_layout * per_layout, return_inverse=True)
        layout = RoomLayout.drawn(uniform(seed, stream, first.tolist(), (1, WALK_NUMBERS + 1))[rows, 0, 1:3])
    positions, actions, layout = two_rooms.walks_of(numbers[:, 1:], layout, radius)
    return positions, actions, layout.wall_x, layout.door_y, numbers[:, 0]
