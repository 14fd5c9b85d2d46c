"""Environments of gymnasium: two rooms, alone and many at once, and making any other by its name."""

from __future__ import annotations

import importlib
import re
from collections.abc import Mapping, Sequence
from typing import Any, ClassVar

import numpy as np
import torch
from torch import Tensor

from jepa.utils.errors import UserError, check_at_least, first_line
from jepa.utils.lazy_import import require
from jepa.utils.random import generator, uniform
from jepa.worlds import two_rooms
from jepa.worlds.two_rooms import AGENT_SIZE, DOOR_Y, MAX_ACTION, SIZE, WALL_X, RoomLayout

gymnasium = require("gymnasium", extra="world", purpose="an environment")

MAX_STEPS = 200
GOAL_DISTANCE = 4.5  # pixels, below which an agent is at its goal
FACTORS = {"agent_size": AGENT_SIZE, "speed": 1.0, "distractors": 0.0, "noise": 0.0}
LEAST = {"agent_size": 0.1, "speed": 0.01}
OPTIONS = ("state", "goal", "layout", *FACTORS)
METADATA = {"render_modes": ["rgb_array"], "render_fps": 10}


class TwoRoomsVector(gymnasium.vector.VectorEnv):
    """`num_envs` agents, each in two rooms of its own, moved at once by the rule of `jepa.worlds.two_rooms.move`.

    Observations (n, 2, 65, 65) uint8 show agent and walls; actions (n, 2) are displacements in pixels, each component
    within MAX_ACTION. `info` has `state`, `goal` (n, 2), `layout` (n, 2), the wall's x and the door's y, and `distance`
    (n,) to the goal. The reward is 1 where that is below GOAL_DISTANCE. Episodes end after max_steps, none before; no
    agent is reset by itself.

    random_walls: another layout for each episode. radius: of the agents, in the rule of collision.

    `reset` takes a seed, of which number + i is agent i's, or one for each, and options, one for all or (n, ...) for
    each: state and goal, layout (wall's x, door's y), agent_size (the blob's standard deviation), speed (a factor of
    the actions), distractors (how many blobs of half brightness drift around, without effect), noise (standard
    deviation of the pixels' noise, of 255). What is random is a function of the agent's seed and the step.
    """

    metadata: ClassVar[dict[str, Any]] = {**METADATA, "autoreset_mode": gymnasium.vector.AutoresetMode.DISABLED}

    def __init__(
        self,
        num_envs: int = 1,
        *,
        random_walls: bool = False,
        radius: float = 0.0,
        max_steps: int = MAX_STEPS,
        render_mode: str | None = None,
    ) -> None:
        two_rooms.check_radius("radius", radius)
        check_at_least("TwoRooms", 1, num_envs=num_envs, max_steps=max_steps)
        self.num_envs, self.random_walls, self.radius, self.max_steps = num_envs, random_walls, radius, max_steps
        self.render_mode = render_mode
        self.single_observation_space = gymnasium.spaces.Box(0, 255, (2, SIZE, SIZE), np.uint8)
        self.single_action_space = gymnasium.spaces.Box(-MAX_ACTION, MAX_ACTION, (2,), np.float32)
        self.observation_space, self.action_space = (
            gymnasium.vector.utils.batch_space(space, num_envs)
            for space in (self.single_observation_space, self.single_action_space)
        )
        self.layout: RoomLayout | None = None

    def reset(
        self, *, seed: int | Sequence[int] | None = None, options: Mapping[str, Any] | None = None
    ) -> tuple[np.ndarray, dict[str, Any]]:
        """Begin episodes. Raise UserError for unknown options and for places in no room."""
        options = {name: value for name, value in (options or {}).items() if value is not None}
        if unknown := sorted(set(options) - set(OPTIONS)):
            raise UserError(f"reset knows no option {unknown[0]}: expected {', '.join(OPTIONS)}")
        if seed is None:
            self.seeds = self.np_random.integers(2**31, size=self.num_envs).tolist()
        else:
            self.seeds = [int(seed) + i for i in range(self.num_envs)] if np.ndim(seed) == 0 else list(map(int, seed))
        if len(self.seeds) != self.num_envs:
            raise UserError(f"seed={seed}: expected a whole number, or one for each of {self.num_envs} agents")
        drawn = torch.cat([uniform(each, "two_rooms/environment", [0], (1, 7))[:, 0] for each in self.seeds])
        layout = RoomLayout.drawn(drawn[:, :2]) if self.random_walls else RoomLayout.fixed(self.num_envs)
        if (given := options.get("layout")) is not None:
            given = torch.stack((given.wall_x, given.door_y), dim=1) if isinstance(given, RoomLayout) else given
            layout = RoomLayout(*self._given("layout", given, (2,)).unbind(1))
        start, goal = two_rooms.start_and_goal(drawn[:, 2:], layout)
        self.state = self._given("state", options.get("state", start), (2,))
        self.goal = self._given("goal", options.get("goal", goal), (2,))
        two_rooms.check_free("state", self.state, layout, self.radius)
        two_rooms.check_free("goal", self.goal, layout, self.radius)
        self.agent_size, self.speed, self.distractors, self.noise = (
            self._given(name, options.get(name, usual), ()) for name, usual in FACTORS.items()
        )
        self.layout, self.steps = layout, 0
        return self.observe(), self.info()

    def step(self, actions: Any) -> tuple[np.ndarray, np.ndarray, np.ndarray, np.ndarray, dict[str, Any]]:
        """Move the agents. Raise UserError for actions of another shape, type or range."""
        if self.layout is None:
            raise UserError("the environment has to be reset before its first step")
        actions = checked_actions(actions, (self.num_envs, 2))
        self.state = two_rooms.move(self.state, actions * self.speed.unsqueeze(1), self.layout, self.radius)
        self.steps += 1
        info = self.info()
        reward = (info["distance"] < GOAL_DISTANCE).astype(np.float32)
        truncated = np.full(self.num_envs, self.steps >= self.max_steps)
        return self.observe(), reward, np.zeros(self.num_envs, dtype=bool), truncated, info

    def observe(self) -> np.ndarray:
        """Return what the agents see now, (n, 2, 65, 65) uint8."""
        pictures = two_rooms.render(self.state, self.layout, self.agent_size)
        for number in (self.distractors > 0).nonzero().flatten().tolist():
            blobs = self._distractors(number, int(self.distractors[number]), self.steps)
            pictures[number, 0] = torch.maximum(pictures[number, 0], blobs)
        for number in (self.noise > 0).nonzero().flatten().tolist():
            random = generator("cpu", self.seeds[number], "two_rooms/noise", self.steps)
            noise = self.noise[number] * torch.randn(pictures.shape[1:], generator=random)
            pictures[number] = (pictures[number] + noise).clamp(0, 255).byte()
        return pictures.numpy()

    def info(self) -> dict[str, Any]:
        """Return `state`, `goal`, `layout` and `distance` of the agents."""
        found = {"state": self.state, "goal": self.goal, "distance": (self.state - self.goal).norm(dim=1)}
        found["layout"] = torch.stack((self.layout.wall_x, self.layout.door_y), dim=1)
        return {name: value.numpy().copy() for name, value in found.items()}

    def render(self) -> tuple[np.ndarray, ...] | None:
        """Return a picture (260, 260, 3) of each agent: walls grey, the agent red, its goal green."""
        if self.render_mode != "rgb_array":
            return None
        agents, walls = torch.from_numpy(self.observe()).float().div(255).unbind(1)
        goals = two_rooms.render(self.goal, self.layout, self.agent_size)[:, 0].float() / 255
        dark = torch.stack((walls / 2 + goals, walls / 2 + agents, walls / 2 + agents + goals), dim=-1).clamp(0, 1)
        pixels = (255 * (1 - dark)).byte().repeat_interleave(4, dim=1).repeat_interleave(4, dim=2)
        return tuple(pixels.numpy())

    def _distractors(self, number: int, count: int, step: int) -> Tensor:
        # Each swings across the room with a pace and a phase of its own, so that its place needs no memory.
        pace, phase = uniform(self.seeds[number], "two_rooms/distractors", range(count), (1, 4))[:, 0].split(2, dim=1)
        place = 32 + 26 * torch.sin((0.02 + 0.06 * pace) * step + 2 * torch.pi * phase)
        rooms, size = RoomLayout.fixed(count), self.agent_size[number].expand(count)
        return two_rooms.render(place, rooms, size)[:, 0].amax(0) // 2

    def _given(self, name: str, value: Any, shape: tuple[int, ...]) -> Tensor:
        """An option as (n, *shape). Raise UserError for what does not fit or makes no sense."""
        try:
            given = torch.as_tensor(np.asarray(value, dtype=np.float32))
            given = given.expand(self.num_envs, *shape) if given.shape == shape else given
        except (TypeError, ValueError):
            given = torch.empty(0)
        if given.shape != (self.num_envs, *shape):
            expected = f"two numbers, or {self.num_envs} times two" if shape else "a number, or one for each agent"
            raise UserError(f"{name}={value}: expected {expected}")
        if name in FACTORS and not bool((given.isfinite() & (given >= LEAST.get(name, 0))).all()):
            raise UserError(f"{name}={value}: expected at least {LEAST.get(name, 0):g}, and finite")
        if name == "distractors" and bool((given % 1).any()):
            raise UserError(f"distractors={value}: expected a whole number")
        low, high = torch.tensor([WALL_X, DOOR_Y], dtype=torch.float32).unbind(1)
        if name == "layout" and not bool(((given >= low) & (given <= high)).all()):
            expected = f"the wall's x in {list(WALL_X)} and the door's y in {list(DOOR_Y)}"
            raise UserError(f"layout={value}: expected {expected}")
        return given.clone()


class TwoRooms(gymnasium.Env):
    """One agent in two rooms: `TwoRoomsVector` without its first axis."""

    metadata: ClassVar[dict[str, Any]] = METADATA

    def __init__(
        self,
        *,
        random_walls: bool = False,
        radius: float = 0.0,
        max_steps: int = MAX_STEPS,
        render_mode: str | None = None,
    ) -> None:
        settings = {"random_walls": random_walls, "radius": radius, "max_steps": max_steps, "render_mode": render_mode}
        self.rooms, self.render_mode = TwoRoomsVector(1, **settings), render_mode
        self.observation_space = self.rooms.single_observation_space
        self.action_space = self.rooms.single_action_space

    def reset(
        self, *, seed: int | None = None, options: Mapping[str, Any] | None = None
    ) -> tuple[np.ndarray, dict[str, Any]]:
        """Begin an episode; see `TwoRoomsVector`."""
        super().reset(seed=seed)
        seed = int(self.np_random.integers(2**31)) if seed is None else seed
        observation, info = self.rooms.reset(seed=seed, options=options)
        return observation[0], self._own(info)

    def step(self, action: Any) -> tuple[np.ndarray, float, bool, bool, dict[str, Any]]:
        """Move the agent. Raise UserError for an action of another shape, type or range."""
        action = checked_actions(action, (2,)).unsqueeze(0)
        observation, reward, terminated, truncated, info = self.rooms.step(action)
        return observation[0], float(reward[0]), bool(terminated[0]), bool(truncated[0]), self._own(info)

    def render(self) -> np.ndarray | None:
        """Return a picture (260, 260, 3): walls grey, the agent red, its goal green."""
        pictures = self.rooms.render()
        return None if pictures is None else pictures[0]

    def _own(self, info: dict[str, Any]) -> dict[str, Any]:
        return {name: value[0] for name, value in info.items()}


def two_rooms_expert(observation: np.ndarray, info: Mapping[str, Any], random: np.random.Generator) -> np.ndarray:
    """Return the action of a policy that knows the rooms, for scripts/collect.py. Raise UserError in other worlds."""
    if "layout" not in info:
        raise UserError("policy=jepa.worlds.environment.two_rooms_expert goes with environment=two_rooms alone")
    state, goal, layout = (torch.as_tensor(info[name]).unsqueeze(0) for name in ("state", "goal", "layout"))
    return two_rooms.expert(state, goal, RoomLayout(*layout.unbind(1)), AGENT_SIZE)[0].numpy()


def checked_actions(actions: Any, shape: tuple[int, ...]) -> Tensor:
    """Return actions as float32. Raise UserError for another shape, type or range than those of two rooms."""
    values = torch.as_tensor(actions if isinstance(actions, Tensor) else np.asarray(actions)).detach().cpu()
    if tuple(values.shape) != shape:
        raise UserError(f"actions of shape {tuple(values.shape)}: expected {shape}, displacements in x and y")
    if not values.is_floating_point():
        raise UserError(f"actions are {str(values.dtype).removeprefix('torch.')}: expected floats, in pixels")
    if not bool((values.abs() <= MAX_ACTION + 1e-4).all()):  # also NaN
        worst = values.flatten()[values.abs().nan_to_num(torch.inf).argmax()]
        raise UserError(f"an action has a component of {worst:g} pixels: expected at most {MAX_ACTION} either way")
    return values.float()


def make_environment(name: str, settings: Mapping[str, Any] | None = None) -> Any:
    """Return an environment: `two_rooms`, one that gymnasium knows (CartPole-v1), or a class by its dotted path.

    Raises UserError for one that is not known, and for settings that it does not take.
    """
    settings = dict(settings or {})
    try:
        if name == "two_rooms":
            return TwoRooms(**settings)
        if re.fullmatch(r"[A-Za-z_]\w*(\.\w+)+", name):
            module, _, attribute = name.rpartition(".")
            made = getattr(importlib.import_module(module), attribute)(**settings)
            if not isinstance(made, gymnasium.Env):
                raise TypeError(f"it is a {type(made).__name__} and no gymnasium.Env")
            return made
        return gymnasium.make(name, **settings)
    except (gymnasium.error.Error, ImportError, AttributeError, TypeError, ValueError) as error:
        known = "two_rooms, an id of gymnasium, such as CartPole-v1, or the dotted path of a class"
        raise UserError(f"environment={name} cannot be made ({first_line(error)}): expected {known}") from error


gymnasium.register(id="jepa/TwoRooms-v0", entry_point="jepa.worlds.environment:TwoRooms")
