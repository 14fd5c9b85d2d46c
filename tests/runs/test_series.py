"""Whole runs on time series: labelled series and forecasts, both encoders, every mask, and mistakes."""

from __future__ import annotations

import json

import numpy as np
import pytest

pytestmark = pytest.mark.slow

FEW = (
    "data.batch_size=16",
    "trainer.max_steps=4",
    "trainer.log_every=1",
    "trainer.device=cpu",
    "~logger.tensorboard",
    "hydra.run.dir=run",
)


@pytest.fixture
def archive(tmp_path):
    random = np.random.default_rng(0)
    arrays = {}
    for split in ("train", "test"):
        labels = np.arange(32) % 2
        arrays[f"{split}_x"] = random.normal(0, 0.3, (32, 2, 40)) + np.sin(np.arange(40) * (1 + labels)[:, None, None])
        arrays[f"{split}_y"], arrays[f"{split}_len"] = labels, np.resize([40, 23, 31], 32)
    np.savez(tmp_path / "Toy.npz", **arrays)
    return ["data=ucr", f"data.root={tmp_path}", "data.name=Toy", *FEW]


@pytest.fixture
def table(tmp_path):
    rows = [
        f"{1 + i // 24:02d}.01.2020 {i % 24}:00;{np.sin(i / 4):.4f};{i % 7 if i % 31 else ''};ja" for i in range(600)
    ]
    (tmp_path / "t.csv").write_text(
        "Zeit;a;b;Tür\n" + "\n".join(rows).replace(".", ",").replace(",01,", ".01."), "cp1252"
    )
    return ["data=series_csv", "data.root=t.csv", "data.window_size=48", "model.encoder.stem.patch_size=6", *FEW]


def results(folder):
    return json.loads((folder / "run" / "results.json").read_text())


@pytest.mark.parametrize("model", ["series", "temporal_cnn"])
def test_labelled_series_of_unequal_lengths(train, archive, tmp_path, model):
    process = train(*archive, f"model={model}")
    assert process.returncode == 0, process.stderr
    rows = results(tmp_path)
    for row in ("trained", "random_init", "raw_input"):
        assert 0 <= rows[row]["linear"] <= 1
        assert 0 <= rows[row]["knn"] <= 1
        assert not any(name.startswith("forecast") for name in rows[row])


def test_forecasts_of_a_table_with_missing_cells(train, table, tmp_path):
    independent = ["model=series", "model/mask=time_span", "model.encoder.stem.channel_independent=true"]
    process = train(
        *table,
        *independent,
        "evaluation.probes.forecast.horizons=[6,12]",
        "optimized_metric=eval/trained/forecast/6/mse",
    )
    assert process.returncode == 0, process.stderr
    assert "channels: a, b; time: Zeit (2020-01-01 00:00:00 to" in process.stdout
    assert "left out, as text: Tür" in process.stdout
    rows = results(tmp_path)
    for row in ("trained", "random_init", "raw_input"):
        assert rows[row]["forecast/6/mse"] > 0
        assert rows[row]["forecast/12/mae"] > 0
    assert {"forecast/6/last_value/mse", "forecast/12/seasonal_naive/mae"} <= rows["raw_input"].keys()


def test_the_future_by_a_cnn_on_split_channels(train, table):
    process = train(*table, "model=temporal_cnn", "model/mask=future", "data.split_channels=true", "evaluation=none")
    assert process.returncode == 0, process.stderr


def test_mistakes(train, archive, table, refused):
    assert "data.name can be one of Toy" in refused(train(*archive, "model=series", "data.name=Tyo"))
    assert "they go with model=series: python train.py" in refused(train(*archive, "model=vit"))
    message = refused(train(*archive, "model=series", "model.encoder.stem.channels=3"))
    assert "3 channels, time" in message
    assert "no column 'c'" in refused(train(*table, "model=series", "data.source.columns=[c]"))
    message = refused(train(*table, "model=series", "model.encoder.stem.patch_size=48"))
    assert "at least 2 tokens" in message
    assert "training part has" in refused(train(*table, "model=series", "data.window_size=500"))
