"""Features of files of every modality, and of a run's own data."""

from __future__ import annotations

import os
import shutil
import subprocess
import sys

import numpy as np
import pandas
import pytest
import torch
from PIL import Image

import jepa
from jepa import load_config
from jepa.config.build import build_data
from jepa.interop import load
from jepa.tools.feature_file import FeatureFile
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


def test_mistakes(run_folder, pictures, extract, tmp_path, monkeypatch):
    monkeypatch.chdir(tmp_path)
    for folder in ("empty", "f.zarr"):
        (tmp_path / folder).mkdir()
    (tmp_path / "file").touch()
    for overrides, message in [
        ([f"input={tmp_path / 'absent'}"], "is not a folder"),
        ([f"input={tmp_path / 'empty'}"], "holds no pictures"),
        ([f"input={pictures / 'b'}", "output=f.csv"], "ends with .npz or .parquet"),
        ([f"input={pictures}", "layers=[1,1]"], "a block is named twice"),
        ([f"input={pictures}", "data.mean=[0.1,0.2]"], "data.mean has 2 values; expected 1"),
        ([f"input={pictures}", "layers=[7]"], r"layers \[7\] do not exist: the encoder has 2"),
        ([f"input={pictures}", "pooling=none", "output=f.parquet"], "write it to output=<name>.npz"),
        (["input=[]"], r"input=\[\] names nothing"),
        ([f"input={pictures}", "output=f.zarr"], "output=f.zarr exists: remove it"),
        ([f"input={pictures}", f"output={tmp_path / 'file' / 'f.npz'}"], "cannot write output=.*: Not a directory"),
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


def test_files_one_by_one(run_folder, pictures, extract, tmp_path):
    common = [f"checkpoint={run_folder}", f"output={tmp_path / 'f.npz'}"]
    whole = np.load(extract(*common, f"input={pictures}"))
    single = np.load(extract(*common, f"input={pictures / '1.png'}"))
    assert np.allclose(single["features"], whole["features"][1:2], atol=1e-6)
    assert single["path"].tolist() == ["1.png"]
    assert len(np.load(extract(*common, f"input=[{pictures / '1.png'},{pictures / 'b' / 'deep'}]"))["path"]) == 4


def test_the_own_data_of_a_run(run_folder, extract, tmp_path):
    table = pandas.read_parquet(extract(f"checkpoint={run_folder}", f"output={tmp_path / 'f.parquet'}"))
    data = build_data(load_config(["data=digits"]))
    assert table["split"].tolist() == ["train"] * data.spec.num_train + ["test"] * data.spec.num_test
    assert table["label"].tolist() == [*data.splits["train"].labels.tolist(), *data.splits["test"].labels.tolist()]
    assert table["class_name"].iloc[0] == data.spec.class_names[table["label"].iloc[0]]
    features = jepa.load_encoder(run_folder)(data.splits["test"].images[:3]).numpy()
    assert np.allclose(np.stack(table["features"][data.spec.num_train :][:3]), features, atol=1e-5)


def test_what_is_interrupted_goes_on(run_folder, pictures, extract, tmp_path, capsys, monkeypatch):
    """Also where it was killed while it wrote: what is beyond the last state is cut off."""
    common = [f"checkpoint={run_folder}", f"input={pictures}", "batch_size=2"]
    whole = np.load(extract(*common, f"output={tmp_path / 'whole.npz'}"))
    monkeypatch.setattr("jepa.tools.feature_file.SAVED_EVERY", 0.0)
    add, path = FeatureFile.add, tmp_path / "f.npz"

    def stop(self, *given, **how):
        if self.done >= 4:
            raise KeyboardInterrupt
        add(self, *given, **how)

    monkeypatch.setattr(FeatureFile, "add", stop)
    with pytest.raises(KeyboardInterrupt):
        extract(*common, f"output={path}")
    monkeypatch.setattr(FeatureFile, "add", add)
    with open(tmp_path / "f.npz.part" / "features", "ab") as file:
        file.write(b"half a row")
    capsys.readouterr()
    again = np.load(extract(*common, f"output={path}"))
    out = capsys.readouterr().out
    assert "goes on at sample 4 of 9" in out
    assert "left out 3 of 9 pictures" in out
    assert all(np.array_equal(again[name], whole[name]) for name in whole.files)
    assert not (tmp_path / "f.npz.part").exists()
    monkeypatch.setattr(FeatureFile, "add", stop)
    with pytest.raises(KeyboardInterrupt):
        extract(*common, f"output={path}")
    monkeypatch.setattr(FeatureFile, "add", add)
    extract(*common, f"output={path}", "pooling=max")  # another file, from the beginning
    assert "goes on" not in capsys.readouterr().out
    monkeypatch.setattr(FeatureFile, "add", stop)
    with pytest.raises(KeyboardInterrupt):
        extract(*common, f"output={path}")
    monkeypatch.setattr(FeatureFile, "add", add)
    shutil.copy(pictures / "1.png", pictures / "0.png")  # other pictures of the same names, too
    assert not np.array_equal(np.load(extract(*common, f"output={path}"))["features"], whole["features"])
    assert "goes on" not in capsys.readouterr().out


def test_where_a_batch_was_half_written(tmp_path, monkeypatch):
    """By an interrupt or a full disk: all of it counts as not written."""
    file = FeatureFile(tmp_path / "f.npz", {})
    file.add([{"n": 0}], {"features": np.zeros((1, 2))}, samples=1)
    with open("/dev/full", "ab", buffering=0) as full, monkeypatch.context() as patch:
        patch.setitem(file.files, "rows", full)
        with pytest.raises(UserError, match=r"cannot write output=.*No space left on device"):
            file.add([{"n": 1}], {"features": np.ones((1, 2))}, samples=1)
    file.save()
    again = FeatureFile(tmp_path / "f.npz", {})
    assert again.done == 1
    again.add([{"n": 1}], {"features": np.full((1, 2), 2)}, samples=1)
    again.finish()
    found = np.load(tmp_path / "f.npz")
    assert (found["n"].tolist(), found["features"][:, 0].tolist()) == ([0, 1], [0, 2])


def test_two_processes_do_not_write_one_file(tmp_path):
    code = "from pathlib import Path; from jepa.tools.feature_file import FeatureFile; FeatureFile(Path('f.npz'), {})"
    kept = FeatureFile(tmp_path / "f.npz", {})
    other = subprocess.run([sys.executable, "-c", code], cwd=tmp_path, capture_output=True, text=True)
    assert "f.npz is being written by another process" in other.stderr
    kept.discard()
    assert subprocess.run([sys.executable, "-c", code], cwd=tmp_path).returncode == 0


def test_sounds_and_their_pieces(extract, tmp_path, capsys):
    soundfile = pytest.importorskip("soundfile")
    folder = tmp_path / "sounds"
    folder.mkdir()
    for number in range(3):
        soundfile.write(folder / f"{number}.wav", np.sin(np.arange(4000 + 3000 * number) / 7) * 0.3, 8000)
    (folder / "broken.wav").write_bytes(b"no sound")
    data = ["model=audio", "data=audio_folder", f"data.root={folder}", "data.seconds=0.5", "data.sample_rate=8000"]
    common = ["checkpoint=random", *data, f"input={folder}", f"output={tmp_path / 'f.npz'}"]
    assert np.load(extract(*common))["path"].tolist() == ["0.wav", "1.wav", "2.wav"]
    assert "pieces=true takes all of it" in capsys.readouterr().out
    found = np.load(extract(*common, "pieces=true"))
    assert found["path"].tolist() == ["0.wav", "1.wav", "1.wav", "2.wav", "2.wav", "2.wav"]
    assert found["start"].tolist() == [0, 0, 0.5, 0, 0.5, 1]
    assert "left out 1 of 7 sounds" in capsys.readouterr().out
    encoder = jepa.load_encoder("random", *data)
    assert np.allclose(found["features"][3:], encoder(folder / "2.wav", pieces=True), atol=1e-5)


def test_windows_of_series(extract, tmp_path):
    folder = tmp_path / "tables"
    folder.mkdir()
    for number in range(2):
        values = np.random.default_rng(number).standard_normal((60 + 20 * number, 2))
        times = pandas.date_range("2024-01-01", periods=len(values), freq="1h")
        table = pandas.DataFrame(values, columns=["a", "b"])
        table.assign(**({} if number else {"time": times})).to_csv(folder / f"{number}.csv", index=False)
    small = ["evaluation=none", "logger=[jsonl]", "trainer.device=cpu", "trainer.max_steps=1", "data.batch_size=4"]
    options = ["model=series", "data=series_csv", f"data.root={folder}", "data.window_size=16"]
    jepa.build_trainer(load_config([*small, *options, f"run_dir={tmp_path}/run"])).fit()
    common = [f"checkpoint={tmp_path}/run", f"output={tmp_path / 'f.npz'}"]
    found = np.load(extract(*common, f"input={folder}", "stride=8"))
    assert found["start"].tolist() == [*range(0, 45, 8), *range(0, 65, 8)]
    assert found["time"].tolist()[:2] == ["2024-01-01 00:00:00", "2024-01-01 08:00:00"]
    assert set(zip(found["path"].tolist()[6:], found["time"].tolist()[6:])) == {("1.csv", "")}
    single = np.load(extract(*common, f"input={folder / '0.csv'}", "stride=8"))
    assert set(single["path"].tolist()) == {"0.csv"}
    encoder = jepa.load_encoder(tmp_path / "run")
    assert np.allclose(found["features"][6:], encoder(folder / "1.csv", pieces=True, stride=8), atol=1e-5)
    values = pandas.read_csv(folder / "1.csv").to_numpy().T
    table = pandas.read_csv(folder / "0.csv")
    np.save(tmp_path / "x.npy", np.stack([values[:, :16], values[:, 8:24]]))
    arrays = np.load(extract(*common, f"input={tmp_path / 'x.npy'}"))
    assert arrays["series"].tolist() == [0, 1]
    assert np.allclose(arrays["features"], found["features"][6:8], atol=1e-5)
    for side, last in (("validation", 48), ("test", 60)):
        own = np.load(extract(*common, f"data.score_on={side}"))
        assert own["start"][:3].tolist() == [0, 1, 2]
        for row in np.flatnonzero(own["path"] == "0.csv")[[5, -1]]:  # of the training and of the other part
            start = own["start"][row]
            assert own["time"][row] == table["time"][start]
            window = encoder(table[start : start + 16])
            assert np.allclose(own["features"][row], window[0], atol=1e-5)
        assert own["start"][own["path"] == "0.csv"].max() == last - 16
    np.save(tmp_path / "x.npy", values[:, :9])
    with pytest.raises(DataError, match="fewer than the 16 steps of a window"):
        extract(*common, f"input={tmp_path / 'x.npy'}")
    (tmp_path / "x.npy").write_bytes(b"x")
    with pytest.raises(DataError, match=r"x.npy is no .npy file of numbers"):
        extract(*common, f"input={tmp_path / 'x.npy'}")


def test_texts_and_clips(extract, tmp_path):
    (tmp_path / "lines.txt").write_text("the sun\n\nthe moon\n" * 20)
    pandas.DataFrame({"text": ["the sun", "", "the moon"], "n": range(3)}).to_csv(tmp_path / "t.csv", index=False)
    (tmp_path / "t.jsonl").write_text('{"text": "the sun"}\n{"text": "the moon"}\n')
    small = ["evaluation=none", "logger=[jsonl]", "trainer.device=cpu", "trainer.max_steps=1", "data.batch_size=4"]
    options = ["model=text", "data=text_lines", f"data.root={tmp_path}/lines.txt", "data.vocab_size=300"]
    jepa.build_trainer(load_config([*small, *options, f"run_dir={tmp_path}/run"])).fit()
    common = [f"checkpoint={tmp_path}/run", f"output={tmp_path / 'f.npz'}"]
    lines = np.load(extract(*common, f"input={tmp_path}/lines.txt"))
    assert lines["row"].tolist()[:4] == [1, 3, 4, 6]
    table = np.load(extract(*common, f"input={tmp_path}/t.csv", "text_column=text"))
    assert table["row"].tolist() == [1, 3]
    assert np.allclose(table["features"], lines["features"][:2], atol=1e-5)
    json = np.load(extract(*common, f"input={tmp_path}/t.jsonl", "text_column=text"))
    assert np.allclose(json["features"], lines["features"][:2], atol=1e-5)
    with pytest.raises(DataError, match=r"is no plain text, but a table \(csv\): name the column, text_column="):
        extract(*common, f"input={tmp_path}/t.csv")

    frames = np.random.default_rng(0).integers(0, 256, (2, 6, 20, 20, 3), np.uint8)
    for clip, name in zip(frames, ("a", "b")):
        (tmp_path / "clips" / name).mkdir(parents=True)
        for number, frame in enumerate(clip):
            Image.fromarray(frame).save(tmp_path / "clips" / name / f"{number}.png")
    video = ["model=video", "data=moving_mnist", "data.num_frames=4"]
    found = np.load(extract("checkpoint=random", *video, f"input={tmp_path / 'clips'}", common[1]))
    assert found["path"].tolist() == ["a", "b"]
    assert np.load(extract("checkpoint=random", *video, f"input={tmp_path}/clips/a", common[1]))["path"] == ["a"]
    assert np.allclose(found["features"], jepa.load_encoder("random", *video)(frames), atol=1e-4)
