"""What the trainer's settings mean in steps and samples, and which of them are refused."""

from __future__ import annotations

from torch import nn

from jepa.types import RunLength
from jepa.utils.errors import UserError


def make_run_length(
    max_epochs: float | None,
    max_steps: int | None,
    max_samples: int | None,
    *,
    num_train: int,
    batch_size: int,
    limit_train_batches: int | None = None,
) -> RunLength:
    """The length of the run. Steps win over samples, samples over epochs. Raises UserError when it has none.

    limit_train_batches: an epoch ends after so many steps.
    """
    if limit_train_batches is not None and limit_train_batches < 1:
        raise UserError(f"trainer.limit_train_batches must be at least 1, got {limit_train_batches}")
    steps_per_epoch = num_train / batch_size
    if limit_train_batches is not None:
        steps_per_epoch = min(steps_per_epoch, limit_train_batches)
    if max_samples is not None and max_steps is None:
        if max_samples < 1:
            raise UserError(f"trainer.max_samples must be at least 1, got {max_samples}")
        max_steps = max(1, round(max_samples / batch_size))
    if max_steps is None:
        if max_epochs is None or max_epochs <= 0:
            raise UserError(
                f"trainer.max_epochs={max_epochs}, trainer.max_steps=null, trainer.max_samples=null: give one of them, "
                "above 0"
            )
        max_steps = max(1, round(max_epochs * steps_per_epoch))
    if max_steps < 1:
        raise UserError(f"trainer.max_steps must be at least 1, got {max_steps}")
    return RunLength(max_steps=max_steps, steps_per_epoch=steps_per_epoch, batch_size=batch_size)


def share_of_rank(batch_size: int, world_size: int) -> int:
    """Samples of a batch that each rank takes. Raises UserError, with the nearest sizes that fit, for a remainder."""
    share, remainder = divmod(batch_size, world_size)
    if remainder:
        fits = [n * world_size for n in (share, share + 1) if n]
        raise UserError(
            f"data.batch_size={batch_size} cannot be shared by {world_size} ranks; the nearest sizes that can are "
            f"{' and '.join(map(str, fits))}"
        )
    return share


def check_micro_batch_size(micro_batch_size: int | None, batch_size: int, world_size: int = 1) -> int:
    """Samples per forward pass on one device.

    Raises UserError unless they divide each rank's share of the batch, with the sizes that do.
    """
    share = share_of_rank(batch_size, world_size)
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
    if nodes is None and devices is None:
        return
    wanted = (nodes or 1) * (devices or 1)
    if world_size is not None and wanted != world_size:
        raise UserError(
            f"trainer.nodes={nodes or 1} times trainer.devices={devices or 1} are {wanted} processes, but {world_size} "
            f"{'was' if world_size == 1 else 'were'} started: start them by `torchrun --nproc_per_node={devices or 1} "
            "train.py ...` or `python train.py -m hydra/launcher=slurm ...` (without -m no launcher is used)"
        )


def check_statistics(loss: nn.Module, accumulates: bool, allowed: bool) -> None:
    """Raise UserError when a loss looks at the whole batch and gets it in parts."""
    if accumulates and not allowed and getattr(loss, "batch_statistics", False):
        raise UserError(
            "trainer.micro_batch_size: a term of the loss, or a batch norm in it, looks at statistics of the whole "
            "batch, which micro-batches do not add up to: leave it unset, or take statistics of micro-batches with "
            "trainer.allow_microbatch_statistics=true"
        )


def check_positive(**values: float | None) -> None:
    """Raise UserError for a setting that is neither null nor above 0."""
    for name, value in values.items():
        if value is not None and value <= 0:
            raise UserError(f"trainer.{name}={value}: expected a value above 0, or null for none")
