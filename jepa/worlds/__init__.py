"""Worlds to learn dynamics in: functions on batches of agents, data made of them, and environments of gymnasium."""

from __future__ import annotations

import importlib
from typing import Any

NAMES = {
    "environment": ("TwoRooms", "TwoRoomsVector", "make_environment"),
    "walk_data": ("two_rooms_walks",),
}
"""What is imported when it is used: environments need gymnasium."""


def __getattr__(name: str) -> Any:
    for file, names in NAMES.items():
        if name in names:
            return getattr(importlib.import_module(f"{__name__}.{file}"), name)
    raise AttributeError(f"module {__name__!r} has no attribute {name!r}")
