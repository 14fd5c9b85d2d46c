"""Stopping runs of a sweep by the metrics of its other runs."""

from __future__ import annotations

import json
import math
import os
import socket
from functools import partial
from pathlib import Path
from types import SimpleNamespace

import pytest
from toy import toy_trainer

from jepa import load_config
from jepa.config.build import build, to_plain
from jepa.config.check import check_config
from jepa.trainer import JSONLines, MedianStopping, SuccessiveHalving
from jepa.trainer.settings import Intervals
from jepa.types import RunLength
from jepa.utils.errors import UserError
from jepa.utils.metric_direction import direction_of
from jepa.utils.run_status import Status, read_status, write_status

LOSS, KNN = "val/loss", "online/knn"


class Run:
    """What these callbacks see of a trainer."""

    def __init__(self, folder, **others):
        self.step, self.run_length, self.ended = 0, RunLength(max_steps=1000, steps_per_epoch=10), False
        self.every = Intervals(validate=10, probe=10, log=10)
        self.folder, self.loggers = SimpleNamespace(path=folder), {"jsonl": JSONLines()}
        self.reasons, self.said, self.evaluation = [], [], None
        self.__dict__.update(others)

    def stop(self, reason):
        self.reasons.append(reason)

    def say(self, text):
        self.said.append(text)

    def feed(self, callback, values, name=LOSS, begin=True):
        """Begin, then measurements as {step: value} until it stops; gives the step it stops at, None if it does not."""
        if begin:
            callback.begin(self)
        for self.step, value in values.items():
            callback.measured(self, {"train/loss": 0.0, "lr": 0.1})
            callback.measured(self, {name: value})
            if self.reasons:
                return self.step
        return None


def write(folder, name, values, metric=LOSS, end=""):
    """A run's metrics.jsonl of {step: value}, with other lines in between."""
    (folder / name).mkdir(exist_ok=True, parents=True)
    lines = [{"step": step, "epoch": 0.1, "train/loss": 1.0} for step in values]
    lines += [{"step": step, "epoch": 0.1, metric: value} for step, value in values.items()]
    (folder / name / "metrics.jsonl").write_text("".join(json.dumps(line) + "\n" for line in lines) + end)


@pytest.fixture
def sweep(tmp_path):
    """Five runs with val/loss 1 to 5 at step 10, and a tenth of that at step 20."""
    for number in range(1, 6):
        write(tmp_path, str(number), {10: float(number), 20: number / 10})
    return tmp_path


# The median rule.


@pytest.mark.parametrize(("value", "stops"), [(2.9, None), (3.0, None), (3.01, 10), (9.0, 10), (math.nan, 10)])
def test_median_of_the_others_at_the_same_step(sweep, value, stops):
    run = Run(sweep / "own")
    assert run.feed(MedianStopping(metric=LOSS), {10: value}) == stops
    if stops:
        shown = "not a number" if math.isnan(value) else f"{value:.4g}"
        assert run.reasons == [
            f"median stopping at step 10: val/loss is {shown} at best, worse than the median 3 of 5 other runs"
        ]


def test_the_best_value_so_far_counts_of_own_and_of_others(sweep):
    write(sweep, "3", {10: 3.0, 20: 90.0})  # the bests by step 20: 0.1, 0.2, 3, 0.4, 0.5
    assert Run(sweep / "own").feed(MedianStopping(metric=LOSS), {10: 0.4, 20: 9.0}) is None
    assert Run(sweep / "own").feed(MedianStopping(metric=LOSS), {10: 0.41, 20: 9.0}) == 20


def test_only_runs_that_got_as_far_are_compared_with(sweep):
    write(sweep, "1", {10: 1.0})
    write(sweep, "2", {10: 2.0, 15: 2.0})
    write(sweep, "6", {30: 0.0})  # has nothing up to step 20
    settings = {"metric": LOSS, "warmup_steps": 20}
    assert Run(sweep / "own").feed(MedianStopping(**settings), {20: 9.0}) is None  # 3, 4 and 5
    run = Run(sweep / "own")
    assert run.feed(MedianStopping(**settings, min_runs=3), {20: 9.0}) == 20
    assert "median 0.4 of 3 other runs" in run.reasons[0]


def test_warm_up_and_period(sweep):
    bad = dict.fromkeys((5, 8, 10, 13, 15, 20), 9.0)
    assert Run(sweep / "own").feed(MedianStopping(metric=LOSS, warmup_steps=11), bad) == 13
    good_then_bad = {8: 0.1, 10: 9.0, 13: 9.0, 15: 9.0}
    callback, judged = MedianStopping(metric=LOSS, every_steps=5), []
    callback._verdict = lambda step, *_: judged.append(step)
    Run(sweep / "own").feed(callback, good_then_bad)
    assert judged == [8, 13]


def test_directions(tmp_path):
    for number in range(5):
        write(tmp_path, str(number), {10: number / 10}, metric=KNN)
    run = Run(tmp_path / "own")
    assert run.feed(MedianStopping(metric=KNN), {10: 0.19}, name=KNN) == 10
    assert "online/knn is 0.19 at best, worse than the median 0.2 of 5" in run.reasons[0]
    assert Run(tmp_path / "own").feed(MedianStopping(metric=KNN), {10: 0.21}, name=KNN) is None
    assert Run(tmp_path / "own").feed(MedianStopping(metric=KNN, direction="minimize"), {10: 0.21}, name=KNN) == 10


def test_direction_of_a_name():
    less = ["val/loss", "train/loss/sigreg", "eval/trained/forecast/96/mse", "data_wait"]
    more = ["eval/trained/linear", "online/knn", "eval/trained/written/knn", "samples_per_second"]
    assert [direction_of(name) for name in less + more] == ["minimize"] * 4 + ["maximize"] * 4


def test_what_is_not_finite_is_worst_of_others_too(sweep):
    for name in "345":
        write(sweep, name, {10: None})  # as metrics.jsonl has it
    assert Run(sweep / "own").feed(MedianStopping(metric=LOSS), {10: 9.0}) is None
    assert Run(sweep / "own").feed(MedianStopping(metric=LOSS), {10: math.inf}) is None  # no worse than the median
    write(sweep, "3", {10: 3.0})
    assert Run(sweep / "own").feed(MedianStopping(metric=LOSS), {10: math.inf}) == 10


@pytest.mark.parametrize("verdict", ["complete collapse", "diverged"])
def test_a_collapsed_run_with_a_low_loss_is_worst(sweep, verdict):
    for number in "345":
        write(sweep, number, {10: 0.0, 20: 0.0})
        write_status(sweep / number, Status(state="done", verdict=verdict))
    write_status(sweep / "1", Status(state="running", verdict="healthy"))
    assert Run(sweep / "own").feed(MedianStopping(metric=LOSS), {10: 9.0}) is None
    halving = partial(SuccessiveHalving, metric=LOSS, min_steps=10)
    assert Run(sweep / "own").feed(halving(), {10: 1.5}) is None  # the second of 6
    for rule in (MedianStopping(metric=LOSS, collapsed="measured"), halving(collapsed="measured")):
        assert Run(sweep / "own").feed(rule, {10: 1.5}) == 10


# What is read.


def test_files_that_are_being_written(sweep):
    half = json.dumps({"step": 10, LOSS: 0.0})
    write(sweep, "4", {10: 4.0}, end=half)  # the newline is still to come
    write(sweep, "5", {}, end='{"step": 10, "val/lo{"step": 3, "val/loss": 1}\n\0\0\n[1]\n"val/loss"\n')
    (sweep / "6").mkdir()
    run, callback = Run(sweep / "own"), MedianStopping(metric=LOSS)
    assert run.feed(callback, {10: 2.5}) is None  # 1, 2, 3, 4
    with (sweep / "4" / "metrics.jsonl").open("a") as file:
        file.write("\n")
    assert run.feed(callback, {10: 2.5}, begin=False) is None  # no new judgement at the same step
    callback.judged_step = None
    assert run.feed(callback, {10: 2.5}, begin=False) == 10  # 0, 1, 2, 3
    assert "median 1.5 of 4" in run.reasons[0]


@pytest.mark.faults
def test_a_damaged_run_is_left_out_with_a_word(sweep):
    for number, place in {6: os.mkfifo, 7: Path.mkdir, 8: lambda path: path.symlink_to("/dev/zero")}.items():
        (sweep / str(number)).mkdir()
        place(sweep / str(number) / "metrics.jsonl")
    for number, line in {
        1: '{"step": "x", "val/loss": 0}',
        2: '{"step": 10, "val/loss": [0]}',
        3: "[" * 100_000,
    }.items():
        write(sweep, str(number), {10: float(number)}, end=f'{line}, "val/loss"\n{line}\n')
    write(sweep, "\x1b[2J", {10: 0.0})
    (sweep / "\x1b[2J" / "status.json").write_text('{"state": "done", "verdict": 5}')
    run = Run(sweep / "own")
    assert run.feed(MedianStopping(metric=LOSS), {10: 3.01, 20: 3.01}) == 10  # 1 to 5, as ever
    words = sorted(text for text in run.said if "leaves out the run" in text)
    assert [text.rpartition("the run ")[2] for text in words] == [
        "6: metrics.jsonl is damaged: it is no regular file",
        "7: metrics.jsonl is damaged: it is a folder",
        "8: metrics.jsonl is damaged: it is no regular file",
        "\\x1b[2J: status.json is damaged: verdict is 5, expected a text",
    ]


@pytest.mark.faults
def test_a_file_that_was_cut_back_or_is_gone_is_read_anew(sweep):
    run, callback = Run(sweep / "own"), MedianStopping(metric=LOSS)
    assert run.feed(callback, {10: 2.0}) is None
    (sweep / "1" / "metrics.jsonl").unlink()
    for number in range(2, 6):  # as a resume does it: under a new name, put in the old one's place
        write(sweep, "new", {10: 1.0, 20: 1.0, 30: 1.0})
        (sweep / "new" / "metrics.jsonl").replace(sweep / str(number) / "metrics.jsonl")
    assert run.feed(callback, {20: 2.0}, begin=False) == 20
    assert "median 1 of 4 other runs" in run.reasons[0]


def test_each_run_counts_once_and_the_own_one_not(sweep):
    write(sweep, "own", {10: 9.0})
    (sweep / "latest").symlink_to(sweep / "own")
    (sweep / "best").symlink_to(sweep / "1")
    run = Run(sweep / "latest")
    assert run.feed(MedianStopping(metric=LOSS), {10: 9.0}) == 10
    assert "median 3 of 5" in run.reasons[0]


def test_single_runs_of_a_day_are_not_compared(sweep):
    day = sweep.parent / "2026-11-22"
    sweep.rename(day)
    run = Run(day / "own")
    assert run.feed(MedianStopping(metric=LOSS), {10: 9.0}) is None
    assert run.said == [f"median stopping does nothing: {day} holds single runs, not those of a sweep"]
    assert Run(day / "elsewhere" / "own").feed(MedianStopping(metric=LOSS), {10: 9.0}) is None


def test_it_says_what_it_compares_with(sweep):
    for callback, word, name in ((MedianStopping, "least", LOSS), (SuccessiveHalving, "greatest", KNN)):
        run, callback = Run(sweep / "own"), callback(metric=name)
        callback.begin(run), callback.begin(run)
        assert run.said == [f"{callback.rule} compares {name} (best: {word}) with the other runs in {sweep}"]
    for callback, first in (
        (SuccessiveHalving(metric=LOSS, min_steps=1000), 1000),
        (SuccessiveHalving(metric=LOSS, min_steps=991), 1000),  # measured every 10 steps
        (MedianStopping(metric="train/loss", warmup_steps=2000), 2000),
    ):
        run = Run(sweep / "own")
        callback.begin(run)
        assert f"does nothing in this run of 1000 steps: it judges from step {first} on" in run.said[0]


def test_only_the_first_rank_reads_and_all_keep_the_same(sweep, monkeypatch):
    first = MedianStopping(metric=LOSS), SuccessiveHalving(metric=LOSS, min_steps=2)
    for callback in first:
        assert Run(sweep / "own").feed(callback, {10: 9.0}) == 10
    monkeypatch.setattr("jepa.trainer.stopping.is_rank0", lambda: False)
    second = MedianStopping(metric=LOSS), SuccessiveHalving(metric=LOSS, min_steps=2)
    for callback in second:
        assert Run(sweep / "own", loggers={}).feed(callback, {10: 9.0}) is None
    assert [c.state_dict() for c in first] == [c.state_dict() for c in second]


# Successive halving.


@pytest.mark.parametrize(
    ("others", "own", "factor", "place"),
    [
        ([], 5.0, 3, None),  # the first is let through
        ([], math.nan, 3, None),
        ([1.0], 5.0, 3, (2, 2, 1)),
        ([5.0], 1.0, 3, None),
        ([1.0, 2.0, 3.0, 4.0], 0.5, 3, None),
        ([1.0, 2.0, 3.0, 4.0], 1.5, 3, (2, 5, 1)),  # floor(5 / 3) goes on
        ([1.0, 2.0, 3.0, 4.0, 5.0], 1.5, 3, None),  # 6 / 3 go on
        ([1.0, 2.0, 3.0, 4.0, 5.0], 2.5, 3, (3, 6, 2)),
        ([1.0, 2.0, 3.0, 4.0, 5.0], 2.5, 2, None),
        ([1.0, 2.0, 3.0, 4.0, 5.0], 2.5, 4, (3, 6, 1)),
        ([1.0, 1.0], 1.0, 3, None),  # equal ones share the better place
        ([None, None], 1.0, 3, None),
        ([1.0, None], math.nan, 2, (2, 3, 1)),
    ],
)
def test_places_at_a_rung(tmp_path, others, own, factor, place):
    for number, value in enumerate(others):
        write(tmp_path, str(number), {10: value})
    run = Run(tmp_path / "own")
    stops = run.feed(SuccessiveHalving(metric=LOSS, min_steps=10, reduction_factor=factor), {10: own})
    assert stops == (10 if place else None)
    if place:
        shown = "not a number" if math.isnan(own) else f"{own:.4g}"
        assert run.reasons == [
            f"successive halving at step 10: val/loss is {shown}, at the rung of 10 steps place {place[0]} of "
            f"{place[1]} (with {place[1] - 1} other runs), of which {place[2]} may go on"
        ]


def test_a_rung_is_met_at_the_first_measurement_from_it_on(tmp_path):
    write(tmp_path, "1", {8: 0.0, 16: 2.0, 24: 0.0, 32: 5.0, 40: 0.0})  # at rungs 10 and 30: 2 and 5
    settings = {"metric": LOSS, "min_steps": 10, "reduction_factor": 3}
    assert Run(tmp_path / "own").feed(SuccessiveHalving(**settings), {7: 9.0, 9: 9.0, 12: 1.9, 29: 9.0}) is None
    assert Run(tmp_path / "own").feed(SuccessiveHalving(**settings), {12: 2.1}) == 12
    assert Run(tmp_path / "own").feed(SuccessiveHalving(**settings), {12: 1.0, 31: 4.9, 80: 9.0}) is None
    run = Run(tmp_path / "own")
    assert run.feed(SuccessiveHalving(**settings), {12: 1.0, 31: 5.1}) == 31
    assert "rung of 30 steps place 2 of 2" in run.reasons[0]
    # Two rungs at once: 4 is worse than 2 at the first.
    assert Run(tmp_path / "own").feed(SuccessiveHalving(**settings), {50: 4.0}) == 50
    assert Run(tmp_path / "own").feed(SuccessiveHalving(**settings), {50: 1.0}) is None


def test_a_resumed_run_decides_each_rung_once(tmp_path):
    settings = {"metric": LOSS, "min_steps": 10, "reduction_factor": 2}
    first, second, other = SuccessiveHalving(**settings), SuccessiveHalving(**settings), SuccessiveHalving(metric=LOSS)
    assert Run(tmp_path / "own").feed(first, {10: 5.0, 15: 5.0}) is None
    write(tmp_path, "1", dict.fromkeys(range(10, 50, 5), 1.0))
    for callback in (second, other):
        callback.load_state_dict(first.state_dict())
    assert (second.decided, other.decided) == (1, 0)
    run = Run(tmp_path / "own")
    assert run.feed(second, {15: 5.0, 18: 5.0, 20: 5.0}) == 20
    assert "rung of 20 steps" in run.reasons[0]


def test_the_median_rule_takes_its_state_over(sweep):
    first, second, other = (
        MedianStopping(metric=LOSS, every_steps=15),
        MedianStopping(metric=LOSS, every_steps=15),
        MedianStopping(metric=KNN),
    )
    assert Run(sweep / "own").feed(first, {8: 0.35}) is None
    for callback in (second, other):
        callback.load_state_dict(first.state_dict())
    assert (second.best, second.judged_step, other.best) == (0.35, 8, math.inf)
    assert Run(sweep / "own").feed(second, {10: 9.0, 20: 9.0}) is None  # 20 is too early after 8
    run = Run(sweep / "own")
    write(sweep, "1", {25: 0.2}), write(sweep, "6", {10: 0.3, 25: 0.3})
    for number in range(2, 6):
        write(sweep, str(number), {10: 0.3, 25: 0.3})
    assert run.feed(second, {25: 9.0}) == 25
    assert "is 0.35 at best, worse than the median 0.3" in run.reasons[0]


# Mistakes.


@pytest.mark.parametrize("kind", [MedianStopping, SuccessiveHalving])
@pytest.mark.parametrize(
    ("metric", "interval", "remedy"),
    [
        (None, "evaluate", "evaluation.every_epochs="),
        ("eval/trained/knn", "evaluate", "evaluation.every_epochs="),
        ("val/loss", "validate", "trainer.validate_every_epochs="),
        ("online/knn", "probe", "evaluation.online_every_epochs="),
    ],
)
def test_a_metric_that_cannot_come_is_refused(tmp_path, kind, metric, interval, remedy):
    name = metric or "eval/trained/linear"
    with pytest.raises(UserError, match=rf"{kind.rule} judges by metric={name}, which is not measured .*{remedy}"):
        kind(metric=metric).begin(Run(tmp_path / "own", every=Intervals(**{interval: None})))
    kind(metric=metric).begin(Run(tmp_path / "own", every=Intervals(**{interval: 5})))


def test_a_metric_that_does_not_come_with_its_kind_is_refused(sweep):
    with pytest.raises(
        UserError, match=r"metric=online/kn, which was not among the metrics: did you mean online/knn\?"
    ):
        Run(sweep / "own").feed(MedianStopping(metric="online/kn"), {10: 0.5}, name=KNN)


def test_without_metrics_on_disk_it_is_refused(tmp_path):
    for loggers in ({}, {"jsonl": JSONLines(path="elsewhere.jsonl")}):
        with pytest.raises(UserError, match=r"median stopping reads the metrics.jsonl of a sweep's runs: set logger="):
            MedianStopping(metric=LOSS).begin(Run(tmp_path / "own", loggers=loggers))


@pytest.mark.parametrize(
    ("kind", "wrong"),
    [
        (MedianStopping, {"warmup_steps": -1}),
        (MedianStopping, {"every_steps": 0}),
        (MedianStopping, {"min_runs": 0}),
        (MedianStopping, {"direction": "max"}),
        (MedianStopping, {"collapsed": "ignored"}),
        (SuccessiveHalving, {"min_steps": 0}),
        (SuccessiveHalving, {"reduction_factor": 1}),
        (SuccessiveHalving, {"direction": ["best"]}),
    ],
)
def test_settings_out_of_range(kind, wrong):
    with pytest.raises(ValueError, match=r"got .*, expected"):
        kind(**wrong)


def test_from_the_configuration():
    for name, kind in (("median_stopping", MedianStopping), ("successive_halving", SuccessiveHalving)):
        for given, metric in (("null", "eval/trained/linear"), ("val/loss", LOSS), ("[online/knn,val/loss]", KNN)):
            config = load_config([f"callbacks={name}", f"optimized_metric={given}"])
            check_config(to_plain(config))
            callback = build(config, "callbacks")[name]
            assert (type(callback), callback.metric, callback.collapsed) == (kind, metric, "failed")
    for given in ("minimize", "[minimize,maximize]"):
        config = load_config(["callbacks=successive_halving", f"sweep.direction={given}"])
        check_config(to_plain(config))
        assert build(config, "callbacks")["successive_halving"].direction == "minimize"
    with pytest.raises(UserError, match=r"callbacks.*got direction='most', expected 'minimize', 'maximize' or None"):
        build(load_config(["callbacks=median_stopping", "callbacks.median_stopping.direction=most"]), "callbacks")


# Whole runs.


def toy(folder, callback, lr, **settings):
    settings = {"validate_every_steps": 1, "max_steps": 6, **settings}
    return toy_trainer(folder, loggers=[JSONLines()], callbacks={"rule": callback}, lr=lr, **settings)


def values_of(folder, metric=LOSS):
    lines = map(json.loads, (folder / "metrics.jsonl").read_text().splitlines())
    return {line["step"]: line[metric] for line in lines if metric in line}


def test_a_run_that_is_stopped_ends_with_its_reason(tmp_path):
    for number in range(4):
        toy(tmp_path / str(number), MedianStopping(metric=LOSS), 0.1).fit()
    still = toy(tmp_path / "still", MedianStopping(metric=LOSS, warmup_steps=3), 0.0)
    still.fit()
    assert still.step == 3
    results = json.loads((tmp_path / "still" / "results.json").read_text())
    assert results["step"] == 3
    assert results["stopped"].startswith("median stopping at step 3: val/loss is ")
    assert results["stopped"].endswith("of 4 other runs")
    again = toy(tmp_path / "still", MedianStopping(metric=LOSS, warmup_steps=3), 0.0, resume="auto")
    again.fit()
    assert again.step == 3


def test_at_the_last_step_no_run_is_stopped(tmp_path):
    for number in range(4):
        toy(tmp_path / str(number), MedianStopping(metric=LOSS), 0.1).fit()
    last = toy(tmp_path / "last", MedianStopping(metric=LOSS, warmup_steps=6), 0.0)
    last.fit()
    assert (last.step, last.state.stop_reason) == (6, None)


def test_a_run_resumed_between_rungs_is_not_judged_again(tmp_path):
    settings = {"metric": LOSS, "min_steps": 2, "reduction_factor": 2}
    alone = toy(tmp_path / "own", SuccessiveHalving(**settings), 0.0, max_steps=3)
    alone.fit()
    write(tmp_path, "good", {2: 0.0, 3: 0.0})  # better at the first rung, which lies behind
    on = toy(tmp_path / "own", SuccessiveHalving(**settings), 0.0, resume="auto")
    on.fit()
    assert (on.step, on.callbacks["rule"].decided) == (6, 2)


@pytest.mark.slow
def test_of_two_ranks_both_stop(start, tiny, tmp_path):
    for number in range(4):
        write(tmp_path / "sweep", str(number), dict.fromkeys(range(2, 9, 2), 0.0))
    options = [*tiny, "trainer.max_steps=8", "trainer.validate_every_steps=2", "trainer.limit_val_batches=1"]
    options += ["evaluation=none", "logger=[console,jsonl]", "callbacks=median_stopping", "optimized_metric=val/loss"]
    options += ["callbacks.median_stopping.warmup_steps=4", "hydra.run.dir=sweep/own"]
    with socket.socket() as sock:
        sock.bind(("127.0.0.1", 0))
        variables = {"WORLD_SIZE": "2", "MASTER_ADDR": "127.0.0.1", "MASTER_PORT": str(sock.getsockname()[1])}
    ranks = [start(*options, RANK=str(rank), LOCAL_RANK=str(rank), **variables) for rank in range(2)]
    for process in [rank.wait() for rank in ranks]:
        assert process.returncode == 0, process.stderr
    status = read_status(tmp_path / "sweep" / "own")
    assert (status.state, status.step, list(status.objective)) == ("done", 4, [LOSS])
    assert status.reason.startswith("median stopping at step 4: val/loss is ")


@pytest.mark.slow
def test_a_hopeless_run_of_a_sweep_is_stopped_and_the_sweep_goes_on(train, tiny, tmp_path):
    options = [*tiny, "trainer.max_steps=20", "trainer.validate_every_steps=5", "trainer.limit_val_batches=1"]
    options += ["experiment=digits", "loss.projector.hidden=[32]", "loss.projector.out_dim=16"]
    options += ["evaluation=none", "monitor=none", "logger=[console,jsonl]", "scheduler.warmup_epochs=0"]
    process = train(
        "-m",
        *options,
        "callbacks=median_stopping",
        "callbacks.median_stopping.min_runs=3",
        "callbacks.median_stopping.warmup_steps=10",
        "optimized_metric=val/loss",
        "optimizer.lr=3e-4,5e-4,7e-4,1e-2,1e-3",
        "hydra.sweep.dir=sweep",
    )
    assert process.returncode == 0, process.stderr
    results = [json.loads((tmp_path / "sweep" / str(n) / "results.json").read_text()) for n in range(5)]
    assert [result["step"] for result in results[:4]] == [20, 20, 20, 10]  # the fifth is a close call
    assert [number for number in range(4) if "stopped" in results[number]] == [3]
    bests = [min(v for s, v in values_of(tmp_path / "sweep" / str(n)).items() if s <= 10) for n in range(4)]
    assert results[3]["stopped"] == (
        f"median stopping at step 10: val/loss is {bests[3]:.4g} at best, worse than the median "
        f"{sorted(bests[:3])[1]:.4g} of 3 other runs"
    )
    assert "median stopping compares val/loss (best: least) with the other runs in " in process.stdout
    status = read_status(tmp_path / "sweep" / "3")
    assert (status.state, status.reason, status.step) == ("done", results[3]["stopped"], 10)
    assert status.objective == {LOSS: pytest.approx(results[3][LOSS])}
