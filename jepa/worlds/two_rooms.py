"""Two rooms with a door between them: geometry, the one rule of collision, pictures, walks, an expert, pairs.

The world of PLDM (arXiv 2502.14819) as eb_jepa has it (arXiv 2602.03604). Positions are (x, y) in pixels, actions
displacements in pixels. All functions take n agents, each in a layout of its own, and run on the device of the layout.
"""

from __future__ import annotations

import hashlib
import math
from dataclasses import dataclass
from functools import lru_cache
from typing import NamedTuple

import numpy as np
import torch
from torch import Tensor

from jepa.utils.errors import UserError
from jepa.utils.random import uniform

SIZE = 65  # pixels of a side
LOW, HIGH = 4, 60  # the border, on both axes
WALL_HALF, DOOR_HALF = 1, 4  # of the wall's thickness and the door's height, about their centres
WALL_X, DOOR_Y = (20, 44), (10, 54)  # from .. to, of random layouts
FIXED = (32, 18)  # wall and door of the fixed layout
AGENT_SIZE = 1.3  # standard deviation of the agent's blob
MAX_ACTION = 2.45  # of each component
STEPS = 90  # of a walk
STEP_MEAN, STEP_STD, STEP_RANGE = 1.0, 0.4, (0.2, 1.8)
TURNING = 5.0  # concentration of the change of heading
DOOR_SHARE, DOOR_STD = 0.35, 1.4  # of walks built to pass the door, and of where they do
WALK_NUMBERS = 11 + 2 * STEPS
"""Uniform numbers that a walk is made of."""


@dataclass(frozen=True)
class RoomLayout:
    """Where the wall and the centre of its door are, in n rooms: (n,) float32 each."""

    wall_x: Tensor
    door_y: Tensor

    @classmethod
    def fixed(cls, count: int) -> RoomLayout:
        """Return the fixed layout, `count` times."""
        return cls(*(torch.full((count,), float(value)) for value in FIXED))

    @classmethod
    def drawn(cls, numbers: Tensor) -> RoomLayout:
        """Return random layouts of numbers (n, 2) in [0, 1)."""
        ends = zip(numbers.unbind(1), (WALL_X, DOOR_Y))
        return cls(*(low + (u * (high - low + 1)).floor() for u, (low, high) in ends))

    def __len__(self) -> int:
        return len(self.wall_x)

    def __getitem__(self, rooms: slice | Tensor) -> RoomLayout:
        """Return the layout of some of the rooms."""
        return RoomLayout(self.wall_x[rooms], self.door_y[rooms])


def move(position: Tensor, action: Tensor, layout: RoomLayout, radius: float = 0.0) -> Tensor:
    """Return where agents (n, 2) are after actions (n, 2), float32; one whose way is blocked stays.

    The way is the whole segment, against the border, the wall and the edges of the door, all thicker by `radius`: as of
    a disc, but for the corners of the door, which are not rounded.
    """
    position = position.float()
    end = position + action
    return torch.where(is_blocked(position, end, layout, radius).unsqueeze(1), position, end)


def is_blocked(start: Tensor, end: Tensor, layout: RoomLayout, radius: float = 0.0) -> Tensor:
    """Return (n,) bool: whether segments between two points (n, 2) leave the rooms or cut the wall.

    To touch is no cut. Of the wall a segment cuts the part above or below the door, which are rectangles.
    """
    outside = ((end < LOW + radius) | (end > HIGH - radius)).any(1)  # rooms are convex: the end tells
    x, y = start.unbind(1)
    dx, dy = (end - start).unbind(1)
    half, door = WALL_HALF + radius, DOOR_HALF - radius
    # Shares of the segment at which it enters and leaves the wall's columns; without motion along x all or none.
    near, far = (layout.wall_x - half - x) / dx, (layout.wall_x + half - x) / dx
    still, inside = dx == 0, (x - layout.wall_x).abs() < half
    enter = torch.where(still, torch.where(inside, 0.0, 2.0), torch.minimum(near, far).clamp(min=0))
    leave = torch.where(still, 1.0, torch.maximum(near, far).clamp(max=1))
    first, last = y + enter * dy - layout.door_y, y + leave * dy - layout.door_y
    beside = torch.maximum(first.abs(), last.abs()) > door
    ends_inside = ((end[:, 0] - layout.wall_x).abs() < half) & ((end[:, 1] - layout.door_y).abs() > door)
    return outside | ((enter < leave) & beside) | ends_inside  # the last by itself, lest rounding let an agent in


def is_free(position: Tensor, layout: RoomLayout, radius: float = 0.0) -> Tensor:
    """Return (n,) bool: whether agents can be at positions (n, 2)."""
    return position.isfinite().all(1) & ~is_blocked(position, position, layout, radius)


def check_free(name: str, position: Tensor, layout: RoomLayout, radius: float = 0.0) -> None:
    """Raise UserError for the first of positions (n, 2), called `name`, at which no agent can be."""
    for number in (~is_free(position, layout, radius)).nonzero().flatten().tolist()[:1]:
        wall, door = layout.wall_x[number].item(), layout.door_y[number].item()
        x, y = position[number].tolist()
        raise UserError(
            f"{name}=[{x:g}, {y:g}] is in no room: expected x and y in [{LOW + radius:g}, {HIGH - radius:g}], and "
            f"within the wall, x in [{wall - WALL_HALF - radius:g}, {wall + WALL_HALF + radius:g}], y in the door, "
            f"[{door - DOOR_HALF + radius:g}, {door + DOOR_HALF - radius:g}]"
        )


def render(position: Tensor, layout: RoomLayout, agent_size: float | Tensor = AGENT_SIZE) -> Tensor:
    """Return pictures (n, 2, 65, 65) uint8 of agents (n, 2): the agent's blob, and the walls; rows are y.

    Of positions (n, T, 2), T in each room: (n, T, 2, 65, 65). agent_size: the blob's standard deviation, or (n,).
    """
    moments = position.unsqueeze(1) if position.dim() == 2 else position
    scale = torch.as_tensor(agent_size, device=position.device, dtype=torch.float32).view(-1, 1, 1, 1)
    lines = torch.arange(SIZE, device=position.device)
    across, down = torch.exp((lines - moments.unsqueeze(-1)).square() / (-2 * scale.square())).unbind(2)
    pictures = torch.empty(*moments.shape[:2], 2, SIZE, SIZE, dtype=torch.uint8, device=position.device)
    pictures[:, :, 0] = 255 * down.unsqueeze(-1) * across.unsqueeze(-2)
    pictures[:, :, 1] = walls(layout).unsqueeze(1)
    return pictures.squeeze(1) if position.dim() == 2 else pictures


def walls(layout: RoomLayout) -> Tensor:
    """Return the pictures of the walls, (n, 65, 65) uint8, 0 or 255."""
    lines = torch.arange(SIZE, device=layout.wall_x.device)
    border = (lines == LOW) | (lines == HIGH)
    wall = (lines - layout.wall_x.unsqueeze(1)).abs() <= WALL_HALF
    closed = (lines - layout.door_y.unsqueeze(1)).abs() > DOOR_HALF
    return (border | border.unsqueeze(1) | (wall.unsqueeze(1) & closed.unsqueeze(2))).byte() * 255


def walks_of(
    numbers: Tensor, layout: RoomLayout | None = None, radius: float = 0.0
) -> tuple[Tensor, Tensor, RoomLayout]:
    """Return positions (n, 91, 2) and actions (n, 90, 2), float32, of numbers (n, WALK_NUMBERS), and the layout.

    layout: of each walk; None draws one. Headings turn by von Mises noise; a share of the walks is built to pass the
    door at a random step, from there forwards and backwards. An action is what was tried, also where it was blocked.
    """
    few, turns, lengths = numbers.split((11, STEPS, STEPS), dim=1)
    layout = RoomLayout.drawn(few[:, :2]) if layout is None else layout
    through = few[:, 5] < DOOR_SHARE
    # Both kinds have a place and a heading at some step; that of free walks is 0.
    step = torch.where(through, (few[:, 6] * (STEPS + 1)).floor(), 0.0).long()
    heading = torch.where(through, (few[:, 4] - 0.5) * math.pi / 2, few[:, 4] * 2 * math.pi)
    place = torch.where(
        through.unsqueeze(1), _in_door(few[:, 7:9], layout, radius), _in_rooms(few[:, 2:4], layout, radius)
    )
    turned = _turn(turns).cumsum(1)
    heading = heading.unsqueeze(1) + turned - turned.gather(1, step.clamp(max=STEPS - 1).unsqueeze(1))
    way = torch.where(through & (few[:, 9] < 0.5), -1.0, 1.0).unsqueeze(1)  # to the left or to the right
    length = _truncated_normal(lengths, STEP_MEAN, STEP_STD, STEP_RANGE)
    actions = torch.stack((way * heading.cos() * length, heading.sin() * length), dim=2)

    rows = through.nonzero().flatten()
    place[rows], actions[rows] = _backwards(place[rows], actions[rows], step[rows], layout[rows], radius)
    positions = [place]
    for action in actions.unbind(1):
        positions.append(move(positions[-1], action, layout, radius))
    return torch.stack(positions, dim=1), actions, layout


def _backwards(
    place: Tensor, actions: Tensor, step: Tensor, layout: RoomLayout, radius: float
) -> tuple[Tensor, Tensor]:
    """Return where walks (m) begin that are at `place` at a step (m,), and their actions (m, 90, 2).

    Where the way back is blocked, the agent has tried just that way: forwards in time, it runs into the wall and stays.
    """
    actions, rows = actions.clone(), torch.arange(len(step), device=step.device)
    for back in range(1, STEPS + 1):
        number = (step - back).clamp(min=0)
        moves, action = (step >= back), actions[rows, number]
        start = place - action
        blocked = is_blocked(place, start, layout, radius)
        actions[rows, number] = torch.where((moves & blocked).unsqueeze(1), -action, action)
        place = torch.where((moves & ~blocked).unsqueeze(1), start, place)
    return place, actions


def _in_rooms(numbers: Tensor, layout: RoomLayout, radius: float) -> Tensor:
    """Return points (n, 2), uniform outside the wall."""
    low, side, half = LOW + radius, HIGH - LOW - 2 * radius, WALL_HALF + radius
    x = low + numbers[:, 0] * (side - 2 * half)
    x = torch.where(x > layout.wall_x - half, x + 2 * half, x)
    return torch.stack((x, low + numbers[:, 1] * side), dim=1)


def _in_door(numbers: Tensor, layout: RoomLayout, radius: float) -> Tensor:
    """Return points (n, 2) within the door, mostly near its middle."""
    door = DOOR_HALF - radius
    beside = _truncated_normal(numbers[:, 1], 0.0, DOOR_STD, (-door, door))
    return torch.stack((layout.wall_x + (2 * numbers[:, 0] - 1) * WALL_HALF, layout.door_y + beside), dim=1)


def _truncated_normal(numbers: Tensor, mean: float, std: float, ends: tuple[float, float]) -> Tensor:
    low, high = (0.5 * (1 + math.erf((end - mean) / std / math.sqrt(2))) for end in ends)
    return (mean + std * torch.special.ndtri(low + numbers * (high - low))).clamp(*ends)


def _turn(numbers: Tensor) -> Tensor:
    """Return von Mises noise of concentration TURNING, in radians, of numbers in [0, 1)."""
    table = torch.from_numpy(_quantiles()).to(numbers.device)
    place = numbers * (len(table) - 1)
    cell = place.floor().long().clamp(max=len(table) - 2)
    return torch.lerp(table[cell], table[cell + 1], place - cell)


@lru_cache(maxsize=1)
def _quantiles(cells: int = 1 << 16) -> np.ndarray:
    angles = np.linspace(-np.pi, np.pi, cells + 1)
    density = np.exp(TURNING * np.cos(angles))
    shares = np.concatenate(([0.0], np.cumsum(density[1:] + density[:-1])))
    return np.interp(np.linspace(0, 1, cells + 1), shares / shares[-1], angles).astype(np.float32)


def expert(position: Tensor, goal: Tensor, layout: RoomLayout, radius: float = 0.0) -> Tensor:
    """Return the actions (n, 2) that lead agents to goals (n, 2) by the door, as fast as MAX_ACTION lets them."""
    middle, door = layout.wall_x, layout.door_y
    side, wanted = torch.where(position[:, 0] < middle, -1.0, 1.0), torch.where(goal[:, 0] < middle, -1.0, 1.0)
    off = (position[:, 0] - middle).abs()
    clear = WALL_HALF + 2 * AGENT_SIZE  # where it lines up before the door
    straight = (side == wanted) & (off >= WALL_HALF + radius)
    lined_up = (off <= clear + 0.1) & ((position[:, 1] - door).abs() < DOOR_HALF - radius)
    before_or_behind = torch.stack((middle + torch.where(lined_up, wanted, side) * clear, door), dim=1)
    way = torch.where(straight.unsqueeze(1), goal, before_or_behind) - position
    return (way / (way.abs().amax(1, keepdim=True) / MAX_ACTION).clamp(min=1)).clamp(-MAX_ACTION, MAX_ACTION)


class Pairs(NamedTuple):
    """Starts and goals (n, 2) of episodes, the layout of each, and the hash of them all."""

    start: Tensor
    goal: Tensor
    layout: RoomLayout
    sha256: str


def check_radius(key: str, radius: float) -> None:
    """Raise ValueError for a radius of agents that does not fit through the door."""
    if not 0 <= radius < DOOR_HALF:
        raise ValueError(f"{key}={radius}: expected at least 0 and less than {DOOR_HALF}, half of the door's height")


def pairs(seed: int, count: int, *, random_walls: bool = False, margin: float = 2 * AGENT_SIZE) -> Pairs:
    """Return starts and goals in different rooms, uniform and `margin` pixels off all walls; each of (seed, number)."""
    numbers = uniform(seed, "two_rooms/pairs", range(count), (1, 7))[:, 0]
    layout = RoomLayout.drawn(numbers[:, :2]) if random_walls else RoomLayout.fixed(count)
    ends = start_and_goal(numbers[:, 2:], layout, margin)
    return hashed(*ends, layout)


def hashed(start: Tensor, goal: Tensor, layout: RoomLayout) -> Pairs:
    """Return starts, goals and layouts with their hash."""
    content = torch.cat((start, goal, torch.stack((layout.wall_x, layout.door_y), dim=1)), dim=1)
    return Pairs(start, goal, layout, hashlib.sha256(content.numpy().astype("<f4").tobytes()).hexdigest())


def start_and_goal(numbers: Tensor, layout: RoomLayout, margin: float = 2 * AGENT_SIZE) -> tuple[Tensor, Tensor]:
    """Return points (n, 2) in different rooms, uniform, `margin` pixels off all walls, of numbers (n, 5) in [0, 1)."""
    left = numbers[:, 0] < 0.5
    return _in_one_room(numbers[:, 1:3], layout, left, margin), _in_one_room(numbers[:, 3:], layout, ~left, margin)


def _in_one_room(numbers: Tensor, layout: RoomLayout, left: Tensor, margin: float) -> Tensor:
    from_x = torch.where(left, float(LOW), layout.wall_x + WALL_HALF) + margin
    to_x = torch.where(left, layout.wall_x - WALL_HALF, float(HIGH)) - margin
    y = LOW + margin + numbers[:, 1] * (HIGH - LOW - 2 * margin)
    return torch.stack((from_x + numbers[:, 0] * (to_x - from_x), y), dim=1)
