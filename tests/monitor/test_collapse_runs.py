"""Short runs on digits: made to collapse in several ways, and healthy ones. Longer: scripts/reproduce.py collapse."""

from __future__ import annotations

import json

import pytest

from jepa import build_trainer, load_config

IJEPA = "experiment=ijepa_digits"
RUN = ["trainer.max_steps=60", "monitor.every_steps=10", "evaluation=none", "logger=jsonl", "trainer.best_k=0"]
RUN += ["scheduler.warmup_epochs=0", "scheduler.min_lr=0.001", "trainer.validate_every_steps=null"]


def collapse_of(tiny, folder, *overrides):
    values = [value for value in tiny if not value.startswith(("trainer.max_steps", "trainer.log_every"))]
    if IJEPA in overrides or "model=lejepa" in overrides:
        values = [value for value in values if not value.startswith(("loss.projector", "model.predictor"))]
    build_trainer(load_config([*values, *RUN, *overrides, f"run_dir={folder}"])).fit()
    return json.loads((folder / "results.json").read_text())["collapse"]


@pytest.mark.slow
@pytest.mark.parametrize(
    ("overrides", "verdict"),
    [
        ([IJEPA, "model.target._target_=scripts.reproduce.shared_target", "model.allow_collapse=true"], "collapse"),
        ([IJEPA, "optimizer.lr=0.3", "trainer.max_steps=120"], "collapse"),
        (["data.source._target_=scripts.reproduce.constant_digits"], "constant data"),
    ],
    ids=["no_stop_gradient", "learning_rate_x_300", "constant_data"],
)
def test_made_to_collapse(tiny, tmp_path, overrides, verdict):
    found = collapse_of(tiny, tmp_path, *overrides)
    assert verdict in found["verdict"], found  # of which kind depends on how far it has got
    assert found["evidence"]


@pytest.mark.slow
@pytest.mark.parametrize(
    "overrides", [["trainer.seed=1"], [IJEPA], ["model=lejepa"]], ids=["default", "ijepa", "views"]
)
def test_healthy(tiny, tmp_path, overrides):
    assert collapse_of(tiny, tmp_path, *overrides)["verdict"] == "healthy"
