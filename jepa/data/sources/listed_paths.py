"""Paths that a list of media names, which may not leave the folder of the data."""

from __future__ import annotations

import os
from collections.abc import Iterable, Sequence
from pathlib import Path

from jepa.utils.errors import DataError


class Fence:
    """Tells the paths that leave all of some folders: by `..`, as absolute paths, or by links."""

    def __init__(self, folders: Sequence[str | Path]) -> None:
        self.folders = [os.path.join(os.path.realpath(folder), "") for folder in folders]
        self._parents: dict[str, str] = {}  # a list has few folders, and looking a link up takes many system calls

    def leaves(self, path: str) -> bool:
        if "\0" in path:
            return True
        parent, name = os.path.split(path)
        if parent not in self._parents:
            self._parents[parent] = os.path.realpath(parent)
        place = os.path.join(self._parents[parent], name)
        if name in ("", ".", "..") or os.path.islink(place):
            place = os.path.realpath(place)
        return not any(os.path.join(place, "").startswith(folder) for folder in self.folders)


def check_inside(listed: Iterable[tuple[str, str]], folder: str | Path) -> None:
    """Raise DataError for the first path that leaves the folder of the data; listed: (what names it, path)."""
    fence = Fence([folder])
    for where, path in listed:
        if fence.leaves(path):
            raise DataError(
                f"{where}: {path!r} leaves the folder {folder}, where the data is expected (data.root): by .., as an "
                "absolute path, or by a link. If you trust this list, set data.allow_outside=true"
            )
