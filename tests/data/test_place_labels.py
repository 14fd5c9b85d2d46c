"""Labels of steps of series and of frames of sound: where they lie, and what is said of those that do not fit."""

from __future__ import annotations

import pickle
from functools import partial

import numpy as np
import pandas
import pytest
import soundfile
import torch

from jepa.data import AudioData, SeriesData
from jepa.data.sources import audio_folder, series_csv
from jepa.utils.errors import DataError
from jepa.utils.log_mel import LogMel

RATE = 8000


def write_table(path, rows=300, **columns):
    hours = np.arange(rows)
    high = hours // 7 % 2 == 1
    table = {"date": pandas.date_range("2020-01-01", periods=rows, freq="1h"), "a": np.where(high, 1.0, -1.0)}
    table["state"] = np.where(high, " running", "off")
    pandas.DataFrame({**table, **columns}).to_csv(path, index=False)
    return str(path)


def series(root, label="state", **settings):
    source = partial(series_csv, step_labels=label, **settings.pop("source", {}))
    return SeriesData(source=source, root=root, window_size=20, batch_size=4, **settings)


def truths(data, split="train"):
    batches = data.truth_batches(split, batch_size=8)
    return [pair for batch in batches for pair in zip(batch["x"], batch["truth"], strict=True)]


@pytest.mark.parametrize("settings", [{}, {"stride": 3, "split_channels": True, "num_workers": 1}])
def test_a_column_says_what_each_step_is(settings, tmp_path):
    data = series(write_table(tmp_path / "t.csv", b=np.arange(300.0) ** 0.5), **settings)
    assert data.spec.found["source.columns"] == ["a", "b"]
    assert data.truth_names == ("off", "running")
    assert "step labels: 2 classes, off, running" in data.lines
    for split in ("train", "test"):
        pairs = truths(data, split)
        assert len(pairs) == len(data.splits[split])
        for number, (x, truth) in enumerate(pairs):
            if not settings or number % 2 == 0:  # the second channel tells nothing
                assert torch.equal(x[0] > 0, truth == 1)
    samples = pickle.loads(pickle.dumps(data.splits["test"]))  # as spawned workers get them
    assert (samples.places[1], len(samples)) == ((0, settings.get("stride", 1)), len(data.splits["test"]))
    assert "test series of" in samples.describe(0)
    assert "truth" not in next(data.evaluation_batches("test", batch_size=4))


@pytest.mark.parametrize(
    ("cells", "names"),
    [
        (np.arange(300) % 3, ("0", "1", "2")),
        (np.arange(300) % 2 == 0, ("False", "True")),
        (np.where(np.arange(300) % 2, 2.0, np.nan), None),  # a single class
        (np.arange(300), ()),
        (np.arange(300) / 7, ()),
    ],
)
def test_classes_and_numbers(cells, names, tmp_path):
    path = write_table(tmp_path / "t.csv", state=cells)
    if names is None:
        with pytest.raises(DataError, match=r"t.csv: data.source.step_labels has 1 different labels \(2\), expected 2"):
            series(path)
        return
    data = series(path)
    assert data.truth_names == (names or None)
    assert torch.stack([truth for _, truth in truths(data)])[:, 0].tolist() == pytest.approx(
        [names.index(str(cell)) if names else cell for cell in cells[: data.spec.num_train]]
    )


def test_missing_labels_unordered_rows_resampling_and_folders(tmp_path):
    path = write_table(tmp_path / "1.csv")
    table = pandas.read_csv(path)
    table.loc[:4, "state"] = None
    table.sample(frac=1, random_state=0).to_csv(path, index=False)
    x, truth = truths(series(path))[0]
    assert truth[:5].tolist() == [-1] * 5
    assert torch.equal((x[0] > 0)[5:], truth[5:] == 1)
    data = series(path, source={"resample": "7h"})
    assert all(torch.equal((x[0] > 0)[1:], truth[1:] == 1) for x, truth in truths(data)[:-1])
    write_table(tmp_path / "2.csv", state=np.where(np.arange(300) < 5, "broken", "off"))
    assert series(str(tmp_path)).truth_names == ("broken", "off", "running")  # of all tables
    for settings, said in (
        ({"label": "states"}, r"1.csv has no column 'states' \(data.source.step_labels\); its columns are"),
        ({"source": {"columns": ["a", "state"]}}, "step_labels=state is in data.source.columns too"),
    ):
        with pytest.raises(DataError, match=said):
            series(path, **settings)
    with pytest.raises(DataError, match="step_labels has 0 different labels"):
        series(write_table(tmp_path / "3.csv", state=[None] * 300))


def write_sounds(folder, *, track="0.1\t0.25\tlow tone\n\\\t200\t300\n0.4\t0.6\thigh\n0.7\t0.7\tpoint\n", rate=16000):
    """Sounds of 0.8 s, 1 where `low tone` is, -1 where `high` is."""
    folder.mkdir()
    times = np.arange(int(0.8 * rate)) / rate
    wave = 0.5 * ((times >= 0.1) & (times < 0.25)) - 0.5 * ((times >= 0.4) & (times < 0.6))
    for number in range(4):
        soundfile.write(folder / f"{number}.wav", wave, rate)
        (folder / f"{number}.txt").write_text(track, encoding="utf-8-sig")
    return folder


def sounds(root, seconds=1.0, **source):
    front_end = LogMel(sample_rate=RATE, n_fft=256, hop_length=80, mel_bins=20)
    source = partial(audio_folder, label_tracks=True, **source)
    return AudioData(source=source, root=str(root), sample_rate=RATE, seconds=seconds, spectrogram=front_end)


@pytest.mark.parametrize(("seconds", "source"), [(1.0, {}), (0.5, {}), (0.3, {"piece_seconds": 0.3})])
def test_a_label_track_says_what_each_frame_is(seconds, source, tmp_path):
    data = sounds(write_sounds(tmp_path / "own"), seconds, val_fraction=0.25, **source)
    assert data.truth_names == ("none", "high", "low tone")
    assert any("label tracks: 2 classes and none" in line for line in data.lines)
    assert not any("left out" in line for line in data.lines)
    pairs = truths(data) + truths(data, "test")
    assert len(pairs) == 4 * (3 if source else 1)
    assert {int(each) for _, truth in pairs for each in truth} == ({0, 1, 2} if seconds == 0.5 else {-1, 0, 1, 2})
    for x, truth in pairs:
        level = x[0, ::80]  # at the centre of each frame
        expected = torch.where(level > 0.25, 2, torch.where(level < -0.25, 1, 0)).masked_fill(level.isnan(), -1)
        assert truth.shape == expected.shape
        assert int((truth != expected).sum()) <= 2  # resampling rings at the edges


@pytest.mark.parametrize(
    ("track", "said"),
    [
        ("0\t0.3\ta\n0.2\t0.4\tb\n", r"0.txt: 'a' goes on to 0.3 s and 'b' begins at 0.2 s"),
        ("0\t0.3\ta\nnoise\n", r"0.txt: line 2 is 'noise', expected a start, an end"),
        ("0.3\t0.2\ta\n", "0.txt: line 1 is '0.3.t0.2.ta', expected a start, an end not before it"),
        ("0\t0.2\t\n", "0.txt: line 1 is"),
        ("\n", "label_tracks=true, but the label tracks are empty: expected for .*0.wav the file .*0.txt"),
        (None, "label_tracks=true, but no sound has a label track beside it"),
        (b"0\t1\t\xff\n", "0.txt cannot be read as a label track in UTF-8"),
    ],
)
def test_label_tracks_that_do_not_fit(track, said, tmp_path):
    folder = write_sounds(tmp_path / "own")
    for file in folder.glob("*.txt"):
        file.unlink() if track is None else file.write_bytes(track if isinstance(track, bytes) else track.encode())
    with pytest.raises(DataError, match=said):
        sounds(folder, val_fraction=0.25)


def test_labels_side_by_side_and_sounds_without(tmp_path):
    folder = write_sounds(tmp_path / "own", track="0,2 0,4 b\n0.0\t0.2005\ta\n0.1\t0.15\ta\n", rate=RATE)
    data = sounds(folder, 0.8, val_fraction=0.25)
    for _, truth in truths(data):
        assert truth.tolist() == [1] * 20 + [2] * 20 + [0] * 40
    for number in (1, 2, 3):
        (folder / f"{number}.txt").unlink()
    data = sounds(folder, 0.8, val_fraction=0.25)
    assert any("3 of 4 sounds have none" in line for line in data.lines)
    every = torch.stack([truth for split in ("train", "test") for _, truth in truths(data, split)])
    assert (every >= 0).all(dim=1).sum() == 1
    assert (every == -1).all(dim=1).sum() == 3
