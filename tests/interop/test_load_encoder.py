"""An encoder in one's own code: inputs become what evaluation makes of them, and features are those it scores."""

from __future__ import annotations

import numpy as np
import pytest
import torch
from PIL import Image

import jepa
from jepa import load_config
from jepa.config.build import build_data
from jepa.data.stream import UnreadableSample
from jepa.utils.errors import UserError
from jepa.utils.tensors import masked_mean, token_valid

RANDOM = np.random.default_rng(0)


@pytest.fixture(scope="module")
def pictures(tmp_path_factory):
    folder = tmp_path_factory.mktemp("pictures")
    for number in range(6):
        Image.fromarray(RANDOM.integers(0, 256, (20, 30, 3), np.uint8)).save(folder / f"{number}.png")
    return folder


@pytest.fixture(scope="module")
def sounds(tmp_path_factory):
    soundfile = pytest.importorskip("soundfile")
    folder = tmp_path_factory.mktemp("sounds")
    for number in range(6):
        soundfile.write(folder / f"{number}.wav", RANDOM.standard_normal(6000 + 2000 * number) * 0.1, 8000)
    return folder


def test_a_run_gives_the_features_that_evaluation_scores(run_folder):
    encoder = jepa.load_encoder(run_folder)
    data = build_data(load_config(["data=digits", "data.num_workers=0"]))
    images = data.splits["test"].images[:5]  # uint8 (B, 1, 8, 8)
    x = next(data.evaluation_batches("test", batch_size=5))["x"]
    with torch.no_grad():
        expected = encoder.model.encode_target(x)
    assert torch.equal(torch.stack([encoder.prepare(image) for image in images]), x)
    torch.testing.assert_close(encoder(images), expected.mean(dim=1))
    torch.testing.assert_close(encoder.tokens(images).flatten(1, 2), expected)
    assert encoder.embed_dim == encoder(images[0]).shape[1]
    encoder.batch_size = 2
    torch.testing.assert_close(encoder(list(images)), expected.mean(dim=1))


def test_pictures_in_every_form(pictures):
    options = ["data=image_folder", f"data.root={pictures}", "data.image_size=16", "data.num_workers=0"]
    encoder = jepa.load_encoder("random", *options)
    paths = sorted(pictures.glob("*.png"))
    opened = [Image.open(path) for path in paths]
    arrays = np.stack([np.asarray(image) for image in opened])
    expected = encoder([str(path) for path in paths])
    for form in (paths, opened, arrays, list(arrays), torch.from_numpy(arrays.copy()).permute(0, 3, 1, 2)):
        torch.testing.assert_close(encoder(form), expected)
    data = build_data(load_config(options))
    by_name = {path.name: encoder.prepare(path) for path in paths}
    (batch,) = data.evaluation_batches("train", batch_size=9)
    names = [data.splits["train"].describe(number).rpartition("/")[2] for number in range(len(batch["x"]))]
    assert torch.equal(torch.stack([by_name[name] for name in names]), batch["x"])


def test_sounds_are_cropped_and_resampled_as_in_evaluation(sounds):
    options = ["model=audio", "data=audio_folder", f"data.root={sounds}", "data.seconds=1.0", "data.num_workers=0"]
    encoder = jepa.load_encoder("random", *options)
    data = build_data(load_config(options))
    (batch,) = data.evaluation_batches("test", batch_size=9)
    path = data.splits["test"].describe(0)
    torch.testing.assert_close(encoder.prepare(path), batch["x"][0], equal_nan=True)
    wave, rate = data.splits["test"][0][0].read(), 8000
    torch.testing.assert_close(encoder((wave, rate)), encoder(path), atol=1e-4, rtol=1e-4)
    with torch.no_grad():
        tokens = encoder.model.encode_target(batch["x"][:1])
    torch.testing.assert_close(encoder(path), masked_mean(tokens, token_valid(encoder.model.encoder, batch["x"][:1])))


def test_texts_keep_the_ids_of_the_run(tmp_path):
    lines = [f"the {word} of number {number}" for number in range(20) for word in ("sun", "moon", "sea")]
    (tmp_path / "lines.txt").write_text("\n".join(lines))
    small = ["evaluation=none", "logger=[jsonl]", "trainer.device=cpu", "trainer.max_steps=1", "data.batch_size=4"]
    options = ["model=text", "data=text_lines", f"data.root={tmp_path}/lines.txt", "data.vocab_size=300"]
    trainer = jepa.build_trainer(load_config([*small, *options, f"run_dir={tmp_path}/run"]))
    trainer.fit()
    (tmp_path / "lines.txt").unlink()  # the encoder needs no data
    encoder = jepa.load_encoder(tmp_path / "run")
    assert torch.equal(encoder.prepare("the sun of number 3"), trainer.data.to_ids("the sun of number 3"))
    assert encoder("the sun").shape == (1, 128)
    assert encoder.tokens(["the sun", "a cat"]).shape == (2, 64, 128)


def test_series_keep_the_scale_of_the_training_data(tmp_path):
    x = (RANDOM.standard_normal((12, 2, 40)) * 3 + 5).astype(np.float32)
    x[:, 1] *= 100
    np.savez(tmp_path / "Toy.npz", train_x=x, train_y=np.arange(12) % 2, test_x=x[:4] + 1, test_y=np.arange(4) % 2)
    small = ["evaluation=none", "logger=[jsonl]", "trainer.device=cpu", "trainer.max_steps=1", "data.batch_size=4"]
    options = ["model=series", "data=ucr", f"data.root={tmp_path}", "data.name=Toy"]
    trainer = jepa.build_trainer(load_config([*small, *options, f"run_dir={tmp_path}/run"]))
    trainer.fit()
    (tmp_path / "Toy.npz").unlink()  # the encoder needs no data
    encoder = jepa.load_encoder(tmp_path / "run")
    (batch,) = trainer.data.evaluation_batches("test", batch_size=4)
    torch.testing.assert_close(torch.stack([encoder.prepare(each) for each in x[:4] + 1]), batch["x"])
    assert encoder(x).shape == (12, 128)
    with pytest.raises(UserError, match=r"a series of shape \(2, 30\), expected \(2, 40\): channels, steps"):
        encoder(x[0, :, :30])


def test_clips():
    encoder = jepa.load_encoder("random", "model=video", "data=moving_mnist", "data.num_frames=4")
    frames = RANDOM.integers(0, 256, (2, 9, 40, 50, 3), np.uint8)
    assert encoder(frames).shape == (2, encoder.embed_dim)
    assert encoder.tokens(frames[0]).shape == (1, 2, 4, 4, encoder.embed_dim)


def test_a_published_file(published, expected):
    encoder = jepa.load_encoder(published, "model.encoder.num_heads=2", "data.mean=0.0", "data.std=1.0")
    image = torch.rand(3, 32, 32)
    with torch.no_grad():
        tokens = encoder.model.encode_target(image[None])
    torch.testing.assert_close(encoder(image), tokens.mean(dim=1))
    torch.testing.assert_close(encoder.tokens(image).flatten(1, 2), tokens)
    usual = jepa.load_encoder(published, "model.encoder.num_heads=2")
    assert (usual.data.image_size, usual.data.mean[0]) == ((32, 32), 0.485)


@pytest.mark.parametrize(
    ("inputs", "error", "message"),
    [
        (5, UserError, "a picture is int, expected a path, PIL image or array"),
        ([], UserError, "got no inputs"),
        (np.zeros(3), UserError, r"got an array of shape \(3,\), expected 2 or 3 axes"),
        ("absent.png", UnreadableSample, "cannot read absent.png: FileNotFoundError"),
        (np.full((8, 8), np.nan), UnreadableSample, "NaN or infinite"),
    ],
)
def test_other_inputs_are_refused(inputs, error, message):
    encoder = jepa.load_encoder("random", "data=digits")
    with pytest.raises(error, match=message):
        encoder(inputs)


