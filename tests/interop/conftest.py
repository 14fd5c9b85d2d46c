"""A run, and the scripts' own functions called in this process, which is cheaper than running them."""

from __future__ import annotations

import copy
import functools
import importlib.util
from collections.abc import Callable, Iterator
from pathlib import Path

import numpy as np
import pytest
import torch
from omegaconf import DictConfig, OmegaConf, open_dict

from jepa import build_trainer, load_config
from jepa.config.stored import addable
from jepa.trainer.precision import Precision

ROOT = Path(__file__).resolve().parents[2]

SMALL = (
    "evaluation.max_train_samples=200",
    "evaluation.max_test_samples=100",
    "~evaluation.probes.linear",  # takes seconds, as does the next
    "~evaluation.probes.lidar",
    "trainer.device=cpu",
    "trainer.precision=fp32",
)
"""Overrides that make an evaluation quick."""


PRECISIONS = {"fp32": {"cpu": 1, "cuda": 5}, "bf16": {"cpu": 3e3, "cuda": 6e3}}
"""What a tolerance of the CPU in fp32 is multiplied by: kernels of a GPU add up in another order."""


@pytest.fixture(params=PRECISIONS)
def precision(request, device: torch.device) -> Iterator[float]:
    """Computes on a device in each of the precisions; gives the factor of a tolerance."""
    precision = Precision(request.param, device)
    with precision.kernels(), precision.autocast():
        yield PRECISIONS[request.param][device.type]


@functools.cache
def script(name: str):
    """A script of scripts/ as a module."""
    spec = importlib.util.spec_from_file_location(f"script_{name}", ROOT / "scripts" / f"{name}.py")
    module = importlib.util.module_from_spec(spec)
    spec.loader.exec_module(module)
    return module


def configured(name: str, folder: Path, *overrides: str) -> DictConfig:
    """The configuration that `python scripts/<name>.py <overrides>` gets, run from a folder.

    Composing takes half a second: configurations that differ in the script's own options alone share it.
    """
    added = addable(overrides)
    options = {*OmegaConf.load(ROOT / "conf" / f"{name}.yaml"), "run_dir"}
    own = [override for override in added if override.partition("=")[0] in options]
    config = copy.deepcopy(composed(name, tuple(override for override in added if override not in own)))
    config.merge_with(OmegaConf.from_dotlist([*own, f"run_dir={folder}"]))
    with open_dict(config):
        config.overrides = added
    return config


@functools.cache
def composed(name: str, overrides: tuple[str, ...]) -> DictConfig:
    """What Hydra makes of overrides."""
    return load_config(overrides, config_name=name)


@pytest.fixture(scope="session")
def published(shared_dir: Path) -> Path:
    """A file of the published I-JEPA code, of a tiny model."""
    return shared_dir / "fixtures" / "ijepa_tiny.pth.tar"


@pytest.fixture(scope="session")
def expected(shared_dir: Path) -> dict[str, torch.Tensor]:
    """What the published code computes with it."""
    arrays = np.load(shared_dir / "fixtures" / "ijepa_tiny_expected.npz")
    return {name: torch.from_numpy(np.asarray(arrays[name])) for name in arrays}


@pytest.fixture
def evaluate(tmp_path: Path) -> Callable:
    """Evaluate as scripts/evaluate.py does; gives what is written."""
    return lambda *overrides, small=SMALL: script("evaluate").evaluate(
        configured("evaluate", tmp_path, *small, *overrides)
    )


@pytest.fixture
def export(tmp_path: Path) -> Callable:
    """Export as scripts/export.py does; gives the file."""
    return lambda *overrides: script("export").export_encoder(configured("export", tmp_path, *overrides))


@pytest.fixture
def extract(tmp_path: Path) -> Callable:
    """Extract as scripts/extract.py does; gives the file."""
    return lambda *overrides: script("extract").extract(
        configured("extract", tmp_path, "trainer.device=cpu", "trainer.precision=fp32", *overrides)
    )


@pytest.fixture
def push() -> Callable:
    """Upload as scripts/push.py does; gives the names of the files."""
    base = OmegaConf.load(ROOT / "conf" / "push.yaml")
    return lambda *options: script("push").push(OmegaConf.merge(base, OmegaConf.from_dotlist(list(options))))


@pytest.fixture(scope="session")
def run_folder(tiny: list[str], tmp_path_factory: pytest.TempPathFactory) -> Path:
    """A run of three steps on digits."""
    torch.set_num_threads(1)
    folder = tmp_path_factory.mktemp("runs") / "run"
    overrides = [
        *tiny,
        *SMALL,
        "trainer.max_steps=3",
        "model.encoder.depth=2",
        "~logger.tensorboard",
        "~logger.console",
        "evaluation.at_start=true",
    ]
    config = load_config([*dict.fromkeys(overrides), f"run_dir={folder}"])
    with open_dict(config):
        config.overrides = overrides
    trainer = build_trainer(config)
    trainer.fit()
    trainer.save_checkpoint(folder.parent / "bare.pt", include_optimizer=False)
    return folder
