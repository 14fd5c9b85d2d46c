"""Checking a composed configuration against the constructors it names, before anything is built."""

from __future__ import annotations

import collections.abc
import inspect
import re
import types
import typing
from collections.abc import Callable, Mapping
from typing import Any

from hydra.utils import get_object
from omegaconf import DictConfig, OmegaConf

from jepa.config.words import closest
from jepa.utils.errors import UserError

SPECIAL = {"_target_", "_partial_", "_convert_", "_recursive_", "_args_"}


def check_config(node: Any, key: str = "", source: Callable[[str], str] = str) -> None:
    """Hold every `_target_` below a plain node against its signature, partial ones included.

    source: returns the key that gives a key its value, see `source_of`.

    Raise UserError with the full key for a target that cannot be imported, an argument the constructor does not take,
    and a value of another type than it says.
    """
    if isinstance(node, list):
        for number, item in enumerate(node):
            check_config(item, f"{key}[{number}]", source)
    if not isinstance(node, dict):
        return
    if "_target_" in node:
        check_call(node, key, source)
    for name, value in node.items():
        check_config(value, f"{key}.{name}" if key else str(name), source)


def check_values(config: DictConfig, kinds: Mapping[str, Any], at_least: Mapping[str, int] | None = None) -> None:
    """Hold the values of a script, which no constructor takes, against their types and least values.

    Raise UserError for the first that does not fit.
    """
    for key, kind in kinds.items():
        value = OmegaConf.select(config, key)
        value = OmegaConf.to_container(value) if OmegaConf.is_config(value) else value
        if not fits(value, kind):
            raise UserError(f"{key}={shown(value)}: expected {describe(kind)}")
    for key, least in (at_least or {}).items():
        if config[key] < least:
            raise UserError(f"{key}={config[key]}: expected at least {least}")


def check_call(node: dict[str, Any], key: str, source: Callable[[str], str] = str) -> None:
    """Hold one node's arguments against the signature of its `_target_`."""
    target = node["_target_"]
    try:
        function = get_object(target)
    except (ImportError, AttributeError, ValueError) as error:
        raise UserError(f"{key}._target_={target} cannot be imported: {' '.join(str(error).split())}") from error
    try:
        parameters = inspect.signature(function).parameters
    except (ValueError, TypeError):
        return  # built in C
    try:
        hints = typing.get_type_hints(function.__init__ if inspect.isclass(function) else function)
    except (TypeError, NameError):  # annotated with names of another file, such as that of its base class
        hints = {}
    takes_any = any(p.kind is p.VAR_KEYWORD for p in parameters.values())
    if inspect.isclass(function) and getattr(function.__init__, "__qualname__", "") == "Module.__init__":
        parameters, takes_any = {}, False  # torch's own takes anything, and refuses it later
    for name, value in node.items():
        if name in SPECIAL:
            continue
        if name not in parameters:
            if takes_any:
                continue
            close = closest(name, parameters)
            hint = f"Did you mean {key}.{close}?" if close else f"It takes {', '.join(parameters) or 'nothing'}"
            leave = "" if target.startswith("jepa.") else f"; ~{key}.{name} leaves it out"
            raise UserError(f"{key}.{name}: {target} takes no {name}. {hint}{leave}")
        hint, default = hints.get(name), parameters[name].default
        if name not in hints and isinstance(value, str) and isinstance(default, (int, float)):
            hint = bool if isinstance(default, bool) else float  # all that functions without annotations tell
        if hint is not None and not fits(value, hint):
            raise UserError(f"{source(f'{key}.{name}')}={shown(value)}: {target} expects {describe(hint)}")


def source_of(config: DictConfig, key: str) -> str:
    """Return the key of which an interpolation takes a value as it is, through any number of them; else the key."""
    for _ in range(10):  # interpolations of each other are refused before
        node: Any = config
        for name in key.split("."):
            node = node._get_node(name) if isinstance(node, DictConfig) else None
        text = node._value() if node is not None and node._is_interpolation() else ""
        value = OmegaConf.select(config, key)
        sources = [
            other for other in re.findall(r"\$\{(\w+(?:\.\w+)+)\}", text) if OmegaConf.select(config, other) == value
        ]
        if not sources:
            break
        key = sources[0]
    return key


def shown(value: Any) -> str:
    """Return a value as the command line has it; a text that would be read as something else in quotes."""
    if isinstance(value, str):
        return value if OmegaConf.create(f"a: {value}" if value else "a: ''").get("a") == value else f"'{value}'"
    return "null" if value is None else str(value).lower() if isinstance(value, bool) else str(value)


def fits(value: Any, hint: Any) -> bool:
    """Whether a plain configuration value can serve an argument of this type; True where that cannot be told."""
    origin = typing.get_origin(hint)
    if origin in (typing.Union, types.UnionType):
        return any(fits(value, option) for option in typing.get_args(hint))
    if origin is typing.Literal:
        return value in typing.get_args(hint)
    if hint is type(None):
        return value is None
    if isinstance(value, dict):
        return "_target_" in value or hint not in (bool, int, float, str)
    if hint is float:
        return isinstance(value, (int, float)) and not isinstance(value, bool)
    if hint in (bool, str):
        return isinstance(value, hint)
    if hint is int:
        return isinstance(value, int) and not isinstance(value, bool)
    kind = origin or hint
    if is_module(kind) and (value is None or isinstance(value, (str, int, float))):
        return False
    if kind in (list, tuple, collections.abc.Sequence):
        inner = [a for a in typing.get_args(hint) if a is not ...]
        return isinstance(value, list) and all(fits(item, inner[0]) for item in value if len(inner) == 1)
    return kind not in (dict, collections.abc.Mapping) and getattr(kind, "__name__", "") != "Tensor"


def is_module(kind: Any) -> bool:
    """Return whether a type is a network; torch need not be imported for it."""
    return inspect.isclass(kind) and any(base.__module__.startswith("torch.nn.modules") for base in kind.__mro__)


WORDS = {int: "a whole number", float: "a number", bool: "true or false", str: "a text", type(None): "null"}
WORDS |= {dict: "{key: value}", Mapping: "{key: value}"}


def describe(hint: Any) -> str:
    """Return a type in words: "a number or null"."""
    origin, inside = typing.get_origin(hint), typing.get_args(hint)
    if origin is typing.Literal:
        return _either([str(value) for value in inside])
    if origin in (typing.Union, types.UnionType):
        options = list(
            dict.fromkeys(describe(option) for option in inside if getattr(option, "__name__", "") != "Tensor")
        )
        return _either(options)
    if origin in (list, tuple, collections.abc.Sequence):
        of = {describe(item).removeprefix("a ") for item in inside if item is not ...}
        return "a list" + (f" of {of.pop()}s" if len(of) == 1 else "")
    return WORDS.get(origin or hint, hint.__name__ if inspect.isclass(hint) else str(hint).replace("typing.", ""))


def _either(options: list[str]) -> str:
    return ", ".join(options[:-1]) + " or " + options[-1] if len(options) > 1 else options[0]
