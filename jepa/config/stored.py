"""What of a composed configuration the command line gave, and how a stored one joins it.

A script that opens a checkpoint has two configurations: the one composed from defaults and command line, and the one
stored in the checkpoint. What was given wins, then what is stored, then the defaults.
"""

from __future__ import annotations

import copy
import re
from collections.abc import Mapping, Sequence
from typing import Any

from omegaconf import DictConfig, OmegaConf

from jepa.config.overrides import override_key
from jepa.utils.nested import find_targets, flatten

SECTIONS = ("data", "model", "evaluation", "loss", "optimizer", "scheduler", "trainer", "monitor", "visualise")
SECTIONS += ("callbacks", "logger", "scaling")
NUMERIC = ("seed", "precision", "attention", "tf32", "deterministic")
"""Keys of trainer on which features and scores depend; a checkpoint's own are kept, so that scores can be repeated."""


class CommandLine:
    """The keys that overrides set: `data=mnist` an option, `data.root=x` a value, `~data.augment` a removed value.

    overrides: as Hydra's `overrides.task` lists them.
    """

    def __init__(self, overrides: Sequence[str]) -> None:
        self.options: dict[str, str] = {}
        self.values: list[str] = []
        self.removed: list[str] = []
        for override in overrides:
            key = override_key(override)
            if "." not in key:
                self.options[key] = override.partition("=")[2]
            else:
                (self.removed if override.startswith("~") else self.values).append(key)

    @property
    def experiment(self) -> bool:
        """Whether a recipe was chosen, which sets data and model."""
        return self.options.get("experiment", "null") not in ("null", "")

    def option(self, section: str) -> bool:
        """Whether a section as a whole was chosen."""
        return section in self.options or (section == "data" and self.experiment)

    def below(self, section: str) -> list[str]:
        """The given values of a section, as keys without it: "encoder.num_heads" of `model.encoder.num_heads=4`."""
        return [key.removeprefix(f"{section}.") for key in self.values if key.startswith(f"{section}.")]


def addable(arguments: Sequence[str]) -> list[str]:
    """Return arguments in which values of a run's sections may be new to the composed default.

    `checkpoint=<run on a folder> data.root=photos` changes the run's data, which the default data (digits, without
    a root) knows nothing about. What no constructor takes is refused later, by `check_config`.
    """
    pattern = re.compile(rf"({'|'.join(SECTIONS)})\.[\w.]+=")
    return [f"++{argument}" if pattern.match(argument) else argument for argument in arguments]


def model_overrides(config: DictConfig, given: CommandLine) -> dict[str, Any]:
    """What the command line says of the model: {"encoder.num_heads": 4}; all of an encoder that was chosen as a whole.

    An experiment chooses encoder and predictor; `model=` by itself its class alone, as the data sets the sizes.
    """
    flat = flatten(OmegaConf.to_container(config.model, resolve=False))  # a run may be scored on data of another model
    derived = {"encoder.image_size", "encoder.channels"}  # they follow the data
    whole = [part for part in ("encoder", "predictor") if f"model/{part}" in given.options or given.experiment]
    set_keys = (key for key, value in flat.items() if value is not None and key.split(".")[0] in whole)
    keys = {key for key in set_keys if not key.rpartition(".")[2].startswith("_")}
    keys = keys - derived | set(given.below("model")) | ({"_target_"} if "model" in given.options else set())
    values = {key: OmegaConf.select(config, f"model.{key}") for key in sorted(keys)}
    return {k: OmegaConf.to_container(v) if OmegaConf.is_config(v) else v for k, v in values.items()}


def in_force(stored: Mapping[str, Any], given: CommandLine) -> dict[str, Any]:
    """Return the sections of a stored configuration that join a composed one, without what the command line sets."""
    kept = {section: stored[section] for section in ("model", "loss") if section in stored}
    for section in ("data", "evaluation"):
        if section in stored and not given.option(section):
            kept[section] = copy.deepcopy(dict(stored[section]))
            removed = [key.partition(".")[2] for key in given.removed if key.startswith(f"{section}.")]
            for key in (*given.below(section), *removed):
                remove(kept[section], key)
    trainer = {key: value for key, value in (stored.get("trainer") or {}).items() if key in NUMERIC}
    return kept | {"trainer": {key: value for key, value in trainer.items() if f"trainer.{key}" not in given.values}}


def with_stored(config: DictConfig, kept: Mapping[str, Any], given: CommandLine) -> DictConfig:
    """Return the composed configuration with what `in_force` has kept of a stored one."""
    joined = OmegaConf.create(OmegaConf.to_container(config, resolve=False))
    for section in kept.keys() - {"trainer"}:
        joined[section] = OmegaConf.create(kept[section])
    for section in kept.keys() & {"data", "evaluation"}:
        for key in given.below(section):
            OmegaConf.update(joined[section], key, OmegaConf.select(config, f"{section}.{key}"), force_add=True)
    joined.trainer.update(kept.get("trainer", {}))
    return joined


def named_parts(config: DictConfig, given: CommandLine) -> list[str]:
    """Return every `_target_` outside of jepa that the command line itself names, as an option or as a value."""
    keys = [name.replace("/", ".") for name in given.options if given.options[name] not in ("null", "")]
    keys = (["data", "model", "loss", "evaluation"] if given.experiment else keys) + given.values
    values = {key: OmegaConf.select(config, key) for key in keys if key.split(".")[0] in SECTIONS}
    plain = {key: OmegaConf.to_container(v) if OmegaConf.is_config(v) else v for key, v in values.items()}
    named = find_targets(list(plain.values())) + [v for key, v in plain.items() if key.endswith("._target_")]
    return [target for target in named if not target.startswith("jepa.")]


def remove(node: Any, key: str) -> None:
    """Take one dotted key out of nested dicts, if it is there."""
    *parents, name = key.split(".")
    for parent in parents:
        node = node.get(parent) if isinstance(node, dict) else None
    if isinstance(node, dict):
        node.pop(name, None)
