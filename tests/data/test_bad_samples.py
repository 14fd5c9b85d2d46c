"""Damaged files: replaced, reported once, and fatal when there are too many; with workers and without."""

from __future__ import annotations

import json
import logging
import os
import subprocess
import sys
import warnings
from pathlib import Path

import pytest
import torch
from data_helpers import CROPS, folder_data, same, write_classes
from PIL import Image

from jepa.data.audio_data import prepare_sound
from jepa.data.sources.decoders import SoundFile
from jepa.utils.errors import DataError

pytestmark = pytest.mark.faults
WORKERS = pytest.mark.parametrize("workers", [0, 2])


def write_train_and_val(root, *, each: int):
    for split in ("train", "val"):
        write_classes(root / split, classes=2, each=each)


def damage(root, *names):
    """Cut files off in the middle."""
    for name in names:
        path = root / name
        path.write_bytes(path.read_bytes()[:40])


@WORKERS
def test_a_bad_file_is_replaced_by_the_next_and_reported_once(tmp_path, caplog, workers):
    write_train_and_val(tmp_path, each=10)
    damage(tmp_path, "train/a/9.png", "val/a/9.png")
    data = folder_data(tmp_path, num_workers=workers, augment=CROPS)
    with caplog.at_level(logging.WARNING, "jepa"):
        batches = list(data.train_batches(seed=0, start_step=0, stop_step=15))  # three epochs
        for _ in range(2):
            test = list(data.evaluation_batches("test", batch_size=20))
    bad = [str(tmp_path / split / "a" / "9.png") for split in ("train", "val")]
    assert sorted(data.bad_samples) == bad
    for path in bad:
        assert sum(path in record.getMessage() for record in caplog.records) == 1
    labels = torch.cat([batch["label"] for batch in batches])
    assert labels.sum() == 3 * 11, "the next file, of the other class, came with its own label"
    assert torch.equal((test[0]["x"][:, 0, 4, 4] * 255).round().long(), 60 * test[0]["label"])
    assert all("bad" not in batch for batch in batches + test)
    again = folder_data(tmp_path, augment=CROPS)
    assert same(again.train_batches(seed=0, start_step=0, stop_step=15), batches)


@WORKERS
@pytest.mark.parametrize("each", [8, 3])
def test_too_many_bad_files_stop_the_run(tmp_path, caplog, workers, each):
    write_train_and_val(tmp_path, each=10)
    names = [f"train/{name}/{i}.png" for name in "ab" for i in range(each)]
    damage(tmp_path, *names)
    data = folder_data(tmp_path, num_workers=workers, max_bad_share=0.2)
    with pytest.raises(DataError, match=r"of 20 samples .* data\.max_bad_share=0\.2\. Mend") as error:
        list(data.train_batches(seed=0, start_step=0, stop_step=5))
    assert str(tmp_path / "train") in str(error.value)
    assert "Traceback" not in str(error.value)
    assert len(data.bad_samples) > 4
    assert all(path in caplog.text for path in data.bad_samples), "what stopped the run is in the log"


@WORKERS
def test_nothing_but_bad_files_ends(tmp_path, workers):
    write_classes(tmp_path, classes=2, each=4)
    damage(tmp_path, *(f"{name}/{i}.png" for name in "ab" for i in range(4)))
    data = folder_data(tmp_path, num_workers=workers, max_bad_share=0.99)
    with pytest.raises(DataError, match=r"100\.0%"):
        next(data.evaluation_batches("train", batch_size=2))


def test_the_allowed_share_may_be_reached(tmp_path):
    write_train_and_val(tmp_path, each=10)
    damage(tmp_path, "train/a/0.png", "train/b/0.png")
    data = folder_data(tmp_path, max_bad_share=0.1)
    list(data.train_batches(seed=0, start_step=0, stop_step=5))
    assert len(data.bad_samples) == 2


def replace_by_folder(path):
    path.unlink()
    path.mkdir()


@pytest.mark.parametrize(
    ("harm", "reason"),
    [
        (lambda path: path.write_bytes(b""), "the file is empty"),
        (lambda path: path.write_text("404 not found"), "UnidentifiedImageError"),
        (lambda path: path.write_bytes(path.read_bytes()[:-50]), "truncated"),
        (lambda path: path.unlink(), "FileNotFoundError"),
        (replace_by_folder, "IsADirectoryError"),
        (lambda path: Image.new("L", (50, 50)).save(path), "DecompressionBombError"),
    ],
)
def test_every_kind_of_damage_is_named(tmp_path, monkeypatch, harm, reason):
    monkeypatch.setattr(Image, "MAX_IMAGE_PIXELS", 1000)
    write_train_and_val(tmp_path, each=3)
    path = tmp_path / "train" / "a" / "0.jpg"
    Image.radial_gradient("L").resize((30, 30)).save(path)
    data = folder_data(tmp_path)
    harm(path)
    with warnings.catch_warnings():
        warnings.simplefilter("error")
        list(data.evaluation_batches("train", batch_size=4))
    assert reason in data.bad_samples[str(path)]
    assert len(data.bad_samples) == 1


@pytest.mark.slow
def test_one_hostile_sample_never_ends_a_run(tmp_path):
    """Sources x faults, in a process that may not hold what the samples claim."""
    script = Path(__file__).with_name("hostile_samples.py")
    environment = {**os.environ, "HF_HOME": str(tmp_path / "hf"), "OMP_NUM_THREADS": "1"}
    command = [sys.executable, str(script), str(tmp_path)]
    done = subprocess.run(command, capture_output=True, text=True, env=environment, timeout=300, check=False)
    assert done.returncode == 0, done.stderr[-2000:]
    found = json.loads(done.stdout.splitlines()[-1])
    assert len(found) > 20
    assert found.pop("sounds, hours of silence") == "read"
    for case, reason in found.items():
        named = "row 2" if case.startswith("hub") else "1.png" if case.startswith("frames") else "bad."
        assert reason.startswith(named), (case, reason)


def test_a_long_file_is_read_in_part(tmp_path):
    soundfile = pytest.importorskip("soundfile")
    wave = torch.arange(8000 * 30).float() / (8000 * 30)
    soundfile.write(tmp_path / "long.wav", wave.numpy(), 8000, subtype="FLOAT")
    sound = SoundFile(tmp_path / "long.wav")
    centre, rate = sound.read(1.0, None)
    assert (rate, len(centre)) == (8000, 8000)
    assert torch.equal(centre, wave[116_000:124_000])
    places = {sound.read(1.0, torch.Generator().manual_seed(seed))[0][0].item() for seed in range(5)}
    assert len(places) == 5
    clip = prepare_sound(sound, None, sample_rate=8000, length=8000)
    assert torch.equal(clip[0], wave[116_000:124_000])
    assert torch.equal(sound.read(60.0, torch.Generator())[0], wave)


def test_mistakes_in_code_are_no_bad_samples(tmp_path):
    """What is wrong with every sample ends the run with its reason, and a TypeError as it is."""
    write_train_and_val(tmp_path, each=10)
    data = folder_data(tmp_path)
    data.make_inputs = lambda *arguments: (_ for _ in ()).throw(TypeError("a mistake"))
    with pytest.raises(TypeError, match="a mistake"):
        next(data.evaluation_batches("test", batch_size=2))
    data.make_inputs = lambda *arguments: (_ for _ in ()).throw(ValueError("no such mode"))
    with pytest.raises(DataError, match=r"ValueError: no such mode"):
        next(data.evaluation_batches("test", batch_size=2))
