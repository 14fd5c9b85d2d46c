"""Evaluating, exporting and extracting from checkpoints, as a user types it."""

from __future__ import annotations

import importlib.util
import json
from pathlib import Path

import numpy as np
import pytest
from omegaconf import OmegaConf

from jepa import load_config
from jepa.config.stored import CommandLine, addable, in_force, with_stored

ROOT = Path(__file__).resolve().parents[2]
pytestmark = pytest.mark.slow

FEW = ("evaluation.max_train_samples=200", "evaluation.max_test_samples=100", "~evaluation.probes.linear")
"""Overrides that make an evaluation quick."""


@pytest.fixture(scope="module")
def start(fork_server, tmp_path_factory):
    """Run a script from a folder of its own; gives the finished process and the folder."""

    def run(name, *arguments):
        folder = tmp_path_factory.mktemp("evaluate")
        arguments = [*arguments, "hydra.run.dir=out"]
        return fork_server.start(arguments, folder, {}, script=name).wait(), folder

    return run


@pytest.fixture(scope="module")
def run_folder(start, tiny):
    """A short run on digits with the default evaluation, made small."""
    process, folder = start("train.py", *tiny, *FEW, "~logger.tensorboard", "trainer.max_steps=2")
    assert process.returncode == 0, process.stderr
    return folder / "out"


def test_a_run_scores_what_it_scored_at_its_end(start, run_folder):
    process, folder = start(
        "scripts/evaluate.py", f"checkpoint={run_folder}", "output=scores.json", "trainer.device=cpu"
    )
    assert process.returncode == 0, process.stderr
    scores = json.loads((folder / "scores.json").read_text())
    results = json.loads((run_folder / "results.json").read_text())
    assert results.keys() <= scores.keys()
    for key, value in results.items():
        assert scores[key] == (pytest.approx(value) if isinstance(value, (dict, float)) else value), key
    assert scores["checkpoint"] == str(run_folder)
    assert scores["data"]["source"]["_target_"] == "jepa.data.sources.digits"
    assert "checkpoint of this project at step 2" in process.stdout
    assert "raw_input" in process.stdout


def test_a_mistake(start, refused):
    assert "checkpoint is not set: give checkpoint=<run folder or file>" in refused(start("scripts/evaluate.py")[0])


def test_export_and_extract(start, run_folder, tmp_path):
    from PIL import Image

    process, folder = start("scripts/export.py", f"checkpoint={run_folder}", "format=timm", "output=e.safetensors")
    assert process.returncode == 0, process.stderr
    assert {"e.safetensors", "e.safetensors.json", "e.safetensors.md"} <= {path.name for path in folder.iterdir()}
    for number in range(3):
        Image.fromarray(np.full((9, 9), 80 * number, np.uint8)).save(tmp_path / f"{number}.png")
    process, folder = start("scripts/extract.py", f"checkpoint={run_folder}", f"input={tmp_path}", "trainer.device=cpu")
    assert process.returncode == 0, process.stderr
    assert np.load(folder / "features.npz")["path"].tolist() == ["0.png", "1.png", "2.png"]


def test_the_key_of_kept_features():
    spec = importlib.util.spec_from_file_location("script", ROOT / "scripts" / "evaluate.py")
    module = importlib.util.module_from_spec(spec)
    spec.loader.exec_module(module)
    plain = OmegaConf.to_container(load_config(["data=digits"]), resolve=True)

    class Spec:
        num_train, num_test = 10, 5

    def key(fingerprint="a", data=None, number="fp32 cpu"):
        return module.cache_key(fingerprint, plain["data"] | (data or {}), Spec, number)

    assert key() == key(data={"num_workers": 3, "batch_size": 7})
    assert len({key(), key("b"), key(data={"mean": [0.1]}), key(number="bf16 cuda")}) == 4


def test_what_is_given_wins_over_what_is_stored():
    stored = OmegaConf.to_container(
        load_config(["data=digits", "trainer.seed=3", "model.encoder.depth=2"]), resolve=True
    )
    overrides = addable(
        ["data.root=photos", "evaluation.pooling=max", "~evaluation.probes.knn", "model.encoder.num_heads=4"]
    )
    assert overrides[0] == "++data.root=photos"

    def joined_with(given):
        return with_stored(load_config(given), in_force(stored, CommandLine(given)), CommandLine(given))

    joined = joined_with(overrides)
    assert (joined.data.root, joined.data.image_size, joined.evaluation.pooling) == ("photos", 8, "max")
    assert "knn" not in joined.evaluation.probes
    assert (joined.trainer.seed, joined.model.encoder.depth) == (3, 2)
    assert joined_with(["data=fashion_mnist"]).data.image_size == 28
