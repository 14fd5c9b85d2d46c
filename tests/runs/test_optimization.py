"""Optimizers, schedulers, scaling and scheduled weights from the command line."""

from __future__ import annotations

import json
import shutil

import pytest
import torch

from jepa import load_config
from jepa.config.build import build_trainer
from jepa.optim import plan
from jepa.utils.errors import UserError


def trainer_of(tmp_path, *overrides):
    return build_trainer(load_config([*overrides, "evaluation=none", f"run_dir={tmp_path}"]))


def lines_of(folder):
    return [json.loads(line) for line in (folder / "metrics.jsonl").read_text().splitlines()]


def rates(trainer):
    return [trainer.scheduler["lr"](step, trainer.run_length) for step in range(trainer.run_length.max_steps)]


DECAY = ("scheduler.decay_share=null", "scheduler.decay_samples=128")
STEPS = ("optimizer.lr=0.1", "scheduler.warmup_epochs=null", "scheduler.warmup_steps=2")


@pytest.mark.parametrize(
    ("overrides", "expected"),
    [
        (["scheduler=linear", "scheduler.min_lr=0", *STEPS], [0.05, 0.1, 0.075, 0.05, 0.025, 0.0]),
        (["scheduler=wsd", "scheduler.min_lr=0", *STEPS], [0.05, 0.1, 0.1, 0.1, 0.1, 0.0]),
        (
            [
                "scheduler=wsd",
                "scheduler.decay_share=null",
                "scheduler.decay_samples=128",
                "scheduler.min_lr=0",
                *STEPS,
            ],
            [0.05, 0.1, 0.075, 0.05, 0.025, 0.0],
        ),
        (
            ["scheduler=step", "scheduler.step_size=3", "scheduler.unit=steps", *STEPS],
            [0.05, 0.1] + [0.01] * 3 + [1e-3],
        ),
        (["scheduler=step", "scheduler.step_size=30", "scheduler.gamma=0.1", *STEPS], [0.05] + [0.1] * 5),
        (["scheduler=constant", "optimizer.lr=0.1"], [0.1] * 6),
        (["scheduler=constant", "optimizer.lr=0.1", "scaling.reference_batch_size=8"], [0.4] * 6),
        (["scheduler=constant", "optimizer.lr=0.1", "scaling={reference_batch_size: 8, rule: sqrt}"], [0.2] * 6),
        (["scheduler=constant", "optimizer.lr=0.1", "scaling={reference_batch_size: 8, rule: none}"], [0.1] * 6),
    ],
)
def test_flat_keys_reach_the_schedules(tiny, tmp_path, overrides, expected):
    assert rates(trainer_of(tmp_path, *tiny, *overrides)) == pytest.approx(expected)


@pytest.mark.parametrize("scheduler", ["cosine", "linear", "step", "wsd"])
def test_warmups_and_weight_decay_of_every_scheduler(tiny, tmp_path, scheduler):
    one = [*tiny, f"scheduler={scheduler}", "trainer.max_steps=10", "scheduler.final_weight_decay=0.4"]
    two = [*one, "scheduler.warmup_epochs=null"]
    steps = trainer_of(tmp_path, *two, "scheduler.warmup_steps=4")
    assert rates(steps) == rates(trainer_of(tmp_path, *two, "scheduler.warmup_samples=128"))
    assert rates(steps)[:4] == pytest.approx([0.00025, 0.0005, 0.00075, 0.001])
    assert steps.scheduler["weight_decay"](-1, steps.run_length) == pytest.approx(0.04)
    assert steps.scheduler["weight_decay"](9, steps.run_length) == pytest.approx(0.4)
    with pytest.raises(UserError, match=r"scheduler: warmup_epochs=10 and warmup_samples=128: give one of them"):
        trainer_of(tmp_path, *one, "scheduler.warmup_samples=128")


def test_scaling_of_learning_rate_and_momentum(tiny, tmp_path):
    overrides = [*tiny, "scheduler=constant", "scaling.reference_batch_size=64", "model.target.momentum.start=0.9"]
    trainer = trainer_of(tmp_path, *overrides)
    assert trainer.model.momentum_schedule(0, trainer.run_length) == pytest.approx(0.9**0.5)
    assert plan(trainer.run_length, trainer.scheduler, trainer.model.momentum_schedule)[:2] == [
        "learning rate 5.0e-04 throughout (1.0e-03 per 64 samples, times 0.5 for 32 by the linear rule)",
        "weight decay 0.04",
    ]


def test_a_scheduled_loss_weight(tiny, tmp_path):
    weight = "{_target_: jepa.optim.Linear, start: 0.0, final: 0.05}"
    trainer = trainer_of(tmp_path, *tiny, "loss=invariance_sigreg", f"loss.terms.sigreg.weight={weight}")
    assert trainer.model.set_step(3, trainer.run_length) == {"weight/sigreg": pytest.approx(0.025)}
    assert trainer.model.loss.weights == {"prediction": 0.1, "invariance": 1.0, "sigreg": pytest.approx(0.025)}


@pytest.mark.parametrize(
    ("override", "words"),
    [
        (
            "loss.terms.prediction.weight=abc",
            r"prediction\.weight='abc': expected a number, or a schedule",
        ),
        (
            "loss.terms.prediction.weight={_target_: jepa.optim.Linear, start: 0, finall: 1}",
            r"mean .*\.final\?",
        ),
        ("scaling.rule=cubic", r"scaling\.rule=cubic.*linear"),
        ("scaling.ruel=sqrt", r"Did you mean scaling\.rule"),
        ("scaling.reference_batch_size=0", "reference_batch_size=0.*at least 1"),
        ("model.target.momentum.final=1.2", r"model\.target\.momentum becomes 1\.\d+: it must stay between"),
        ("scheduler.warmup_epochs=-1", r"scheduler: warmup_epochs=-1: expected a length"),
    ],
)
def test_mistakes_are_refused_before_data_is_read(tiny, tmp_path, override, words):
    with pytest.raises(UserError, match=rf"(?s){words}"):
        trainer_of(tmp_path, *tiny, override)


@pytest.mark.slow
@pytest.mark.parametrize(("optimizer", "scheduler"), [("lars", "step"), ("muon", "wsd")])
def test_runs_resume_exactly(train, quick, tmp_path, optimizer, scheduler):
    run = [*quick, f"optimizer={optimizer}", f"scheduler={scheduler}", "scaling.reference_batch_size=16"]
    process = train(*run, "trainer.snapshot_every_steps=3", "hydra.run.dir=whole")
    assert process.returncode == 0, process.stderr
    whole, again = tmp_path / "whole", tmp_path / "again"
    lines = lines_of(whole)
    assert all(line["lr"] > 0 for line in lines if "train/loss" in line)
    shutil.copytree(whole, again)
    snapshots = [p for p in (again / "checkpoints").glob("*.pt") if torch.load(p, weights_only=True)["step"] == 3]
    shutil.copy(snapshots[0], again / "checkpoints/last.pt")
    process = train("resume=again")
    assert process.returncode == 0, process.stderr
    assert "at step 3" in process.stdout
    one, two = (torch.load(f / "checkpoints/last.pt", weights_only=True) for f in (whole, again))
    assert one["step"] == two["step"] == 6
    for name, weight in one["model"].items():
        assert torch.equal(weight, two["model"][name]), name
    assert [line["lr"] for line in lines_of(again) if "lr" in line] == [line["lr"] for line in lines if "lr" in line]
