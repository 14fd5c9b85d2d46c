"""Going on with a run: its stored configuration, and what the command line gives now."""

from __future__ import annotations

import difflib
from collections.abc import Sequence
from pathlib import Path
from typing import Any

from hydra.errors import HydraException
from omegaconf import DictConfig, OmegaConf
from omegaconf.errors import OmegaConfBaseException

from jepa.checkpoint.moved import upgrade
from jepa.config.compose import compose_config, dotted_keys, run_folder_of
from jepa.config.overrides import override_key
from jepa.config.stored import SECTIONS, CommandLine, remove
from jepa.utils.errors import UserError
from jepa.utils.nested import flatten

MISSING = object()


def read_stored(resume: str | None) -> dict[str, Any] | None:
    """Return the resolved configuration of the run that `resume=` names; None for null, "auto" and a folder without."""
    path = Path(run_folder_of(resume, "")) / "config.yaml"
    if resume in (None, "auto", "") or not path.is_file():
        return None
    return OmegaConf.to_container(OmegaConf.load(path))


def resumed(config: DictConfig, stored: dict[str, Any], overrides: Sequence[str]) -> DictConfig:
    """Return the configuration of a run that goes on: the stored one, and what the command line gives now.

    A group that is chosen now (`callbacks=early_stopping`, `model/mask=random`) replaces its part, another experiment
    all that it may set; `trainer=ddp` changes what that option says and no more.
    Where a stored value is what an interpolation of today's files gives, it follows its source again, so that
    `optimizer.lr=1e-4` reaches the scheduler.

    config: composed from defaults and `overrides`. stored: as `read_stored` gives it.

    Raises UserError for a value to take out, `~logger.tensorboard`, that the run does not have.
    """
    before = [line for line in stored.get("overrides") or [] if "." not in override_key(line)]
    now = CommandLine([o for o in overrides if o not in before])  # the same experiment again changes nothing
    result = OmegaConf.create({k: v for k, v in upgrade(stored).items() if k not in ("run_dir", "overrides", "resume")})
    options = {override_key(line): line for line in [*before, *(o for o in overrides if "." not in override_key(o))]}
    options = [line for key, line in options.items() if key not in ("resume", "init_from")]
    for section, node in _composed_or(options, config).items():
        if section in result:
            relink(result, node, section)
    chosen = {option for option in now.options if "/" not in option} - {"trainer"}
    chosen |= set(SECTIONS) if now.experiment else set()
    for section, node in config.items():
        if section not in result or section in chosen:
            result[section] = node
    for group in (option.replace("/", ".") for option in now.options if "/" in option):
        if (node := OmegaConf.select(config, group)) is not None:
            OmegaConf.update(result, group, node, merge=False, force_add=True)
    if "trainer" in now.options and "trainer" not in chosen:
        changed = flatten(OmegaConf.to_container(config.trainer, resolve=False))
        default = flatten(OmegaConf.to_container(compose_config([]).trainer, resolve=False))
        for key in [key for key, value in changed.items() if key not in default or default[key] != value]:
            OmegaConf.update(result, f"trainer.{key}", changed[key], force_add=True)
    for key in now.values:
        if not key.startswith("hydra."):
            OmegaConf.update(result, key, OmegaConf.select(config, key), force_add=True)
    taken_out = {override_key(line) for line in stored.get("overrides") or [] if line.startswith("~")}
    for key in now.removed:
        if OmegaConf.select(result, key, default=MISSING) is MISSING and key not in taken_out:
            close = difflib.get_close_matches(key, [f"{key.partition('.')[0]}.{k}" for k in _keys(result, key)], n=1)
            raise UserError(f"~{key}: the run has no such value{f', did you mean ~{close[0]}?' if close else ''}")
        remove(result, key)
    return result


def _keys(config: DictConfig, key: str) -> list[str]:
    section = config.get(key.partition(".")[0])
    return dotted_keys(OmegaConf.to_container(section, resolve=False)) if isinstance(section, DictConfig) else []


def _composed_or(options: Sequence[str], config: DictConfig) -> DictConfig:
    """Return what these options compose to; `config` where they no longer do."""
    try:
        return compose_config(options)
    except (HydraException, OmegaConfBaseException):
        return config


def relink(result: DictConfig, template: Any, key: str) -> None:
    """Put the interpolations of `template` below a key into `result`, where they give the value that stands there."""
    if not isinstance(template, DictConfig):
        return
    for name, value in template.items_ex(resolve=False) if template._content is not None else ():
        full = f"{key}.{name}"
        if isinstance(value, str) and "${" in value:
            here = OmegaConf.select(result, full, default=MISSING)
            if here is not MISSING:
                OmegaConf.update(result, full, value)
                try:
                    same = OmegaConf.select(result, full) == here
                except OmegaConfBaseException:
                    same = False
                if not same:
                    OmegaConf.update(result, full, here)
        else:
            relink(result, value, full)
