"""The commands of docs/scientific_images.md, from 5-channel 16-bit TIFF files to features."""

from __future__ import annotations

import json
import shlex
from pathlib import Path

import numpy as np
import pytest
import tifffile
from omegaconf import OmegaConf

from jepa.interop import load

PAGE = Path(__file__).resolve().parents[2] / "docs" / "scientific_images.md"
pytestmark = pytest.mark.slow

SMALL = ["trainer.device=cpu", "trainer.max_steps=2", "data.batch_size=4", "data.num_workers=0", "data.image_size=32"]
SMALL += ["model.encoder.depth=1", "model.encoder.embed_dim=24", "model.encoder.num_heads=2", "~logger.tensorboard"]
SMALL += ["~evaluation.probes.linear"]
"""Overrides that make the page's run take seconds."""


def test_the_way_from_files_to_features(fork_server, tmp_path):
    random = np.random.default_rng(0)
    for number in range(12):
        path = tmp_path / "tiles" / "ab"[number % 2] / f"{number:02}.tif"
        path.parent.mkdir(parents=True, exist_ok=True)
        tifffile.imwrite(path, random.integers(0, 2**16, (5, 32, 32), np.uint16), photometric="minisblack")
    (tmp_path / "tiles" / "a" / "drawing.svg").touch()
    said = {}
    for line in PAGE.read_text().splitlines():
        if not line.startswith("python "):
            continue
        _, script, *arguments = shlex.split(line)
        dry = ["hydra.run.dir=outputs/dry"] if "trainer.dry_run=true" in arguments else []
        more = [*SMALL, *dry] if script == "train.py" else ["trainer.device=cpu", "hydra.run.dir=out"]
        process = fork_server.start([*arguments, *more], tmp_path, {}, script=script).wait()
        assert process.returncode == 0, process.stderr
        said["dry run" if dry else script] = process.stdout
    run = tmp_path / "outputs" / "tiles"
    stored = OmegaConf.load(run / "config.yaml")
    for text in (said["dry run"], said["train.py"]):
        assert "data.root=tiles: 1 .svg left out" in text
        assert f"data.mean={str(list(stored.data.mean)).replace(' ', '')} data.std=" in " ".join(text.split())
    assert list(stored.data.mean) == pytest.approx([0.5] * 5, abs=0.02)
    assert list(stored.data.std) == pytest.approx([12**-0.5] * 5, abs=0.02)
    assert (tmp_path / "outputs" / "dry" / "preview" / "samples.png").is_file()
    scores, results = (json.loads(path.read_text()) for path in (tmp_path / "scores.json", run / "results.json"))
    assert scores["trained"] == pytest.approx(results["trained"])
    features = np.load(tmp_path / "features.npz")
    assert features["features"].shape == (12, 24)
    assert np.isfinite(features["features"]).all()
    assert load(tmp_path / "encoder.safetensors").channels == 5
    card = json.loads((tmp_path / "encoder.safetensors.json").read_text())
    assert card["data"]["mean"] == list(stored.data.mean)
