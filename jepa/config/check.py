"""Checking a composed configuration against the constructors it names, before anything is built."""

from __future__ import annotations

import collections.abc
import inspect
import types
import typing
from typing import Any

from hydra.utils import get_object

from jepa.config.overrides import closest
from jepa.utils.errors import UserError

SPECIAL = {"_target_", "_partial_", "_convert_", "_recursive_", "_args_"}


def check_config(node: Any, key: str = "") -> None:
    """Hold every `_target_` below a plain node against its signature, partial ones included.

    Raises UserError with the full key for a target that cannot be imported, an argument the constructor does not
    take, and a value of another type than it says.
    """
    if isinstance(node, list):
        for number, item in enumerate(node):
            check_config(item, f"{key}[{number}]")
    if not isinstance(node, dict):
        return
    if "_target_" in node:
        check_call(node, key)
    for name, value in node.items():
        check_config(value, f"{key}.{name}" if key else str(name))


def check_call(node: dict[str, Any], key: str) -> None:
    """Hold one node's arguments against the signature of its `_target_`."""
    target = node["_target_"]
    try:
        function = get_object(target)
    except (ImportError, AttributeError, ValueError) as error:
        raise UserError(f"{key}._target_={target} cannot be imported: {' '.join(str(error).split())}") from error
    try:
        parameters = inspect.signature(function).parameters
        hints = typing.get_type_hints(function.__init__ if inspect.isclass(function) else function)
    except (ValueError, TypeError, NameError):
        return  # built in C, or annotated with names that do not exist at run time
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
            hint = f"did you mean {close}?" if close else f"it takes {', '.join(parameters)}"
            raise UserError(f"{key}.{name}: {target} takes no such argument; {hint}")
        if name in hints and not fits(value, hints[name]):
            raise UserError(
                f"{key}.{name}={value!r} ({type(value).__name__}): {target} expects {describe(hints[name])}"
            )
        default = parameters[name].default  # the only type that functions without annotations tell
        if name not in hints and isinstance(value, str) and isinstance(default, (int, float)):
            raise UserError(f"{key}.{name}={value!r}: {target} expects {type(default).__name__}, such as {default}")


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
    if kind in (list, tuple, collections.abc.Sequence):
        inner = [a for a in typing.get_args(hint) if a is not ...]
        return isinstance(value, list) and all(fits(item, inner[0]) for item in value if len(inner) == 1)
    return kind not in (dict, collections.abc.Mapping) and getattr(kind, "__name__", "") != "Tensor"


def describe(hint: Any) -> str:
    """A type as a person would write it."""
    return hint.__name__ if inspect.isclass(hint) and not typing.get_args(hint) else str(hint).replace("typing.", "")
