"""What the trainer's settings mean in steps and samples, and which of them are refused."""

from __future__ import annotations

import math
from dataclasses import dataclass

from jepa.types import RunLength
from jepa.utils.errors import UserError


@dataclass(frozen=True, kw_only=True)
class Intervals:
    """Steps between two events of each kind, which need not be whole; None is never.

    probe: the online probe. evaluate: the evaluation of frozen features. snapshot: checkpoints that stay.
    """

    log: float = 10
    validate: float | None = None
    probe: float | None = None
    evaluate: float | None = None
    save: float | None = None
    snapshot: float | None = None


def due(step: int, every: float | None) -> bool:
    """Return whether a multiple of `every` steps (need not be whole) was reached with this step; never for None."""
    return every is not None and math.floor(step / every) > math.floor((step - 1) / every)


def period(key: str, epochs: float | None, steps: int | None, run_length: RunLength) -> float | None:
    """Return the steps between two events given in epochs or in steps, which win; None when neither is given.

    key: what the settings' names begin with, such as "trainer.save_". Raises UserError unless they are positive.
    """
    if (epochs is not None and epochs <= 0) or (steps is not None and steps < 1):
        raise UserError(f"{key}every_epochs and {key}every_steps must be positive, or null for never")
    if steps is not None or epochs is None:
        return steps
    return epochs * run_length.steps_per_epoch


def make_run_length(
    max_epochs: float | None,
    max_steps: int | None,
    max_samples: int | None,
    *,
    num_train: int,
    batch_size: int,
    limit_train_batches: int | None = None,
) -> RunLength:
    """Return the length of the run. Steps win over samples, samples over epochs. Raises UserError when it has none.

    limit_train_batches: an epoch ends after so many steps.
    """
    check_positive(max_steps=max_steps, max_samples=max_samples, limit_train_batches=limit_train_batches)
    steps_per_epoch = min(num_train / batch_size, limit_train_batches or math.inf)
    if max_steps is None and max_samples is not None:
        max_steps = max(1, round(max_samples / batch_size))
    if max_steps is None:
        if max_epochs is None or max_epochs <= 0:
            raise UserError(
                f"trainer.max_epochs={max_epochs}, trainer.max_steps=null, trainer.max_samples=null: give one of them, "
                "above 0"
            )
        max_steps = max(1, round(max_epochs * steps_per_epoch))
    return RunLength(max_steps=max_steps, steps_per_epoch=steps_per_epoch, batch_size=batch_size)


def check_micro_batch_size(micro_batch_size: int | None, batch_size: int, world_size: int) -> int:
    """Return the samples per forward pass on one device; None takes each rank's share of the batch.

    Raises UserError, with the sizes that fit, unless ranks and micro-batches divide the batch.
    """
    share, remainder = divmod(batch_size, world_size)
    if remainder:
        fits = [n * world_size for n in (share, share + 1) if n]
        raise UserError(
            f"data.batch_size={batch_size} cannot be shared by {world_size} ranks; the nearest sizes that can are "
            f"{' and '.join(map(str, fits))}"
        )
    size = share if micro_batch_size is None else micro_batch_size
    if size < 1 or share % size:
        fits = [n for n in range(1, share + 1) if share % n == 0]
        ranks = f" on each of {world_size} ranks ({share} samples)" if world_size > 1 else ""
        raise UserError(
            f"trainer.micro_batch_size={size} does not divide data.batch_size={batch_size}{ranks}: use one of {fits}"
        )
    return size


def check_processes(nodes: int | None, devices: int | None, world_size: int | None) -> None:
    """Raise UserError unless `nodes` times `devices` processes train together, where either is given.

    world_size: how many do; None where it does not matter.
    """
    check_positive(nodes=nodes, devices=devices)
    nodes_wanted, devices_wanted = nodes or 1, devices or 1
    wanted = nodes_wanted * devices_wanted
    if (nodes is None and devices is None) or world_size in (None, wanted):
        return
    raise UserError(
        f"trainer.nodes={nodes_wanted} times trainer.devices={devices_wanted} are {wanted} processes, but {world_size} "
        f"{'was' if world_size == 1 else 'were'} started: start them by `torchrun --nproc_per_node={devices_wanted} "
        "train.py ...` or `python train.py -m hydra/launcher=slurm ...` (without -m no launcher is used)"
    )


def check_positive(**values: float | None) -> None:
    """Raise UserError for a setting that is neither null nor above 0."""
    for name, value in values.items():
        if value is not None and value <= 0:
            raise UserError(f"trainer.{name}={value}: expected a value above 0, or null for none")
