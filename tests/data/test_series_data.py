"""Time series: sources, windows, padding, z-scores, views, forecast windows, and what a user gets wrong."""

from __future__ import annotations

import functools
import gzip

import numpy as np
import pytest
import torch

from jepa.data.augment import SeriesAugment
from jepa.data.series_data import SeriesData, normalised
from jepa.data.sources.series_tables import ett, series_csv, ucr
from jepa.utils.errors import DataError

NAN = float("nan")


def write_ucr(folder, name="Toy", *, train=12, test=8, channels=2, steps=10, lengths=None, **changes):
    random = np.random.default_rng(0)
    arrays = {}
    for split, count in (("train", train), ("test", test)):
        arrays[f"{split}_x"] = random.normal(3.0, 2.0, (count, channels, steps)).astype(np.float32)
        arrays[f"{split}_y"] = np.arange(count) % 2
        if lengths is not None:
            arrays[f"{split}_len"] = np.resize(lengths, count)
    np.savez(folder / f"{name}.npz", **{**arrays, **changes})
    return str(folder)


def write_table(path, rows=400, *, step="1h", columns=("a", "b"), text=None):
    import pandas

    time = np.arange(rows)
    table = pandas.DataFrame({"date": pandas.date_range("2020-01-01", periods=rows, freq=step)})
    for number, name in enumerate(columns):
        table[name] = np.sin(2 * np.pi * time / 24 + number) + 0.01 * time
    content = table.to_csv(index=False) if text is None else text
    (gzip.open if str(path).endswith(".gz") else open)(path, "wt").write(content)
    return str(path)


def csv_data(root, **settings):
    source = functools.partial(series_csv, **settings.pop("source", {}))
    return SeriesData(source=source, root=root, **{"window_size": 24, "batch_size": 4, **settings})


def everything(data, split="train"):
    return torch.cat([batch["x"] for batch in data.evaluation_batches(split, batch_size=1000)])


# Labelled series.


def test_series_are_z_scored_with_the_training_split(tmp_path):
    data = SeriesData(source=ucr, root=write_ucr(tmp_path), name="Toy", batch_size=4)
    assert data.spec.found.items() >= {"channels": 2, "length": 10}.items()
    assert (data.spec.num_train, data.spec.num_test, data.spec.classes) == (12, 8, 2)
    x = everything(data)
    torch.testing.assert_close(x.mean(dim=(0, 2)), torch.zeros(2), atol=1e-5, rtol=0)
    torch.testing.assert_close(x.std(dim=(0, 2), correction=0), torch.ones(2), atol=1e-5, rtol=0)
    assert everything(data, "test").mean().abs() > 1e-4  # not with its own statistics
    raw = SeriesData(source=ucr, root=str(tmp_path), name="Toy", z_score=False)
    torch.testing.assert_close(everything(raw), torch.from_numpy(np.load(tmp_path / "Toy.npz")["train_x"]))


def test_unequal_lengths_are_padded_with_nan_and_padding_is_no_value(tmp_path):
    data = SeriesData(source=ucr, root=write_ucr(tmp_path, lengths=[10, 4, 7]), name="Toy")
    x = everything(data)
    lengths = (~x[:, 0].isnan()).sum(dim=1)
    assert lengths.tolist() == np.resize([10, 4, 7], 12).tolist()
    assert not x[1, :, :4].isnan().any()
    assert x[1, :, 4:].isnan().all()
    values = x[~x.isnan()]
    assert values.mean().abs() < 0.05
    assert (values.std() - 1).abs() < 0.05
    features = data.raw_features(x, 5)
    assert features.shape == (12, 10)
    assert features.isfinite().all()
    torch.testing.assert_close(features[1, 0], x[1, 0, :2].mean())
    assert features[1, 4] == 0  # nothing was observed there


def test_windows_and_strides(tmp_path):
    root = write_ucr(tmp_path)
    data = SeriesData(source=ucr, root=root, name="Toy", window_size=4, stride=3)
    assert data.spec.num_train == 12 * 3
    assert data.spec.input_shape == (2, 4)
    whole = everything(SeriesData(source=ucr, root=root, name="Toy"))
    x = everything(data)
    assert torch.equal(x[1], whole[0, :, 3:7])
    assert torch.equal(x[3], whole[1, :, :4])
    split = SeriesData(source=ucr, root=root, name="Toy", split_channels=True)
    assert split.spec.input_shape == (1, 10)
    assert torch.equal(everything(split)[1], whole[0, 1:])


def test_views_are_random_repeatable_and_keep_padding(tmp_path):
    augment = SeriesAugment(crop=[0.7, 0.9], scale=0.1, offset=0.1, jitter=0.1)
    root = write_ucr(tmp_path, lengths=[10, 4])
    data = SeriesData(source=ucr, root=root, name="Toy", augment=augment, views=2, batch_size=6)
    (first,), (again,) = (list(data.train_batches(seed=0, start_step=1, stop_step=2)) for _ in range(2))
    assert first["views"].shape == (6, 2, 2, 10)
    assert torch.equal(first["label"], again["label"])
    torch.testing.assert_close(first["views"], again["views"], equal_nan=True, rtol=0, atol=0)
    assert not torch.equal(first["views"][:, 0].nan_to_num(), first["views"][:, 1].nan_to_num())
    lengths = set((~first["views"][:, :, 0].isnan()).sum(dim=-1).flatten().tolist())
    assert lengths == {10, 4}
    (other,) = data.train_batches(seed=1, start_step=1, stop_step=2)
    assert not torch.equal(first["views"].nan_to_num(), other["views"].nan_to_num())


def test_a_batch_holds_what_single_samples_give(tmp_path):
    augment = SeriesAugment(crop=[0.5, 1.0], scale=0.2, jitter=0.2)
    data = SeriesData(source=ucr, root=write_ucr(tmp_path), name="Toy", augment=augment, normalise="window")
    window = torch.randn(2, 10)
    random = (torch.Generator().manual_seed(3) for _ in range(2))
    views = [data.prepare_sample(window, each) for each in random]
    assert torch.equal(*views)
    drawn = augment.draw(1, (2, 10), torch.Generator().manual_seed(3))
    torch.testing.assert_close(normalised(augment.apply(window[None], *drawn), "window")[0][0], views[0])


def test_a_crop_interpolates_and_leaves_full_crops_alone():
    x = torch.arange(8.0).expand(1, 1, 8)
    whole, half = SeriesAugment(crop=[1.0, 1.0]), SeriesAugment(crop=[0.5, 0.5])
    place = torch.tensor([[0.3, 1.0]])
    other = torch.zeros(1, 2, 1), torch.zeros(1, 1, 8)
    assert torch.equal(whole.apply(x, place, *other), x)
    torch.testing.assert_close(half.apply(x, place, *other)[0, 0], 3.5 + 0.5 * torch.arange(8.0))


def test_normalisation_of_windows():
    x = torch.tensor([[[1.0, 3.0, NAN, 5.0, NAN]]])
    last, level, scale = normalised(x, "last")
    assert level.item() == 5
    assert scale.item() == 1
    assert last[0, 0, 0] == -4
    assert last[0, 0, 2].isnan()
    window, level, scale = normalised(x, "window")
    assert level.item() == 3
    assert window[~window.isnan()].std(correction=0).item() == pytest.approx(1)
    assert normalised(torch.full((1, 1, 4), 2.0), "window")[0].eq(0).all()


# One long series.


def test_a_table_is_split_by_time_and_dates_are_left_out(tmp_path):
    data = csv_data(write_table(tmp_path / "t.csv"), source={"splits": [0.5, 0.25, 0.25]})
    assert data.timelines[0].names == ("a", "b")
    assert data.timelines[0].ends == (200, 300, 400)
    assert data.timelines[0].period == 24
    assert data.spec.num_train == 200 - 24 + 1
    assert data.spec.num_test == 100 + 1  # the look-back reaches into the validation part
    assert data.spec.classes is None
    train = data.timelines[0].values[:, :200]
    expected = (data.timelines[0].values[:, 376:400] - train.mean(dim=1, keepdim=True)) / train.std(
        dim=1, correction=0
    )[:, None]
    torch.testing.assert_close(everything(data, "test")[-1], expected)


def test_forecast_windows_hold_every_target_of_their_part(tmp_path):
    data = csv_data(write_table(tmp_path / "t.csv"), source={"splits": [0.5, 0.25, 0.25]}, normalise="last")
    z = (data.timelines[0].values - data.level) / data.scale
    for split, (first, last) in {"train": (24, 200), "validation": (200, 300), "test": (300, 400)}.items():
        windows = data.windows(split, horizon=7)
        assert len(windows) == last - first - 7 + 1
        x, future, level, scale, window = windows[torch.tensor([0, len(windows) - 1])]
        torch.testing.assert_close(future[0], z[:, first : first + 7])
        torch.testing.assert_close(future[1], z[:, last - 7 : last])
        torch.testing.assert_close(window[0], z[:, first - 24 : first])
        torch.testing.assert_close(x * scale + level, window)
        assert x[..., -1].eq(0).all()
    split = csv_data(write_table(tmp_path / "t.csv"), split_channels=True).windows("test", horizon=7)
    assert split[torch.tensor([0, 1, 2])][0].shape == (6, 1, 24)


def test_missing_cells_become_nan(tmp_path, caplog):
    rows = "\n".join(f"{i},{'?' if i == 5 else i},{'' if i == 7 else 1}" for i in range(100))
    root = write_table(tmp_path / "t.csv", text="time,a,b\n" + rows)
    data = csv_data(root, source={"missing_markers": ["?"]})
    assert data.timelines[0].values.isnan().nonzero().tolist() == [[0, 5], [1, 7]]
    assert data.timelines[0].period is None
    assert csv_data(root).timelines[0].values.isnan().nonzero().tolist() == [[0, 5], [1, 7]]
    assert "cells that are no numbers, '?', are missing: 1 in 1 columns, the first in row 6 of 'a'" in caplog.text
    rows = "\n".join(f"{i},{'?' if i % 5 == 0 else i},1" for i in range(100))
    root = write_table(tmp_path / "t.csv", text="time,a,b\n" + rows)
    with pytest.raises(DataError, match=r"'a' holds '\?' in row 1.*columns=.*missing_markers"):
        csv_data(root)


def test_columns_of_text_that_reads_as_dates_and_named_columns(tmp_path):
    rows = "\n".join(f"2020-01-{1 + i // 24:02d} {i % 24:02d}:00,{i},{-i},x" for i in range(200))
    root = write_table(tmp_path / "t.csv", text="when,a,b,note\n" + rows)
    data = csv_data(root, source={"columns": ["b"]})
    assert data.timelines[0].names == ("b",)
    assert csv_data(root, source={"columns": ["b", "a"], "time_column": "when"}).timelines[0].period == 24
    assert (
        "time: when (2020-01-01 00:00:00 to 2020-01-09 07:00:00, every 1h); left out, as text: note"
        in csv_data(root).lines[1]
    )
    with pytest.raises(DataError, match="'note' holds 'x' in row 1"):
        csv_data(root, source={"columns": ["a", "note"]})
    with pytest.raises(DataError, match=r"no column .c. \(data.source.columns\); its columns are when, a, b, note"):
        csv_data(root, source={"columns": ["c"]})


@pytest.mark.parametrize(
    ("name", "step", "steps"), [("ETTh9.csv", "1h", 24), ("x.csv", "1h", 24), ("ETTm1.csv.gz", "15min", 96)]
)
def test_ett_splits(tmp_path, name, step, steps):
    table = ett(root=write_table(tmp_path / name, rows=610 * steps, step=step)).timelines[0]
    assert table.ends == (360 * steps, 480 * steps, 600 * steps)
    assert table.period == steps


def test_etth1_has_the_usual_windows(shared_dir):
    data = SeriesData(source=ett, root=str(shared_dir / "ett" / "ETTh1.csv"), window_size=336, split_channels=True)
    assert [len(data.windows(s, horizon=96)) for s in ("train", "validation", "test")] == [8209, 2785, 2785]
    assert data.spec.found.items() >= {"channels": 1, "length": 336}.items()
    first = data.timelines[0].values[:, 0]
    assert data.timelines[0].names[-1] == "OT"
    assert first[-1] == pytest.approx(30.531, abs=1e-3)


def test_the_archive_reads(shared_dir):
    expected = {"ECG5000": (500, 4499, (1, 140), 5), "BasicMotions": (40, 40, (6, 100), 4)}
    expected |= {"GunPoint": (50, 150, (1, 150), 2), "JapaneseVowels": (270, 370, (12, 29), 9)}
    for name, (train, test, shape, classes) in expected.items():
        spec = SeriesData(source=ucr, root=str(shared_dir / "ucr"), name=name).spec
        assert (spec.num_train, spec.num_test, spec.input_shape, spec.classes) == (train, test, shape, classes)


# Mistakes.


def test_bad_values_stay_out_of_the_statistics(tmp_path, caplog):
    x = np.random.default_rng(0).normal(3.0, 2.0, (12, 2, 10)).astype(np.float32)
    x[3, 1, 4], x[5, 0, 0] = 1e30, np.inf
    data = SeriesData(source=ucr, root=write_ucr(tmp_path, train_x=x), name="Toy", batch_size=4, max_bad_share=0.2)
    assert everything(data).std() == pytest.approx(1.0, abs=0.2)
    assert len(data.bad_samples) == 2
    with pytest.raises(DataError, match="no series of the training split can be used: its series holds"):
        SeriesData(source=ucr, root=write_ucr(tmp_path, train_x=np.full_like(x, 1e30)), name="Toy")
    text = "a,b\n" + "".join(f"{n % 5},{'1e30' if n == 9 else n % 7}\n" for n in range(400))
    data = csv_data(write_table(tmp_path / "t.csv", text=text))
    assert "column 'b' holds 1e+30 in row 10; 1 of 400 rows" in caplog.text
    assert everything(data).isnan().any()
    assert float(data.scale.max()) < 3


def test_mistakes_in_labelled_data(tmp_path):
    write_ucr(tmp_path)
    with pytest.raises(DataError, match=r"data.name can be one of Toy"):
        ucr(root=str(tmp_path), name="Tyo")
    with pytest.raises(DataError, match=r"no .npz files"):
        ucr(root=str(tmp_path / "none"), name="Toy")
    (tmp_path / "Broken.npz").write_bytes((tmp_path / "Toy.npz").read_bytes()[:500])
    with pytest.raises(DataError, match=r"Broken.npz cannot be read"):
        ucr(root=str(tmp_path), name="Broken")
    np.savez(tmp_path / "Less.npz", train_x=np.zeros((1, 1, 4)))
    with pytest.raises(DataError, match=r"lacks \['test_x', 'test_y', 'train_y'\]"):
        ucr(root=str(tmp_path), name="Less")
    write_ucr(tmp_path, "Flat", train_x=np.zeros((12, 10)))
    with pytest.raises(DataError, match=r"train_x is float64 \(12, 10\)"):
        ucr(root=str(tmp_path), name="Flat")
    y = np.arange(12) % 2
    huge = np.full((12, 2, 10), 1e300)
    wrong = {
        "train_x is <U32": {"train_x": huge.astype(str)},
        r"train_x is float64 \(12, 0, 10\)": {"train_x": huge[:, :0]},
        "train_x holds nothing but NaN": {"train_x": huge * np.nan},
        "train_x has 1 channels and test_x 2": {"train_x": np.zeros((12, 1, 10))},
        "train_len has to hold 12 whole numbers from 1 to 10": {"train_len": y + 0.5},
        "classes names 1 labels, but labels go up to 1": {"classes": np.array(["a"])},
        "the classes 7 of the test split are not in train, which has 0, 1": {
            "test_y": np.array([0, 1, 7, 0, 1, 0, 1, 0])
        },
    }
    for message, changes in wrong.items():
        write_ucr(tmp_path, "Wrong", **changes)
        with pytest.raises(DataError, match=message):
            ucr(root=str(tmp_path), name="Wrong")
    with pytest.raises(DataError, match=r"data.channels=3, but the data has 2"):
        SeriesData(source=ucr, root=str(tmp_path), name="Toy", channels=3)
    with pytest.raises(ValueError, match=r"data.normalise=first: expected one of none, last, window"):
        SeriesData(source=ucr, root=str(tmp_path), name="Toy", normalise="first")
    with pytest.raises(ValueError, match=r"data.augment.crop"):
        SeriesAugment(crop=[0.9, 1.2])


def test_mistakes_in_tables(tmp_path):
    root = write_table(tmp_path / "t.csv")
    with pytest.raises(DataError, match="is not a file, nor a folder"):
        csv_data(str(tmp_path / "none.csv"))
    with pytest.raises(DataError, match="no rows below its header"):
        csv_data(write_table(tmp_path / "e.csv", text="a,b\n"))
    (tmp_path / "bad.csv.gz").write_bytes(b"not gzip")
    with pytest.raises(DataError, match=r"bad.csv.gz cannot be read as a CSV table"):
        csv_data(str(tmp_path / "bad.csv.gz"))
    with pytest.raises(DataError, match=r"training part has 280 rows, fewer than data.window_size=500"):
        csv_data(root, window_size=500)
    with pytest.raises(ValueError, match=r"data.window_size=null"):
        csv_data(root, window_size=None)
    with pytest.raises(DataError, match=r"validation part .* too few for a window of 24 .* horizon of 100"):
        csv_data(root).windows("validation", horizon=100)
    with pytest.raises(ValueError, match=r"data.source.splits=\[0.9, 0.1\]"):
        csv_data(root, source={"splits": [0.9, 0.1]})
    with pytest.raises(DataError, match=r"400 rows, but 20 months"):
        ett(root=root)
    with pytest.raises(DataError, match="neither hourly"):
        ett(root=write_table(tmp_path / "d.csv", step="1D"))
    with pytest.raises(DataError, match="column 'b' holds no values"):
        csv_data(write_table(tmp_path / "n.csv", text="a,b\n" + "1,\n" * 100))
    with pytest.raises(DataError, match="column 'a' holds inf in row 1; 100 of 100 rows"):
        csv_data(write_table(tmp_path / "i.csv", text="a,b\n" + "inf,1\n" * 100))
    with pytest.raises(DataError, match="column 'a' holds inf in row 1; 100 of 100 rows"):  # of float32
        csv_data(write_table(tmp_path / "h.csv", text="a,b\n" + "1e300,1\n" * 100))
    with pytest.raises(DataError, match="column 'b' holds no values in the training part, its first 70 rows"):
        csv_data(write_table(tmp_path / "l.csv", text="a,b\n" + "1,\n" * 70 + "1,2\n" * 30))
    with pytest.raises(DataError, match="has values where names of columns belong"):
        csv_data(write_table(tmp_path / "v.csv", text="0.5,0.25\n" * 100))
