"""Faults around whole runs: places that cannot be written, data that goes, a clock that is set back."""

from __future__ import annotations

import shutil
import time

import numpy as np
import pytest
from PIL import Image

from jepa import build_trainer, load_config
from jepa.utils.errors import DataError
from jepa.utils.run_status import read_status

pytestmark = pytest.mark.faults


@pytest.mark.slow
def test_home_and_temporary_folder_are_not_needed(train, quick, tmp_path):
    places = {"HOME": "/proc/none", "TMPDIR": "/proc/none", "XDG_CACHE_HOME": "/proc/none"}
    process = train(*quick, "hydra.run.dir=run", "trainer.max_steps=2", "data.num_workers=1", **places)
    assert process.returncode == 0, process.stderr
    assert process.stderr == ""
    assert read_status(tmp_path / "run").state == "done"


@pytest.fixture
def pictures(tmp_path):
    """A folder of 40 pictures in two classes."""
    random = np.random.default_rng(0)
    for number in range(40):
        path = tmp_path / "pictures" / f"class{number % 2}" / f"{number}.png"
        path.parent.mkdir(parents=True, exist_ok=True)
        Image.fromarray(random.integers(0, 255, (8, 8, 3), dtype=np.uint8)).save(path)
    return tmp_path / "pictures"


@pytest.mark.parametrize("workers", [0, 1])
def test_data_that_is_deleted_during_a_run_is_named(pictures, tiny, tmp_path, workers):
    options = [*tiny, "data=image_folder", f"data.root={pictures}", "data.batch_size=4", f"data.num_workers={workers}"]
    options += [
        "data.in_memory=false",
        "model.encoder.patch_size=2",
        "model.encoder.num_heads=2",
        "model.predictor.num_heads=2",
        "evaluation=none",
        "logger=jsonl",
        "trainer.max_steps=60",
        "trainer.save_every_steps=1",
    ]
    config = load_config(options)
    config.run_dir = str(tmp_path / "run")
    trainer = build_trainer(config)
    step = trainer.train_step

    def deleting(batch):
        if trainer.step == 2:
            shutil.rmtree(pictures)
        return step(batch)

    trainer.train_step = deleting
    with pytest.raises(DataError, match=r"samples .* cannot be read.*max_bad_share"):
        trainer.fit()
    assert read_status(tmp_path / "run").state == "failed"
    assert (tmp_path / "run/checkpoints/last.pt").exists()


def test_a_clock_that_is_set_back(tiny, tmp_path, monkeypatch):
    """Intervals go by a clock that only runs forward, and the run stays one's own."""
    options = [*tiny, "evaluation=none", "logger=jsonl", "trainer.max_steps=4", "trainer.save_every_minutes=1000"]
    config = load_config(options)
    config.run_dir = str(tmp_path)
    trainer = build_trainer(config)
    start, saves = time.time(), []
    monkeypatch.setattr(time, "time", lambda: start + (86400 if trainer.step < 2 else -86400))
    save = trainer.checkpoints.save
    trainer.checkpoints.save = lambda *names, **others: (saves.append(trainer.step), save(*names, **others))
    trainer.fit()
    assert saves == [4]
    assert read_status(tmp_path).state == "done"
    assert trainer.state.train_seconds >= 0
    assert trainer.metrics["samples_per_second"] > 0
