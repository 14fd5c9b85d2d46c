"""Checkpoint files: whole or not at all, read with care, and going on exactly."""

from __future__ import annotations

import errno
import json
import math
import os
import re

import pytest
import torch
from toy import Bomb, ToyData, adam, assert_identical, disk_full, file_contents, listing, toy_trainer

from jepa.checkpoint import plain as checkpoint
from jepa.checkpoint import saver
from jepa.checkpoint.load import read_file
from jepa.checkpoint.saver import find_checkpoint, link_or_copy
from jepa.trainer import Callback, EarlyStopping, JSONLines, Logger, Trainer
from jepa.trainer import checkpoints as checkpoints_module
from jepa.trainer.checkpoints import BestCheckpoints
from jepa.utils.errors import CheckpointError, Interrupted, NonFiniteError, UserError


def state(**others):
    empty = {name: {} for name in ("metrics", "callbacks", "loggers", "config")}
    empty["best"] = {"metric": "val/loss", "mode": "min", "table": []}
    values = {"step": 3, "pending": False, "ended": None, "optimizer": None, "scaler": None}
    return {**values, **empty, "model": {"w": torch.ones(2)}, **others}


def watch_saves(trainer):
    """(step, names) of everything the trainer saves from now on."""
    saves, save = [], trainer.checkpoints.saver.save

    def watching(state, names, dropped):
        saves.append((state["step"], names))
        save(state, names, dropped)

    trainer.checkpoints.saver.save = watching
    return saves


# Writing.


def test_written_and_read(tmp_path):
    path = tmp_path / "new" / "last.pt"
    checkpoint.write(path, state())
    content = checkpoint.read(path)
    assert content["step"] == 3
    assert torch.equal(content["model"]["w"], torch.ones(2))
    assert content["libraries"]["torch"] == str(torch.__version__)
    assert listing(path.parent) == ["last.pt"]


def replace_refused(*_):
    raise OSError(errno.EACCES, os.strerror(errno.EACCES))


def half_saved(content, file):
    file.write(b"half of it")
    raise RuntimeError("[enforce fail at inline_container.cc:659] unexpected pos 64 vs 0\nmore")


@pytest.mark.parametrize(
    ("place", "name", "failing"),
    [(os, "replace", replace_refused), (torch, "save", half_saved), (os, "fsync", disk_full)],
)
@pytest.mark.faults
def test_a_failed_write_leaves_the_old_file(tmp_path, monkeypatch, place, name, failing):
    path = tmp_path / "last.pt"
    checkpoint.write(path, state())
    before = path.read_bytes()
    with monkeypatch.context() as patch:
        patch.setattr(place, name, failing)
        with pytest.raises(
            CheckpointError, match=r"could not write .*MiB free\). The checkpoint written before is intact"
        ):
            checkpoint.write(path, state(step=4))
        with pytest.raises(CheckpointError, match="No checkpoint was there before"):
            checkpoint.write(tmp_path / "other.pt", state(step=4))
    assert path.read_bytes() == before
    assert listing(tmp_path) == ["last.pt"]


# Reading.


@pytest.mark.faults
def test_damaged_and_foreign_files(tmp_path):
    path = tmp_path / "last.pt"
    checkpoint.write(path, state())
    whole = path.read_bytes()
    for cut in (0, 10, len(whole) // 2, len(whole) - 1):
        path.write_bytes(whole[:cut])
        with pytest.raises(CheckpointError, match=r"cannot read the checkpoint .*Nothing was overwritten"):
            checkpoint.read(path)
    path.write_bytes(whole[:100] + b"\xff" * 2000 + whole[2100:])
    with pytest.raises(CheckpointError):
        checkpoint.read(path)
    path.write_text("a text file, not a checkpoint")
    with pytest.raises(CheckpointError, match="cannot read the checkpoint"):
        checkpoint.read(path)
    with pytest.raises(CheckpointError, match="no checkpoint at"):
        checkpoint.read(tmp_path / "nowhere.pt")


@pytest.mark.parametrize(
    ("content", "message"),
    [
        (
            {"encoder": {}, "epoch": 1},
            r"not a checkpoint of this project .*'encoder', 'epoch'.*init_from=<file>",
        ),
        ([1, 2], "it holds list"),
        ({**state(), "format": "jepa", "version": 99}, "format version 99, this code reads 2"),
        (
            {"format": "jepa", "version": 2, "step": 1, "model": {}},
            r"lacks \['pending', 'ended', 'optimizer', .*'config'\]",
        ),
    ],
)
@pytest.mark.faults
def test_other_formats_and_versions(tmp_path, content, message):
    torch.save(content, tmp_path / "x.pt")
    with pytest.raises(CheckpointError, match=message):
        checkpoint.read(tmp_path / "x.pt")


@pytest.mark.faults
def test_reading_executes_nothing(tmp_path):
    torch.save({**state(), "format": "jepa", "version": 2, "x": Bomb(tmp_path / "boom")}, tmp_path / "x.pt")
    with pytest.raises(CheckpointError):
        checkpoint.read(tmp_path / "x.pt")
    assert not (tmp_path / "boom").exists()


# Save and load of a trainer.


def test_checkpoint_of_another_model_lists_what_differs(tmp_path):
    trainer = toy_trainer(tmp_path / "a")
    trainer.model.extra = torch.nn.Linear(2, 2)
    trainer.model.weight = torch.nn.Parameter(torch.zeros(4, 2))
    trainer.save_checkpoint(tmp_path / "x.pt")
    other = toy_trainer(tmp_path / "b")
    before = other.model.weight.detach().clone()
    with pytest.raises(CheckpointError) as caught:
        other.load_checkpoint(tmp_path / "x.pt")
    assert "weight: (4, 2) in the file, (3, 2) in the model" in str(caught.value)
    assert "extra.weight: in the file only" in str(caught.value)
    assert torch.equal(other.model.weight, before)
    assert other.step == 0


def test_save_and_load_without_the_optimizer(tmp_path):
    first = toy_trainer(tmp_path / "a", optimizer=adam)
    first.fit()
    first.save_checkpoint(tmp_path / "slim.pt", include_optimizer=False)
    first.save_checkpoint(tmp_path / "whole.pt")
    assert checkpoint.read(tmp_path / "slim.pt")["optimizer"] is None
    second = toy_trainer(tmp_path / "b", optimizer=adam)
    before = second.model.weight.detach().clone()
    with pytest.raises(CheckpointError, match=r"holds no optimizer state.*load_optimizer=False"):
        second.load_checkpoint(tmp_path / "slim.pt")
    assert torch.equal(second.model.weight, before)
    second.load_checkpoint(tmp_path / "slim.pt", load_optimizer=False)
    assert torch.equal(second.model.weight, first.model.weight)
    assert second.step == 5
    assert not second.optimizer.state
    second.load_checkpoint(tmp_path / "whole.pt")
    for mine, theirs in zip(second.optimizer.state.values(), first.optimizer.state.values()):
        assert torch.equal(mine["exp_avg"], theirs["exp_avg"])
        assert mine["step"] == theirs["step"]


def test_checkpoint_of_another_optimizer(tmp_path):
    toy_trainer(tmp_path / "a").save_checkpoint(tmp_path / "sgd.pt")
    other = toy_trainer(tmp_path / "b", optimizer=adam)
    with torch.no_grad():
        other.model.weight.zero_()
    with pytest.raises(CheckpointError, match="of another optimizer than AdamW"):
        other.load_checkpoint(tmp_path / "sgd.pt")
    assert not other.model.weight.any()

    def one_group_sgd(groups, lr):
        return torch.optim.SGD([parameter for group in groups for parameter in group["params"]], lr)

    one_group = toy_trainer(tmp_path / "c", optimizer=one_group_sgd)
    with pytest.raises(CheckpointError, match=r"groups of \[1, 1\] parameters, this run of \[2\]"):
        one_group.load_checkpoint(tmp_path / "sgd.pt")


# The run folder.


def test_who_may_write_into_a_folder(tmp_path):
    toy_trainer(tmp_path, max_steps=2).fit()
    before = file_contents(tmp_path)
    with pytest.raises(CheckpointError, match=f"already holds a checkpoint .*resume={re.escape(str(tmp_path))}"):
        toy_trainer(tmp_path).fit()
    with pytest.raises(UserError, match=r"step 2, past the end of this run .1 steps"):
        toy_trainer(tmp_path, max_steps=1, resume="auto").fit()
    with pytest.raises(UserError, match="continues in its own run folder"):
        toy_trainer(tmp_path / "other", resume=str(tmp_path)).fit()
    with pytest.raises(CheckpointError, match="no run folder or checkpoint at"):
        toy_trainer(tmp_path, resume=str(tmp_path / "nowhere")).fit()
    after = file_contents(tmp_path)
    assert after == before


@pytest.mark.faults
def test_a_truncated_checkpoint_overwrites_nothing(tmp_path):
    toy_trainer(tmp_path, max_steps=2, loggers=[JSONLines()]).fit()
    last = tmp_path / "checkpoints" / "last.pt"
    last.write_bytes(last.read_bytes()[:500])
    before = file_contents(tmp_path)
    with pytest.raises(CheckpointError, match="cannot read the checkpoint"):
        toy_trainer(tmp_path, max_steps=4, resume="auto", loggers=[JSONLines()]).fit()
    assert file_contents(tmp_path) == before


@pytest.mark.faults
def test_a_folder_that_cannot_be_made(tmp_path):
    (tmp_path / "file").touch()
    with pytest.raises(UserError, match=r"cannot write to the run folder .*Not a directory.*hydra.run.dir"):
        toy_trainer(tmp_path / "file" / "run").fit()


def test_a_run_that_has_ended_gives_its_metrics_again(tmp_path):
    """Also those that are not finite, and those logged before an interruption."""

    class Odd(Trainer):
        def training_step(self, batch, step):
            return {**super().training_step(batch, step), "odd": float("inf")}

    metrics = toy_trainer(tmp_path, kind=Odd, loggers=[JSONLines()], validate_every_steps=2).fit()
    before = file_contents(tmp_path)
    again, words = toy_trainer(tmp_path, loggers=[JSONLines()], resume="auto"), []
    again.say = words.append
    assert again.fit() == metrics
    assert metrics["train/loss"] > 0
    assert metrics["train/odd"] == float("inf")
    assert "val/loss" in metrics
    assert words == [
        f"resumed from {tmp_path}/checkpoints/last.pt at step 5 of 5: the run has ended, nothing is left to do"
    ]
    assert file_contents(tmp_path) == before


def test_best_and_kept_checkpoints(tmp_path):
    trainer = toy_trainer(tmp_path, max_steps=6, validate_every_steps=1, snapshot_every_steps=4, best_k=2, lr=0.02)
    values = []

    def validate():
        values.append([5.0, 1.0, 4.0, 2.0, 9.0, 3.0][trainer.step - 1])
        return values[-1]

    trainer.validate = validate
    trainer.fit()
    names = ["best_00000002.pt", "best_00000004.pt", "last.pt", "step_00000004.pt"]
    assert listing(tmp_path / "checkpoints") == names
    for name in names:
        step = 6 if name == "last.pt" else int(name[5:13])
        assert checkpoint.read(tmp_path / "checkpoints" / name)["step"] == step
    assert checkpoint.read(tmp_path / "checkpoints" / "last.pt")["best"]["table"] == [(1.0, 2), (2.0, 4)]
    said = trainer.checkpoints.early_best()
    assert said.startswith("val/loss was best at step 2 of 6 (1, at the end 3): are its features better? python")
    assert f"checkpoint={tmp_path}/checkpoints/best_00000002.pt;" in said
    trainer.metrics["val/loss"] = 1.05  # hardly worse
    assert trainer.checkpoints.early_best() is None
    trainer.metrics["val/loss"], trainer.checkpoints.best.table = 9.0, [(1.0, 5)]  # shortly before the end
    assert trainer.checkpoints.early_best() is None


def test_copies_where_there_are_no_hard_links(tmp_path, monkeypatch):
    def link(*_):
        raise OSError(errno.EPERM, "no links here")

    monkeypatch.setattr(os, "link", link)
    toy_trainer(tmp_path, max_steps=2, validate_every_steps=2).fit()
    assert listing(tmp_path / "checkpoints") == ["best_00000002.pt", "last.pt"]
    assert checkpoint.read(tmp_path / "checkpoints" / "last.pt")["step"] == 2


def test_periodic_saving(tmp_path):
    def saved(folder, **settings):
        trainer = toy_trainer(tmp_path / folder, max_steps=7, **settings)
        return watch_saves(trainer), trainer.fit()

    last = ["last"]
    steps, _ = saved("steps", save_every_steps=3)  # with save_every_epochs at its default
    assert steps == [(3, last), (6, last), (7, last)]
    steps, _ = saved("epochs")  # an epoch is 2.5 steps
    assert steps == [(3, last), (5, last), (7, last)]
    steps, _ = saved("never", save_every_epochs=None)
    assert steps == [(7, last)]


def test_saving_by_the_clock(tmp_path, monkeypatch):
    """Steps take 40 s: every minute and a half is every third, counted from the last save of any kind."""
    now = [0.0]
    monkeypatch.setattr(checkpoints_module.time, "monotonic", lambda: now[0])
    settings = {"save_every_epochs": None, "save_every_minutes": 1.5, "snapshot_every_steps": 7}
    trainer = toy_trainer(tmp_path, max_steps=12, **settings)
    saves, step = watch_saves(trainer), trainer.train_step

    def slow_step(batch):
        now[0] += 40
        return step(batch)

    trainer.train_step = slow_step
    trainer.fit()
    assert [at for at, _ in saves] == [3, 6, 7, 10, 12]
    with pytest.raises(UserError, match=r"trainer.save_every_minutes=0: expected a value above 0"):
        toy_trainer(tmp_path / "wrong", save_every_minutes=0)


def test_the_table_of_the_best():
    best = BestCheckpoints(k=2, metric="accuracy", mode="max")
    entered = [best.offer(value, step) for step, value in enumerate([0.5, 0.4, 0.6, 0.3, 0.6])]
    assert entered == [True, True, True, False, True]
    assert best.table == [(0.6, 2), (0.6, 4)]
    assert best.dropped() == ["best_00000001", "best_00000000"]
    assert best.dropped() == []
    assert not BestCheckpoints(k=1, metric="accuracy", mode="max").offer(float("nan"), 1)
    other = BestCheckpoints(k=2, metric="accuracy", mode="max")
    other.load_state_dict(best.state_dict())
    assert other.table == best.table
    for metric, mode in (("accuracy", "min"), ("loss", "max")):
        changed = BestCheckpoints(k=2, metric=metric, mode=mode)
        changed.load_state_dict(best.state_dict())
        assert changed.table == []
    assert not BestCheckpoints(k=0, metric="x", mode="min").offer(1.0, 1)
    for wrong in ({"k": -1, "mode": "min"}, {"k": 1, "mode": "lowest"}):
        with pytest.raises(ValueError, match="best_mode"):
            BestCheckpoints(metric="x", **wrong)


# Going on.

TIMES = {"samples_per_second", "data_wait", "memory_gib"}


def without_times(values):
    """What is measured; the costs come with the last step, and so at another one in a run that is made longer."""
    return {name: value for name, value in values.items() if name not in TIMES and not name.startswith("cost/")}


def lines_of(folder):
    return [without_times(json.loads(line)) for line in (folder / "metrics.jsonl").read_text().splitlines()]


def assert_same_run(folder, other, names=("last.pt",)):
    for name in names:
        one, two = (read_file(f / "checkpoints" / name) for f in (folder, other))
        for key in ("model", "optimizer", "best", "step", "scaler", "pending", "ended", "callbacks"):
            assert_identical(one[key], two[key])
        assert without_times(one["metrics"]) == without_times(two["metrics"])
    assert lines_of(folder) == lines_of(other)
    assert (folder / "results.json").read_text() == (other / "results.json").read_text()


def stop_at(step, trainer, number):
    """Have a signal come while a step is made, or (half steps) in what follows it."""

    class Stop(Logger):
        def advance(self, at):
            if at == step:
                os.kill(os.getpid(), number)

    forward_backward = trainer.forward_backward

    def stopping(batch):
        if trainer.step + 1 == step:
            os.kill(os.getpid(), number)
        return forward_backward(batch)

    if step == int(step):
        trainer.forward_backward = stopping
    else:
        step = int(step)
        trainer.loggers["stop"] = Stop()


SETTINGS = {"max_steps": 8, "optimizer": adam, "validate_every_steps": 2, "save_every_steps": 3}


@pytest.mark.parametrize("step", [1, 2, 4, 4.5, 7.5, 8])
@pytest.mark.parametrize(("number", "metric"), [(2, "val/loss"), (15, "train/loss")])
@pytest.mark.faults
def test_a_run_stopped_by_a_signal_goes_on_exactly(tmp_path, step, number, metric):
    whole, parts = tmp_path / "whole", tmp_path / "parts"
    settings = {**SETTINGS, "best_metric": metric, "best_k": 8, "log_every": 2}
    toy_trainer(whole, loggers=[JSONLines()], **settings).fit()
    trainer = toy_trainer(parts, loggers=[JSONLines()], **settings)
    stop_at(step, trainer, number)
    with pytest.raises(Interrupted, match=f"go on with resume={re.escape(str(parts))}") as caught:
        trainer.fit()
    assert caught.value.exit_code == 128 + number
    stopped = 4 if step == 4.5 else math.ceil(step)  # a validation is left at once, and made again
    assert checkpoint.read(parts / "checkpoints" / "last.pt")["step"] == stopped
    toy_trainer(parts, loggers=[JSONLines()], resume="auto", **settings).fit()
    assert listing(whole / "checkpoints") == listing(parts / "checkpoints")
    assert_same_run(whole, parts, listing(whole / "checkpoints"))


@pytest.mark.faults
def test_a_signal_after_the_last_step_ends_a_whole_run(tmp_path):
    trainer = toy_trainer(tmp_path)
    stop_at(5.5, trainer, 2)
    with pytest.raises(Interrupted, match="has ended"):
        trainer.fit()
    assert (tmp_path / "results.json").exists()
    assert checkpoint.read(tmp_path / "checkpoints" / "last.pt")["step"] == 5


class Overflow(Trainer):
    """Overflows the gradient at some steps; a scale that can be halved and doubled within a short run."""

    def __init__(self, **settings):
        super().__init__(**settings)
        self.precision.scaler = torch.amp.GradScaler("cpu", init_scale=256.0, growth_interval=3)

    def training_step(self, batch, step):
        loss = super().training_step(batch, step)["loss"]
        if step in (0, 5):
            loss.register_hook(lambda gradient: gradient * float("inf"))
        return loss


class Momentary(Callback):
    """Remembers what it was told of."""

    def __init__(self):
        self.seen = []

    def measured(self, trainer, metrics):
        self.seen.append([trainer.step, metrics.get("train/loss", metrics.get("val/loss"))])

    def state_dict(self):
        return {"seen": self.seen}

    def load_state_dict(self, state):
        self.seen = state["seen"]


@pytest.mark.parametrize("failed", [1, 3, 4, 7])
@pytest.mark.parametrize(
    "settings",
    [
        {},
        {"micro_batch_size": 4, "grad_clip_norm": 0.1},
        {"kind": Overflow, "precision": "fp16"},
        {"async_save": True, "save_every_steps": 1, "checkpoint_format": "sharded"},
    ],
    ids=["plain", "micro-batches", "fp16", "background"],
)
@pytest.mark.faults
def test_a_run_that_crashed_goes_on_exactly(tmp_path, failed, settings):
    """What was logged after the checkpoint is void."""

    def run(folder, **others):
        parts = {"loggers": [JSONLines()], "callbacks": {"seen": Momentary()}}
        return toy_trainer(folder, **{**SETTINGS, **settings, **parts, **others})

    whole, parts = tmp_path / "whole", tmp_path / "parts"
    run(whole).fit()
    with pytest.raises(NonFiniteError):
        run(parts, data=ToyData(poison=failed)).fit()
    with open(parts / "metrics.jsonl", "a") as file:
        file.write('{"step": 1, "train/lo')
    last = run(parts, resume="auto")
    last.fit()
    assert_same_run(whole, parts, [find_checkpoint(whole / "checkpoints").name])
    if "precision" in settings:
        assert 5 not in last.model.updates
        assert 7 in last.model.updates


def test_what_is_measured_again_was_not_counted_before(tmp_path):
    """A run whose evaluation fails goes on as if it had not: callbacks see each measurement once."""

    class Evaluation:
        every_epochs, every_steps, at_end, fails_at = None, 2, True, None
        online_every_epochs = online_every_steps = None

        def __call__(self, model, data, *, random_init, device, seed):
            if trainer.step == self.fails_at:
                raise SystemExit
            return {"trained": {"knn": trainer.step / 10}}

        def table(self, results):
            return "table"

    def run(folder, fails_at=None, **others):
        evaluation = Evaluation()
        evaluation.fails_at = fails_at
        callbacks = {"seen": Momentary(), "early": EarlyStopping(patience=2, min_delta=1e9)}
        parts = {"loggers": [JSONLines()], "callbacks": callbacks, "evaluation": evaluation}
        return toy_trainer(folder, **SETTINGS, **parts, **others)

    trainer = run(tmp_path / "whole")
    trainer.fit()
    assert trainer.step == 6  # stopped early: two values that are not better
    for fails_at in (2, 4, 6):
        parts = tmp_path / str(fails_at)
        trainer = run(parts, fails_at)
        with pytest.raises(SystemExit):
            trainer.fit()
        assert checkpoint.read(parts / "checkpoints" / "last.pt")["step"] == fails_at
        trainer = run(parts, resume="auto")
        trainer.fit()
        assert_same_run(tmp_path / "whole", parts)


def test_a_longer_run_goes_on_exactly(tmp_path):
    whole, parts = tmp_path / "whole", tmp_path / "parts"
    toy_trainer(whole, loggers=[JSONLines()], **SETTINGS).fit()
    toy_trainer(parts, loggers=[JSONLines()], **{**SETTINGS, "max_steps": 6}).fit()
    toy_trainer(parts, loggers=[JSONLines()], resume=str(parts), **SETTINGS).fit()
    assert_same_run(whole, parts)


@pytest.mark.faults
def test_killed_between_two_files(tmp_path, monkeypatch):
    """A run killed after the best checkpoint and before last.pt repeats the steps between, and has both."""
    whole, parts = tmp_path / "whole", tmp_path / "parts"
    settings = {**SETTINGS, "best_metric": "train/loss", "snapshot_every_steps": 4}
    toy_trainer(whole, loggers=[JSONLines()], **settings).fit()
    trainer = toy_trainer(parts, loggers=[JSONLines()], **settings)

    def dying_link(source, target):
        if trainer.step == 4:
            raise SystemExit
        link_or_copy(source, target)

    with monkeypatch.context() as patch:
        patch.setattr(saver, "link_or_copy", dying_link)
        with pytest.raises(SystemExit):
            trainer.fit()
    assert "step_00000004.pt" in listing(parts / "checkpoints")
    assert checkpoint.read(parts / "checkpoints" / "last.pt")["step"] == 3
    toy_trainer(parts, loggers=[JSONLines()], resume="auto", **settings).fit()
    assert listing(whole / "checkpoints") == listing(parts / "checkpoints")
    assert_same_run(whole, parts, listing(whole / "checkpoints"))
