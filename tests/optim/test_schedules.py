from __future__ import annotations

import math
from pathlib import Path

import pytest

from jepa import build_trainer, load_config
from jepa.optim import Constant, Cosine, Duration, Linear, Step, Warmup, WarmupCosine, WarmupStableDecay
from jepa.types import RunLength

RUN = RunLength(max_steps=100, steps_per_epoch=12.5, batch_size=64)


def over_the_run(schedule, run_length=RUN):
    return [schedule(step, run_length) for step in range(run_length.max_steps + 1)]


def test_constant_and_linear():
    assert Constant(value=0.3)(57, RUN) == 0.3
    linear = Linear(start=0.9, final=1.0)
    assert [linear(step, RUN) for step in (0, 50, 100, 120)] == pytest.approx([0.9, 0.95, 1.0, 1.0])


def test_cosine():
    cosine = Cosine(start=2.0, final=4.0)
    expected = [2.0, 3 - math.cos(math.pi / 4), 3.0, 4.0]
    assert [cosine(step, RUN) for step in (0, 25, 50, 100)] == pytest.approx(expected)


def test_warmup_then_cosine():
    schedule = WarmupCosine(start=0.1, peak=1.0, final=0.2, warmup_epochs=1.6)
    assert schedule(0, RUN) == pytest.approx(0.1)
    assert schedule(10, RUN) == pytest.approx(0.55)
    assert schedule(20, RUN) == pytest.approx(1.0)
    assert schedule(60, RUN) == pytest.approx(0.6)
    assert schedule(100, RUN) == pytest.approx(0.2)
    values = [schedule(step, RUN) for step in range(20, 101)]
    assert values == sorted(values, reverse=True)


def test_step():
    schedule = Step(start=1.0, step_size=2, gamma=0.1)  # 2 epochs are 25 steps
    expected = [1.0, 1.0, 0.1, 0.1, 0.01, 0.001, 0.0001]
    assert [schedule(step, RUN) for step in (0, 24, 25, 49, 50, 75, 100)] == pytest.approx(expected)
    tenth = Step(start=1.0, step_size=0.1, gamma=0.5, unit="epochs")
    assert tenth(3, RunLength(max_steps=9, steps_per_epoch=1)) == pytest.approx(0.5**30)
    assert tenth(0.3, RunLength(max_steps=9, steps_per_epoch=1)) == pytest.approx(0.5**3)  # 0.3 / 0.1 is below 3


def test_warmup_before_any_schedule():
    schedule = Warmup(schedule=Step(start=1.0, step_size=30, unit="steps", gamma=0.5), start=0.2, warmup_steps=20)
    expected = [0.2, 0.6, 1.0, 1.0, 0.5, 0.25]  # the drops are counted from the start of the run
    assert [schedule(step, RUN) for step in (0, 10, 20, 29, 30, 60)] == pytest.approx(expected)
    inner = Linear(start=1.0, final=0.0)
    assert over_the_run(Warmup(schedule=inner)) == over_the_run(inner)
    assert Warmup(schedule=inner, warmup_steps=20)(10, RUN) == pytest.approx(0.4)


@pytest.mark.parametrize(
    ("shape", "quarter"), [("linear", 0.75), ("cosine", 0.5 + math.cos(math.pi / 4) / 2), ("sqrt", 0.5)]
)
def test_warmup_stable_decay(shape, quarter):
    schedule = WarmupStableDecay(start=0.0, peak=2.0, final=1.0, warmup_steps=10, decay_share=0.4, shape=shape)
    assert [schedule(step, RUN) for step in (0, 5, 10, 40, 60)] == pytest.approx([0.0, 1.0, 2.0, 2.0, 2.0])
    assert schedule(70, RUN) == pytest.approx(1 + quarter)
    assert [schedule(step, RUN) for step in (100, 120)] == pytest.approx([1.0, 1.0])


def test_a_decay_of_the_whole_run_begins_where_the_warmup_ends():
    schedule = WarmupStableDecay(peak=1.0, warmup_steps=20, decay_share=1.0)
    assert [schedule(step, RUN) for step in (10, 20, 60, 100)] == pytest.approx([0.5, 1.0, 0.5, 0.0])
    assert over_the_run(WarmupStableDecay(peak=1.0, warmup_steps=20, decay_steps=500)) == over_the_run(schedule)
    stays = WarmupStableDecay(peak=1.0, warmup_steps=20)
    assert over_the_run(stays)[20:] == [1.0] * 81


def test_the_stable_part_does_not_know_how_long_the_run_is():
    schedule = WarmupStableDecay(peak=1.0, warmup_steps=20, decay_steps=30)
    longer = RunLength(max_steps=200, steps_per_epoch=12.5, batch_size=64)
    assert over_the_run(schedule)[:71] == over_the_run(schedule, longer)[:71]


@pytest.mark.parametrize(
    ("make", "name"),
    [
        (lambda **warmup: WarmupCosine(peak=1.0, start=0.1, **warmup), "warmup"),
        (lambda **warmup: Warmup(schedule=Linear(start=1.0, final=0.0), **warmup), "warmup"),
        (lambda **warmup: WarmupStableDecay(peak=1.0, **warmup), "warmup"),
        (lambda **decay: WarmupStableDecay(peak=1.0, warmup_steps=3, **decay), "decay"),
    ],
)
def test_a_duration_is_the_same_in_any_unit(make, name):
    expected = over_the_run(make(**{f"{name}_steps": 25}))
    assert over_the_run(make(**{f"{name}_epochs": 2})) == expected
    assert over_the_run(make(**{f"{name}_samples": 1600})) == expected
    if name == "decay":
        assert over_the_run(make(decay_share=0.25)) == expected
    assert over_the_run(make(**{f"{name}_steps": 26})) != expected
    for pair in ({"epochs": 2, "steps": 25}, {"epochs": 2, "samples": 1600}, {"steps": 25, "samples": 1600}):
        with pytest.raises(ValueError, match=rf"{name}_\w+=\d+ and {name}_\w+=\d+: give one of them, not both"):
            make(**{f"{name}_{unit}": value for unit, value in pair.items()})
    for unit in ("epochs", "steps", "samples"):
        with pytest.raises(ValueError, match=rf"{name}_{unit}=-1: expected a length of at least 0"):
            make(**{f"{name}_{unit}": -1})


def test_a_step_size_is_the_same_in_any_unit():
    given = [(2, "epochs"), (25, "steps"), (1600, "samples")]
    first, *others = [over_the_run(Step(start=1.0, step_size=size, unit=unit)) for size, unit in given]
    assert others == [first, first]


def test_a_warmup_in_samples_is_as_long_at_any_batch_size():
    whole = RunLength(max_steps=50, steps_per_epoch=6.25, batch_size=128)
    for warmup in ({"warmup_epochs": 2.56}, {"warmup_samples": 2048}):
        schedule = WarmupCosine(peak=1.0, **warmup)
        assert [schedule(step, whole) for step in range(51)] == pytest.approx(over_the_run(schedule)[::2])
        assert (schedule.warmup(RUN), schedule.warmup(whole)) == (32, 16)


@pytest.mark.parametrize("kind", [Linear, Cosine])
def test_stretch_is_the_longer_run_cut_short(kind):
    longer = RunLength(max_steps=125, steps_per_epoch=12.5)
    stretched, plain = kind(start=0.0, final=1.0, stretch=1.25), kind(start=0.0, final=1.0)
    assert over_the_run(stretched) == pytest.approx([plain(s, longer) for s in range(101)])
    assert stretched(100, RUN) < 1.0


def test_stretch_of_a_decay():
    longer = RunLength(max_steps=125, steps_per_epoch=12.5)
    options = {"peak": 1.0, "warmup_steps": 10, "decay_share": 0.4}
    expected = [WarmupStableDecay(**options)(s, longer) for s in range(101)]
    assert over_the_run(WarmupStableDecay(**options, stretch=1.25)) == pytest.approx(expected)


@pytest.mark.parametrize(
    ("make", "message"),
    [
        (lambda: Cosine(start=0.0, final=1.0, stretch=0.0), "stretch must be positive"),
        (lambda: Step(start=1.0, step_size=0), "step_size=0: expected a number of epochs above 0"),
        (lambda: Step(start=1.0, step_size=-3, unit="steps"), "step_size=-3: expected a number of steps"),
        (lambda: Step(start=1.0, step_size=3, gamma=-0.1), "gamma=-0.1: expected a factor above 0"),
        (lambda: Step(start=1.0, step_size=3, unit="hours"), "unit: got 'hours', expected one of epochs, steps"),
        (lambda: WarmupStableDecay(peak=1.0, shape="cubic"), "shape: got 'cubic', expected one of linear, cosine"),
        (lambda: WarmupStableDecay(peak=1.0, decay_share=1.5), "decay_share=1.5: expected a share"),
        (lambda: Duration(name="warmup", epochs=float("nan")), "warmup_epochs=nan"),
    ],
)
def test_bad_values(make, message):
    with pytest.raises(ValueError, match=message):
        make()


def test_every_scheduler_in_closed_form(tiny, tmp_path):
    """Rate and weight decay in force after s updates are the published ones of update s + 1, for every option."""
    steps, warmup, peak, low, first, final = 10, 4, 0.1, 0.01, 0.04, 0.4
    base = [*tiny, f"trainer.max_steps={steps}", f"optimizer.lr={peak}", f"optimizer.weight_decay={first}"]
    more = [f"scheduler.min_lr={low}", "scheduler.warmup_epochs=null", f"scheduler.warmup_steps={warmup}"]
    decay = f"scheduler.final_weight_decay={final}"

    def after(falling):
        """Warm-up to update 4, then falling(share of what follows it)."""
        return [peak * u / warmup if u < warmup else falling((u - warmup) / (steps - warmup)) for u in range(1, 11)]

    line = [first + (final - first) * u / steps for u in range(1, 11)]
    cosine = [final + (first - final) * (1 + math.cos(math.pi * u / steps)) / 2 for u in range(1, 11)]
    options = {
        "constant": ([], [peak] * 10, [first] * 10),
        "cosine": ([*more, decay], after(lambda s: low + (peak - low) * (1 + math.cos(math.pi * s)) / 2), cosine),
        "ijepa": (
            more,
            [low * 2 + (peak - low * 2) * u / warmup for u in range(1, warmup)]
            + [low + (peak - low) * (1 + math.cos(math.pi * (u - warmup) / 6)) / 2 for u in range(warmup, 11)],
            cosine,
        ),
        "linear": ([*more, decay], after(lambda s: peak + (low - peak) * s), line),
        "wsd": ([*more, decay], after(lambda s: peak + (low - peak) * max(0.0, (s * 6 - 4) / 2)), line),
        "step": (
            [*more[1:], decay, "scheduler.step_size=5", "scheduler.unit=steps", "scheduler.gamma=0.5"],
            [0.025, 0.05, 0.075, 0.1, 0.05, 0.05, 0.05, 0.05, 0.05, 0.025],
            line,
        ),
    }
    assert options.keys() == {path.stem for path in Path("conf/scheduler").glob("*.yaml")}
    for name, (overrides, rates, decays) in options.items():
        trainer = build_trainer(load_config([*base, f"scheduler={name}", *overrides, f"run_dir={tmp_path / name}"]))
        called = {key: [s(step, trainer.run_length) for step in range(steps)] for key, s in trainer.scheduler.items()}
        assert called["lr"] == pytest.approx(rates), name
        assert called["weight_decay"] == pytest.approx(decays), name
        momentum = trainer.model.momentum_schedule
        start = momentum(0, trainer.run_length)
        assert [momentum(step, trainer.run_length) for step in range(steps)] == pytest.approx(
            [start + (momentum(steps, trainer.run_length) - start) * step / steps for step in range(steps)]
        )
