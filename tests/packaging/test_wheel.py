"""The package as a library: what its wheel holds, and a run from another folder."""

from __future__ import annotations

import os
import shutil
import subprocess
import sys
import zipfile

import pytest
from core_only import ROOT

RUN = """
from pathlib import Path

import jepa
from jepa import build_trainer, load_config

assert Path(jepa.__file__).is_relative_to({target!r}), jepa.__file__
small = ["model.encoder.depth=1", "trainer.max_steps=2", "trainer.device=cpu", "evaluation=none", "logger=[jsonl]"]
build_trainer(load_config(["data=digits", *small, "run_dir=run"])).fit()
"""


@pytest.mark.slow
def test_an_installed_wheel_brings_its_configs_and_trains_from_another_folder(tmp_path):
    source, target, elsewhere = tmp_path / "source", tmp_path / "installed", tmp_path / "elsewhere"
    for folder in ("jepa", "conf"):
        shutil.copytree(ROOT / folder, source / folder, ignore=shutil.ignore_patterns("__pycache__", "local"))
    for name in ("pyproject.toml", "setup.py", "MANIFEST.in", "README.md", "LICENSE"):
        shutil.copy(ROOT / name, source)
    build = "from setuptools.build_meta import build_wheel; build_wheel('.')"
    subprocess.run([sys.executable, "-c", build], cwd=source, check=True, capture_output=True)
    (wheel,) = source.glob("*.whl")
    with zipfile.ZipFile(wheel) as archive:  # what an installer does with a wheel of Python alone
        archive.extractall(target)
    configs = {path.relative_to(source / "conf") for path in (source / "conf").rglob("*.yaml")}
    assert {path.relative_to(target / "jepa/conf") for path in (target / "jepa/conf").rglob("*.yaml")} == configs
    for pattern in ("report/*.html", "config/*.yaml"):
        files = {path.name for path in (ROOT / "jepa").glob(pattern)}
        assert {path.name for path in (target / "jepa").glob(pattern)} == files != set()
    assert {path.name for path in target.iterdir() if path.suffix != ".dist-info"} == {"jepa"}
    elsewhere.mkdir()
    environment = {**os.environ, "PYTHONPATH": str(target), "OMP_NUM_THREADS": "1"}
    code = RUN.format(target=str(target))
    process = subprocess.run(
        [sys.executable, "-c", code], cwd=elsewhere, env=environment, capture_output=True, text=True, check=False
    )
    assert process.returncode == 0, process.stderr
    assert (elsewhere / "run" / "checkpoints" / "last.pt").is_file()
