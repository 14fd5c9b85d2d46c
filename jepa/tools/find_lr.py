"""Finding a learning rate by trial: real training steps at rising rates. python scripts/find_lr.py data=digits"""

from __future__ import annotations

import math
from contextlib import closing
from dataclasses import dataclass
from typing import Any, Literal

import numpy as np

from jepa.distributed.collectives import get_world_size
from jepa.utils.errors import NonFiniteError, UserError
from jepa.utils.snapshot import preserved


@dataclass(frozen=True)
class LearningRateFinding:
    """What a range test saw: of each step made the rate, the loss before it, and the smoothed loss."""

    learning_rates: list[float]
    losses: list[float]
    smoothed: list[float]
    suggestion: float | None  # where the smoothed loss falls most steeply; None when it fell by no more than its noise
    # Where the smoothed loss is lowest; with AdamW a tenth of it comes nearer to what recipes use.
    lowest: float
    ended: Literal["max_lr", "diverged", "not finite"]  # why the test stopped


def find_learning_rate(trainer: Any, *, min_lr: float = 1e-7, max_lr: float = 1.0, steps: int = 100) -> float:
    """Return the learning rate that a range test suggests, see `learning_rate_range_test`.

    Raise UserError where the loss never falls by more than its noise.
    """
    finding = learning_rate_range_test(trainer, min_lr=min_lr, max_lr=max_lr, steps=steps)
    if finding.suggestion is None:
        raise UserError(
            f"the loss never fell by more than its noise between min_lr={min_lr:g} and max_lr={max_lr:g}: try another "
            "range, more steps or a larger batch"
        )
    return finding.suggestion


def learning_rate_range_test(
    trainer: Any,
    *,
    min_lr: float = 1e-7,
    max_lr: float = 1.0,
    steps: int = 100,
    divergence: float = 2.0,
    smoothing: float = 3.0,
) -> LearningRateFinding:
    """Return what a learning-rate range test finds: train while the rate rises (Smith 2017, arXiv 1506.01186).

    min_lr, max_lr: the range, gone through in `steps` optimizer steps on the batches that training would take next.
    divergence: the test ends once the smoothed loss lies (divergence - 1) times the first loss above its lowest; so
        2 is when it has risen by as much as the loss was at the start. It also ends at a loss that is not finite.
    smoothing: standard deviation, in steps, of the Gaussian average of losses; centred, so that the curve does not
        lag behind the rate. A loss above the level of divergence counts as that level.

    The suggestion is the rate of the steepest descent of the smoothed loss over the logarithm of the rate, up to its
    lowest point. Weight decay and target follow their own schedules meanwhile. A falling loss is not yet learning
    where the target moves along: take the rate as an upper guess for a peak with warm-up, and let the probes decide.

    Everything is put back afterwards, also after an error (`jepa.utils.snapshot.preserved`).

    Raises UserError for a range or number of steps that makes no test, and when not even the first loss is finite.
    """
    check_range(min_lr, max_lr, steps, divergence, smoothing)
    check_single_process("the range test")
    start, ended = trainer.step, "max_lr"
    rates = np.geomspace(min_lr, max_lr, steps).tolist()
    losses: list[float] = []
    batches = trainer.data.train_batches(seed=trainer.seed, start_step=start, stop_step=start + steps)
    with trainer.precision.kernels(), preserved(trainer), closing(batches):
        trainer.scheduler = {**trainer.scheduler, "lr": lambda step, run_length: rates[step - start]}
        try:
            for batch in batches:
                losses.append(float(trainer.train_step(batch)["train/loss"]))
                smoothed = smooth(np.asarray(losses), smoothing)
                if smoothed[-1] - smoothed.min() > (divergence - 1) * abs(losses[0]):
                    ended = "diverged"
                    break
        except NonFiniteError:
            ended = "not finite"
    rates = rates[: len(losses)]
    if not losses:
        raise UserError(
            f"the loss is not finite even at the lowest learning rate, find_lr.min_lr={min_lr:g}: the weights or the "
            "data are at fault, not the rate; look at them with trainer.dry_run=true"
        )
    # Cut off at the level of divergence, as one explosion would bend the smoothed curve before it.
    clipped = np.minimum(losses, min(losses) + (divergence - 1) * abs(losses[0]))
    smoothed = smooth(clipped, smoothing)
    lowest = rates[int(smoothed.argmin())]
    return LearningRateFinding(rates, losses, smoothed.tolist(), suggest(rates, clipped, smoothed), lowest, ended)


def smooth(losses: np.ndarray, deviation: float) -> np.ndarray:
    """Return the Gaussian average of values over their index, with weights that sum to 1 at the ends too."""
    index = np.arange(len(losses))
    weights = np.exp(-0.5 * ((index[:, None] - index[None, :]) / max(deviation, 1e-6)) ** 2)
    return weights @ losses / weights.sum(axis=1)


def suggest(rates: list[float], losses: np.ndarray, smoothed: np.ndarray) -> float | None:
    """Return the rate where the smoothed loss falls most steeply on the way to its lowest point.

    None when it falls by less than the losses scatter about the curve on that way.
    """
    way = slice(0, int(smoothed.argmin()) + 1)
    if smoothed[0] - smoothed.min() <= np.std(losses[way] - smoothed[way]):
        return None
    return rates[int(np.gradient(smoothed[way], np.log(rates[way])).argmin())]


def check_range(min_lr: float, max_lr: float, steps: int, divergence: float, smoothing: float) -> None:
    """Raise UserError for values of conf/find_lr.yaml that make no curve."""
    if not 0 < min_lr < max_lr < math.inf:
        raise UserError(f"find_lr.min_lr={min_lr:g}, find_lr.max_lr={max_lr:g}: expected 0 < min_lr < max_lr")
    if steps < 10:
        raise UserError(f"find_lr.steps={steps}: expected at least 10, as a rule 100, to see where a curve bends")
    if divergence <= 1:
        raise UserError(f"find_lr.divergence={divergence:g}: expected a factor above 1, such as 2")
    if smoothing < 0:
        raise UserError(f"find_lr.smoothing={smoothing:g}: expected steps, 0 (none) or more")


def check_single_process(name: str) -> None:
    """Raise UserError in a distributed run: the global batch is the same on one process, so one is enough."""
    if get_world_size() > 1:
        raise UserError(f"{name} runs on a single process: start it without torchrun; its finding holds for each rank")
