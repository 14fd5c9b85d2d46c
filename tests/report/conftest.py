"""A sweep to look at."""

from __future__ import annotations

import pytest
from run_folders import METRIC, write_run


@pytest.fixture
def grid(tmp_path):
    """Two rates, three seeds each, of which the higher is better beyond chance; and runs that went wrong."""
    values = {"1e-3": (0.80, 0.82, 0.81), "1e-2": (0.90, 0.93, 0.91)}
    number = 0
    for rate, scores in values.items():
        for seed, score in enumerate(scores):
            metrics = {"val/loss": 1 - score, "cost/seconds": 60.0 + number}
            write_run(tmp_path, number, f"optimizer.lr={rate} trainer.seed={seed} data=digits", score, metrics=metrics)
            number += 1
    write_run(tmp_path, 6, "optimizer.lr=1 trainer.seed=0 data=digits", 0.0, state="failed", reason="out of memory")
    wrong = {"objective": {METRIC: 0.0}, "metrics": {METRIC: 0.99}, "verdict": "complete collapse"}
    write_run(tmp_path, 7, "optimizer.lr=1 trainer.seed=1 data=digits", **wrong)
    write_run(tmp_path, 8, "optimizer.lr=1 trainer.seed=2 data=digits", None, state="queued", step=None)
    return tmp_path
