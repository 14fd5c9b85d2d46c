"""Leaderboards of sweeps that are over, under way, or went wrong: who stands where, what is said, what is written."""

from __future__ import annotations

import csv
import math
import random
import re

import pytest
from rich.console import Console
from runs import METRIC, write_run

from jepa.sweep.importance import importances
from jepa.sweep.leaderboard import leaderboard
from jepa.sweep.wording import duration, number, option, short_names, with_error
from jepa.utils.errors import UserError


def places(board):
    return [run.folder for run in board.runs if board.place(run) is not None]


def text_of(board, width=160, limit=None):
    console = Console(width=width, record=True, file=open("/dev/null", "w"))  # noqa: SIM115
    console.print(board.table(limit))
    return console.export_text()


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
    write_run(tmp_path, 7, "optimizer.lr=1 trainer.seed=1 data=digits", 0.99, verdict="complete collapse")
    write_run(tmp_path, 8, "optimizer.lr=1 trainer.seed=2 data=digits", None, state="queued", step=None)
    return tmp_path


def test_who_stands_where(grid):
    board = leaderboard(grid)
    assert (board.metric, board.direction) == (METRIC, "maximize")
    assert places(board) == ["4", "5", "3", "1", "2", "0"]
    assert [run.folder for run in board.runs][6:] == ["8", "7", "6"]  # to come, collapsed, failed
    assert board.options == ["optimizer.lr", "trainer.seed"]
    assert board.runs[0].shared == {"data": "digits"}
    shown = text_of(board)
    assert re.search(r"1 +4 +1e-2 +1 +0\.93 .*1 min 00 s +100/100 +done", shown)
    assert re.search(r"6 +1 +0 .*failed: out of memory", shown)
    assert "done, complete collapse" in shown
    assert "and 7 more: limit=9" in text_of(board, limit=2)


def test_what_is_said(grid):
    said = "\n".join(leaderboard(grid).conclusions())
    assert "9 runs: 7 done, 1 queued, 1 failed." in said
    assert "Provisional: 1 run of 9 to come." in said
    assert "2 runs that failed or collapsed are left out of all means." in said
    assert (
        "lr=1e-2 won: eval/trained/linear 0.913 ± 0.038 (mean and 95% interval over 3 seeds) (run 4, 5 and 3)." in said
    )
    assert "Its lead of 0.103 over lr=1e-3, the runner-up, is more than chance: 95% interval 0.089 to 0.118" in said
    assert "paired by seed, 3 seeds" in said
    assert "depends most on optimizer.lr (100%)" in said


def test_a_lead_that_is_chance(tmp_path):
    for place, (rate, score) in enumerate([("1e-3", 0.80), ("1e-3", 0.90), ("1e-2", 0.85), ("1e-2", 0.86)]):
        write_run(tmp_path, place, f"optimizer.lr={rate} trainer.seed={place % 2}", score)
    said = "\n".join(leaderboard(tmp_path).conclusions())
    assert "lr=1e-2 won" in said
    assert "over lr=1e-3, the runner-up, cannot be told from chance: 95% interval" in said
    assert "More seeds tell: trainer.seed=0,1,2,3,4." in said


def test_one_seed_each(tmp_path):
    for place, rate in enumerate(("1e-3", "1e-2", "0.1")):
        write_run(tmp_path, place, f"optimizer.lr={rate}", place / 10)
    said = "\n".join(leaderboard(tmp_path).conclusions())
    assert "lr=0.1 won: eval/trained/linear 0.2 (one seed)" in said
    assert "cannot be told from chance: one has a single seed" in said
    assert "add trainer.seed=0,1,2 to the sweep" in said
    assert "told from chance against" not in said


def test_other_metrics_and_directions(grid):
    board = leaderboard(grid, "val/loss")
    assert board.direction == "minimize"
    assert places(board)[0] == "4"
    assert places(leaderboard(grid, "val/loss", "maximize"))[0] == "0"
    assert places(leaderboard(grid, "cost/seconds")) == ["0", "1", "2", "3", "4", "5"]


def test_two_objectives(tmp_path):
    for place, (score, cost) in enumerate([(0.9, 100.0), (0.8, 50.0), (0.7, 60.0), (0.95, 300.0)]):
        objective = {METRIC: score, "cost/seconds": cost}
        write_run(tmp_path, place, f"trainer.max_epochs={place + 1}", score, objective=objective)
    board = leaderboard(tmp_path)
    assert [run.folder for run in board.front] == ["3", "0", "1"]
    assert "3 runs are not beaten in both by any other" in "\n".join(board.conclusions())


def test_importance_finds_the_option_that_matters(tmp_path):
    draw = random.Random(0)
    for place in range(40):
        rate, decay, loss = 10 ** draw.uniform(-4, -1), draw.uniform(0, 1), draw.choice(["l1", "mse"])
        options = f"optimizer.lr={rate} optimizer.weight_decay={decay} loss={loss} trainer.seed={place}"
        write_run(tmp_path, place, options, math.log10(rate) + 0.1 * (loss == "mse"))
    found = importances(leaderboard(tmp_path).runs, METRIC)
    assert next(iter(found)) == "optimizer.lr"
    assert found["optimizer.lr"] > 0.9
    assert "trainer.seed" not in found
    assert sum(found.values()) == pytest.approx(1)
    assert importances(leaderboard(tmp_path).runs[:3], METRIC) == {}


def test_options_of_all_kinds(tmp_path):
    write_run(tmp_path, 0, "data.transforms=[a,b] +callbacks.x=1 resume=auto hydra.verbose=true", 0.5)
    write_run(tmp_path, 1, "data.transforms=[a,c] ~logger.tensorboard resume=auto", 0.6)
    write_run(tmp_path, 2, "optimizer.lr='3e-3'", 0.4)
    board = leaderboard(tmp_path)
    assert set(board.options) == {"data.transforms", "callbacks.x", "logger.tensorboard", "optimizer.lr"}
    by_name = {run.folder: run.overrides for run in board.runs}
    assert by_name["1"]["logger.tensorboard"] == "(removed)"
    assert by_name["2"]["optimizer.lr"] == "3e-3"
    assert by_name["0"]["optimizer.lr"] == "(default)"


def test_half_written_and_older_runs(tmp_path):
    write_run(tmp_path, 0, "optimizer.lr=1e-3", 0.5)
    torn = write_run(tmp_path, 1, "optimizer.lr=1e-2", 0.7)
    with (torn / "metrics.jsonl").open("a") as file:
        file.write('{"step": 101, "eval/trained/lin')
    old = tmp_path / "2"  # from before there was a status
    (old / ".hydra").mkdir(parents=True)
    (old / ".hydra" / "overrides.yaml").write_text("- optimizer.lr=0.1\n")
    (old / "results.json").write_text('{"trained": {"linear": 0.6}, "val/loss": 0.2, "step": 9}')
    (tmp_path / "3").mkdir()
    (tmp_path / "3" / "status.json").write_text('{"state": "runn')
    board = leaderboard(tmp_path)
    assert places(board) == ["1", "2", "0"]
    assert {run.folder: run.overrides["optimizer.lr"] for run in board.runs}["2"] == "0.1"


def test_the_files(grid):
    board = leaderboard(grid)
    board.write_csv(grid / "out" / "runs.csv")
    with (grid / "out" / "runs.csv").open() as file:
        rows = list(csv.DictReader(file))
    assert len(rows) == 9
    assert {key: rows[0][key] for key in ("place", "run", "optimizer.lr", "data", "objective/" + METRIC)} == {
        "place": "1",
        "run": "4",
        "optimizer.lr": "1e-2",
        "data": "digits",
        "objective/" + METRIC: "0.93",
    }
    board.write_page(grid / "out" / "page.html")
    page = (grid / "out" / "page.html").read_text()
    body = re.sub(r"<script>.*?</script>", "", page, flags=re.DOTALL)
    assert not re.search(r"""(src|href)=["']?(https?:)?//""", body)  # needs no network
    for heading in (
        "Settings over their seeds",
        "Options and metric",
        "What the metric depends on",
        "On the way",
        "Runs",
    ):
        assert f"<h2>{heading}</h2>" in body
    assert body.count("<tr class=") == 9
    assert body.count('<tr class="bad"') == 2
    with pytest.raises(UserError, match="cannot write csv="):
        board.write_csv(grid / "out" / "page.html" / "x.csv")


@pytest.mark.parametrize(
    ("metric", "direction", "message"),
    [
        ("eval/trained/linaer", None, r"metric=eval/trained/linaer: no run .* did you mean eval/trained/linear"),
        (None, "up", "direction=up: give one of"),
    ],
)
def test_what_it_refuses(grid, metric, direction, message):
    with pytest.raises(UserError, match=message):
        leaderboard(grid, metric, direction)


def test_no_sweep(tmp_path):
    with pytest.raises(UserError, match="does not exist"):
        leaderboard(tmp_path / "none")
    with pytest.raises(UserError, match="holds no runs"):
        leaderboard(tmp_path)
    write_run(tmp_path, 0, "optimizer.lr=1e-3", None, state="failed")
    (tmp_path / "0" / "metrics.jsonl").unlink()
    with pytest.raises(UserError, match="has any metric yet"):
        leaderboard(tmp_path)


def test_wording():
    assert with_error(0.97312, 0.00423) == "0.9731 ± 0.0042"
    assert duration(3 * 3600 + 125) == "3 h 02 min"
    assert number(0.123456) == "0.1235"
    assert option("0.0016051911333587634") == "0.001605"
    assert (option("0.0004"), option("vit_tiny_long_name"), option("123456789")) == (
        "0.0004",
        "vit_tiny_long_name",
        "123456789",
    )
    names = short_names(["optimizer.lr", "model.encoder.dim", "model.predictor.dim", "loss"])
    assert list(names.values()) == ["lr", "encoder.dim", "predictor.dim", "loss"]
