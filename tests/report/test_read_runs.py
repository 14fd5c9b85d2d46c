"""What is read of runs: options as they were given in any way, and files of any age or half of them."""

from __future__ import annotations

import json
import math
import os
import time

import yaml
from run_folders import METRIC, write_run

from jepa.report.leaderboard import read_leaderboard
from jepa.report.run_files import run_folders, status_from_files
from jepa.report.runs import read_runs


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
    board = read_leaderboard(tmp_path)
    assert [run.folder for run in board.runs if run.counts(METRIC)] == ["1", "2", "0"]
    assert {run.folder: run.overrides["optimizer.lr"] for run in board.runs}["2"] == "0.1"


def test_options_as_they_are_written(tmp_path):
    ignored = "resume=auto hydra.verbose=true"
    options = f"model=vit_tiny optimizer.lr=1e-3 data.root='a' optimizer.betas=[0.9,0.95] +data.x=null {ignored}"
    write_run(tmp_path, 2, options, 0.1)
    options = "model=lejepa optimizer.lr=0.001 data.root=b optimizer.betas=[0.9,0.99] data.x= ~logger.tensorboard"
    write_run(tmp_path, 10, f"{options} {ignored}", 0.2)
    first, second = read_runs(tmp_path)  # 2 before 10
    wanted = {"model": "vit_tiny", "data.root": "a", "optimizer.betas": "[0.9,0.95]", "data.x": "null"}
    assert first.overrides == {**wanted, "logger.tensorboard": "(default)"}
    wanted = {"model": "lejepa", "data.root": "b", "optimizer.betas": "[0.9,0.99]", "data.x": "''"}
    assert second.overrides == {**wanted, "logger.tensorboard": "(removed)"}
    assert first.shared == {"optimizer.lr": "1e-3"}  # which is 0.001


def test_what_a_run_leaves_out_is_looked_up_in_its_configuration(tmp_path):
    write_run(tmp_path, 0, "optimizer.lr=1e-3 model=vit trainer.gradient_clip=1 data.flip=true", 0.1)
    folder = write_run(tmp_path, 1, "trainer.seed=3", 0.2)
    config = {"optimizer": {"lr": 0.05}, "model": {"_target_": "x"}, "data": {"flip": False}}
    config["trainer"] = {"gradient_clip": None, "seed": 0}
    (folder / "config.yaml").write_text(yaml.safe_dump(config))
    first, second = read_runs(tmp_path)
    assert (first.seed, first.overrides["trainer.seed"]) == (None, "(default)")
    wanted = {"optimizer.lr": "0.05", "trainer.gradient_clip": "null", "data.flip": "false"}
    assert second.overrides == {**wanted, "model": "(default)", "trainer.seed": "3"}
    assert second.seed == "3"


def test_the_seed_that_no_option_gives(tmp_path):
    for number in range(2):
        folder = write_run(tmp_path, number, f"optimizer.lr={number + 1}", 0.1)
        (folder / "config.yaml").write_text("trainer:\n  seed: 7\n" if number else "trainer: [7")
    assert [run.seed for run in read_runs(tmp_path)] == [None, "7"]


def test_runs_at_any_depth(tmp_path):
    write_run(tmp_path / "a" / "b", 1, "x=1", 0.1)
    write_run(tmp_path / "a", 2, "x=2", 0.1)
    write_run(tmp_path / "a" / "2", 3, "x=3", 0.1)  # inside of a run
    write_run(tmp_path / ".trash", 4, "x=4", 0.1)
    (tmp_path / "config.yaml").write_text("a: 1\n")  # a sweep's
    assert sorted(path.relative_to(tmp_path).as_posix() for path in run_folders(tmp_path)) == ["a/2", "a/b/1"]
    assert [run.folder for run in read_runs(tmp_path / "a" / "2")] == ["2"]


def test_the_last_value_of_everything(tmp_path):
    folder = write_run(tmp_path, 0, "x=1", None)
    lines = [{"step": 1, "val/loss": 0.5, "note": "text"}, {"step": 2, "val/loss": None}]
    lines.append({"step": 3, "online/knn": 0.25})
    (folder / "metrics.jsonl").write_text("\n".join(map(json.dumps, lines)) + "\nnot json\n[1]\n")
    results = {"step": 3, "trained": {"knn": 0.5}, "collapse": {"verdict": "x"}, "val/loss": 2}
    (folder / "results.json").write_text(json.dumps(results))
    (run,) = read_runs(tmp_path)
    assert run.metrics == {"val/loss": 2, "online/knn": 0.25, "eval/trained/knn": 0.5}
    (folder / "results.json").write_text('{"step": 3, "trai')
    (run,) = read_runs(tmp_path)
    assert math.isnan(run.metrics["val/loss"])
    assert run.value("val/loss") is None


def test_a_run_from_before_there_was_a_status(tmp_path):
    (tmp_path / "metrics.jsonl").write_text('{"step": 5, "samples_per_second": 64.0}\n')
    now = time.time()
    running = status_from_files(tmp_path)
    assert (running.state, running.step, running.samples_per_second) == ("running", 5, 64.0)
    assert status_from_files(tmp_path, now + 3600).state == "stopped"
    (tmp_path / "results.json").write_text('{"step": 6, "collapse": {"verdict": "healthy"}, "stopped": "early"}')
    os.utime(tmp_path / "results.json", (now - 50, now - 50))
    done = status_from_files(tmp_path, now + 3600)
    assert (done.state, done.step, done.verdict, done.reason) == ("done", 6, "healthy", "early")


def test_which_runs_count(tmp_path):
    count = [{}, {"state": "stopped"}, {"verdict": "unknown"}]  # stopped, but its objective was told
    others = [{"state": "failed"}, {"state": "running"}, {"state": "stopped", "objective": {}}]
    others += [{"verdict": "partial collapse"}, {"verdict": "diverged"}, {"objective": {METRIC: math.inf}}]
    for number, fields in enumerate([*count, *others]):
        write_run(tmp_path, number, "x=1", 0.5, **fields)
    assert [run.counts(METRIC) for run in read_runs(tmp_path)] == [True] * 3 + [False] * 6
