"""The monitor in the loop: what it sees, says and does, and going back."""

from __future__ import annotations

import json
import os
import signal
from types import SimpleNamespace

import pytest
import torch
from collapsing_toy import Words, collapsing_trainer
from toy import toy_trainer

from jepa import build_trainer, load_config
from jepa.monitor import CollapseMonitor
from jepa.trainer import Callback, Console, RunInfo, Trainer
from jepa.types import RunLength
from jepa.utils.errors import Interrupted, UserError

TIMES = {"samples_per_second", "data_wait", "memory_gib", "cost/seconds"}


def lines_of(folder):
    lines = map(json.loads, (folder / "metrics.jsonl").read_text().splitlines())
    return [{name: value for name, value in line.items() if name not in TIMES} for line in lines]


def results_of(folder):
    return json.loads((folder / "results.json").read_text())


def weights_of(trainer):
    return {name: p.detach().clone() for name, p in trainer.model.named_parameters()}


class BreakOff(Callback):
    """Fails after a step, once."""

    def __init__(self, step, retries):
        self.step, self.retries = step, retries

    def step_end(self, trainer):
        if trainer.step == self.step and len(trainer.state.rollbacks) == self.retries:
            raise RuntimeError("killed")


# Watching.


def test_a_healthy_run_is_called_so_in_silence(tmp_path):
    words = Words()
    trainer = collapsing_trainer(tmp_path, from_step=99, words=words)
    trainer.fit()
    assert results_of(tmp_path)["collapse"]["verdict"] == "healthy"
    assert words.statuses == ["unknown", "healthy"]
    assert not any("collapse" in message for message in words.messages)
    seen = [line["step"] for line in lines_of(tmp_path) if "monitor/embedding_rank" in line]
    assert seen == [1, *range(2, 25, 2)]
    assert {"train/loss", "train/embedding_std", "monitor/dead_features"} <= set(lines_of(tmp_path)[0])


def test_warns_and_goes_on(tmp_path):
    words = Words()
    trainer = collapsing_trainer(tmp_path, words=words)
    trainer.fit()
    assert trainer.step == 24
    assert words.statuses == ["unknown", "healthy", "complete collapse"]
    (message,) = (message for message in words.messages if "collapse" in message)
    assert message.startswith("collapse monitor at step 14: complete collapse: the spread of embeddings fell from")
    collapse = results_of(tmp_path)["collapse"]
    assert collapse["verdict"] == "complete collapse"
    assert "lower optimizer.lr" in collapse["evidence"]  # the toy moves fast
    assert not (tmp_path / "checkpoints/healthy.pt").exists()


def test_stops(tmp_path):
    trainer = collapsing_trainer(tmp_path, monitor={"on_collapse": "stop"}, config={"monitor": "first"})
    trainer.fit()
    assert trainer.step == 14
    assert results_of(tmp_path)["stopped"].startswith("complete collapse: the spread of embeddings fell")
    again = collapsing_trainer(tmp_path, monitor={"on_collapse": "stop"}, resume="auto", config={"monitor": "stop"})
    again.fit()
    assert again.step == 16  # another monitor, another end: it is measured anew and found again


def test_watching_changes_nothing(tmp_path):
    plain = collapsing_trainer(tmp_path / "plain", from_step=99, watched=False)
    plain.fit()
    watched = collapsing_trainer(tmp_path / "watched", from_step=99, monitor={"every_steps": 1})
    watched.fit()
    for name, value in weights_of(plain).items():
        assert torch.equal(weights_of(watched)[name], value)
    assert "collapse" not in results_of(tmp_path / "plain")
    assert not any("monitor/" in name for line in lines_of(tmp_path / "plain") for name in line)
    assert len(watched.model._forward_hooks) == 0


class OwnStep(Trainer):
    """A user's step, on the model as a whole."""

    def training_step(self, batch, step):
        return 2 * self.criterion(self.model(self.prepare_batch(batch)))["loss"]


def test_a_users_own_step_is_watched(tmp_path):
    trainer = collapsing_trainer(tmp_path, kind=OwnStep, micro_batch_size=4)
    trainer.fit()
    assert trainer.monitor.verdict.name == "complete collapse"


def test_a_method_without_latents_is_told_of_once(tmp_path):
    words = Words()
    trainer = toy_trainer(tmp_path, loggers=[words], monitor=CollapseMonitor(every_steps=1))
    trainer.fit()
    assert results_of(tmp_path)["collapse"]["verdict"] == "unknown"
    (message,) = (message for message in words.messages if "monitor" in message)
    assert "makes no jepa.types.Latents by calling the model" in message


def test_a_step_without_latents_changes_no_verdict(tmp_path):
    class Every(OwnStep):
        def training_step(self, batch, step):
            if step < 15:
                return super().training_step(batch, step)
            return self.model.bias.square().sum()

    trainer = collapsing_trainer(tmp_path, kind=Every)
    trainer.fit()
    assert trainer.monitor.verdict.name == "complete collapse"
    assert trainer.monitor.history[-1]["step"] == 14


def test_steps_between_those_logged_have_lines_of_their_own(tmp_path):
    trainer = collapsing_trainer(tmp_path, log_every=5, validate_every_steps=4, max_steps=8)
    trainer.criterion.forward = lambda latents: {"loss": latents.embeddings.square().mean()}
    trainer.fit()
    (line,) = (line for line in lines_of(tmp_path) if line["step"] == 4 and "val/loss" not in line)
    assert "monitor/embedding_rank" in line
    assert "train/loss" not in line


# State.


@pytest.mark.parametrize("killed_at", [9, 13])
def test_a_resumed_run_judges_alike(tmp_path, killed_at):
    whole = collapsing_trainer(tmp_path / "whole")
    whole.fit()
    with pytest.raises(RuntimeError, match="killed"):
        collapsing_trainer(tmp_path / "broken", callbacks={"break": BreakOff(killed_at, 0)}).fit()
    again = collapsing_trainer(tmp_path / "broken", resume="auto")
    again.fit()
    assert again.monitor.history == whole.monitor.history
    assert lines_of(tmp_path / "broken") == lines_of(tmp_path / "whole")
    assert results_of(tmp_path / "broken") == results_of(tmp_path / "whole")


def test_a_long_history_is_thinned_out():
    monitor = CollapseMonitor(max_measurements=16)
    for step in range(100):
        monitor._remember(step, {}, {})
    steps = [measurement["step"] for measurement in monitor.history]
    assert steps[:3] == [0, 1, 2]
    assert steps[-5:] == [95, 96, 97, 98, 99]
    assert len(steps) <= 16
    assert steps == sorted(set(steps))


@pytest.mark.parametrize(
    "wrong",
    [{"every_steps": 0}, {"on_collapse": "cry"}, {"max_rollbacks": -1}, {"max_rows": 2}, {"max_measurements": 1}],
)
def test_settings_out_of_range(wrong):
    with pytest.raises(ValueError, match=rf"monitor.{next(iter(wrong))}: got .*, expected"):
        CollapseMonitor(**wrong)


# Going back.

BACK = {"on_collapse": "rollback", "max_rollbacks": 2}


@pytest.mark.parametrize("kind", ["plain", "sharded"])
def test_goes_back_and_trains_on_in_another_way(tmp_path, kind):
    words = Words()
    trainer = collapsing_trainer(tmp_path, cured_by=1, monitor=BACK, words=words, checkpoint_format=kind)
    trainer.fit()
    assert trainer.step == 24
    assert trainer.monitor.verdict.name == "healthy"
    (back,) = trainer.state.rollbacks
    assert (back["from"], back["to"]) == (14, 9)  # at 12 collapse was suspected
    assert words.opened == [0, 9]
    (message,) = (message for message in words.messages if "rollback" in message)
    assert "rollback 1 of at most 2, back from step 14 to 9" in message
    assert "the learning rate times 0.5, the seed 1" in message
    lines = lines_of(tmp_path)
    assert [line["step"] for line in lines] == list(range(1, 25))
    assert [line["lr"] for line in lines] == [0.01] * 9 + [0.005] * 15
    assert results_of(tmp_path)["collapse"] == {**results_of(tmp_path)["collapse"], "rollbacks": [back]}
    assert (tmp_path / f"checkpoints/healthy.{'pt' if kind == 'plain' else 'sharded'}").exists()


def test_stops_after_the_last_rollback(tmp_path):
    trainer = collapsing_trainer(tmp_path, monitor=BACK)
    trainer.fit()
    assert len(trainer.state.rollbacks) == 2
    assert trainer.step == 14
    assert "(after 2 rollbacks)" in results_of(tmp_path)["stopped"]
    assert lines_of(tmp_path)[-1]["lr"] == 0.0025


def test_the_start_is_a_place_to_go_back_to(tmp_path):
    trainer = collapsing_trainer(tmp_path, cured_by=1, monitor=BACK, save_every_steps=100)
    trainer.fit()
    assert [(back["from"], back["to"]) for back in trainer.state.rollbacks] == [(14, 0)]
    assert trainer.step == 24


class Terminate(Callback):
    """Is asked to stop by a signal during a step."""

    def __init__(self, step):
        self.step = step

    def step_end(self, trainer):
        if trainer.step == self.step - 1 and not trainer.state.rollbacks:
            os.kill(os.getpid(), signal.SIGTERM)


@pytest.fixture(scope="module")
def whole(tmp_path_factory):
    """A run that goes back once and is not interrupted."""
    trainer = collapsing_trainer(tmp_path_factory.mktemp("whole"), cured_by=1, monitor=BACK)
    trainer.fit()
    return trainer


@pytest.mark.parametrize(
    ("breaking", "message"),
    [
        (BreakOff(13, 0), "killed"),
        (BreakOff(11, 1), "killed"),
        (BreakOff(20, 1), "killed"),
        (Terminate(12), "stopped at step 12"),  # collapse is suspected
        (Terminate(14), "stopped at step 9"),  # collapse is found: it has gone back first
    ],
    ids=["before", "after_9", "after_16", "terminated_before", "terminated_while_going_back"],
)
def test_a_run_that_goes_back_resumes_exactly(tmp_path, whole, breaking, message):
    broken = {"break": breaking}
    with pytest.raises((RuntimeError, Interrupted), match=message):
        collapsing_trainer(tmp_path / "broken", cured_by=1, monitor=BACK, callbacks=broken).fit()
    again = collapsing_trainer(tmp_path / "broken", cured_by=1, monitor=BACK, resume="auto")
    again.fit()
    assert lines_of(tmp_path / "broken") == lines_of(whole.folder.path)
    for name, value in weights_of(whole).items():
        assert torch.equal(weights_of(again)[name], value)
    assert [back["to"] for back in again.state.rollbacks] == [back["to"] for back in whole.state.rollbacks] == [9]


def test_the_best_of_what_is_void_goes(tmp_path):
    settings = {"best_metric": "train/loss", "best_mode": "max", "best_k": 3}
    trainer = collapsing_trainer(tmp_path, cured_by=1, monitor=BACK, **settings)
    trainer.fit()
    files = {path.name for path in (tmp_path / "checkpoints").glob("best_*")}
    assert files == {f"best_{step:08d}.pt" for _, step in trainer.checkpoints.best.table}


class Rising(Trainer):
    """Gives a value that is best where the run has collapsed, as some losses are."""

    def train_step(self, batch):
        values = super().train_step(batch)
        values["train/judged"] = torch.tensor(float(-self.step if self.state.rollbacks else self.step))
        return values


def test_a_best_that_a_void_one_displaced_is_listed_no_more(tmp_path):
    settings = {"best_metric": "train/judged", "best_mode": "max", "kind": Rising}
    trainer = collapsing_trainer(tmp_path, cured_by=1, monitor=BACK, **settings)
    trainer.fit()
    (back,) = trainer.state.rollbacks
    assert trainer.checkpoints.best.table == [(-back["to"] - 1.0, back["to"] + 1)]
    assert (tmp_path / f"checkpoints/best_{back['to'] + 1:08d}.pt").exists()


class GoBack(Callback):
    """Asks to go back when a step has been validated."""

    def __init__(self, step):
        self.step = step

    def measured(self, trainer, metrics):
        if "val/loss" in metrics and trainer.step == self.step:
            trainer.rollback("enough of it")


@pytest.mark.parametrize("watched", [True, False])
def test_going_back_where_no_place_is_kept_is_refused(tmp_path, watched):
    callbacks = {"back": GoBack(3)}
    trainer = collapsing_trainer(tmp_path, callbacks=callbacks, validate_every_steps=3, watched=watched)
    with pytest.raises(UserError, match=r"cannot go back from step 3 \(enough of it\).*on_collapse=rollback"):
        trainer.fit()


def test_a_callback_goes_back_as_often_as_the_monitor(tmp_path):
    settings = {"from_step": 99, "validate_every_steps": 3, "save_every_steps": 3, "monitor": BACK}
    trainer = collapsing_trainer(tmp_path, callbacks={"back": GoBack(6)}, **settings)
    trainer.fit()
    assert [(back["from"], back["to"]) for back in trainer.state.rollbacks] == [
        (6, 3)
    ] * 2  # not to 6, saved on the way
    assert (trainer.step, trainer.state.stop_reason) == (6, "enough of it (after 2 rollbacks)")


# An online probe.


def test_the_online_probe(tmp_path):
    asked = []

    def quick(model, data, *, device, seed):
        asked.append(model)
        return {"knn": 0.5 + len(asked) / 10, "rankme": 7.0}

    evaluation = SimpleNamespace(
        every_epochs=None, every_steps=None, at_end=False, online_every_epochs=None, online_every_steps=6, quick=quick
    )
    trainer = collapsing_trainer(tmp_path, from_step=99, evaluation=evaluation, max_steps=12)
    trainer.fit()
    assert asked == [trainer.model] * 3
    found = {line["step"]: line["online/knn"] for line in lines_of(tmp_path) if "online/knn" in line}
    assert found == {0: 0.6, 6: 0.7, 12: 0.8}  # the untrained network, too
    assert trainer.metrics["online/rankme"] == 7.0
    assert "online k-NN 0.800" in results_of(tmp_path)["collapse"]["evidence"]


# Configuration and words.


def test_on_by_default_and_off(tiny, tmp_path):
    run = [*tiny, "evaluation=none", "logger=jsonl"]
    monitor = build_trainer(load_config([*run, f"run_dir={tmp_path}/on", "monitor.every_steps=7"])).monitor
    assert (monitor.every_steps, monitor.on_collapse, monitor.thresholds.in_a_row) == (7, "warn", 3)
    assert build_trainer(load_config([*run, f"run_dir={tmp_path}/off", "monitor=none"])).monitor is None
    with pytest.raises(UserError, match="on_collapse"):
        build_trainer(load_config([*run, f"run_dir={tmp_path}/wrong", "monitor.on_collapse=cry"]))


def test_the_console_shows_the_verdict(tmp_path, capsys):
    console = Console()
    console.open(RunInfo(tmp_path, 0, RunLength(max_steps=4, steps_per_epoch=2.0)))
    values = {"train/loss": 1.0, "lr": 0.1, "samples_per_second": 3.0}
    for step, status in enumerate(("unknown", "healthy", "complete collapse"), start=1):
        console.status(status)
        console.log(values, step)
    console.close()
    lines = capsys.readouterr().out.splitlines()
    assert "unknown" not in lines[0]
    assert "3 samples/s  healthy" in lines[1]
    assert "3 samples/s  complete collapse" in lines[2]
