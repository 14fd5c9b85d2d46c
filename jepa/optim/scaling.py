"""Scaling a recipe to another batch size, and describing what a run will do.

    python train.py data.batch_size=1024 scaling.reference_batch_size=256

trains at 1024 with the learning rate and momentum that were found to be good at 256.
"""

from __future__ import annotations

import math
from collections.abc import Mapping
from dataclasses import dataclass
from typing import Literal

from jepa.optim.schedules import Changed
from jepa.types import RunLength, Schedule
from jepa.utils.errors import check_choice

Rule = Literal["linear", "sqrt", "none"]


@dataclass(frozen=True, kw_only=True)
class Scaled(Changed):
    """A schedule made for a reference batch size B0, at the run's batch size B: times B / B0, or its root.

    rule: "linear" (Goyal et al. 2017, arXiv 1706.02677), meant for SGD; "sqrt" (Malladi et al. 2022, arXiv
        2205.10287), meant for Adam and its kin; "none" leaves the values as they are.

    A warm-up in epochs or samples keeps its length in samples; one in steps is a length in steps and does not scale.
    """

    reference_batch_size: int
    rule: Rule = "linear"

    def __call__(self, step: float, run_length: RunLength) -> float:
        return self.schedule(step, run_length) * self.factor(run_length)

    def factor(self, run_length: RunLength) -> float:
        """What values are multiplied by."""
        ratio = run_length.batch_size / self.reference_batch_size
        return {"linear": ratio, "sqrt": math.sqrt(ratio), "none": 1.0}[self.rule]


def scale_scheduler(
    *, scheduler: Mapping[str, Schedule], reference_batch_size: int | None = None, rule: Rule = "linear"
) -> dict[str, Schedule]:
    """The scheduler with its learning rate scaled; as it is without a reference batch size or by the rule "none".

    Weight decay is left alone, being multiplied by the learning rate anyway.

    Raises ValueError for a reference below 1 and an unknown rule.
    """
    if reference_batch_size is not None and reference_batch_size < 1:
        raise ValueError(
            f"scaling.reference_batch_size={reference_batch_size}: expected the batch size that the learning rate and "
            "momentum were chosen for, at least 1, or null for no scaling"
        )
    check_choice("scaling.rule", rule, ("linear", "sqrt", "none"))
    if reference_batch_size is None or rule == "none" or "lr" not in scheduler:
        return dict(scheduler)
    return {**scheduler, "lr": Scaled(schedule=scheduler["lr"], reference_batch_size=reference_batch_size, rule=rule)}


def half_life(momentum: float) -> float:
    """Updates after which half of a moving average is new: log(1/2) / log(m); 0 for m = 0, infinite for m = 1."""
    if momentum <= 0:
        return 0.0
    return math.inf if momentum >= 1 else math.log(0.5) / math.log(momentum)


def plan(run_length: RunLength, scheduler: Mapping[str, Schedule], momentum: Schedule | None = None) -> list[str]:
    """Return sentences on what a run does with learning rate, weight decay and moving average.

    momentum: the moving average's, as it is applied at the run's batch size; None without one.
    """
    lines = []
    if "lr" in scheduler:
        lines.append(describe_learning_rate(run_length, scheduler["lr"]))
    if "weight_decay" in scheduler:
        start, final = (scheduler["weight_decay"](step, run_length) for step in (0, run_length.max_steps - 1))
        lines.append(f"weight decay {start:.3g}" + ("" if f"{start:.3g}" == f"{final:.3g}" else f" -> {final:.3g}"))
    if momentum is not None:
        start, final = (describe_momentum(momentum(step, run_length), run_length) for step in (0, run_length.max_steps))
        lines.append(f"target momentum {start}" + (" throughout" if start == final else f" -> {final}"))
        few = run_length.steps_per_epoch < min(20, run_length.max_steps / 10)  # and no trial of few epochs
        if few and half_life(momentum(0, run_length)) > run_length.max_steps:
            size = min(run_length.batch_size, 32)
            epochs = math.ceil(1000 * size / run_length.batch_size / run_length.steps_per_epoch)
            lines.append(
                f"in {run_length.max_steps:,} steps features hardly leave random weights: data.batch_size={size} "
                f"trainer.max_epochs={epochs} make 1,000, loss=invariance_sigreg model/target=ema_fast is for so few; "
                "weights that were trained on more samples may do better still, init_from=..."
            )
    return lines


def describe_learning_rate(run_length: RunLength, schedule: Schedule) -> str:
    """The peak of a learning rate, what it is scaled from, and the warm-up before it."""
    duration = getattr(schedule, "warmup_duration", None)
    exact = 0.0 if duration is None else duration.exact(run_length)
    last = run_length.max_steps - 1
    around_peak = {max(0, min(round(exact) + shift, last)) for shift in (-1, 0)}
    steps = {0, *around_peak, *(last * part // 1000 for part in range(1001))}
    values = [schedule(step, run_length) for step in sorted(steps)]
    peak = max(values)
    text = f"learning rate {peak:.1e} " + ("throughout" if min(values) == peak else "at its peak")
    if isinstance(schedule, Scaled):
        factor = schedule.factor(run_length)
        text += (
            f" ({peak / factor:.1e} per {schedule.reference_batch_size:,} samples, times {factor:.3g} for "
            f"{run_length.batch_size:,} by the {schedule.rule} rule)"
        )
    if round(exact) < 1:
        return text if min(values) == peak else f"{text}, without warm-up"
    text += f", after a warm-up of {describe_length(exact, run_length)}"
    longer = exact > run_length.max_steps
    return f"{text}, longer than the run of {run_length.max_steps:,} steps" if longer else text


def describe_momentum(momentum: float, run_length: RunLength) -> str:
    """A momentum and its half-life, which is said to be longer than the run where it is."""
    if momentum >= 1:
        return f"{momentum:.6g} (frozen)"
    steps = half_life(momentum)
    text = f"{momentum:.6g} (half-life {steps * run_length.batch_size:,.0f} samples, {steps:,.1f} steps"
    longer = f", longer than the run of {run_length.max_steps:,} steps" if steps > run_length.max_steps else ""
    return f"{text}{longer})"


def describe_length(steps: float, run_length: RunLength) -> str:
    """A length in samples, steps and epochs."""
    epochs = run_length.epoch(steps)
    shown = f"{epochs:.1f}" if epochs >= 0.1 else f"{epochs:.1g}"
    return f"{round(steps * run_length.batch_size):,} samples ({round(steps):,} steps, {shown} epochs)"
