"""The folder of real data sets, and what its tar files unpack to."""

from __future__ import annotations

import tarfile
from collections.abc import Callable
from pathlib import Path

import pytest


@pytest.fixture(scope="session")
def shared_dir(shared_dir: Path) -> Path:
    """The real data sets of the shared folder."""
    return shared_dir / "data"


@pytest.fixture(scope="session")
def unpacked(shared_dir: Path, tmp_path_factory: pytest.TempPathFactory) -> Callable[[str], Path]:
    """Unpacks a tar file of the shared data once and gives its folder."""
    done: dict[str, Path] = {}

    def unpack(name: str) -> Path:
        if name not in done:
            folder = tmp_path_factory.mktemp("unpacked")
            with tarfile.open(shared_dir / name) as archive:
                archive.extractall(folder, filter="data")
            done[name] = folder / name.split(".")[0]
        return done[name]

    return unpack
