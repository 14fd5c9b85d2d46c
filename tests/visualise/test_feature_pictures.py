"""Pictures of features during runs: what they leave, that they change nothing, and what they cost."""

from __future__ import annotations

import time
from types import SimpleNamespace

import numpy as np
import pytest
import torch

from jepa import load_config
from jepa.config.build import build_trainer
from jepa.trainer import Logger, TensorBoard, WandB
from jepa.types import RunLength
from jepa.utils.errors import UserError
from jepa.visualise import FeaturePictures, read_snapshots
from jepa.visualise.sheets import SampleArtist, sheet

QUIET = ("evaluation=none", "~logger.console", "~logger.jsonl", "~logger.tensorboard")


def run(folder, *options, loggers=None):
    """The trainer of a finished run in a folder."""
    trainer = build_trainer(load_config([*options, f"run_dir={folder}"]))
    trainer.loggers = loggers or {}
    trainer.fit()
    return trainer


class Album(Logger):
    """Keeps what it is given."""

    def __init__(self):
        self.pictures, self.found = [], []

    def picture(self, name, image, step):
        self.pictures.append((name, step, image))

    def embeddings(self, name, found, step):
        self.found.append((name, step, found))


def test_a_run_is_the_same_with_and_without_pictures(tiny, tmp_path):
    options = [*tiny, *QUIET, "model.encoder.dropout=0.1", "visualise.every=2", "trainer.snapshot_every_steps=3"]
    album = Album()
    seen = run(tmp_path / "seen", *options, loggers={"album": album})
    unseen = run(tmp_path / "unseen", *options[:-2], "visualise=none", options[-1])
    assert unseen.visualise is None
    assert not (tmp_path / "unseen" / "pictures").exists()
    for name, value in unseen.model.state_dict().items():
        assert torch.equal(value, seen.model.state_dict()[name]), name
    first = read_snapshots(tmp_path / "seen")
    steps = [snapshot.step for snapshot in first]
    assert {0, 6} <= set(steps) <= {0, 2, 4, 6}
    assert [(name, step) for name, step, _ in album.pictures] == [("features/components", step) for step in steps]
    assert [found["last"] for _, _, found in album.found] == [False] * (len(steps) - 1) + [True]
    found, samples = album.found[-1][2], first[-1].samples
    assert (samples.split, samples.limit, len(samples.labels)) == ("test", 16, 16)
    assert first[-1].components.shape == (16, *seen.model.encoder.grid(torch.zeros(1, 1, 8, 8)), 8)
    assert found["vectors"].shape == first[-1].pooled.shape == (16, 32)
    assert found["labels"] == [str(label) for label in samples.labels]
    # Rows of the fixed order of evaluation, from which the report fetches the originals.
    batches = list(seen.data.evaluation_batches("test", batch_size=7, limit=samples.limit))
    assert torch.equal(torch.cat([batch["label"] for batch in batches]), torch.from_numpy(samples.labels))
    for row, near in found["neighbours"].items():
        assert len(near) == 5
        assert row not in near

    checkpoint = tmp_path / "seen" / "checkpoints" / "step_00000003.pt"
    resumed = build_trainer(load_config([f"resume={checkpoint}"]))
    resumed.loggers = {}
    resumed.fit()
    last = read_snapshots(tmp_path / "seen")
    assert [snapshot.step for snapshot in last if snapshot.step < 3] == [step for step in steps if step < 3]
    assert np.array_equal(last[-1].components, first[-1].components)
    assert np.array_equal(last[-1].pooled, first[-1].pooled)


@pytest.mark.parametrize(
    ("options", "modalities"),
    [
        (("model=series", "data=ucr", "data.name=JapaneseVowels", "data.root={shared}/data/ucr"), {"": 1}),
        (
            ("experiment=multitask_digits_heartbeats", "data.parts.heartbeats.root={shared}/data/ucr"),
            {"digits": 2, "heartbeats": 1},
        ),
    ],
    ids=["series", "tasks"],
)
def test_every_modality_has_its_pictures(options, modalities, shared_dir, tmp_path):
    album = Album()
    options = [option.format(shared=shared_dir) for option in options]
    short = (
        "trainer.max_epochs=null",
        "trainer.max_steps=2",
        "data.batch_size=8",
        "trainer.validate_every_epochs=null",
    )
    run(tmp_path, *options, *QUIET, *short, "trainer.device=cpu", "visualise.samples=4", loggers={"album": album})
    found = read_snapshots(tmp_path)
    assert {snapshot.modality: snapshot.components.ndim - 2 for snapshot in found} == modalities
    assert {snapshot.step for snapshot in found} == {2}  # too few steps to compare
    names = {"/".join(filter(None, ("features", name, "components"))) for name in modalities}
    assert {name for name, _, _ in album.pictures} == names
    if "" in modalities:  # series of several lengths
        assert np.isnan(found[-1].components).any()


def test_tensorboard_has_images_and_the_projector(tiny, tmp_path):
    from tensorboard.backend.event_processing.event_accumulator import EventAccumulator

    run(tmp_path, *tiny, "evaluation=none", loggers={"tensorboard": TensorBoard()})
    events = EventAccumulator(str(tmp_path / "tensorboard"), size_guidance={"images": 0})
    events.Reload()
    steps = [image.step for image in events.Images("features/components")]
    assert (steps[0], steps[-1]) == (0, 6)
    folder = tmp_path / "tensorboard" / "00006" / "features"
    assert len((folder / "metadata.tsv").read_text().splitlines()) == 16
    assert len((folder / "tensors.tsv").read_text().splitlines()) == 16
    assert (folder / "sprite.png").is_file()
    assert not (tmp_path / "tensorboard" / "00000").exists()
    logger = TensorBoard()
    logger.open(SimpleNamespace(folder=tmp_path / "planning", step=0))
    logger.animation("eval/trained/planning", b"GIF89a", 3)
    logger.close()
    events = EventAccumulator(str(tmp_path / "planning" / "tensorboard")).Reload()
    assert events.Images("eval/trained/planning")[0].encoded_image_string == b"GIF89a"


@pytest.mark.parametrize("thumbnails", [np.zeros((3, 4, 4, 3), dtype=np.uint8), None], ids=["images", "texts"])
def test_wandb_has_a_table_of_neighbours(thumbnails):
    wandb = pytest.importorskip("wandb")
    logger, lines = WandB(), []
    logger.picture("features/components", np.zeros((4, 4, 3), dtype=np.uint8), 2)  # not opened: nothing happens
    logger._run = SimpleNamespace(log=lines.append)
    logger.picture("features/components", np.zeros((4, 4, 3), dtype=np.uint8), 2)
    found = {"labels": ["a", "b", "c"], "thumbnails": thumbnails, "neighbours": {0: [2, 1], 2: [0, 1]}, "last": False}
    logger.embeddings("features", found, 2)
    logger.animation("eval/trained/planning", b"GIF89a", 3)
    assert isinstance(lines.pop()["eval/trained/planning"], wandb.Video)
    assert [line["step"] for line in lines] == [2, 2]
    assert isinstance(lines[0]["features/components"], wandb.Image)
    table = lines[1]["features/neighbours"]
    assert table.columns == ["sample", "nearest 1", "nearest 2"]
    labels = [[cell if thumbnails is None else cell._caption for cell in row] for row in table.data]
    assert labels == [["a", "c", "b"], ["c", "a", "b"]]


def test_pictures_beyond_their_share_of_the_time_are_left_out():
    said, drawn, pictures = [], [], FeaturePictures()
    part = SimpleNamespace(draw=lambda trainer, last: (time.sleep(0.02), drawn.append(trainer.step)))
    trainer = SimpleNamespace(
        step=0,
        ended=False,
        run_length=RunLength(max_steps=60, steps_per_epoch=10.0),
        state=SimpleNamespace(train_seconds=0.0),
        say=said.append,
        model=torch.nn.Linear(1, 1),
        device=torch.device("cpu"),
        parallel=SimpleNamespace(name="single"),
    )
    for seconds, expected in ((1.0, [0, 60]), (1000.0, [0, 10, 20, 30, 40, 50, 60])):  # of a step
        drawn.clear()
        pictures._parts, pictures._spent, pictures._cost = [part], 0.0, 0.0
        for step in range(61):
            trainer.step, trainer.ended = step, step == 60
            trainer.state.train_seconds = step * seconds / 10
            pictures.draw(trainer)
        assert drawn == expected
    assert len(said) == 1
    assert "stay within 1% of the run" in said[0]


def test_their_time_is_not_that_of_training(tiny, tmp_path):
    trainer = build_trainer(load_config([*tiny, *QUIET, f"run_dir={tmp_path}"]))
    trainer.visualise = SimpleNamespace(draw=lambda trainer: time.sleep(0.1))
    trainer.loggers = {}
    begun = time.perf_counter()
    trainer.fit()
    assert time.perf_counter() - begun - trainer.state.train_seconds > 0.7  # six steps and the start


def test_what_cannot_be_drawn_is_said(tiny, tmp_path, monkeypatch):
    trainer = build_trainer(load_config([*tiny, *QUIET, f"run_dir={tmp_path}"]))
    monkeypatch.delattr(type(trainer.model), "encode_target")
    said = []
    monkeypatch.setattr(trainer, "say", said.append)
    trainer.fit()
    assert sum("no pictures of features: MaskedJEPA" in str(line) for line in said) == 1
    assert not (tmp_path / "pictures").exists()
    for option in ("visualise.samples=0", "visualise.every=0"):
        with pytest.raises(UserError, match=r"visualise.\w+ must be at least 1, got 0"):
            build_trainer(load_config([*tiny, option]))
    with pytest.raises(UserError, match=r"visualise\.sample"):
        build_trainer(load_config([*tiny, "visualise.sample=3"]))


@pytest.mark.slow
def test_the_runs_of_a_sweep_have_pictures_where_asked(train, quick, tmp_path):
    for option, expected in (("trainer.log_every=2", False), ("visualise.samples=2", True)):
        sweep = tmp_path / option.partition("=")[0]
        process = train("-m", *quick, option, f"hydra.sweep.dir={sweep}", "optimized_metric=train/loss")
        assert process.returncode == 0, process.stderr
        assert (sweep / "0" / "pictures").exists() == expected


def draw(kind, x, colours, **data):
    encoder = SimpleNamespace(stem=SimpleNamespace(**({"log_mel_image": data.pop("mel")} if "mel" in data else {})))
    artist = SampleArtist(encoder, SimpleNamespace(**data))
    assert artist.kind(x).startswith(kind)
    tiles = artist.tiles(x, colours)
    return [np.asarray(tile) for tile in tiles], artist.thumbnails(x), sheet(tiles, ["a"] * len(tiles), "A sentence.")


RED_AND_BLUE = np.array([[255, 0, 0], [0, 0, 255]], dtype=np.uint8)


def test_sheets_show_tokens_where_they_stand():
    """A token grid of two cells, red and blue, beside inputs of each kind."""
    image = torch.zeros(1, 3, 8, 8)
    image[:, :, :, :4] = 1.0
    tile = draw("images", image, RED_AND_BLUE.reshape(1, 1, 2, 3).repeat(2, axis=1), mean=[0.0], std=[1.0])[0][0]
    assert tile.shape == (112, 226, 3)
    assert tile[0, 0].tolist() == [255] * 3
    assert tile[0, 100].tolist() == [0] * 3
    assert (tile[9, 115].tolist(), tile[9, -1].tolist()) == ([255, 0, 0], [0, 0, 255])

    clip = torch.arange(4.0).view(1, 1, 4, 1, 1).expand(1, 1, 4, 8, 8)
    tile = draw("clips", clip, RED_AND_BLUE.reshape(1, 2, 1, 1, 3))[0][0]  # a token for two frames
    below = tile[-1, [10, 100, 130, -10]].tolist()
    assert below == [[255, 0, 0], [255, 0, 0], [0, 0, 255], [0, 0, 255]]
    assert tile[0, 0].tolist() == [0] * 3
    assert tile[0, -1].tolist() == [255] * 3

    wave = torch.zeros(1, 1, 100)
    mel = torch.zeros(1, 1, 2, 10)
    mel[:, :, 1] = 1.0  # high frequencies, which stand on top
    tile, thumbnails, _ = draw("log-mel", wave, RED_AND_BLUE.reshape(1, 2, 1, 3), mel=lambda x: mel)
    assert tile[0][0, 0].tolist() == [255] * 3
    assert tile[0][59, 0].tolist() == [0, 0, 255]
    assert tile[0][-1, 0].tolist() == [255, 0, 0]
    assert thumbnails.shape == (1, 32, 32, 3)

    series = torch.linspace(0, 1, 50).repeat(1, 2, 1)
    series[0, 1, 20:30] = float("nan")
    tile = draw("series", series, RED_AND_BLUE.reshape(1, 2, 3))[0][0]
    assert (tile[-1, 0].tolist(), tile[-1, -1].tolist()) == ([255, 0, 0], [0, 0, 255])
    assert len(np.unique(tile[:56].reshape(-1, 3), axis=0)) >= 2

    assert SampleArtist(None, None).kind(torch.zeros(1, 3, dtype=torch.int64)) is None  # ids without words
    assert SampleArtist(None, None).kind(torch.zeros(1, 3)) is None
    tiles, thumbnails, page = draw(
        "texts",
        torch.tensor([[5, 6, 0]]),
        np.concatenate([RED_AND_BLUE, RED_AND_BLUE[:1]]).reshape(1, 3, 3),
        words=lambda ids: ["token", "other", ""],
    )
    colours = {tuple(colour) for colour in tiles[0].reshape(-1, 3)}
    assert {(254, 127, 127), (127, 127, 254)} <= colours
    assert thumbnails is None
    assert page.shape[1] == 360
