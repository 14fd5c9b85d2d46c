from __future__ import annotations

import math

import pytest
import torch
from torch import nn

from jepa.models import EMATarget
from jepa.optim import (
    Constant,
    Linear,
    NextStep,
    Scaled,
    Step,
    Warmup,
    WarmupCosine,
    WarmupStableDecay,
    half_life,
    plan,
    scale_scheduler,
)
from jepa.types import RunLength

DIGITS = RunLength(max_steps=808, steps_per_epoch=1437 / 64, batch_size=64)


class Point(nn.Linear):
    """The least encoder there is."""

    embed_dim = 1


def run_length(batch_size):
    """A run of 25,600 samples."""
    return RunLength(max_steps=25_600 // batch_size, steps_per_epoch=6400 / batch_size, batch_size=batch_size)


@pytest.mark.parametrize(("rule", "factor"), [("linear", 4.0), ("sqrt", 2.0), ("none", 1.0)])
def test_the_whole_learning_rate_schedule_is_scaled(rule, factor):
    plain = WarmupCosine(peak=0.1, start=0.01, final=0.001, warmup_samples=6400)
    scaled = Scaled(schedule=plain, reference_batch_size=64, rule=rule)
    run = run_length(256)
    assert [scaled(s, run) for s in range(101)] == pytest.approx([factor * plain(s, run) for s in range(101)])
    reference = [factor * plain(4 * s, run_length(64)) for s in range(101)]  # after the same number of samples
    assert [scaled(s, run) for s in range(101)] == pytest.approx(reference)
    assert [scaled(s, run_length(64)) for s in (0, 7)] == [plain(s, run_length(64)) for s in (0, 7)]


def test_scaling_a_scheduler():
    scheduler = {"lr": Constant(value=0.1), "weight_decay": Constant(value=0.4)}
    assert scale_scheduler(scheduler=scheduler) == scheduler
    assert scale_scheduler(scheduler=scheduler, reference_batch_size=64, rule="none") == scheduler
    scaled = scale_scheduler(scheduler=scheduler, reference_batch_size=64)
    assert scaled["lr"](3, run_length(32)) == pytest.approx(0.05)
    assert scaled["weight_decay"](3, run_length(32)) == 0.4
    with pytest.raises(ValueError, match=r"scaling\.reference_batch_size=0: expected"):
        scale_scheduler(scheduler=scheduler, reference_batch_size=0)
    with pytest.raises(ValueError, match=r"scaling\.rule: got 'cubic', expected one of linear, sqrt, none"):
        scale_scheduler(scheduler=scheduler, reference_batch_size=64, rule="cubic")


def test_momentum_in_closed_form():
    target = EMATarget(encoder=Point(1, 1), momentum=Linear(start=0.9, final=1.0), reference_batch_size=64)
    assert target.momentum_at(0, run_length(128)) == pytest.approx(0.81)
    assert target.momentum_at(0, run_length(32)) == pytest.approx(math.sqrt(0.9))
    assert target.momentum_at(0, run_length(64)) == pytest.approx(0.9)
    assert target.momentum_at(200, run_length(128)) == 1.0
    plain = EMATarget(encoder=Point(1, 1), momentum=Linear(start=0.9, final=1.0))
    assert plain.momentum_at(0, run_length(128)) == pytest.approx(0.9)


@pytest.mark.parametrize("batch_size", [16, 128, 256])
def test_the_average_is_as_far_after_as_many_samples_at_any_batch_size(batch_size):
    """The weights move on the same line in samples; the averages agree but for the coarser steps."""

    def average(size):
        encoder = Point(1, 1, bias=False)
        nn.init.zeros_(encoder.weight)
        target = EMATarget(encoder=encoder, momentum=Constant(value=0.99), reference_batch_size=64)
        for step in range(25_600 // size):
            with torch.no_grad():
                encoder.weight.fill_((step + 1) * size / 25_600)
            target.update(encoder, step, run_length(size))
        return target.encoder.weight.item()

    still = average(64)
    assert average(batch_size) == pytest.approx(still, rel=0.02)
    expected = 1 - 100 / 400 * (1 - math.exp(-4))  # the continuous limit, 1 / (1 - m) = 100 steps
    assert still == pytest.approx(expected, rel=0.01)


def test_half_life():
    assert half_life(0.5) == pytest.approx(1.0)
    assert 0.996 ** half_life(0.996) == pytest.approx(0.5)
    assert (half_life(0.0), half_life(1.0)) == (0.0, math.inf)


@pytest.mark.parametrize(
    ("momentum", "message"),
    [
        (Constant(value=1.5), "model.target.momentum becomes 1.5"),
        (Linear(start=0.9, final=1.1), "model.target.momentum becomes 1.0"),
        (Constant(value=-0.1), "between 0 .the encoder itself. and 1 .frozen."),
        (Constant(value=float("nan")), "becomes nan"),
        (0.996, "model.target.momentum=0.996: expected a schedule"),
    ],
)
def test_bad_momenta(momentum, message):
    with pytest.raises(ValueError, match=message):
        EMATarget(encoder=Point(1, 1), momentum=momentum)


def test_rounding_does_not_make_a_momentum_bad():
    above = Constant(value=1.0000000000000002)
    assert EMATarget(encoder=Point(1, 1), momentum=above).momentum_at(0, run_length(64)) == 1.0


def test_a_momentum_that_goes_wrong_in_this_run_alone():
    encoder = Point(1, 1)
    target = EMATarget(encoder=encoder, momentum=lambda step, run_length: 0.9 if run_length.max_steps > 500 else 2.0)
    before = encoder.weight.clone()
    with pytest.raises(ValueError, match="becomes 2"):
        target.update(encoder, 0, run_length(64))
    assert torch.equal(target.encoder.weight, before)
    with pytest.raises(ValueError, match=r"model\.target\.reference_batch_size=0"):
        EMATarget(encoder=encoder, momentum=Constant(value=0.9), reference_batch_size=0)


def test_the_plan_in_words():
    scheduler = {
        "lr": WarmupCosine(peak=1e-3, final=1e-6, warmup_epochs=5),
        "weight_decay": Linear(start=0.04, final=0.4),
    }
    assert plan(DIGITS, scheduler, Linear(start=0.95, final=1.0)) == [
        "learning rate 1.0e-03 at its peak, after a warm-up of 7,185 samples (112 steps, 5.0 epochs)",
        "weight decay 0.04 -> 0.4",
        "target momentum 0.95 (half-life 865 samples, 13.5 steps) -> 1 (frozen)",
    ]
    constant = {"lr": Constant(value=0.01), "weight_decay": Constant(value=0.0)}
    assert plan(DIGITS, constant, Constant(value=0.5)) == [
        "learning rate 1.0e-02 throughout",
        "weight decay 0",
        "target momentum 0.5 (half-life 64 samples, 1.0 steps) throughout",
    ]
    assert plan(DIGITS, {"lr": Step(start=0.01, step_size=10)}) == [
        "learning rate 1.0e-02 at its peak, without warm-up"
    ]


def test_the_plan_of_a_scaled_run():
    lr = Warmup(schedule=Constant(value=1e-3), warmup_samples=640)
    scheduler = scale_scheduler(scheduler={"lr": lr}, reference_batch_size=16)
    assert plan(DIGITS, scheduler) == [
        "learning rate 4.0e-03 at its peak (1.0e-03 per 16 samples, times 4 for 64 by the linear rule), after a "
        "warm-up of 640 samples (10 steps, 0.4 epochs)"
    ]


def test_the_plan_of_a_warmup_that_is_longer_than_the_run():
    short = RunLength(max_steps=6, steps_per_epoch=10, batch_size=8)
    assert plan(short, {"lr": NextStep(schedule=WarmupStableDecay(peak=1e-3, warmup_epochs=5))}) == [
        "learning rate 1.2e-04 at its peak, after a warm-up of 400 samples (50 steps, 5.0 epochs), longer than the run "
        "of 6 steps"
    ]


def test_a_run_in_which_the_target_stays_where_it_was_says_what_to_type():
    photos = RunLength(max_steps=42, steps_per_epoch=108 / 256, batch_size=256)
    momentum = Linear(start=0.996, final=1.0)
    assert plan(photos, {}, momentum)[-1] == (
        "in 42 steps features hardly leave random weights: data.batch_size=32 trainer.max_epochs=297 make "
        "1,000, loss=invariance_sigreg model/target=ema_fast is for so few; weights that were trained on more "
        "samples may do better still, init_from=..."
    )
    advised = RunLength(max_steps=1002, steps_per_epoch=108 / 32, batch_size=32)
    trial = RunLength(max_steps=4, steps_per_epoch=108 / 256, batch_size=256)
    others = [(advised, momentum), (trial, momentum), (photos, Constant(value=0.95)), (DIGITS, Constant(value=0.9999))]
    for run, schedule in others:
        assert plan(run, {}, schedule)[-1].startswith("target momentum")
