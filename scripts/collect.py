"""Episodes for data=trajectories: python scripts/collect.py environment=two_rooms episodes=100 output=<folder or .h5>

An episode of T steps has T + 1 rows: `observations`, `actions` and `rewards`, whose last row is NaN, `terminated` and
`truncated`, true in the last row alone, and `states` where `info["state"]` has them. Choices become one-hot actions.
See --help.
"""

from __future__ import annotations

import importlib
import json
from collections.abc import Callable, Iterator, Mapping
from pathlib import Path
from typing import Any
from zipfile import BadZipFile

import hydra
import numpy as np
from omegaconf import DictConfig, OmegaConf

from jepa.config.command import reported_errors, run_command
from jepa.utils.errors import UserError, first_line
from jepa.utils.files import write_atomic
from jepa.utils.lazy_import import require
from jepa.utils.random import derive_seed
from jepa.utils.read_data import read_mapping

BEGUN = "collect.json"
"""Says what a folder of episodes is of."""

KINDS = {"environment": str, "settings": dict | None, "options": dict | None, "policy": str, "pictures": bool}
KINDS |= {"output": str | int, **dict.fromkeys(("episodes", "max_steps", "seed"), int)}
"""Types of the settings."""

HDF5_NAMES = {"actions": "action", "rewards": "reward", "states": "state"}


@hydra.main(config_path="../conf", config_name="collect", version_base="1.3")
def main(config: DictConfig) -> None:
    """Record and write."""
    with reported_errors():
        collect(config)


def collect(config: DictConfig) -> Path:
    """Record the episodes that are still missing; gives the folder or file. Raise UserError for what cannot be."""
    from jepa.config.check import check_values
    from jepa.worlds.environment import make_environment

    check_values(config, KINDS, {"episodes": 1, "max_steps": 1})
    output = Path(str(config.output)).expanduser()
    plan = OmegaConf.to_container(config, resolve=True)
    plan = {name: value for name, value in plan.items() if name not in ("output", "episodes")}
    settings = {"render_mode": "rgb_array"} if config.pictures else {}
    environment = make_environment(config.environment, settings | (plan["settings"] or {}))
    policy = policy_of(config.policy)
    write = write_hdf5 if output.suffix.lower() in (".h5", ".hdf5") else write_folder
    steps, returns = write(output, plan, config.episodes, lambda number: record(environment, policy, plan, number))
    print(f"{config.episodes:,} episodes, {steps:,} steps, rewards {np.mean(returns):.4g} an episode: {output}")
    encoder = "" if config.pictures or is_picture(environment.observation_space) else " model/encoder=vector"
    print(f"python train.py data=trajectories data.root={output} model=world{encoder}")
    return output


def policy_of(name: str) -> Callable[..., Any] | None:
    """Return a policy by its dotted path, None for random actions. Raise UserError for one that is not there."""
    if name == "random":
        return None
    module, _, attribute = str(name).rpartition(".")
    try:
        policy = getattr(importlib.import_module(module), attribute)
        policy = policy() if isinstance(policy, type) else policy
        if not callable(policy):
            raise TypeError("it cannot be called")
        return policy
    except (ImportError, AttributeError, ValueError, TypeError) as error:
        raise UserError(
            f"policy={name} ({first_line(error)}): expected random, or the dotted path of a policy"
        ) from error


def record(environment: Any, policy: Callable[..., Any] | None, plan: Mapping[str, Any], number: int) -> dict[str, Any]:
    """Return the arrays of an episode. Raise UserError for actions that the environment does not take."""
    spaces = require("gymnasium", extra="world", purpose="scripts/collect.py").spaces
    space, seed = environment.action_space, derive_seed(plan["seed"], "collect", number) % 2**31
    random = np.random.default_rng(seed)
    space.seed(seed)
    try:
        observation, info = environment.reset(seed=seed, options=plan["options"])
    except (ValueError, TypeError, KeyError) as error:
        if plan["options"] is None:
            raise
        raise UserError(f"options={plan['options']}: the environment refuses them: {first_line(error)}") from error
    rows: dict[str, list[Any]] = {
        name: [] for name in ("observations", "actions", "rewards", "terminated", "truncated")
    }
    ended, states = (False, False), []
    for step in range(plan["max_steps"] + 1):
        own = values_of(environment.observation_space, observation)
        rows["observations"].append(rendered(environment) if plan["pictures"] else own)
        if "state" in info or plan["pictures"]:
            states.append(np.asarray(info.get("state", own), dtype=np.float32).ravel())
        ended = ended if step < plan["max_steps"] else (ended[0], not ended[0])
        rows["terminated"].append(ended[0])
        rows["truncated"].append(ended[1])
        if any(ended):
            break
        action = space.sample() if policy is None else policy(observation, info, random)
        if isinstance(space, spaces.Box):
            action = np.asarray(action, dtype=space.dtype)
        if not space.contains(action):
            raise UserError(f"policy={plan['policy']} gave the action {action!r}, expected one of {space}")
        rows["actions"].append(spaces.flatten(space, action).astype(np.float32))
        observation, reward, *ended, info = environment.step(action)
        rows["rewards"].append(reward)
    if not rows["actions"]:
        raise UserError(f"environment={plan['environment']}: an episode ended before its first step")
    rows["actions"].append(np.full_like(rows["actions"][0], np.nan))
    rows["rewards"].append(np.nan)
    arrays = {name: np.array(values) for name, values in rows.items()} | (
        {"states": np.array(states)} if states else {}
    )
    return arrays | {"rewards": arrays["rewards"].astype(np.float32)}


def is_picture(space: Any) -> bool:
    """Return whether observations of a space are pictures."""
    spaces = require("gymnasium", extra="world", purpose="scripts/collect.py").spaces
    return isinstance(space, spaces.Box) and len(space.shape) == 3


def values_of(space: Any, observation: Any) -> np.ndarray:
    """Return an observation as it is stored: a picture (C, H, W), or numbers (d,) float32."""
    if is_picture(space):
        return as_picture(observation)
    spaces = require("gymnasium", extra="world", purpose="scripts/collect.py").spaces
    return np.asarray(spaces.flatten(space, observation), dtype=np.float32)


def rendered(environment: Any) -> np.ndarray:
    """Return what an environment shows, (C, H, W). Raise UserError for one that shows nothing."""
    error = require("gymnasium", extra="world", purpose="scripts/collect.py").error
    try:
        pixels = np.asarray(environment.render())
    except error.Error as problem:
        raise UserError(f"pictures=true: the environment cannot be rendered: {first_line(problem)}") from problem
    if pixels.ndim != 3:
        raise UserError("pictures=true: the environment renders no pictures (rgb_array)")
    return as_picture(pixels)


def as_picture(pixels: np.ndarray) -> np.ndarray:
    """Return a picture (C, H, W), of one whose channels may come last."""
    return np.ascontiguousarray(np.moveaxis(pixels, -1, 0) if pixels.shape[-1] < pixels.shape[0] else pixels)


def write_folder(
    folder: Path, plan: Mapping[str, Any], episodes: int, record: Callable[[int], dict[str, Any]]
) -> tuple[int, list[float]]:
    """Write an .npz file for each episode that lacks one; gives steps and returns of all."""
    note, steps, returns = folder / BEGUN, 0, []
    if note.exists():
        stored = read_mapping(note)
        if other := [name for name in plan if stored.get(name) != plan[name]]:
            raise UserError(f"output={folder} holds other episodes ({', '.join(other)} differ): give a new folder")
    elif folder.exists() and (not folder.is_dir() or any(folder.iterdir())):
        raise UserError(f"output={folder} holds other things: give a new folder")
    for number in range(episodes):
        path = folder / f"episode_{number:06d}.npz"
        if not path.exists():
            arrays = record(number)  # before anything is written, as it may not work
            if not note.exists():
                write_atomic(note, lambda place: place.write_text(json.dumps(plan, indent=1) + "\n"))
            write_atomic(path, lambda place, arrays=arrays: np.savez(place, **arrays))
        try:
            with np.load(path) as stored:
                rewards = stored["rewards"]
        except (OSError, ValueError, KeyError, BadZipFile) as error:
            raise UserError(f"{path} is damaged ({first_line(error)}): remove it, and it is recorded again") from error
        steps += len(rewards) - 1
        returns.append(float(np.nansum(rewards)))
    return steps, returns


def write_hdf5(
    path: Path, plan: Mapping[str, Any], episodes: int, record: Callable[[int], dict[str, Any]]
) -> tuple[int, list[float]]:
    """Write all episodes into one file, which has its name once it is complete; gives steps and returns."""
    h5py = require("h5py", extra="world", purpose=f"output={path}")
    if path.exists():
        raise UserError(f"output={path} is there already: give another name, or remove it")
    returns: list[float] = []

    def write(place: Path) -> None:
        with h5py.File(place, "w") as file:
            file.attrs["collect"] = json.dumps(plan)
            for number in range(episodes):
                arrays = record(number)
                returns.append(float(np.nansum(arrays["rewards"])))
                for name, values in columns(arrays, number):
                    grow(file, name, values)
            lengths = np.bincount(file["ep_idx"][:])
            file["ep_len"], file["ep_offset"] = lengths, np.cumsum(lengths) - lengths

    write_atomic(path, write)
    with h5py.File(path, "r") as file:
        return len(file["ep_idx"]) - episodes, returns


def columns(arrays: Mapping[str, np.ndarray], number: int) -> Iterator[tuple[str, np.ndarray]]:
    """Yield the arrays of an episode by their names in HDF5."""
    count = len(arrays["rewards"])
    for name, values in arrays.items():
        pixels = "pixels" if values.ndim == 4 else "observation"
        yield pixels if name == "observations" else HDF5_NAMES.get(name, name), values
    yield "ep_idx", np.full(count, number)
    yield "step_idx", np.arange(count)


def grow(file: Any, name: str, values: np.ndarray) -> None:
    """Append rows to an array of a file, which is made with the first of them."""
    if name not in file:
        file.create_dataset(
            name,
            data=values,
            maxshape=(None, *values.shape[1:]),
            chunks=(1 if values.ndim == 4 else 256, *values.shape[1:]),
        )
        return
    before = len(file[name])
    file[name].resize(before + len(values), axis=0)
    file[name][before:] = values


if __name__ == "__main__":
    run_command(main, "collect")
