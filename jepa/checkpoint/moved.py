"""Names in stored configurations that have changed since. Whoever moves a class or renames a key adds a row here."""

from __future__ import annotations

from collections.abc import Mapping
from typing import Any

MOVED = {
    "jepa.utils.spectrogram": "jepa.utils.log_mel",
}
"""Former dotted path of a module or class -> its present one."""

RENAMED_KEYS = {
    "jepa.models": {"dim": "embed_dim", "heads": "num_heads"},
}
"""Module or class, by its present path -> former key of its constructor -> its present one."""


def upgrade(config: Any) -> Any:
    """Return a stored configuration, nested dicts and lists, with the present names of classes and keys."""
    if isinstance(config, (list, tuple)):
        return [upgrade(value) for value in config]
    if not isinstance(config, Mapping):
        return config
    config = dict(config)
    if isinstance(config.get("_target_"), str):
        config["_target_"] = present_target(config["_target_"])
        for prefix, keys in RENAMED_KEYS.items():
            if is_below(config["_target_"], prefix):
                config = {name if keys.get(name, name) in config else keys[name]: v for name, v in config.items()}
    return {name: upgrade(value) for name, value in config.items()}


def present_target(target: str) -> str:
    """Return the present dotted path of a class that may have moved."""
    for former, present in MOVED.items():
        if is_below(target, former):
            return present + target.removeprefix(former)
    return target


def is_below(target: str, prefix: str) -> bool:
    """Return whether a dotted path is that of `prefix` or of something in it."""
    return target == prefix or target.startswith(f"{prefix}.")
