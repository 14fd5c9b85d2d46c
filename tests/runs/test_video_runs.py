"""Runs of train.py on clips, as a user starts them."""

from __future__ import annotations

import json

import pytest
from PIL import Image

SMALL = (
    "model=video",
    "data.image_size=32",
    "data.num_frames=4",
    "data.frame_stride=1",
    "data.batch_size=8",
    "data.num_workers=0",
    "model.encoder.embed_dim=32",
    "model.encoder.depth=2",
    "model.encoder.num_heads=2",
    "model.encoder.stem.patch_size=8",
    "model.predictor.embed_dim=16",
    "model.predictor.depth=1",
    "trainer.max_steps=3",
    "trainer.log_every=1",
    "trainer.validate_every_epochs=null",
    "trainer.save_every_epochs=null",
    "trainer.precision=fp32",
    "trainer.device=cpu",
    "evaluation.probes.lidar=null",
    "evaluation.probes.linear=null",
)


@pytest.fixture(scope="module")
def videos(tmp_path_factory):
    """Frame folders in which the grey value rises or falls."""
    root = tmp_path_factory.mktemp("videos")
    for split in ("train", "test"):
        for name, sign in (("down", -1), ("up", 1)):
            for number in range(8):
                clip = root / split / name / str(number)
                clip.mkdir(parents=True)
                for frame in range(6):
                    grey = 120 + sign * 15 * frame + number
                    Image.new("RGB", (40, 32), (grey,) * 3).save(clip / f"{frame}.jpg")
    return root


@pytest.mark.slow
@pytest.mark.parametrize(
    "options",
    [
        ("loss=invariance_sigreg", "loss.projector.hidden=[32]", "model.encoder.positions=rotary"),
        ("model=video_dense", "model.encoder.level_layers=[0,1]", "loss.terms.context.weight=0.5"),
    ],
    ids=["plain", "dense"],
)
def test_a_run_on_folders_of_frames(train, videos, tmp_path, options):
    done = train("data=video_folder", f"data.root={videos}", *SMALL, *options, "hydra.run.dir=run")
    assert done.returncode == 0, done.stderr
    results = json.loads((tmp_path / "run" / "results.json").read_text())
    assert {"trained", "random_init", "raw_input"} <= set(results)
    lines = [json.loads(line) for line in (tmp_path / "run" / "metrics.jsonl").read_text().splitlines()]
    losses = [line for line in lines if "train/loss" in line]
    assert len(losses) == 3
    assert ("train/loss/context" in losses[0]) == ("model=video_dense" in options)


@pytest.mark.slow
def test_mistakes_are_told(train, videos):
    run = ["data=video_folder", f"data.root={videos}", *SMALL]
    for change, message in [
        (["data.num_frames=3"], "clips of 3 frames are not whole tubelets of 2"),
        (["data.image_size=30"], "30 rows of pixels are not whole patches of 8"),
        (["data.fps=4"], "folders of frames do not"),
    ]:
        done = train(*run, *change, "hydra.run.dir=bad")
        assert done.returncode == 1
        assert message in done.stderr
        assert "Traceback" not in done.stderr
