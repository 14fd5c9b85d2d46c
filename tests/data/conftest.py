"""The folder of real data sets, and what its tar files unpack to."""

from __future__ import annotations

import os
import tarfile
from collections.abc import Callable
from pathlib import Path

import pytest

REPOSITORY = Path(__file__).parents[2]


@pytest.fixture(scope="session")
def shared_dir() -> Path:
    """The data sets beside the repository, or in JEPA_SHARED; tests that need them are skipped without."""
    shared = Path(os.environ.get("JEPA_SHARED", REPOSITORY.parent / "shared")) / "data"
    if not shared.is_dir():
        pytest.skip(f"needs the real data sets in {shared} (or set JEPA_SHARED)")
    return shared


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
