"""Which options a metric depends on: the one that matters, none where none does."""

from __future__ import annotations

import math
import random

import pytest
from run_folders import METRIC, write_run

from jepa.report.leaderboard import read_leaderboard
from jepa.report.leaderboard_summary import summary
from jepa.report.sweep_statistics import importances


def test_importance_finds_the_option_that_matters(tmp_path):
    draw = random.Random(0)
    for place in range(40):
        rate, decay, loss = 10 ** draw.uniform(-4, -1), draw.uniform(0, 1), draw.choice(["l1", "mse"])
        options = f"optimizer.lr={rate} optimizer.weight_decay={decay} loss={loss} trainer.seed={place}"
        write_run(tmp_path, place, options, math.log10(rate) + 0.1 * (loss == "mse"))
    runs = read_leaderboard(tmp_path).runs
    found = importances(runs, METRIC)
    assert next(iter(found)) == "optimizer.lr"
    assert 0.9 < found["optimizer.lr"] < 1.1
    assert found["loss"] < 0.05
    assert found["optimizer.weight_decay"] < 0.05
    assert "trainer.seed" not in found
    assert importances(runs, METRIC) == found
    assert importances(runs[:3], METRIC) == {}


def test_an_interaction_counts_for_both_options(tmp_path):
    for place in range(32):
        signs = place % 2, place // 2 % 2
        write_run(
            tmp_path, place, f"model.a={signs[0]} model.b={signs[1]} trainer.seed={place}", float(sum(signs) == 1)
        )
    found = importances(read_leaderboard(tmp_path).runs, METRIC)
    assert found == pytest.approx({"model.a": 1, "model.b": 1}, abs=0.15)


def test_noise_depends_on_nothing(tmp_path):
    draw = random.Random(1)
    for place in range(30):
        options = " ".join(f"model.{name}={draw.random()}" for name in "abcd")
        write_run(tmp_path, place, options, draw.random())
    board = read_leaderboard(tmp_path)
    assert board.importances == {}
    assert "cannot be told from 30 runs" in summary(board)[-1]
