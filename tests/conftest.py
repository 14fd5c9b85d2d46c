"""Fixtures for all tests: the shared data, and runs of train.py."""

from __future__ import annotations

import os
import subprocess
import sys
from collections.abc import Callable
from pathlib import Path

import pytest
import torch

ROOT = Path(__file__).resolve().parents[1]

TINY = (
    "data.batch_size=32",
    "data.image_size=8",
    "model.encoder.dim=32",
    "model.encoder.depth=1",
    "model.predictor.dim=32",
    "model.predictor.depth=1",
    "loss.projector.hidden=[32]",
    "loss.projector.out_dim=16",
    "trainer.max_steps=6",
    "trainer.log_every=1",
    "trainer.validate_every_epochs=null",
    "trainer.save_every_epochs=null",
    "trainer.precision=fp32",
    "trainer.device=cpu",
)
"""Overrides that make the default run take seconds."""


@pytest.fixture(scope="session")
def shared_dir() -> Path:
    """The folder of test data beside the repository (or $JEPA_SHARED); skips without it."""
    folder = Path(os.environ.get("JEPA_SHARED", ROOT.parent / "shared"))
    if not folder.is_dir():
        pytest.skip(f"no test data: {folder.name}/ is not beside the repository and JEPA_SHARED is not set")
    return folder


@pytest.fixture(autouse=True)
def _one_thread() -> None:
    """Small tensors gain nothing from threads, and two busy processes on two cores lose a lot by them."""
    torch.set_num_threads(1)


@pytest.fixture
def train(tmp_path: Path) -> Callable[..., subprocess.CompletedProcess]:
    """Run train.py as a user does, from an empty folder; gives the finished process."""

    def run(*arguments: str, timeout: float = 300, **environment: str) -> subprocess.CompletedProcess:
        return subprocess.run(
            [sys.executable, str(ROOT / "train.py"), *arguments],
            cwd=tmp_path,
            env={**os.environ, "OMP_NUM_THREADS": "1", **environment},
            capture_output=True,
            text=True,
            timeout=timeout,
        )

    return run
