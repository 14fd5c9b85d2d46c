"""The dry run: what it measures on models whose numbers are known, what it shows, and that it leaves no trace."""

from __future__ import annotations

import copy
import io
from types import SimpleNamespace

import numpy as np
import pytest
import torch
from matplotlib.figure import Figure
from PIL import Image
from rich.console import Console
from scipy.io import wavfile as wave
from torch import nn

from jepa import build_trainer, load_config, preview
from jepa.masks.time_frequency import SpectrogramMask
from jepa.models.encoders.spectrogram_stem import SpectrogramStem
from jepa.optim import Constant, Linear, NextStep, WarmupCosine
from jepa.report import dry_run, figures, step_cost
from jepa.report.dry_run_pictures import Pictures
from jepa.types import Mask, RunLength
from jepa.utils.log_mel import LogMel
from jepa.utils.pixels import pixel_statistics, to_colours
from jepa.utils.snapshot import preserved


def tiny_trainer(tiny, folder, *overrides):
    own = ["~logger.tensorboard", "evaluation=none", f"run_dir={folder}"]
    return build_trainer(load_config([*tiny, *own, *overrides]))


def report_of(trainer, **options):
    out = io.StringIO()
    preview(trainer, console=Console(file=out, width=100), **options)
    return out.getvalue()


def test_what_it_shows_and_writes(tiny, tmp_path):
    objective = ["loss=invariance_sigreg", "loss.projector.hidden=[32]", "loss.projector.out_dim=16"]
    options = [*objective, "model/mask=multiblock_4x4", "scheduler=cosine", "scheduler.warmup_epochs=5"]
    trainer = tiny_trainer(tiny, tmp_path / "run", *options, "trainer.snapshot_every_steps=2")
    text = report_of(trainer, plan=["Would train from scratch", "then probe"])
    lines = [" ".join(line.split()) for line in text.splitlines()]
    assert lines[:2] == ["Would train from scratch", "then probe"]
    for line in (
        "Data: 1,437 training and 360 test samples of 1 x 8 x 8, 10 classes (0, 1, 2, 3, 4, 5, 6, 7, 8, 9)",
        "Batch: 32 samples a step = 1 rank x 1 micro-batch x 32",
        "token grid 4 x 4 4 x 4 = 16 tokens",
        "mask: context tokens 64 x 12",
        "encoder 64 x 12 x 32 from 64 x 1 x 8 x 8, 64 x 12",
        "target.encoder 64 x 16 x 32 from 64 x 1 x 8 x 8",
        "latents.targets 64 x 4 x 1 x 32",
        "loss.projector 2 x 32 x 16 from 2 x 32 x 32",
        "context tokens kept 12",
        "targets, blocks x tokens 4 x 1",
        "both seen and predicted 0.0 (0%)",
        "The warm-up of 225 steps is longer than the run and never reaches its peak.",
    ):
        assert line in lines, line
    assert any(line.startswith("views 32 x 2 x 1 x 8 x 8 float32 -0.811") for line in lines)
    encoder = sum(p.numel() for p in trainer.model.encoder.parameters())
    assert f"encoder {encoder:,} -" in lines
    assert f"target - {encoder:,}" in lines
    assert "at most 6 at a time" in text
    assert [line for line in lines if line.startswith("end 6 ")] != []
    stored = (tmp_path / "run" / "preview" / "report.txt").read_text()
    assert "Parameters" in stored
    assert max(map(len, stored.splitlines())) <= 100
    files = sorted(str(path.relative_to(tmp_path)) for path in tmp_path.rglob("*") if path.is_file())
    assert files == ["run/preview/masks.png", "run/preview/report.txt", "run/preview/samples.png"]
    for name in ("samples", "masks"):
        picture = np.asarray(Image.open(tmp_path / "run" / "preview" / f"{name}.png").convert("L"))
        assert min(picture.shape) > 200
        assert picture.std() > 20


def test_nothing_is_changed(tiny, tmp_path):
    trainer = tiny_trainer(tiny, tmp_path)
    before = copy.deepcopy(trainer.model.state_dict()), torch.get_rng_state(), dict(vars(trainer))
    report_of(trainer)
    assert all(torch.equal(value, before[0][name]) for name, value in trainer.model.state_dict().items())
    assert torch.equal(before[1], torch.get_rng_state())
    assert vars(trainer) == before[2]
    assert not trainer.optimizer.state
    assert all(p.grad is None for p in trainer.model.parameters())
    trainer.fit()
    other = tiny_trainer(tiny, tmp_path / "other")
    other.fit()
    for name, value in other.model.state_dict().items():
        assert torch.equal(value, trainer.model.state_dict()[name])


def test_colours_micro_batches_and_other_targets(tiny, tmp_path):
    colours = ["data.channels=3", "data.mean=[0.4,0.5,0.6]", "data.std=[0.2,0.3,0.4]", "data.views=1"]
    other = ["model/target=stop_gradient", "loss=sigreg"]
    micro = ["trainer.micro_batch_size=8", "trainer.allow_microbatch_statistics=true"]
    trainer = tiny_trainer(tiny, tmp_path, *colours, *other, *micro)
    lines = [" ".join(line.split()) for line in report_of(trainer).splitlines()]
    assert "Batch: 32 samples a step = 1 rank x 4 micro-batches x 8" in lines
    assert "batch.x 8 x 3 x 8 x 8" in lines
    assert not any("momentum" in line for line in lines)
    assert (tmp_path / "preview" / "masks.png").is_file()


class Line(nn.Module):
    """x (B, 5) @ weight (5, 7), with nothing of a JEPA."""

    def __init__(self):
        super().__init__()
        self.layer = nn.Linear(5, 7, bias=False)
        self.loss = Square()

    def prepare(self, batch, draw):
        return batch

    def forward(self, batch):
        return self.layer(batch["x"])


class Square(nn.Module):
    """Mean square."""

    def forward(self, values):
        return {"loss": values.square().mean()}


def line_trainer(folder):
    model = Line()

    def train_batches(**_):
        yield {"x": torch.ones(8, 5)}

    spec = SimpleNamespace(num_train=80, num_test=8, input_shape=(5,), classes=None, class_names=None)
    return SimpleNamespace(
        model=model,
        data=SimpleNamespace(batch_size=8, spec=spec, train_batches=train_batches),
        optimizer=torch.optim.Adam(model.parameters()),
        scheduler={"lr": Constant(value=0.1)},
        run_length=RunLength(max_steps=20, steps_per_epoch=10),
        micro_batch_size=4,
        device=torch.device("cpu"),
        precision=SimpleNamespace(
            name="fp32",
            autocast=lambda: torch.autocast("cpu", enabled=False),
            scaler=torch.amp.GradScaler("cpu", enabled=False),
        ),
        training_step=lambda batch, step: model.loss(model(batch)),
        seed=0,
        step=0,
        folder=SimpleNamespace(path=folder),
    )


def test_cost_of_a_linear_layer(tmp_path):
    trainer = line_trainer(tmp_path)
    with preserved(trainer):
        cost = step_cost.measure_cost(trainer, step_cost.first_batch(trainer))
    assert cost.forward == 2 * 5 * 7
    assert cost.total == 2 * 2 * 5 * 7  # the input needs no gradient
    assert cost.activations == 4 * (5 + 7)  # the input, and what is squared
    assert cost.constant == 0
    assert (cost.trained, cost.frozen, cost.gradients) == (140, 0, 140)
    assert 280 <= cost.optimizer <= 288  # two moments and a counter
    assert cost.memory(4) == cost.trained + cost.gradients + cost.optimizer + 4 * cost.activations
    assert cost.checkpoint == 140 + cost.optimizer


def test_inputs_that_are_no_pictures(tmp_path):
    text = report_of(line_trainer(tmp_path))
    assert "samples.png is left out: the inputs are neither pictures" in text
    assert "masks.png is left out: the model draws no masks" in text
    assert "no labels" in text
    assert [path.name for path in (tmp_path / "preview").iterdir()] == ["report.txt"]


def test_masks_of_sound_lie_on_its_spectrogram(tmp_path):
    front = LogMel(sample_rate=8000, n_fft=256, hop_length=100, mel_bins=20)
    stem = SpectrogramStem(embed_dim=8, spectrogram=front, patch_size=[10, 4])
    trainer = SimpleNamespace(
        model=SimpleNamespace(encoder=SimpleNamespace(stem=stem)),
        data=SimpleNamespace(),
        device="cpu",
        folder=SimpleNamespace(path=tmp_path),
    )
    x = torch.randn(3, 1, 1000)
    pictures = Pictures(trainer, tmp_path, note=pytest.fail)
    pictures.masks({"x": x}, SpectrogramMask()(3, stem.grid(x)), stem.grid(x))
    assert pictures.written == ["masks.png"]


def test_mask_statistics():
    context = torch.tensor([[0, 1], [0, 2]])
    targets = torch.tensor([[[3], [3]], [[2], [3]]])
    assert dry_run.mask_statistics(Mask(context, targets), (2, 2)) == {
        "context tokens kept": "2",
        "targets, blocks x tokens": "2 x 1",
        "distinct tokens seen": "2.0 (50%)",
        "distinct tokens predicted": "1.5 (38%)",
        "neither seen nor predicted": "1.0 (25%)",
        "both seen and predicted": "0.5 (12%)",
        "a token is seen in": "0% to 100% of samples",
        "a token is predicted in": "0% to 100% of samples",
    }
    padded = Mask(context, targets, context_valid=torch.tensor([[True, False], [True, False]]))
    assert dry_run.mask_statistics(padded, (2, 2))["distinct tokens seen"] == "1.0 (25%)"


def test_schedule_table():
    run_length = RunLength(max_steps=100, steps_per_epoch=10)
    lr = NextStep(schedule=WarmupCosine(peak=1.0, warmup_epochs=1))
    schedules = {"lr": lr, "weight_decay": Constant(value=0.04), "momentum": Linear(start=0.0, final=1.0)}
    rows = dry_run.schedule_table(schedules, run_length)
    assert [row[0] for row in rows] == ["start", "end of warm-up", "25 %", "50 %", "75 %", "end"]
    assert [row[1] for row in rows] == [1, 10, 25, 50, 75, 100]
    assert rows[0][2] == pytest.approx([0.1, 0.04, 0.0])
    assert rows[1][2] == pytest.approx([1.0, 0.04, 0.09])
    assert rows[-1][2] == pytest.approx([0.0, 0.04, 0.99])


def test_outlines_follow_the_border_and_lie_inside():
    axes = Figure().add_subplot()
    mask = Mask(torch.tensor([[8]]), torch.tensor([[[0, 1, 3]]]))  # an L in the corner
    figures.draw_mask(axes, np.zeros((6, 6, 3)), mask, 0, (3, 3))
    x, y = axes.collections[0].get_paths()[0].vertices.T + 0.5  # pixels, two for each token
    assert (x.min(), x.max(), y.min(), y.max()) == pytest.approx((0.1, 3.9, 0.1, 3.9), abs=0.05)
    assert not ((x > 2) & (y > 2)).any()


def test_pixels_undo_the_normalisation():
    data = SimpleNamespace(transform=SimpleNamespace(mean=torch.tensor([0.5]), std=torch.tensor([0.25])))
    pixels, said = to_colours(torch.tensor([-2.0, 0.0, 2.04]).view(1, 1, 1, 3), pixel_statistics(data))
    assert (pixels.flatten().tolist(), said) == ([0.0, 0.5, 1.0], "")
    assert pixel_statistics(SimpleNamespace()) is None
    pixels, said = to_colours(torch.tensor([1.0, 3.0]).view(1, 1, 1, 2), None)
    assert pixels.flatten().tolist() == [0.0, 1.0]
    assert said == "\nblack to full: 1 to 3, the range of most of these samples"


@pytest.mark.parametrize(
    ("channels", "shown", "said"),
    [
        (1, 1, "\nblack to full: "),
        (2, 3, "\nband 1 red, band 2 cyan, black to full: "),
        (3, 3, "\nred, green, blue: black to full: "),
        (5, 3, "\nbands 1, 2, 3 of 5 as red, green, blue; black to full: "),
    ],
)
def test_bands_that_are_shown(channels, shown, said):
    statistics = torch.full((channels, 1, 1), 500.0), torch.full((channels, 1, 1), 100.0)
    views = torch.rand(8, 2, channels, 6, 6) * torch.arange(1, channels + 1).view(-1, 1, 1)
    pixels, title = to_colours(views, statistics)
    assert pixels.shape == (8, 2, shown, 6, 6)
    assert title.startswith(said)
    assert (pixels.amin(), pixels.amax()) == (0, 1)
    if channels == 2:
        assert torch.equal(pixels[:, :, 1], pixels[:, :, 2])
        assert not torch.equal(pixels[:, :, 0], pixels[:, :, 1])
    views[0] += 1e4  # one sample of another range leaves the others as they were
    torch.testing.assert_close(to_colours(views, statistics)[0][1:], pixels[1:], atol=0.1, rtol=0)
    if channels in (1, 3):
        in_range = torch.rand(4, 2, channels, 6, 6)
        statistics = torch.zeros(1, 1, 1), torch.ones(1, 1, 1)
        assert to_colours(in_range, statistics)[1] == ""
        assert torch.equal(to_colours(in_range, statistics)[0], in_range)


def test_several_masks_on_a_figure(tmp_path):
    masks = [
        Mask(torch.arange(4).repeat(5, 1), torch.tensor([[[8, 9], [9, 10]]]).repeat(5, 1, 1)),
        Mask(torch.arange(2).repeat(5, 1), torch.tensor([[[4, 5]]]).repeat(5, 1, 1)),
    ]
    figures.mask_figure(torch.rand(5, 3, 12, 16), masks, (3, 4), path=tmp_path / "m.png")
    assert Image.open(tmp_path / "m.png").size[0] > 1000


SMALLEST = ["model.encoder.embed_dim=24", "model.encoder.depth=1", "model.encoder.num_heads=2", "data.num_workers=0"]
SMALLEST += ["model.predictor.embed_dim=24", "model.predictor.depth=1", "model.predictor.num_heads=2"]
SMALLEST += ["data.batch_size=4", "trainer.device=cpu", "trainer.precision=fp32", "trainer.max_steps=2"]


def own_files(kind, folder):
    """Write ten samples of a kind in two classes."""
    random = np.random.default_rng(0)
    if kind == "series_csv":
        lines = ["time,load,heat", *(f"2020-01-{d:02}T{h:02}:00,{h},{d}" for d in range(1, 25) for h in range(24))]
        folder.write_text("\n".join(lines))
    elif kind == "text_csv":
        folder.write_text("text,label\n" + "".join(f"some words {n} here,{'ab'[n % 2]}\n" for n in range(20)))
    for number in range(0 if folder.is_file() else 10):
        path = folder / "ab"[number % 2] / str(number)
        path.parent.mkdir(parents=True, exist_ok=True)
        pixels = random.integers(0, 256, (20, 24, 3), np.uint8)
        if kind == "image_folder":
            Image.fromarray(pixels).save(path.with_suffix(".png"))
        elif kind == "audio_folder":
            wave.write(path.with_suffix(".wav"), 16000, random.integers(-9000, 9000, 8000, np.int16))
        else:
            path.mkdir()
            for frame in range(8):
                Image.fromarray(pixels).save(path / f"{frame:02}.png")


@pytest.mark.parametrize(
    ("data", "options", "written"),
    [
        ("image_folder", ["data.image_size=16", "model.encoder.patch_size=4"], ["masks.png", "samples.png"]),
        ("series_csv", ["model=series", "data.window_size=24"], ["masks.png", "samples.png"]),
        ("audio_folder", ["model=audio", "data.seconds=0.8"], ["masks.png", "samples.png"]),
        ("text_csv", ["model=text"], ["masks.txt", "samples.txt"]),
        ("video_folder", ["model=video", "data.image_size=16", "data.num_frames=4"], ["masks.png", "samples.png"]),
    ],
)
def test_own_data_of_each_kind(data, options, written, tmp_path):
    own_files(data, tmp_path / "own")
    root = [f"data={data}", f"data.root={tmp_path / 'own'}"]
    report_of(tiny_trainer(SMALLEST, tmp_path / "run", *root, *options))
    assert sorted(path.name for path in (tmp_path / "run" / "preview").iterdir()) == sorted([*written, "report.txt"])
