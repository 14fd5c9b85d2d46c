"""Leaderboards of sweeps that are over, under way, or went wrong: who stands where, what is said, what is written."""

from __future__ import annotations

import csv
import io
import math
import random
import re
import sys

import pytest
from rich.console import Console
from run_folders import METRIC, write_run

from jepa.report.leaderboard import read_leaderboard
from jepa.report.leaderboard_page import write_page
from jepa.report.leaderboard_summary import summary
from jepa.report.leaderboard_tables import show, tables, write_csv
from jepa.report.sweep_statistics import importances
from jepa.utils.errors import UserError


def places(board):
    return [run.folder for run in board.runs if run.path in board.places]


def text_of(board, width=160, limit=None):
    console = Console(width=width, file=io.StringIO())
    console.print(tables(board, width, limit))
    return console.file.getvalue()


def said_of(folder, *arguments):
    return "\n".join(summary(read_leaderboard(folder, *arguments)))


def test_who_stands_where(grid):
    board = read_leaderboard(grid)
    assert (board.metric, board.direction) == (METRIC, "maximize")
    assert places(board) == ["4", "5", "3", "1", "2", "0"]
    assert [run.folder for run in board.runs][6:] == ["8", "7", "6"]  # to come, collapsed, failed
    assert board.options == ["optimizer.lr", "trainer.seed"]
    assert board.runs[0].shared == {"data": "digits"}
    shown = text_of(board)
    assert re.search(r"\n +1 +4 +1e-2 +1 +0\.9300 .*1 min 00 s +100/100 +done", shown)
    assert re.search(r"\n +6 +1 +0 +1 min.*failed: out of memory", shown)  # what it counts as was not measured
    assert re.search(r"\n +7 +1 +1 +0\.9900 .*done, complete collapse", shown)
    assert "and 7 more: limit=9" in text_of(board, limit=2)
    shown = shown.partition("settings over their seeds")[2]
    assert re.search(r"\n +1 +1e-2 +0\.913 ± 0\.038 +3 *\n", shown)
    assert re.search(r"\n +2 +1e-3 +0\.810 ± 0\.025 +3 +0\.103 +0\.089 to 0\.118 +0\.001\d* *\n", shown)
    assert "optimizer.lr=1" not in shown  # no run of it counts


def test_what_is_said(grid):
    said = said_of(grid)
    assert "9 runs: 7 done, 1 queued, 1 failed." in said
    assert "Provisional: 1 run of 9 to come." in said
    assert "2 runs that failed or collapsed are left out of all means." in said
    won = "lr=1e-2 won: eval/trained/linear 0.913 ± 0.038 (mean and 95% interval over 3 seeds) (runs 4, 5 and 3)."
    assert won in said
    assert "Its lead of 0.103 over lr=1e-3, the runner-up, is more than chance: 95% interval 0.089 to 0.118" in said
    assert "paired by seed, 3 seeds" in said
    assert re.search(r"depends most on optimizer.lr \([89]\d%\): shares of its variance, .* a guess with so few", said)


def test_a_lead_that_is_chance(tmp_path):
    for place, (rate, score) in enumerate([("1e-3", 0.80), ("1e-3", 0.90), ("1e-2", 0.85), ("1e-2", 0.86)]):
        write_run(tmp_path, place, f"optimizer.lr={rate} trainer.seed={place % 2}", score)
    said = said_of(tmp_path)
    assert "lr=1e-2 won" in said
    assert "over lr=1e-3, the runner-up, cannot be told from chance: 95% interval" in said
    assert "More seeds tell: trainer.seed=0,1,2,3,4." in said


def test_one_seed_each(tmp_path):
    for place, rate in enumerate(("1e-3", "1e-2", "0.1")):
        write_run(tmp_path, place, f"optimizer.lr={rate}", place / 10)
    said = said_of(tmp_path)
    assert "lr=0.1 won: eval/trained/linear 0.2 (one seed) (run 2)." in said
    assert "Its lead of 0.1 over lr=1e-2, the runner-up, cannot be told from chance: one has a single seed." in said
    assert "run the best few with more, such as trainer.seed=0,1,2" in said
    assert "other settings by" not in said
    assert "settings over their seeds" not in text_of(read_leaderboard(tmp_path))


def test_a_best_setting_that_is_behind_so_far(tmp_path):
    scores = [("1e-3", 0.9), ("1e-3", 0.9001), ("1e-3", 0.99), ("1e-2", 0.91), ("1e-2", 0.9102)]
    for place, (rate, score) in enumerate(scores):
        write_run(tmp_path, place, f"optimizer.lr={rate} trainer.seed={place % 3}", score)
    write_run(tmp_path, 5, "optimizer.lr=1e-2 trainer.seed=2", None, state="running")
    said = said_of(tmp_path)
    assert "lr=1e-3 won" in said
    assert "lr=1e-2, the runner-up, is better by 0.0101 in the 2 seeds that both have, which is more than" in said
    assert "interval 0.00941 to 0.0107" in said


def test_ties_and_values_that_do_not_change(tmp_path):
    for place in range(6):
        write_run(tmp_path, place, f"optimizer.lr={10 ** -(place // 2)} trainer.seed={place % 2}", 0.7)
    said = said_of(tmp_path)
    assert "lr=1 won together with 2 other settings: eval/trained/linear 0.7 ± 0" in said
    assert "lr=0.1, the runner-up, has the same mean." in said
    assert "It beats 0 of the 2 other settings by more than chance." in said
    for place in (0, 1):
        write_run(tmp_path, place, f"optimizer.lr=1 trainer.seed={place % 2}", 0.8)
    assert "Its lead of 0.1 over lr=0.1, the runner-up, cannot be told from chance: it is the same" in said_of(tmp_path)


def test_one_setting(tmp_path):
    for seed in range(3):
        write_run(tmp_path, seed, f"trainer.seed={seed}", 0.7 + seed / 100)
    assert said_of(tmp_path).splitlines() == [
        "3 runs: 3 done.",
        f"There is one setting: {METRIC} 0.710 ± 0.025 (mean and 95% interval over 3 seeds) (runs 2, 1 and 0).",
    ]


def test_what_went_wrong_never_wins(tmp_path):
    write_run(tmp_path, 0, "optimizer.lr=1", 0.5)
    write_run(tmp_path, 1, "optimizer.lr=2", 0.9, state="failed", metrics={METRIC: 0.9})
    write_run(tmp_path, 2, "optimizer.lr=3", 0.9, verdict="dimensional collapse")
    write_run(tmp_path, 3, "optimizer.lr=4", 0.9, verdict="diverged")
    write_run(tmp_path, 4, "optimizer.lr=5", float("nan"))
    write_run(tmp_path, 5, "optimizer.lr=6", None, state="stopped", metrics={METRIC: 0.9})
    write_run(tmp_path, 6, "optimizer.lr=7", None, state="preempted", metrics={METRIC: 0.9})
    board = read_leaderboard(tmp_path)
    assert places(board) == ["0"]
    assert [setting.options["optimizer.lr"] for setting in board.settings if setting.values] == ["1"]
    said = "\n".join(summary(board))
    assert "lr=1 won" in said
    assert "something wrong with 2 runs: dimensional collapse in 1 and diverged in 1." in said
    assert "3 runs that failed or collapsed are left out" in said
    assert "1 run came to the end without a finite eval/trained/linear." in said
    assert "Provisional: 1 run of 7 to come." in said
    assert importances(board.runs, METRIC) == {}
    write_run(tmp_path, 0, "optimizer.lr=1", 0.5, state="failed")
    assert "No run has come to its end with eval/trained/linear, so nothing is compared." in said_of(tmp_path)


def test_before_any_run_has_come_to_a_metric(tmp_path):
    write_run(tmp_path, 0, "optimizer.lr=1", None, state="running", step=3)
    write_run(tmp_path, 1, "optimizer.lr=2", None, state="queued", step=None)
    board = read_leaderboard(tmp_path)
    assert board.metric == METRIC
    assert re.search(r"\n +0 +1 .*3/100 +running", text_of(board))
    assert "Provisional: 2 runs of 2 to come." in "\n".join(summary(board))
    write_csv(board, tmp_path / "out.csv")
    write_page(board, tmp_path / "out.html")
    with pytest.raises(UserError, match="metric=val/loss: no run"):  # may never come
        read_leaderboard(tmp_path, "val/loss")


def test_other_metrics_and_directions(grid):
    board = read_leaderboard(grid, "val/loss")
    assert board.direction == "minimize"
    assert places(board)[0] == "4"
    assert places(read_leaderboard(grid, "val/loss", "maximize"))[0] == "0"
    assert places(read_leaderboard(grid, "cost/seconds")) == ["0", "1", "2", "3", "4", "5"]


def test_two_objectives(tmp_path):
    for place, (score, cost) in enumerate([(0.9, 100.0), (0.8, 50.0), (0.7, 60.0), (0.95, 300.0)]):
        objective = {METRIC: score, "cost/seconds": cost}
        write_run(tmp_path, place, f"trainer.max_epochs={place + 1}", score, objective=objective)
    board = read_leaderboard(tmp_path)
    write_run(tmp_path, 4, "trainer.max_epochs=9", objective={METRIC: 0.0, "cost/seconds": 1e9}, state="failed")
    board = read_leaderboard(tmp_path)
    assert board.objectives == {METRIC: "maximize", "cost/seconds": "minimize"}
    assert [run.folder for run in board.front] == ["3", "0", "1"]
    said = "\n".join(summary(board))
    assert "3 runs are not beaten in both by any other: run 3 (max_epochs=4): eval/trained/linear 0.95" in said
    assert "By eval/trained/linear alone, max_epochs=4 won" in said


def test_a_line_has_room_for_what_tells_most(tmp_path):
    draw = random.Random(0)
    for place in range(40):
        rate = 10 ** draw.uniform(-4, -1)
        others = " ".join(f"model.{name}={draw.choice(['one_long_word', 'another_one'])}" for name in "abcdef")
        reason = {"state": "failed", "reason": "a reason of many words " * 3} if place == 39 else {}
        metrics = {"val/loss": 0.1, "eval/trained/knn": 0.2}
        write_run(tmp_path, place, f"{others} optimizer.lr={rate}", math.log10(rate), metrics=metrics, **reason)
    board = read_leaderboard(tmp_path)
    wide, narrow = text_of(board, 200, 39), text_of(board, 80, 39)
    assert all(heading in wide for heading in (" knn ", " val/loss ", " steps ", " a ", " f ", " lr "))
    num_heads, no_room = narrow.splitlines()[2], narrow.splitlines()[-1]
    assert re.fullmatch(r" +place +run +(\w +)+lr +linear +state +", num_heads)
    assert re.search(r"no room for [a-f], [a-f], [a-f] and \d more", no_room)
    assert all(len(line) <= 80 for line in text_of(board, 80).splitlines())
    assert len(narrow.splitlines()) == 39 + 6  # a line for each run


def test_the_csv(grid):
    board = read_leaderboard(grid)
    with (grid / "7" / "metrics.jsonl").open("a") as file:
        file.write('{"step": 100, "samples_per_second": 3.5}\n')
    write_csv(read_leaderboard(grid), grid / "out" / "runs.csv")
    with (grid / "out" / "runs.csv").open() as file:
        num_heads, *_ = csv.reader(file)
        file.seek(0)
        rows = list(csv.DictReader(file))
    assert len(set(num_heads)) == len(num_heads)
    assert [row["run"] for row in rows] == [run.folder for run in board.runs]
    wanted = {"place": "1", "run": "4", "state": "done", "seed": "1", "optimizer.lr": "1e-2", "data": "digits"}
    wanted |= {"objective/" + METRIC: "0.93", METRIC: "0.93", "cost/seconds": "64.0", "train_seconds": "60.0"}
    assert {key: rows[0][key] for key in wanted} == wanted
    failed = rows[-1]
    assert (failed["place"], failed["state"], failed["reason"], failed[METRIC]) == ("", "failed", "out of memory", "")
    with pytest.raises(UserError, match="cannot write csv="):
        write_csv(board, grid / "out" / "runs.csv" / "x.csv")


def test_a_data_frame(grid):
    pytest.importorskip("pandas")
    frame = read_leaderboard(grid).to_frame()
    assert list(frame["run"][:3]) == ["4", "5", "3"]
    assert frame.groupby("optimizer.lr")[METRIC].mean()["1e-2"] == pytest.approx(0.91333, abs=1e-5)


def test_without_plotly_there_is_no_page(grid, monkeypatch, capsys):
    monkeypatch.setitem(sys.modules, "plotly", None)
    show(read_leaderboard(grid), grid / "runs.csv", grid / "runs.html", limit=2)
    *_, csv_line, page_line = capsys.readouterr().out.splitlines()
    assert csv_line == str(grid / "runs.csv")
    assert page_line == "runs.html is not written, as it needs plotly: pip install 'jepa[report]'"
    assert not (grid / "runs.html").exists()


def test_what_it_refuses(grid):
    with pytest.raises(UserError, match=r"metric=eval/trained/linaer: no run .* did you mean eval/trained/linear"):
        read_leaderboard(grid, "eval/trained/linaer")
    with pytest.raises(UserError, match="direction=up: give one of"):
        read_leaderboard(grid, None, "up")


def test_no_sweep(tmp_path):
    with pytest.raises(UserError, match="does not exist"):
        read_leaderboard(tmp_path / "none")
    with pytest.raises(UserError, match="holds no runs"):
        read_leaderboard(tmp_path)
    write_run(tmp_path, 0, "optimizer.lr=1e-3", None, state="failed")
    (tmp_path / "0" / "metrics.jsonl").unlink()
    with pytest.raises(UserError, match="has any metric:"):
        read_leaderboard(tmp_path)
