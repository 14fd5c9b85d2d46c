"""Environments: what gymnasium asks of them, factors of variation, mistakes, and collecting episodes."""

from __future__ import annotations

import importlib.util
import warnings
from pathlib import Path

import gymnasium
import numpy as np
import pytest
import torch
from gymnasium.utils.env_checker import check_env
from omegaconf import OmegaConf

from jepa.data import TrajectoryData
from jepa.data.sources import episode_files
from jepa.utils.errors import UserError
from jepa.worlds import TwoRooms, TwoRoomsVector, make_environment
from jepa.worlds.environment import two_rooms_expert
from jepa.worlds.two_rooms import RoomLayout, move, pairs, render

ROOT = Path(__file__).parents[2]


def test_gymnasium_finds_nothing_to_object_to():
    with warnings.catch_warnings():
        warnings.simplefilter("error")
        warnings.filterwarnings("ignore", message=".*normalized space")  # actions are in pixels
        check_env(gymnasium.make("jepa.worlds.environment:jepa/TwoRooms-v0", render_mode="rgb_array").unwrapped)


def test_agents_move_as_in_the_data_and_alone_as_among_others():
    start, goal, layout, _ = pairs(0, 5, random_walls=True)
    many = TwoRoomsVector(5, radius=1.3, max_steps=3)
    observation, info = many.reset(seed=0, options={"state": start, "goal": goal, "layout": layout})
    assert np.array_equal(observation, render(start, layout).numpy())
    assert np.array_equal(info["state"], start.numpy())
    alone = TwoRooms(radius=1.3, max_steps=3)
    settings = {"state": start[4], "goal": goal[4], "layout": [layout.wall_x[4], layout.door_y[4]]}
    assert np.array_equal(alone.reset(seed=0, options=settings)[0], observation[4])
    state = start
    for step in range(3):
        action = 4.9 * torch.rand(5, 2) - 2.45
        state = move(state, action, layout, 1.3)
        observation, _, terminated, truncated, info = many.step(action)
        assert np.array_equal(info["state"], state.numpy())
        one = alone.step(action[4].numpy())
        assert np.array_equal(one[0], observation[4])
        assert (one[2], one[3]) == (terminated[4], truncated[4]) == (False, step == 2)
    many.reset(seed=1, options={"state": goal, "goal": torch.cat((goal[:1], start[1:])), "layout": layout})
    assert many.step(torch.zeros(5, 2))[1].tolist() == [1, 0, 0, 0, 0]


def test_factors_of_variation_by_name():
    rooms = TwoRoomsVector(2)

    def seen(**options) -> np.ndarray:
        return rooms.reset(seed=[4, 4], options={"state": [20, 30], **options})[0].astype(int)

    plain = seen()
    assert (seen(agent_size=[1.3, 3.0])[:, 0] > 0).sum((1, 2)).tolist()[1] > 3 * (plain[0, 0] > 0).sum()
    assert seen(distractors=3)[:, 0].sum() > 1.5 * plain[:, 0].sum()
    noisy = seen(noise=20)
    assert np.array_equal(noisy[0], noisy[1])  # of the seed
    assert 5 < np.abs(noisy - plain).mean() < 20
    seen(speed=[1, 0.5])
    assert rooms.step(np.array([[2.0, 0], [2.0, 0]]))[4]["state"].tolist() == [[22, 30], [21, 30]]
    layouts = TwoRoomsVector(40, random_walls=True).reset(seed=0)[1]["layout"]
    assert len({tuple(each) for each in layouts.tolist()}) > 30


MISTAKES = {
    "radius=4: expected at least 0 and less than 4, half of the door": lambda rooms: make_environment(
        "two_rooms", {"radius": 4}
    ),
    "goal=.32, 40. is in no room": lambda rooms: rooms.reset(options={"goal": [32, 40]}),
    "goal=.70, 3. is in no room": lambda rooms: rooms.reset(options={"goal": [70, 3]}),
    "reset knows no option colour: expected state, goal, layout, agent_size": lambda rooms: rooms.reset(
        options={"colour": 1}
    ),
    "layout=.1, 2.: expected the wall's x in .20, 44.": lambda rooms: rooms.reset(options={"layout": [1, 2]}),
    "seed=.1, 2.: expected a whole number, or one for each": lambda rooms: TwoRoomsVector().reset(seed=[1, 2]),
    "speed=inf: expected at least 0.01, and finite": lambda rooms: rooms.reset(options={"speed": np.inf}),
    "TwoRooms.max_steps must be at least 1, got 0": lambda rooms: make_environment("two_rooms", {"max_steps": 0}),
    "noise=-1: expected at least 0": lambda rooms: rooms.reset(options={"noise": -1}),
    "distractors=1.5: expected a whole number": lambda rooms: rooms.reset(options={"distractors": 1.5}),
    "actions of shape .3,.: expected .2,.": lambda rooms: rooms.step(np.zeros(3)),
    "actions are int64: expected floats": lambda rooms: rooms.step(np.array([1, 0])),
    "a component of 9 pixels: expected at most 2.45": lambda rooms: rooms.step(np.array([0, 9.0])),
    "a component of nan pixels": lambda rooms: rooms.step(np.array([0, np.nan])),
    "has to be reset before its first step": lambda rooms: TwoRooms().step(np.zeros(2)),
    "environment=NoSuch-v0 cannot be made": lambda rooms: make_environment("NoSuch-v0"),
    "environment=jepa.worlds.NoSuch cannot be made": lambda rooms: make_environment("jepa.worlds.NoSuch"),
    "environment=two_rooms cannot be made .*colour": lambda rooms: make_environment("two_rooms", {"colour": 1}),
}


@pytest.mark.parametrize("message", MISTAKES)
def test_mistakes_get_one_sentence(message):
    rooms = TwoRooms()
    rooms.reset(seed=0)
    with pytest.raises(UserError, match=message):
        MISTAKES[message](rooms)


@pytest.fixture(scope="module")
def collect():
    spec = importlib.util.spec_from_file_location("collect", ROOT / "scripts" / "collect.py")
    module = importlib.util.module_from_spec(spec)
    spec.loader.exec_module(module)
    defaults = OmegaConf.load(ROOT / "conf" / "collect.yaml")

    def run(output: Path, **settings) -> Path:
        defaults.pop("hydra", None)
        defaults.pop("defaults", None)
        return module.collect(OmegaConf.merge(defaults, {"output": str(output), **settings}))

    return run


def read(root: Path) -> TrajectoryData:
    return TrajectoryData(source=episode_files, root=str(root), history=1, horizon=3, batch_size=2)


def test_collected_episodes_are_read_back(tmp_path, collect):
    settings = {
        "policy": "jepa.worlds.environment.two_rooms_expert",
        "max_steps": 6,
        "settings": {"random_walls": True},
    }
    folder, file = (collect(tmp_path / name, episodes=3, **settings) for name in ("folder", "all.h5"))
    first, second = read(folder), read(file)
    for one, other in zip(*(data.evaluation_batches("train", batch_size=4) for data in (first, second))):
        assert all(torch.equal(one[name], other[name]) for name in ("x", "actions", "states"))
    with np.load(folder / "episode_000001.npz") as stored:
        assert stored["observations"].shape == (7, 2, 65, 65)
        assert stored["truncated"].tolist() == [False] * 6 + [True]
        assert np.isnan(stored["actions"]).all(1).tolist() == [False] * 6 + [True]
        before = {path.name: path.read_bytes() for path in folder.iterdir()}
    (folder / "episode_000001.npz").unlink()  # as if it had been interrupted
    collect(folder, episodes=4, **settings)
    assert all((folder / name).read_bytes() == content for name, content in before.items())
    with pytest.raises(UserError, match=r"holds other episodes .seed differ."):
        collect(folder, episodes=4, seed=1, **settings)
    (folder / "episode_000001.npz").write_bytes(before["episode_000001.npz"][:99])
    with pytest.raises(UserError, match=r"episode_000001.npz is damaged .*: remove it, and it is recorded again"):
        collect(folder, episodes=4, **settings)


def test_any_environment_and_policy_is_collected(tmp_path, collect):
    data = read(collect(tmp_path / "poles", environment="CartPole-v1", episodes=4, max_steps=20))
    batch = next(data.evaluation_batches("train", batch_size=2))
    assert (batch["x"].shape, batch["actions"].shape) == ((2, 4, 4), (2, 3, 2))  # one-hot
    assert (batch["actions"].sum(2) == 1).all()
    data = read(collect(tmp_path / "shown", pictures=True, episodes=2, max_steps=4))
    assert data.observation_shape == (3, 260, 260)
    assert data.state_dim == 2
    for settings, message in (
        ({"policy": "nowhere.at_all"}, "policy=nowhere.at_all .No module named"),
        ({"policy": "jepa.worlds.environment.METADATA"}, "expected random, or the dotted path"),
        ({"episodes": 0}, "episodes=0: expected at least 1"),
        ({"max_steps": "many"}, "max_steps=many: expected a whole number"),
        ({"options": "noise"}, "options=noise: expected .key: value. or null"),
        ({"environment": "CartPole-v1", "options": {"low": 5}}, "the environment refuses them: Lower bound"),
        ({"environment": "jepa.worlds.TwoRoomsVector"}, "it is a TwoRoomsVector and no gymnasium.Env"),
        (
            {"environment": "CartPole-v1", "policy": "jepa.worlds.environment.two_rooms_expert"},
            "two_rooms_expert goes with environment=two_rooms alone",
        ),
        ({"environment": "CartPole-v1", "policy": "jepa.worlds.test_policy"}, "expected random, or the dotted path"),
    ):
        with pytest.raises(UserError, match=message):
            collect(tmp_path / "not", **{"max_steps": 3, **settings})
    assert not (tmp_path / "not").exists()


def test_the_expert_is_a_policy():
    rooms = TwoRooms(radius=1.3)
    _, info = rooms.reset(seed=5)
    for _ in range(90):
        _, reward, _, _, info = rooms.step(two_rooms_expert(None, info, None))
    assert reward == 1
    assert RoomLayout.fixed(1).wall_x.item() == info["layout"][0]
