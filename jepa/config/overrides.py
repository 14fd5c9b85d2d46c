"""Command-line overrides before Hydra reads them: paths that want quotes, and keys that no yaml lists."""

from __future__ import annotations

import difflib
import inspect
import os
import re
from collections.abc import Callable, Iterable, Sequence

from hydra.core.override_parser.overrides_parser import OverridesParser
from hydra.errors import HydraException
from hydra.utils import get_object
from omegaconf import DictConfig, OmegaConf
from omegaconf.errors import OmegaConfBaseException

from jepa.utils.errors import UserError

VALUE = re.compile(r"[A-Za-z_][\w/@]*\.[\w.]+=")
"""An override of a single value, without a sign: "trainer.tf32=true"."""
SWEEP = re.compile(r"[\w/.]+=([\w./-]+,|(choice|glob|range|interval)\()")
"""An override that gives several values, for a sweep."""
PATHS = ("resume", "init_from", "checkpoint")
WORDS = ("auto", "null")
"""Values of these keys that are no paths."""


def override_key(override: str) -> str:
    """Return the key that an override sets: "+a.b=1" -> "a.b"."""
    return override.partition("=")[0].lstrip("+~")


def override_value(arguments: Iterable[str], key: str) -> str | None:
    """Return the last value that arguments give a key, without quotes; None if they give none."""
    given = [argument for argument in arguments if argument.startswith(f"{key}=")]
    if not given:
        return None
    try:
        value = OverridesParser.create().parse_override(given[-1]).value()
        value = OmegaConf.create({key: value})[key]
    except (HydraException, OmegaConfBaseException):
        value = None
    return value if isinstance(value, str) else given[-1].partition("=")[2]


def quoted(text: str) -> str:
    """Return a text as Hydra reads it back unchanged: in quotes, unless it is a path of letters, digits and ._-"""
    if re.fullmatch(r"[\w.-]*/[\w./-]*", text, re.ASCII):  # with a slash, as "123" and "true" are no texts
        return text
    text = re.sub(r"(\\*)\$\{", r"\1\1\\${", text)  # which OmegaConf would look up
    text = re.sub(r"(\\*)'", r"\1\1\\'", text)
    return "'" + re.sub(r"(\\+)\Z", r"\1\1", text) + "'"


def with_quoted_paths(arguments: Sequence[str]) -> list[str]:
    """Return arguments with quotes around paths of existing files and folders that Hydra would read as syntax."""
    result = []
    for argument in arguments:
        key, _, value = argument.partition("=")
        exists = key in PATHS and value not in ("", *WORDS) and os.path.exists(value)
        result.append(f"{key}={quoted(value)}" if exists else argument)
    return result


def with_new_keys(arguments: Sequence[str], compose: Callable[[list[str]], DictConfig]) -> list[str]:
    """Return overrides in which a key that no yaml lists, but the constructor of its node takes, is added.

    So `trainer.tf32=true` and `optimizer.amsgrad=true` need no `+`, in a sweep neither. Raise UserError, with the
    nearest name, for a key that neither knows. Keys outside of what constructors take are left to Hydra.

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
        if any(SWEEP.match(option) for option in options):
            return list(arguments)  # Hydra will say what is wrong
        raise
    added = {key for key in map(override_key, values) if _is_new_key(config, key)}
    return [f"++{a}" if a in values and override_key(a) in added else a for a in arguments]


def _first_choice(option: str) -> str:
    """Return an option as a single run has it: "loss=mse,l1" or "loss=choice(mse,l1)" -> "loss=mse"."""
    key, _, value = option.partition("=")
    value = value.removeprefix("choice(").removesuffix(")") if value.startswith("choice(") else value
    return f"{key}={value.partition(',')[0]}" if not value.startswith(("[", "{", "'", '"')) else option


def _is_new_key(config: DictConfig, key: str) -> bool:
    """Return whether a key is missing in the configuration and its node's constructor takes it.

    Raise UserError if the constructor takes no such argument.
    """
    parent, _, name = key.rpartition(".")
    node = OmegaConf.select(config, parent)
    if not isinstance(node, DictConfig) or name in node or "_target_" not in node:
        return False
    try:
        parameters = inspect.signature(get_object(node._target_)).parameters
    except (ImportError, AttributeError, ValueError, TypeError):
        return False
    if name in parameters or any(p.kind is p.VAR_KEYWORD for p in parameters.values()):
        return name in parameters
    names = [str(other) for other in dict.fromkeys([*node, *parameters]) if not str(other).startswith("_")]
    if close := closest(name, names):
        raise UserError(f"{key}: {node._target_} takes no {name}. Did you mean {parent}.{close}?")
    raise UserError(f"{key}: {node._target_} takes no {name}, but {', '.join(names)}")


def closest(name: str, names: Iterable[str]) -> str | None:
    """Return the name nearest to a misspelt one, or the one that has it as a word ("dim" -> "embed_dim")."""
    names = list(names)
    close = difflib.get_close_matches(name, names, n=1) or [other for other in names if name in other.split("_")]
    return close[0] if close else None
