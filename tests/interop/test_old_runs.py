"""Checkpoints with former names keep loading: of classes, and of keys."""

from __future__ import annotations

import json
import shutil
from pathlib import Path

import pytest
import torch
from safetensors.torch import save_file

from jepa import build_trainer, load_config
from jepa.checkpoint.moved import MOVED, REMOVED_KEYS, RENAMED_KEYS, upgrade
from jepa.interop import load

OLD_RUNS = Path(__file__).resolve().parents[1] / "fixtures" / "old_runs"


@pytest.fixture(params=["plain", "sharded"])
def old_run(request, tmp_path):
    return shutil.copytree(OLD_RUNS / request.param, tmp_path / "run")


def test_evaluated_and_exported(old_run, evaluate, export, tmp_path):
    scores = evaluate(f"checkpoint={old_run}", "trainer.device=cpu", "cache_dir=null", small=())
    expected = json.loads((old_run / "expected.json").read_text())["results"]
    assert scores.keys() == expected.keys() | {"checkpoint", "data"}
    for row in ("trained", "random_init", "raw_input"):
        assert scores[row].keys() == expected[row].keys()
        for name in ("linear", "knn"):
            assert scores[row][name] == pytest.approx(expected[row][name], abs=0.02)
    assert (scores["collapse"], scores["step"]) == (expected["collapse"], expected["step"])
    file = export(f"checkpoint={old_run}", f"output={tmp_path / 'e.safetensors'}")
    x = torch.randn(2, 1, 8, 8)
    model = load(old_run).model  # without a configuration from outside
    assert torch.equal(load(file).model.encoder(x), model.encode_target(x))


def test_an_export_with_former_names(old_run, tmp_path):
    """As scripts/export.py wrote its header then."""
    loaded = load(old_run)
    encoder = loaded.model.target.encoder
    former = {"embed_dim": "dim", "num_heads": "heads"}
    card = {"encoder": {former.get(name, name): value for name, value in loaded.encoder.items()}, "source": "run"}
    save_file(encoder.state_dict(), tmp_path / "e.safetensors", metadata={"jepa_encoder": json.dumps(card)})
    x = torch.randn(2, 1, 8, 8)
    assert torch.equal(load(tmp_path / "e.safetensors").model.encoder(x), encoder(x))


def test_training_starts_from_it(old_run, tmp_path, tiny):
    sizes = ["model.encoder.embed_dim=16", "model.encoder.num_heads=2", "model.encoder.depth=1"]
    others = ["model.predictor.embed_dim=16", "model.predictor.depth=1", f"init_from={old_run}"]
    trainer = build_trainer(load_config([*tiny, *sizes, *others, f"run_dir={tmp_path / 'next'}"]))
    wanted = load(old_run).model.encoder.state_dict()
    assert all(torch.equal(wanted[name], tensor) for name, tensor in trainer.model.encoder.state_dict().items())


def test_upgrade():
    stem = {"_target_": "jepa.models.encoders.spectrogram_stem.SpectrogramStem", "spectrogram": {}}
    stem["spectrogram"] = {"_target_": "jepa.utils.spectrogram.LogMel", "mel_bins": 8}
    old = {"model": {"encoder": {"_target_": "jepa.models.TransformerEncoder", "stem": stem, "dim": 8, "heads": 2}}}
    own = {"_target_": "mine.Encoder", "dim": 8, "list": [{"_target_": "jepa.models.Predictor", "heads": None}]}
    new = upgrade(old | {"other": own})
    encoder = new["model"]["encoder"]
    assert (encoder["embed_dim"], encoder["num_heads"], "dim" in encoder) == (8, 2, False)
    assert encoder["stem"]["spectrogram"] == {"_target_": "jepa.utils.log_mel.LogMel", "mel_bins": 8}
    assert new["other"] == {**own, "list": [{"_target_": "jepa.models.Predictor", "num_heads": None}]}
    series = {"_target_": "jepa.data.sources.series.series_csv", "date_column": "when"}
    assert upgrade(series) == {"_target_": "jepa.data.sources.series_csv", "time_column": "when"}
    floors = {"_target_": "jepa.monitor.Thresholds", "places": 0.9}
    assert upgrade(floors | {"spread": 0.3, "fall": 0.6}) == floors
    assert upgrade(new) == new
    assert old["model"]["encoder"]["dim"] == 8


def test_the_tables_name_what_exists():
    from hydra.utils import get_object

    for name in (*MOVED.values(), *RENAMED_KEYS, *REMOVED_KEYS):
        get_object(name)
