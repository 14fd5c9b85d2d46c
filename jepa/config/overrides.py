"""Command-line overrides before Hydra reads them: keys that no yaml lists, and a sweep that goes on."""

from __future__ import annotations

import inspect
import re
from collections.abc import Callable, Sequence
from pathlib import Path

from hydra.errors import HydraException
from hydra.utils import get_object
from omegaconf import DictConfig, OmegaConf
from omegaconf.errors import OmegaConfBaseException

SWEEP_FILE = "multirun.yaml"
"""What Hydra leaves of a sweep in its folder."""

VALUE = re.compile(r"[A-Za-z_][\w/@]*\.[\w.]+=")
"""An override of a single value, without a sign: "trainer.tf32=true"."""


def with_new_keys(arguments: Sequence[str], compose: Callable[[list[str]], DictConfig]) -> list[str]:
    """Return overrides in which a key that no yaml lists, but the constructor of its node takes, is added.

    So `trainer.tf32=true` and `optimizer.amsgrad=true` need no `+`, in a sweep neither. Other unknown keys stay as they
    are, for Hydra to refuse.

    compose: makes the configuration of overrides.
    """
    values = [argument for argument in arguments if VALUE.match(argument) and not argument.startswith("hydra.")]
    if not values:
        return list(arguments)
    options = [a for a in arguments if re.match(r"[\w/@.+~]+=", a) and a not in values and not a.startswith("hydra")]
    options += [a for a in values if override_key(a).endswith("._target_")]  # a class of the user's own
    try:
        config = compose([_first_choice(option) for option in options])
    except (HydraException, OmegaConfBaseException):
        return list(arguments)  # Hydra will say what is wrong
    return [f"++{a}" if a in values and _is_new_key(config, override_key(a)) else a for a in arguments]


def _first_choice(option: str) -> str:
    """Return an option as a single run has it: "loss=mse,l1" -> "loss=mse"."""
    key, _, value = option.partition("=")
    return f"{key}={value.partition(',')[0]}" if not value.startswith(("[", "{", "'", '"')) else option


def _is_new_key(config: DictConfig, key: str) -> bool:
    """Return whether a key is missing in the configuration and its node's constructor takes it."""
    parent, _, name = key.rpartition(".")
    node = OmegaConf.select(config, parent)
    if not isinstance(node, DictConfig) or name in node or "_target_" not in node:
        return False
    try:
        return name in inspect.signature(get_object(node._target_)).parameters
    except (ImportError, AttributeError, ValueError, TypeError):
        return False


def with_stored_sweep(arguments: Sequence[str]) -> list[str]:
    """Return command-line arguments, with those of the sweep that `resume=<folder of a sweep>` names put before them.

    What is given now wins. Arguments that resume no sweep are returned as they are.
    """
    given = {override_key(argument) for argument in arguments if "=" in argument or argument.startswith("~")}
    resume = next((a.partition("=")[2] for a in arguments if a.startswith("resume=")), "auto")
    if not (Path(resume) / SWEEP_FILE).is_file():
        return list(arguments)
    return _with_stored_sweep(arguments, Path(resume), given)


def _with_stored_sweep(arguments: Sequence[str], folder: Path, given: set[str]) -> list[str]:
    """Arguments that go on with the sweep in a folder: its own, each of its runs from where it is."""
    stored = OmegaConf.load(folder / SWEEP_FILE).hydra.overrides
    given = given | {"resume", "hydra.mode", "hydra.sweep.dir"}
    kept = [line for line in [*stored.hydra, *stored.task] if override_key(line) not in given]
    place = next(number for number, argument in enumerate(arguments) if argument.startswith("resume="))
    text = str(folder)
    quoted = "'" + text.replace("'", "\\'") + "'" if re.search(r"[^\w./-]", text, re.ASCII) else text
    flag = [] if {"-m", "--multirun", "-c", "--cfg"} & set(arguments) else ["--multirun"]
    own = [*kept, "resume=auto", f"hydra.sweep.dir={quoted}"]
    return [*flag, *arguments[:place], *own, *arguments[place + 1 :]]


def override_key(override: str) -> str:
    """The key that an override sets: "+a.b=1" -> "a.b"."""
    return override.partition("=")[0].lstrip("+~")
