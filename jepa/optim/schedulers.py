"""What `scheduler=` chooses: the schedules of a run's learning rate and weight decay, by shape.

Each function returns {"lr": Schedule, "weight_decay": Schedule}, advanced before use, as in published code.
Of warmup_epochs, warmup_steps and warmup_samples at most one is given; warmup_steps alone stays as it is when the
batch size changes. stretch above 1: the run ends before the schedules do (published as ipe_scale).
final_weight_decay None: the weight decay stays.
"""

from __future__ import annotations

from typing import Literal

from jepa.optim.schedules import Constant, Cosine, Linear, NextStep, Step, Warmup, WarmupCosine, WarmupStableDecay
from jepa.types import Schedule


def constant(
    *,
    lr: float,
    weight_decay: float,
    start_lr: float = 0.0,
    warmup_epochs: float | None = None,
    warmup_steps: int | None = None,
    warmup_samples: int | None = None,
) -> dict[str, Schedule]:
    """The optimizer's learning rate, after a warm-up where one is given, and weight decay throughout."""
    warmup = {"warmup_epochs": warmup_epochs, "warmup_steps": warmup_steps, "warmup_samples": warmup_samples}
    rate = Warmup(start=start_lr, schedule=Constant(value=lr), **warmup)
    return _advanced_before_use(rate, Constant(value=weight_decay))


def cosine(
    *,
    lr: float,
    weight_decay: float,
    start_lr: float = 0.0,
    min_lr: float = 0.0,
    warmup_epochs: float | None = None,
    warmup_steps: int | None = None,
    warmup_samples: int | None = None,
    final_weight_decay: float | None = None,
    stretch: float = 1.0,
) -> dict[str, Schedule]:
    """Learning rate: a line from start_lr up to lr, then a cosine down to min_lr. Weight decay: a cosine."""
    warmup = {"warmup_epochs": warmup_epochs, "warmup_steps": warmup_steps, "warmup_samples": warmup_samples}
    rate = WarmupCosine(start=start_lr, peak=lr, final=min_lr, stretch=stretch, **warmup)
    final = weight_decay if final_weight_decay is None else final_weight_decay
    return _advanced_before_use(rate, Cosine(start=weight_decay, final=final, stretch=stretch))


def warmup_stable_decay(
    *,
    lr: float,
    weight_decay: float,
    start_lr: float = 0.0,
    min_lr: float = 0.0,
    warmup_epochs: float | None = None,
    warmup_steps: int | None = None,
    warmup_samples: int | None = None,
    decay_share: float | None = None,
    decay_epochs: float | None = None,
    decay_steps: int | None = None,
    decay_samples: int | None = None,
    shape: Literal["linear", "cosine", "sqrt"] = "linear",
    final_weight_decay: float | None = None,
    stretch: float = 1.0,
) -> dict[str, Schedule]:
    """Learning rate: up to lr, there until the decay, which takes a share of the run, then down. Weight decay: a line.

    One of decay_share, decay_epochs, decay_steps, decay_samples is given. decay_share 1: all that follows the warm-up.
    """
    warmup = {"warmup_epochs": warmup_epochs, "warmup_steps": warmup_steps, "warmup_samples": warmup_samples}
    decay = {"decay_epochs": decay_epochs, "decay_steps": decay_steps, "decay_samples": decay_samples}
    rate = WarmupStableDecay(
        start=start_lr, peak=lr, final=min_lr, decay_share=decay_share, shape=shape, stretch=stretch, **warmup, **decay
    )
    return _advanced_before_use(rate, _linear_weight_decay(weight_decay, final_weight_decay, stretch))


def step(
    *,
    lr: float,
    weight_decay: float,
    step_size: float,
    unit: Literal["epochs", "steps", "samples"] = "epochs",
    gamma: float = 0.1,
    start_lr: float = 0.0,
    warmup_epochs: float | None = None,
    warmup_steps: int | None = None,
    warmup_samples: int | None = None,
    final_weight_decay: float | None = None,
    stretch: float = 1.0,
) -> dict[str, Schedule]:
    """Learning rate: a line up to lr; times gamma after every step_size of the run. Weight decay: a line."""
    warmup = {"warmup_epochs": warmup_epochs, "warmup_steps": warmup_steps, "warmup_samples": warmup_samples}
    drops = Step(start=lr, step_size=step_size, unit=unit, gamma=gamma)
    rate = Warmup(start=start_lr, schedule=drops, **warmup)
    return _advanced_before_use(rate, _linear_weight_decay(weight_decay, final_weight_decay, stretch))


def _linear_weight_decay(weight_decay: float, final: float | None, stretch: float) -> Linear:
    return Linear(start=weight_decay, final=weight_decay if final is None else final, stretch=stretch)


def _advanced_before_use(rate: Schedule, weight_decay: Schedule) -> dict[str, Schedule]:
    return {"lr": NextStep(schedule=rate), "weight_decay": NextStep(schedule=weight_decay)}
