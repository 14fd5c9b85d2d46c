"""Runs of train.py on sound."""

from __future__ import annotations

import json

import numpy as np
import pytest
import soundfile

SMALL = (
    "model.encoder.embed_dim=32",
    "model.encoder.depth=1",
    "model.encoder.num_heads=2",
    "model.predictor.embed_dim=32",
    "model.predictor.depth=1",
    "trainer.max_steps=3",
    "trainer.log_every=1",
    "trainer.validate_every_epochs=null",
    "trainer.precision=fp32",
    "trainer.device=cpu",
    "data.batch_size=8",
    "data.num_workers=0",
    "~logger.tensorboard",
)


def write_folder(root, classes=("high", "low"), each=6):
    """Class folders of tones of unequal length; without classes the files alone."""
    for number, name in enumerate(classes or ("",)):
        (root / name).mkdir(parents=True, exist_ok=True)
        for index in range(each):
            time = np.arange(2000 + 900 * index) / 16000
            wave = np.sin(2 * np.pi * (400 + 800 * number) * time) + 0.01 * np.random.default_rng(index).normal(
                size=len(time)
            )
            soundfile.write(root / name / f"{index}.flac", 0.3 * wave, 16000)


@pytest.mark.slow
def test_a_folder_of_sounds_trains_and_is_evaluated(train, tmp_path):
    write_folder(tmp_path / "sounds")
    done = train("data=audio_folder", "model=audio", "data.root=sounds", "data.seconds=0.5", *SMALL)
    assert done.returncode == 0, done.stderr
    (results,) = tmp_path.glob("outputs/*/*/results.json")
    rows = json.loads(results.read_text())
    for row in ("trained", "random_init", "raw_input"):
        assert {"linear", "knn"} <= rows[row].keys()


@pytest.mark.slow
def test_fsdd_trains_from_its_archive(train, tmp_path, shared_dir):
    root = shared_dir / "data" / "fsdd.tar.xz"
    options = ("data=fsdd", "model=audio", f"data.root={root}", "data.label=speaker", *SMALL, "evaluation=none")
    for mask in ("spectrogram", "multiblock"):
        fits = ["model.mask.min_context=1"] if mask == "multiblock" else []
        done = train(*options, f"model/mask={mask}", *fits, f"hydra.run.dir={mask}")
        assert done.returncode == 0, done.stderr


def test_mistakes_are_explained(train, tmp_path):
    write_folder(tmp_path / "sounds")
    cases = {
        ("data=audio_folder", "model=audio", "data.root=nowhere"): "data.root=nowhere is not a folder",
        (
            "data=audio_folder",
            "model=audio",
            "data.root=sounds",
            "model.encoder.stem.patch_size=[7,4]",
        ): "does not divide",
        ("data=fsdd", "model=audio", "data.root=sounds", "data.source.download=false"): "is not in data.root",
    }
    for options, message in cases.items():
        done = train(*options, "trainer.device=cpu")
        assert done.returncode == 1
        assert message in done.stderr, done.stderr
        assert "Traceback" not in done.stderr
