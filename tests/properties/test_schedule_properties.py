"""Whatever the settings, schedules are bounded, without jumps, and functions of the step alone."""

from __future__ import annotations

import itertools
import math

import pytest
from hypothesis import assume, given
from hypothesis import strategies as st

from jepa.optim import Ramp, schedulers
from jepa.types import RunLength

rate = st.floats(0, 10)
run_lengths = st.builds(
    RunLength,
    max_steps=st.integers(1, 300),
    steps_per_epoch=st.floats(0.1, 120),
    batch_size=st.integers(1, 512),
)
DECAYS = {"linear": lambda s: s, "sqrt": math.sqrt, "cosine": lambda s: math.pi / 2 * s}
"""Shape -> the largest change in a step that is this share of the decay, of a height of 1."""


@st.composite
def settings_of(draw, name: str):
    """Arguments of a scheduler."""
    chosen = {"lr": draw(rate), "start_lr": draw(rate), "weight_decay": draw(rate)}
    unit = draw(st.sampled_from(["epochs", "steps", "samples", None]))
    if unit:
        chosen[f"warmup_{unit}"] = draw(st.floats(0, 5) if unit == "epochs" else st.integers(0, 400))
    if name != "constant":
        chosen |= {"final_weight_decay": draw(st.none() | rate), "stretch": draw(st.floats(0.3, 3))}
    if name in ("cosine", "warmup_stable_decay"):
        chosen["min_lr"] = draw(rate)
    if name == "warmup_stable_decay":
        unit = draw(st.sampled_from(["share", "epochs", "steps", "samples"]))
        values = {"share": st.floats(0, 1), "epochs": st.floats(0, 5)}.get(unit, st.integers(0, 400))
        chosen |= {f"decay_{unit}": draw(values), "shape": draw(st.sampled_from(sorted(DECAYS)))}
    if name == "step":
        unit = draw(st.sampled_from(["epochs", "steps", "samples"]))
        chosen |= {"step_size": draw(st.floats(0.5, 300)), "unit": unit, "gamma": draw(st.floats(0.1, 1))}
    return chosen


def steps_of(duration, run_length: RunLength) -> int:
    """A duration in whole steps, by its unit's definition."""
    if duration.epochs is not None:
        return round(duration.epochs * run_length.steps_per_epoch)
    return round(duration.samples / run_length.batch_size) if duration.samples is not None else duration.steps or 0


def values(schedule, run_length: RunLength) -> list[float]:
    """The value of each update, and two behind the end."""
    return [schedule(step, run_length) for step in range(run_length.max_steps + 2)]


@pytest.mark.parametrize("name", ["constant", "cosine", "warmup_stable_decay", "step"])
@given(data=st.data(), run_length=run_lengths)
def test_learning_rates(name, data, run_length):
    chosen = data.draw(settings_of(name))
    schedule = getattr(schedulers, name)(**chosen)["lr"]
    rates = values(schedule, run_length)
    order = data.draw(st.permutations(range(min(len(rates), 20))))
    assert [schedule(step, run_length) for step in order] == [rates[step] for step in order], "of the step alone"

    levels = [chosen["lr"], chosen["start_lr"], chosen.get("min_lr", chosen["lr"])]
    lowest = 0 if name == "step" else min(levels)
    assert all(lowest - 1e-9 <= value <= max(levels) + 1e-9 for value in rates)

    warmup = steps_of(schedule.warmup_duration, run_length)
    rising = rates[: min(warmup, len(rates))]  # the first update has the value at step 1, so this ends at the peak
    direction = 1 if rising and rising[-1] >= rising[0] else -1
    assert all(direction * (after - before) >= -1e-9 for before, after in itertools.pairwise(rising))

    total = run_length.max_steps * chosen.get("stretch", 1)
    if name == "step" or total <= warmup:  # which drops at once
        return
    decay = total - warmup
    if name == "warmup_stable_decay":
        inner = schedule.schedule.decay_duration
        share = inner.share is not None
        decay = min(decay, round(inner.share * total) if share else steps_of(inner, run_length))
    shape = DECAYS[chosen.get("shape", "cosine")]
    fall = abs(chosen["lr"] - chosen.get("min_lr", chosen["lr"])) * min(1, shape(1 / max(1, decay)))
    rise = abs(chosen["lr"] - chosen["start_lr"]) / max(1, warmup)
    for before, after in itertools.pairwise(rates):
        assert abs(after - before) <= max(rise, fall) + 1e-9, "a jump"


@given(data=st.data(), run_length=run_lengths)
def test_weight_decay_goes_one_way_between_its_ends(data, run_length):
    name = data.draw(st.sampled_from(["constant", "cosine", "warmup_stable_decay", "step"]))
    chosen = data.draw(settings_of(name))
    decays = values(getattr(schedulers, name)(**chosen)["weight_decay"], run_length)
    final = chosen.get("final_weight_decay")
    ends = sorted([chosen["weight_decay"], chosen["weight_decay"] if final is None else final])
    assert all(ends[0] - 1e-9 <= value <= ends[1] + 1e-9 for value in decays)
    direction = 1 if decays[-1] >= decays[0] else -1
    assert all(direction * (after - before) >= -1e-9 for before, after in itertools.pairwise(decays))


@given(st.integers(0, 200), st.data(), run_lengths)
def test_a_duration_is_the_same_in_any_unit(steps, data, run_length):
    name = data.draw(st.sampled_from(["constant", "cosine", "warmup_stable_decay", "step"]))
    chosen = {key: v for key, v in data.draw(settings_of(name)).items() if not key.startswith(("warmup_", "decay_"))}
    units = {
        "steps": steps,
        "epochs": steps / run_length.steps_per_epoch,
        "samples": steps * run_length.batch_size,
    }
    phases = ["warmup", "decay"] if name == "warmup_stable_decay" else ["warmup"]
    for phase in phases:
        by_unit = [
            values(getattr(schedulers, name)(**chosen, **{f"{phase}_{unit}": length})["lr"], run_length)
            for unit, length in units.items()
        ]
        assert by_unit[0] == by_unit[1] == by_unit[2]


@given(rate, rate, st.integers(0, 100), st.integers(1, 100), run_lengths)
def test_a_ramp_rises_by_equal_steps_between_its_ends(start, final, begin, length, run_length):
    assume(begin + length <= run_length.max_steps)
    weights = values(Ramp(start=start, final=final, begin_step=begin, end_step=begin + length), run_length)
    assert weights[: begin + 1] == [start] * (begin + 1)
    assert weights[begin + length :] == pytest.approx([final] * (len(weights) - begin - length))
    slope = (final - start) / length
    inside = weights[begin : begin + length + 1]
    assert [b - a for a, b in itertools.pairwise(inside)] == pytest.approx([slope] * length, abs=1e-9)
