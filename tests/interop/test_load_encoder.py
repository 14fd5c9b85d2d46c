"""An encoder in one's own code: inputs become what evaluation makes of them, and features are those it scores."""

from __future__ import annotations

import numpy as np
import pandas
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
    backwards = arrays[:, ::-1, :, ::-1].copy()[:, ::-1, :, ::-1]  # as opencv's are turned round
    column = pandas.Series(map(str, paths))
    for form in (paths, opened, arrays, list(arrays), torch.from_numpy(arrays.copy()).permute(0, 3, 1, 2), backwards):
        torch.testing.assert_close(encoder(form), expected)
    for form in (column, column.to_numpy(), arrays.astype(">u2") * 257):
        torch.testing.assert_close(encoder(form), expected, atol=0.02, rtol=0.02)
    floats = torch.from_numpy(arrays / np.float32(256))
    torch.testing.assert_close(encoder(floats.bfloat16()), encoder(arrays / np.longdouble(256)), atol=0.01, rtol=0.01)
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
    assert encoder(pandas.Series(["the sun", "a cat"])).shape == (2, 128)
    for text, message in ("a\ud800", "it is not text in UTF-8"), ("a" * 1_000_001, "1,000,000 characters"):
        with pytest.raises(UnreadableSample, match=message):
            encoder(text)
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
        (np.zeros((8, 0)), UserError, r"a picture of shape \(8, 0\) is empty"),
        (Image.new("L", (0, 5)), UnreadableSample, "cannot read the input: it has no pixels"),
        (torch.zeros(8, 8, dtype=torch.complex64), UserError, "an array of torch.complex64, expected numbers"),
    ],
)
def test_other_inputs_are_refused(inputs, error, message):
    encoder = jepa.load_encoder("random", "data=digits")
    with pytest.raises(error, match=message):
        encoder(inputs)


def test_a_batch_has_inputs():
    for size in (0, 2.5):
        with pytest.raises(UserError, match=f"batch_size={size}: expected a whole number of at least 1"):
            jepa.load_encoder("random", "data=digits", batch_size=size)


def test_opened_pictures_are_those_of_their_files(tmp_path):
    """Also of more than 8 bits, and those that a camera has stored sideways."""
    encoder = jepa.load_encoder("random", "data=digits")
    deep, exif = RANDOM.integers(0, 2**16, (12, 16)).astype(np.uint16), Image.Exif()
    exif[0x0112] = 6  # turned by 90 degrees
    Image.fromarray(deep).save(tmp_path / "deep.png")
    Image.fromarray(deep / np.float32(2**16)).save(tmp_path / "float.tif")
    Image.fromarray((deep // 256).astype(np.uint8)).save(tmp_path / "turned.jpg", exif=exif)
    for path in sorted(tmp_path.iterdir()):
        assert torch.equal(encoder.prepare(Image.open(path)), encoder.prepare(path)), path


def test_sounds_in_every_form(sounds):
    options = ["model=audio", "data=audio_folder", f"data.root={sounds}", "data.seconds=0.5", "data.sample_rate=8000"]
    encoder = jepa.load_encoder("random", *options)
    wave = np.sin(np.arange(4000) / 9) * 0.4
    ints = (wave * 2**15).astype(np.int16)
    expected = encoder(wave)
    stereo = np.stack([wave * 1.5, wave * 0.5])
    for form in (ints, (ints, 8000), (8000, ints), (stereo, 8000), (stereo.T, np.int64(8000)), [stereo.T]):
        torch.testing.assert_close(encoder(form), expected, atol=2e-3, rtol=2e-3)
    assert encoder(np.stack([ints, ints])).shape[0] == 2  # along a first axis, two of them
    for bad, error, message in (
        (stereo.T, UserError, r"shape \(4000, 2\): give a sound of channels as \(wave, rate\)"),
        ([wave, np.full(4000, np.nan)], UnreadableSample, "cannot read input 1: it holds samples that are NaN"),
        (ints.astype(float), UserError, r"floats up to 13.*, expected \[-1, 1\], or int16"),
        ((wave, 0), UserError, "a rate of 0, expected whole Hz"),
        ((wave, float("inf")), UserError, "a rate of inf, expected whole Hz"),
        (wave > 0, UserError, r"a sound of torch.bool \(4000,\), expected numbers"),
        (wave[:0], UserError, r"a sound of shape \(0,\) is empty"),
        ([sounds / "0.wav", sounds / "absent.wav"], UnreadableSample, "absent.wav: FileNotFoundError: No such file"),
        (sounds, UserError, "is a folder: give its files, or python scripts/extract.py"),
    ):
        with pytest.raises(error, match=message):
            encoder(bad)
    assert not np.allclose(encoder((wave, 4000)), expected, atol=1e-3)


def test_pieces_of_a_sound(sounds):
    options = ["model=audio", "data=audio_folder", f"data.root={sounds}", "data.seconds=0.5", "data.sample_rate=8000"]
    encoder = jepa.load_encoder("random", *options)
    path = sounds / "5.wav"  # 16,000 samples: 4 pieces of 4,000
    import soundfile

    wave = soundfile.read(path, dtype="float32")[0]
    found = encoder(path, pieces=True)
    torch.testing.assert_close(found, encoder([wave[start : start + 4000] for start in range(0, 16000, 4000)]))
    assert len(encoder(wave, pieces=True, stride=0.25)) == 7
    for left, pieces in ((1999, 1), (2000, 2)):  # what is left is shorter than half a piece, or half of one
        assert len(encoder(wave[: 4000 + left], pieces=True)) == pieces
    assert len(encoder(wave[:100], pieces=True)) == 1  # but not where it is all
    for stride in (0, float("nan"), float("inf"), "0.5"):
        with pytest.raises(UserError, match=f"stride={stride}: expected a number of seconds above 0"):
            encoder(wave, pieces=True, stride=stride)


@pytest.fixture(scope="module")
def sensors(tmp_path_factory):
    """A run on a table of three columns, resampled to hours, and the table."""
    folder = tmp_path_factory.mktemp("sensors")
    time = pandas.date_range("2024-01-01", periods=240, freq="30min")
    values = RANDOM.standard_normal((240, 3)).cumsum(axis=0) * [1, 10, 100] + [0, 5, 1000]
    table = pandas.DataFrame({"time": time, **dict(zip(("load", "heat", "gas"), values.T))})
    table.to_csv(folder / "table.csv", index=False)
    small = ["evaluation=none", "logger=[jsonl]", "trainer.device=cpu", "trainer.max_steps=1", "data.batch_size=4"]
    options = ["model=series", "data=series_csv", f"data.root={folder}/table.csv", "data.window_size=24"]
    options += ["data.source.resample=1h", "data.source.columns=[gas,load]"]
    trainer = jepa.build_trainer(load_config([*small, *options, f"run_dir={folder}/run"]))
    trainer.fit()
    return folder, table, trainer


def test_tables_are_read_as_in_training(sensors):
    folder, table, trainer = sensors
    encoder = jepa.load_encoder(folder / "run")
    windows = [trainer.data.splits["train"][24 * number][0] for number in range(3)]  # of the first 84 hours
    found = encoder._batches(folder / "table.csv", None, True, None)
    torch.testing.assert_close(next(found)[:3], torch.stack(windows))
    expected = encoder(folder / "table.csv", pieces=True)
    assert expected.shape == (5, encoder.embed_dim)
    shuffled = table[["heat", "load", "time", "gas"]]
    torch.testing.assert_close(encoder(shuffled, pieces=True), expected)
    indexed = table.set_index("time")
    torch.testing.assert_close(encoder([indexed, indexed], pieces=True), torch.cat([expected, expected]))
    assert len(encoder(table, pieces=True, stride=1)) == 97
    with pytest.raises(UserError, match=r"stride=1.5: expected a whole number of steps above 0"):
        encoder(table, pieces=True, stride=1.5)
    for bad, message in (
        (table, r"^give pieces=True for every window of 24 steps, .* a series of shape \(2, 120\), expected \(2, 24\)"),
        (table.drop(columns="gas"), "gas"),
        (np.full((2, 24), np.nan), "nothing but missing values"),
        (np.full((2, 24), np.inf), "infinite"),
        (np.full((2, 24), "a", object), "an array of object, expected numbers"),
        (np.zeros((3, 24)), r"a series of shape \(3, 24\), expected \(2, 24\)"),
    ):
        with pytest.raises((UserError, UnreadableSample), match=message):
            encoder(bad)


def test_the_columns_that_were_found_are_kept(tmp_path):
    table = pandas.DataFrame(RANDOM.standard_normal((90, 2)), columns=["b", "a"])
    table.to_csv(tmp_path / "t.csv", index=False)
    small = ["evaluation=none", "logger=[jsonl]", "trainer.device=cpu", "trainer.max_steps=1", "data.batch_size=4"]
    options = ["model=series", "data=series_csv", f"data.root={tmp_path}/t.csv", "data.window_size=16"]
    options += ["data.split_channels=true", f"run_dir={tmp_path}/run"]
    jepa.build_trainer(load_config([*small, *options])).fit()
    encoder = jepa.load_encoder(tmp_path / "run")
    expected = encoder(table[:16])
    assert expected.shape == (2, encoder.embed_dim)  # one for each channel
    torch.testing.assert_close(encoder(table[["a", "b"]][:16]), expected)
    torch.testing.assert_close(encoder(table[:16].to_numpy().T), expected)


def test_a_run_on_several_modalities(tmp_path):
    encoder = jepa.load_encoder("random", "model=crossmodal", "data=paired")
    assert encoder.modalities == ["written", "spoken"]
    wave = RANDOM.standard_normal(6400).astype(np.float32) * 0.1
    x = encoder.prepare(wave, modality="spoken")[None]
    with torch.no_grad():
        tokens = encoder.model.encode_target({"spoken": x})
        valid = encoder.model.encoder.token_valid({"spoken": x})
        embedding = encoder.model.embed({"spoken": x})["spoken"]
    torch.testing.assert_close(encoder(wave, modality="spoken"), masked_mean(tokens, valid))
    torch.testing.assert_close(encoder.embed(wave, modality="spoken"), embedding)
    picture = np.zeros((28, 28), np.uint8)
    assert encoder.tokens(picture, modality="written").shape[-1] == encoder.embed_dim
    assert "written: paths, PIL images" in repr(encoder)
    assert "spoken: paths, (waveform" in repr(encoder)
    for name in (None, "seen"):
        with pytest.raises(UserError, match=f"modality={name}: random was trained on written, spoken"):
            encoder(picture, modality=name)
    with pytest.raises(UserError, match="one modality alone, which needs no name"):
        jepa.load_encoder("random", "data=digits")(picture, modality="digits")


def test_what_does_not_fit_is_named(pictures, tmp_path, caplog):
    options = ["data=image_folder", f"data.root={pictures}", "data.image_size=16"]
    encoder = jepa.load_encoder("random", *options)
    np.save(tmp_path / "overlay.npy", np.zeros((8, 8, 2), np.uint8))
    with pytest.raises(UserError, match=r"overlay.npy: the images have 2 channels"):
        encoder([pictures / "0.png", tmp_path / "overlay.npy"])
    with pytest.raises(UserError, match=r"is a folder: give its files, or python scripts/extract\.py"):
        encoder(pictures)
    with pytest.raises(UserError, match=r"9 channels .* an array of many pictures has 4 axes"):
        encoder(np.zeros((20, 9, 9), np.uint8))
    assert repr(encoder).startswith("Encoder of random on cpu in fp32\n  pictures: paths, PIL images, arrays")
    assert "made 3 x 16 x 16" in repr(encoder)
    encoder(np.full((9, 9, 3), 255, np.int32))
    assert "only uint8 and uint16 are scaled to [0, 1]" in caplog.text
