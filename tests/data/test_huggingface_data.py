"""Data sets of the `datasets` library: files, splits, kinds of columns, labels and damage."""

from __future__ import annotations

import io
import re
from pathlib import Path

import numpy as np
import pytest
from data_helpers import same
from hydra.errors import InstantiationException
from hydra.utils import instantiate
from omegaconf import OmegaConf
from PIL import Image as PIL

from jepa.data import ImageData
from jepa.data.audio_data import AudioData
from jepa.data.huggingface_data import read_columns
from jepa.data.text_data import TextData
from jepa.utils.errors import DataError

datasets = pytest.importorskip("datasets")
CONFIG = Path(__file__).parents[2] / "conf" / "data" / "hf.yaml"


@pytest.fixture(autouse=True)
def _own_cache(tmp_path, monkeypatch):
    monkeypatch.setattr(datasets.config, "HF_DATASETS_CACHE", str(tmp_path / "cache"))
    monkeypatch.setattr(datasets.config, "HF_HUB_OFFLINE", True)
    datasets.disable_progress_bars()


def texts(count: int = 20) -> dict:
    return {"sentence": [f"text number {n}" for n in range(count)], "label": [n % 2 for n in range(count)]}


def labelled(rows: dict):
    features = datasets.Features(sentence=datasets.Value("string"), label=datasets.ClassLabel(names=["no", "yes"]))
    return datasets.Dataset.from_dict(rows, features=features)


def png(value: int, size: tuple[int, int] = (9, 7)) -> bytes:
    file = io.BytesIO()
    PIL.fromarray(np.full(size, value, np.uint8)).save(file, "PNG")
    return file.getvalue()


def refused(**changes) -> str:
    """The message with which data cannot be built."""
    with pytest.raises(InstantiationException) as error:
        build(**changes)
    assert isinstance(error.value.__cause__, DataError)
    return str(error.value.__cause__)


def build(**changes):
    config = OmegaConf.load(CONFIG)
    config = OmegaConf.merge(
        OmegaConf.masked_copy(config, [key for key in config if key != "hints"]),  # those are for other groups
        {"batch_size": 4, "vocab_size": 300, "max_length": 8, "image_size": 8, "text": {"tokenizer_folder": None}},
        {"sample_rate": 8000, "spectrogram": {"sample_rate": 8000}},
        changes,
    )
    return instantiate(config, _convert_="all")


FILES = {"parquet": "to_parquet", "jsonl": "to_json", "jsonl.gz": "to_json", "csv": "to_csv"}


@pytest.mark.parametrize("form", ["disk", "disk_split", "parquet_folder", "jsonl_folder", "arrow", "json", *FILES])
def test_texts_of_every_form(tmp_path, form):
    train, test = labelled(texts()), labelled(texts(6))
    path = tmp_path / form
    path.mkdir()
    if form == "disk":
        datasets.DatasetDict(train=train, validation=test).save_to_disk(path)
    elif form == "disk_split":
        train.save_to_disk(path)
    elif form in FILES:
        getattr(train, FILES[form])(path := path / f"all.{form}")
    elif form == "json":
        train.to_json(path := path / "all.json", lines=False)
    elif form == "jsonl_folder":
        train.to_json(path / "train.jsonl")
        test.to_json(path / "test.jsonl")
    elif form == "parquet_folder":
        train.to_parquet(path / "train-00000.parquet")
        test.to_parquet(path / "test-00000.parquet")
    else:
        datasets.DatasetDict(train=train).save_to_disk(path)
        path = next(path.rglob("*.arrow"))
    columns = {"path": str(path), "column": "sentence", "label_column": "label"}
    data, again = build(**columns), build(**columns, num_workers=2)
    held = form in ("disk_split", "arrow", "json", *FILES)
    assert isinstance(data, TextData)
    assert (data.spec.num_train, data.spec.num_test) == ((18, 2) if held else (20, 6))
    assert data.spec.class_names == (("0", "1") if "json" in form or "csv" in form else ("no", "yes"))
    (batch,) = data.train_batches(seed=0, start_step=0, stop_step=1)
    assert (batch["x"].shape, batch["label"].shape) == ((4, 8), (4,))
    if not held:
        (test_batch,) = data.evaluation_batches("test", batch_size=9)
        assert test_batch["label"].tolist() == [0, 1] * 3
    assert same(*(each.train_batches(seed=0, start_step=2, stop_step=4) for each in (data, again)))


def test_empty_texts_are_left_out_and_counted(tmp_path):
    rows = {"sentence": [None if n % 9 == 0 else " \n" if n % 7 == 0 else f"text {n}" for n in range(2500)]}
    kept = [text for text in rows["sentence"] if text and text.strip()]
    datasets.Dataset.from_dict(rows).to_parquet(tmp_path / "x.parquet")
    data = build(path=str(tmp_path / "x.parquet"), column="sentence", max_bad_share=0.0)
    assert data.lines[0] == f"{2500 - len(kept)} empty texts left out"
    assert data.spec.num_train + data.spec.num_test == len(kept)
    for split in ("train", "test"):
        assert sum(len(batch["x"]) for batch in data.evaluation_batches(split, batch_size=500)) == len(
            data.splits[split]
        )
    datasets.Dataset.from_dict({"sentence": [None, ""] * 9}).to_json(tmp_path / "y.jsonl")
    assert "there is no text in it" in refused(path=str(tmp_path / "y.jsonl"), column="sentence")
    (tmp_path / "z.txt").write_text("plain")
    assert f"for data=text_lines data.root={tmp_path / 'z.txt'}" in refused(path=str(tmp_path / "z.txt"), column="text")


@pytest.mark.faults
def test_pictures_and_a_damaged_one(tmp_path):
    rows = {"image": [{"bytes": png(12 * n), "path": None} for n in range(20)], "kind": ["cat", "dog"] * 10}
    rows["image"][3] = {"bytes": b"no picture", "path": None}
    features = datasets.Features(image=datasets.Image(), kind=datasets.Value("string"))
    datasets.Dataset.from_dict(rows, features=features).to_parquet(tmp_path / "train.parquet")
    data = build(path=str(tmp_path), column="image", label_column="kind", max_bad_share=0.5)
    assert isinstance(data, ImageData)
    assert data.spec.class_names == ("cat", "dog")
    batches = list(data.evaluation_batches("train", batch_size=5)) + list(data.evaluation_batches("test", batch_size=5))
    assert sum(len(batch["x"]) for batch in batches) == 20
    assert batches[0]["x"].shape == (5, 3, 8, 8)
    assert len(data.bad_samples) == 1


def test_sounds_are_waveforms(tmp_path):
    import soundfile

    wave = np.linspace(-0.5, 0.5, 80, dtype=np.float32)
    for n in range(4):
        soundfile.write(tmp_path / f"{n}.wav", np.stack([wave, wave], 1), 8000)
    rows = {"audio": [{"bytes": None, "path": str(tmp_path / f"{n}.wav")} for n in range(4)]}
    rows["audio"][0] = {"bytes": (tmp_path / "0.wav").read_bytes(), "path": None}
    folder = tmp_path / "saved"
    stored = {"audio": {"bytes": datasets.Value("binary"), "path": datasets.Value("string")}}
    rows = datasets.Dataset.from_dict(rows, features=datasets.Features(stored))
    rows.cast_column("audio", datasets.Audio()).save_to_disk(folder)
    rows = datasets.load_from_disk(folder)
    kind, splits = read_columns(rows.select(range(3)), rows.select([3]), "audio", None, [str(tmp_path)])
    for split in (splits.train, splits.test):
        for index in range(len(split)):
            found, label = split[index]
            assert (kind, found.rate, label, found.frames) == ("audio", 8000, None, 80)
            assert found.read().numpy() == pytest.approx(wave, abs=1e-3)
    message = "data.column=audio holds audio, but data.audio=null"
    assert message in refused(path=str(folder), column="audio", audio=None)
    front_end = {"n_fft": 64, "hop_length": 16, "mel_bins": 8}
    data = build(path=str(folder), column="audio", allow_outside=True, seconds=0.05, spectrogram=front_end)
    assert isinstance(data, AudioData)
    (batch,) = data.evaluation_batches("test", batch_size=4)
    assert not data.bad_samples
    assert batch["x"].shape == (1, 1, 400)
    assert (~batch["x"].isnan()).sum() == 80  # the rest is padding


def test_mistakes_are_told(tmp_path):
    datasets.Dataset.from_dict(texts() | {"score": [0.5] * 20, "many": [[1.0, 2.0]] * 20}).save_to_disk(tmp_path / "d")
    path = str(tmp_path / "d")
    for settings, told in [
        ({"column": "body"}, r"data.column=body: .*has the columns sentence, label, score, many"),
        ({"column": "sentence", "label_column": "kind"}, r"data.label_column=kind: "),
        ({"column": "sentence", "label_column": "score"}, r"data.label_column=score holds .*expected a ClassLabel"),
        ({"column": "many"}, r"data.column=many holds .*expected strings, an Image or an Audio column"),
        ({"column": "sentence", "test_split": "dev"}, r"data.test_split=dev: .* has the splits train"),
        ({"column": "sentence", "path": str(tmp_path / "none")}, "no such file or folder"),
        ({"column": "sentence", "path": "nobody/has-this"}, r"data.path=nobody/has-this cannot be opened by datasets"),
    ]:
        assert re.search(told, refused(**{"path": path, **settings}))
    (tmp_path / "broken.parquet").write_bytes(b"PAR1 nonsense")
    assert "broken.parquet cannot be opened" in refused(path=str(tmp_path / "broken.parquet"), column="sentence")
