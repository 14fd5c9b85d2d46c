"""Features of a folder of pictures."""

from __future__ import annotations

import os

import numpy as np
import pandas
import pytest
import torch
from PIL import Image

from jepa.interop import load
from jepa.utils.errors import DataError, UserError


@pytest.fixture
def pictures(tmp_path):
    """Seven pictures at two depths, one of them damaged, and what is to be ignored."""
    folder = tmp_path / "pictures"
    (folder / "b" / "deep").mkdir(parents=True)
    random = np.random.default_rng(0)
    for number in range(3):
        Image.fromarray(random.integers(0, 255, (10, 12, 3), np.uint8)).save(folder / f"{number}.png")
        Image.fromarray(random.integers(0, 255, (8, 8), np.uint8)).save(folder / "b" / "deep" / f"{number}.PNG")
    (folder / "b" / "broken.jpg").write_bytes(b"no picture")
    os.mkfifo(folder / "b" / "pipe.png")
    np.save(folder / "b" / "two.npy", np.zeros((8, 8, 2), np.uint16))
    (folder / "notes.txt").write_text("x")
    (folder / ".hidden.png").write_bytes(b"")
    return folder


NAMES = ["0.png", "1.png", "2.png", "b/deep/0.PNG", "b/deep/1.PNG", "b/deep/2.PNG"]


def test_npz_and_parquet(run_folder, pictures, extract, tmp_path, capsys):
    common = [f"checkpoint={run_folder}", f"input={pictures}", "batch_size=4"]
    npz = np.load(extract(*common, f"output={tmp_path / 'f.npz'}"))
    assert npz["path"].tolist() == NAMES
    assert npz["features"].shape == (6, 32)
    assert npz["features"].dtype == np.float32
    out = capsys.readouterr().out
    assert "left out 3 of 9 pictures that cannot be read:\n  b/broken.jpg: UnidentifiedImageError" in out
    assert "\n  b/pipe.png: it is a pipe or a device, no file" in out
    assert "\n  b/two.npy: the images have 2 channels and cannot become data.channels=1" in out
    assert "pictures: 1 .txt left out" in out
    assert "6 pictures, features (6, 32)" in out
    table = pandas.read_parquet(extract(*common, f"output={tmp_path / 'f.parquet'}"))
    assert table["path"].tolist() == NAMES
    assert np.array_equal(np.stack(table["features"]), npz["features"])
    # The same by hand: grey, as the run was trained, of its size and normalised by its mean and std.
    model = load(str(run_folder)).model
    pixels = torch.from_numpy(np.array(Image.open(pictures / NAMES[4]))).float()[None, None] / 255
    with torch.no_grad():
        wanted = model.encode_target((pixels - 0.305) / 0.376).mean(dim=1)
    assert np.abs(npz["features"][4] - wanted[0].numpy()).max() < 1e-5


def test_tokens_and_layers(run_folder, pictures, extract, tmp_path):
    common = [f"checkpoint={run_folder}", f"input={pictures}", f"output={tmp_path / 'f.npz'}"]
    tokens = np.load(extract(*common, "pooling=none"))["features"]
    assert tokens.shape == (6, 16, 32)
    layers = np.load(extract(*common, "layers=[1,0]", "pooling=max", "network=target"))
    assert sorted(layers.files) == ["layer_0", "layer_1", "path"]
    assert np.array_equal(layers["layer_1"], tokens.max(axis=1))


def test_a_published_file_needs_to_know_the_pictures(published, pictures, extract, tmp_path):
    common = [f"checkpoint={published}", "model.encoder.num_heads=4", f"input={pictures}"]
    common.append(f"output={tmp_path / 'f.npz'}")
    with pytest.raises(UserError, match=r"give data.image_size=... data.mean=... data.std=..."):
        extract(*common)
    told = ["data.image_size=16", "data.mean=[0.5,0.5,0.5]", "data.std=[0.5,0.5,0.5]"]
    assert np.load(extract(*common, *told))["features"].shape == (6, 48)


def test_names_that_are_no_text(run_folder, pictures, extract, tmp_path, capsys):
    (pictures / "0.png").rename(os.fsdecode(os.fsencode(pictures / "a.png").replace(b"a.png", b"\xff.png")))
    (pictures / "1.png").rename(os.fsdecode(os.fsencode(pictures / "b.png").replace(b"b.png", b"\xfe.png")))
    (pictures / "2.png").write_bytes(b"")
    next(path for path in pictures.iterdir() if path.name == "\udcfe.png").write_bytes(b"")
    common = [f"checkpoint={run_folder}", f"input={pictures}"]
    paths = np.load(extract(*common, f"output={tmp_path / 'f.npz'}"))["path"].tolist()
    assert paths == [*NAMES[3:], "\udcff.png"]
    assert r"\udcfe.png: the file is empty" in capsys.readouterr().out
    with pytest.raises(DataError, match=r"\\udcfe.png is no name in UTF-8"):
        extract(*common, f"output={tmp_path / 'f.parquet'}")


def test_mistakes(run_folder, pictures, extract, tmp_path):
    (tmp_path / "empty").mkdir()
    for overrides, message in [
        ([f"input={tmp_path / 'absent'}"], "is not a folder"),
        ([f"input={tmp_path / 'empty'}"], "holds no pictures"),
        ([f"input={pictures / 'b'}", "output=f.csv"], "ends with .npz or .parquet"),
        ([f"input={pictures}", "layers=[1,1]"], "a block is named twice"),
        ([f"input={pictures}", "data.mean=[0.1,0.2]"], "data.mean has 2 values; expected 1"),
        ([f"input={pictures}", "layers=[7]"], r"layers \[7\] do not exist: the encoder has 2"),
        ([f"input={pictures}", "pooling=none", "output=f.parquet"], "write it to output=<name>.npz"),
        ([f"input={pictures}", "network=teacher"], "network='teacher': expected context or target"),
    ]:
        with pytest.raises(UserError, match=message):
            extract(f"checkpoint={run_folder}", f"output={tmp_path / 'f.npz'}", *overrides)
    for path in pictures.rglob("*"):
        if path.is_file() and not path.name.startswith("."):
            path.write_bytes(b"")
    with pytest.raises(DataError, match="none of its 9 pictures can be read; the first: the file is empty"):
        extract(f"checkpoint={run_folder}", f"input={pictures}", f"output={tmp_path / 'f.npz'}")
    assert not (tmp_path / "f.npz").exists()
