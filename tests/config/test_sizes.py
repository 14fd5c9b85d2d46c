"""Every size of encoder with every data set that it is for, and the size that is chosen where none is given."""

from __future__ import annotations

from types import SimpleNamespace

import numpy as np
import pytest
import soundfile
import torch
from omegaconf import OmegaConf
from PIL import Image

from jepa import build_trainer, load_config
from jepa.config.auto_size import chosen_hints, describe
from jepa.config.build import build_data, build_model, check_input, filled, settled
from jepa.config.compose import CONFIG_DIR
from jepa.config.notes import padding_notes
from jepa.types import DataSpec
from jepa.utils.errors import UserError

DATA = {
    "vit": ["digits", "mnist", "cifar10", "image_folder data.root=x"],
    "video": ["video_folder data.root=x", "moving_mnist", "fight_frames data.root=x"],
    "text": ["text_lines data.root=x", "wikitext2"],
    "series": ["series_csv data.root=x", "ett data.root=x", "ucr data.root=x"],
    "audio": ["audio_folder data.root=x", "fsdd"],
}
HUB = {"vit": "image", "text": "text", "audio": "audio"}
ENCODERS = {
    model: ["auto", *sorted(path.stem for path in (CONFIG_DIR / "model" / "encoder").glob(f"{model}*.yaml"))]
    for model in DATA
}
CASES = [(model, encoder) for model, encoders in ENCODERS.items() for encoder in encoders]
FOUND = {"channels": 3, "length": 140, "vocab_size": 300}
"""What data find out."""
SHORT_SERIES = {"x": np.ones((20, 1, 100)), "y": np.arange(20) % 2, "len": np.where(np.arange(20) < 19, 10, 100)}
"""All but one fill a tenth."""


def input_shape(model, data):
    """The shape of a sample."""
    if model in ("vit", "video"):
        sides = data.image_size if OmegaConf.is_list(data.image_size) else (data.image_size, data.image_size)
        return (data.channels, *([data.num_frames] if model == "video" else []), *sides)
    if model == "text":
        return (data.max_length,)
    return (1, int(data.sample_rate * data.seconds)) if model == "audio" else (data.channels, data.window_size or 140)


def blank(shape, model):
    make = torch.ones if model == "text" else torch.zeros
    return lambda count: {"x": make(count, *shape, dtype=torch.int64 if model == "text" else torch.float32)}


@pytest.mark.slow
@pytest.mark.parametrize(("model", "encoder"), CASES, ids=lambda value: value)
def test_every_size_takes_a_step_with_all_data_that_it_is_for(model, encoder, monkeypatch):
    monkeypatch.setattr(torch.nn.init, "trunc_normal_", lambda tensor, **settings: tensor)  # seconds for large ones
    hub = [f"hf data.path=x data.column={HUB[model]}"] if model in HUB and encoder == "auto" else []
    for data in DATA[model] + hub:
        if encoder == "vit_huge" and data in ("digits", "mnist", "cifar10"):
            continue  # its patches of 14 pixels are part of its name
        config = load_config([f"model={model}", f"model/encoder={encoder}", *f"data={data}".split()])
        config = filled(config, FOUND)
        shape = input_shape(model, config.data)
        config = filled(config, chosen_hints(config, DataSpec(5_000, 500, shape, None)))
        OmegaConf.update(config, "model.encoder.depth", 1)  # what does not fit is found at any depth
        check_input(build_model(config), SimpleNamespace(blank_batch=blank(shape, model)))


@pytest.mark.parametrize(
    ("options", "samples", "shape", "expected"),
    [
        ("data=image_folder", 96, (3, 64, 64), ("toy", 8)),
        ("data=image_folder", 4_000, (3, 32, 32), ("toy", 4)),
        ("data=image_folder", 50_000, (3, 32, 32), ("mini", 4)),
        ("data=image_folder", 1_280_000, (3, 224, 224), ("small", 16)),
        ("data=image_folder", 100_000, (5, 200, 300), ("tiny", 10)),
        ("data=image_folder data.hints.patch_size=4", 100_000, (3, 64, 64), ("tiny", 4)),
        ("data=image_folder data.hints.size=small", 10, (3, 64, 64), ("small", 8)),
        ("data=cifar10", 50_000, (3, 32, 32), ("mini", 4)),
        ("data=video_folder model=video", 300, (3, 16, 112, 112), ("toy", 16)),
        ("data=text_lines model=text", 20_000, (64,), ("toy_text", None)),
        ("data=text_lines model=text", 500_000, (64,), ("tiny", None)),
        ("data=series_csv model=series", 8_000, (7, 96), ("toy_series", 8)),
        ("data=series_csv model=series", 8_000, (7, 10), ("toy_series", 1)),
        ("data=audio_folder model=audio", 2_000, (1, 64_000), ("toy", [16, 16])),
        ("data=audio_folder model=audio data.spectrogram.mel_bins=40", 2_000, (1, 8_000), ("toy", [10, 4])),
    ],
)
def test_what_is_chosen(options, samples, shape, expected):
    config = load_config([*options.split(), *([] if "cifar" in options else ["data.root=x"])])
    chosen = chosen_hints(config, DataSpec(samples, 10, shape, None))
    assert [chosen.get(name, config.data.hints.get(name)) for name in ("size", "patch_size")] == list(expected)


def test_sides_without_a_patch_size_are_refused_with_ones_that_have():
    config = load_config(["data=image_folder", "data.root=x"])
    with pytest.raises(UserError, match=r"data.image_size=\[97, 97\]: no patch size .* multiples of 16, such as 96"):
        chosen_hints(config, DataSpec(10, 10, (3, 97, 97), None))


def test_the_choice_is_made_once_and_stored(tmp_path):
    random = np.random.default_rng(0)
    for number in range(12):
        image = Image.fromarray(random.integers(0, 255, (16, 16, 3), np.uint8))
        (tmp_path / "few").mkdir(exist_ok=True)
        image.save(tmp_path / "few" / f"{number}.png")
    options = ["data=image_folder", f"data.root={tmp_path}/few", "data.image_size=16", "data.batch_size=4"]
    options += ["data.num_workers=0", "evaluation=none", "logger=[jsonl]", "trainer.device=cpu", "trainer.max_steps=2"]
    assert load_config(options).data.hints == {"patch_size": "auto", "size": "auto"}
    trainer = build_trainer(load_config([*options, f"run_dir={tmp_path}/run"]))
    assert "chosen for 11 samples of 3 x 16 x 16: data.hints.size=toy, data.hints.patch_size=2" in trainer.describe()
    trainer.fit()
    stored = OmegaConf.load(tmp_path / "run" / "config.yaml")
    assert (stored.data.hints, stored.model.encoder.embed_dim) == ({"patch_size": 2, "size": "toy"}, 128)
    wider = ["data.image_size=32", "model/mask=random"]  # other patches would be chosen for these
    again = load_config([f"resume={tmp_path}/run", *wider, "trainer.max_steps=3"])
    assert settled(again)[0].data.hints == stored.data.hints
    longer = build_trainer(load_config([f"resume={tmp_path}/run", "trainer.max_steps=3"]))  # in its own folder
    longer.fit()
    assert (longer.step, longer.folder.path) == (3, tmp_path / "run")


@pytest.mark.parametrize(
    ("options", "expected"),
    [
        (
            "audio",
            "they have 0.2 to 0.25 s, so 94% of an input is padding, and they are stored at 8,000 Hz, not 16,000",
        ),
        ("audio data.seconds=0.3 data.sample_rate=8000", None),
        (
            "audio data.seconds=0.3",
            "by 27 of the samples they are stored at 8,000 Hz, not 16,000: data.sample_rate=8000",
        ),
        ("text", "so 91% of an input is padding: data.max_length=8"),
        ("text data.max_length=8", None),
        ("series data.name=Toy", "they have 10 to 100 steps, so 86% of an input is padding: data.window_size=16"),
    ],
)
def test_inputs_that_are_mostly_padding_are_named_with_what_to_type(tmp_path, options, expected):
    for number in range(30):
        wave = np.random.default_rng(number).normal(size=1600 + 400 * (number % 2))
        (tmp_path / "audio").mkdir(exist_ok=True)
        soundfile.write(tmp_path / "audio" / f"{number}.wav", 0.1 * wave, 8000)
    (tmp_path / "audio" / "damaged.wav").write_bytes(b"RIFF")
    (tmp_path / "text").write_text("the cat sat on a mat\n" * 40)
    arrays = {f"{side}_{key}": value for side in ("train", "test") for key, value in SHORT_SERIES.items()}
    np.savez(tmp_path / "Toy.npz", **arrays)
    kind, *others = options.split()
    data = {"audio": "audio_folder", "text": "text_lines", "series": "ucr"}[kind]
    root = tmp_path if kind == "series" else tmp_path / kind
    given = [f"data={data}", f"model={kind}", f"data.root={root}", f"run_dir={tmp_path}", *others]
    said = padding_notes(build_data(load_config(given)))
    assert (expected in said[0] and len(said) == 1) if expected else not said
    if said:  # the advice holds
        assert not padding_notes(build_data(load_config([*given, *said[0].split(": ")[-1].split()])))


def test_the_sentence_names_options_that_can_be_typed():
    spec = DataSpec(1_000, 10, (1, 64_000), None)
    chosen = {"size": "toy", "patch_size": [16, 16]}
    assert describe(chosen, spec).endswith(": data.hints.size=toy, data.hints.patch_size=[16,16]")
