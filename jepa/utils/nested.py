"""Nested configurations as plain dicts and lists."""

from __future__ import annotations

from collections.abc import Mapping
from typing import Any


def flatten(node: Mapping[str, Any], prefix: str = "") -> dict[str, Any]:
    """Return the leaves of nested dicts by dotted key."""
    leaves: dict[str, Any] = {}
    for name, value in node.items():
        leaves |= flatten(value, f"{prefix}{name}.") if isinstance(value, Mapping) else {f"{prefix}{name}": value}
    return leaves


def find_targets(node: Any) -> list[str]:
    """Return every `_target_` of a nested configuration."""
    if isinstance(node, Mapping):
        own = [str(node["_target_"])] if "_target_" in node else []
        return own + [target for value in node.values() for target in find_targets(value)]
    if isinstance(node, (list, tuple)):
        return [target for value in node for target in find_targets(value)]
    return []
