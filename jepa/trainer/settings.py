"""What the trainer's settings mean in steps and samples, and which of them are refused."""

from __future__ import annotations

import contextlib
import math
from collections.abc import Iterator
from dataclasses import dataclass
from typing import TYPE_CHECKING, Any

from jepa.types import RunLength
from jepa.utils.errors import UserError, first_line
from jepa.utils.memory import is_out_of_memory

if TYPE_CHECKING:
    from jepa.trainer.trainer_parts import TrainerParts


@dataclass(frozen=True, kw_only=True)
class Intervals:
    """Steps between two events of each kind, which need not be whole; None is never.

    probe: the quick probe, by `evaluation.online_every_*`. evaluate: the evaluation of frozen features. snapshot:
    checkpoints that stay.
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


def make_intervals(trainer: TrainerParts) -> Intervals:
    """Return the intervals in steps, those of an evaluation too. Raises UserError as `period`."""

    def every(of: Any, name: str = "", key: str = "evaluation") -> float | None:
        if of is None:
            return None
        given = getattr(of, f"{name}every_epochs"), getattr(of, f"{name}every_steps")
        return period(f"{key}.{name}", *given, trainer.run_length)

    return Intervals(
        log=trainer.log_every,
        validate=every(trainer, "validate_", "trainer"),
        save=every(trainer, "save_", "trainer"),
        snapshot=every(trainer, "snapshot_", "trainer"),
        evaluate=every(trainer.evaluation),
        probe=every(trainer.evaluation, "online_"),
    )


def make_run_length(trainer: TrainerParts) -> RunLength:
    """Return the length of the run. Steps win over samples, samples over epochs. Raises UserError when it has none."""
    max_steps, max_epochs, batch_size = trainer.max_steps, trainer.max_epochs, trainer.data.batch_size
    steps_per_epoch = min(trainer.data.spec.num_train / batch_size, trainer.limit_train_batches or math.inf)
    if max_steps is None and trainer.max_samples is not None:
        max_steps = max(1, round(trainer.max_samples / batch_size))
    if max_steps is None:
        if max_epochs is None or max_epochs <= 0:
            raise UserError(
                f"trainer.max_epochs={max_epochs}, trainer.max_steps=null, trainer.max_samples=null: give one of them, "
                "above 0"
            )
        max_steps = max(1, round(max_epochs * steps_per_epoch))
    return RunLength(max_steps=max_steps, steps_per_epoch=steps_per_epoch, batch_size=batch_size)


def find_micro_batch_size(trainer: TrainerParts) -> int:
    """Return the samples per forward pass on one device, by default each rank's share of the batch.

    Raises UserError, with the sizes that fit, unless ranks and micro-batches divide the batch.
    """
    batch_size, world_size = trainer.data.batch_size, trainer.world_size
    share, remainder = divmod(batch_size, world_size)
    if remainder:
        fits = [n * world_size for n in (share, share + 1) if n]
        raise UserError(
            f"data.batch_size={batch_size} cannot be shared by {world_size} ranks; the nearest sizes that can are "
            f"{' and '.join(map(str, fits))}"
        )
    size = share if trainer.micro_batch_size is None else trainer.micro_batch_size
    if size < 1 or share % size:
        fits = [n for n in range(1, share + 1) if share % n == 0]
        ranks = f" on each of {world_size} ranks ({share} samples)" if world_size > 1 else ""
        raise UserError(
            f"trainer.micro_batch_size={size} does not divide data.batch_size={batch_size}{ranks}: use one of {fits}"
        )
    loss = trainer.model.loss
    if size < share and getattr(loss, "batch_statistics", False) and not trainer.allow_microbatch_statistics:
        what = ", ".join(getattr(loss, "over_batch", [])) or f"the loss ({type(loss).__name__})"
        raise UserError(
            f"trainer.micro_batch_size={size} would split what is computed over all samples of the batch: {what}. "
            "Leave it unset (trainer.micro_batch_size=null; trainer.activation_checkpointing=true saves memory, too), "
            f"or make that the batch (data.batch_size={size * world_size}), or let each part stand for itself "
            "(trainer.allow_microbatch_statistics=true)"
        )
    return size


@contextlib.contextmanager
def explaining_out_of_memory(trainer: TrainerParts) -> Iterator[None]:
    """A context of a step. Raise UserError, with the settings that take less, where the device has no memory left."""
    try:
        yield
    except RuntimeError as error:
        if not is_out_of_memory(error):
            raise
        size, total, ways = trainer.micro_batch_size, trainer.data.batch_size, []
        whole = getattr(trainer.model.loss, "batch_statistics", False) and not trainer.allow_microbatch_statistics
        if size > 1 and not whole:
            smaller = max(n for n in range(1, size // 2 + 1) if size % n == 0)
            ways.append(f"trainer.micro_batch_size={smaller} (python scripts/find_batch_size.py finds the largest)")
        if not trainer.activation_checkpointing:
            ways.append("trainer.activation_checkpointing=true")
        ways.append("a smaller data.batch_size" if whole else "a smaller model (model.encoder.*)")
        raise UserError(
            f"out of memory at step {trainer.step + 1} on {trainer.device}, with micro-batches of {size} "
            f"(data.batch_size={total}): set {', '.join(ways[:-1])}{' or ' * (len(ways) > 1)}{ways[-1]}. "
            f"Torch says: {first_line(error)}{trainer.folder.what_stands()}"
        ) from error


def check_processes(nodes: int | None, devices: int | None, world_size: int) -> None:
    """Raise UserError unless `nodes` times `devices` processes train together, where either is given."""
    nodes_wanted, devices_wanted = nodes or 1, devices or 1
    wanted = nodes_wanted * devices_wanted
    if (nodes is None and devices is None) or wanted == world_size:
        return
    raise UserError(
        f"trainer.nodes={nodes_wanted} times trainer.devices={devices_wanted} are {wanted} processes, but {world_size} "
        f"{'was' if world_size == 1 else 'were'} started: start them by `torchrun --nproc_per_node={devices_wanted} "
        "train.py ...` or `python train.py -m hydra/launcher=slurm ...` (without -m no launcher is used)"
    )


POSITIVE = ("nodes", "devices", "max_steps", "max_samples", "limit_train_batches", "limit_val_batches", "log_every")
POSITIVE += ("grad_clip_norm", "grad_clip_value", "save_every_minutes", "timeout_seconds")


def check_positive(trainer: TrainerParts) -> None:
    """Raise UserError for a setting that is neither null nor above 0, as it must be."""
    for name in POSITIVE:
        value = getattr(trainer, name)
        if value is not None and value <= 0:
            raise UserError(f"trainer.{name}={value}: expected a value above 0, or null for none")


def check_clipping(trainer: TrainerParts) -> None:
    """Raise UserError for parts to clip apart that the model does not have, and without a norm to clip them to."""
    apart, known = trainer.grad_clip_apart or (), [name for name, _ in trainer.model.named_children()]
    if isinstance(apart, str) or set(apart) - set(known):
        raise UserError(f"trainer.grad_clip_apart={apart}: expected a list of parts of the model ({', '.join(known)})")
    if apart and trainer.grad_clip_norm is None:
        raise UserError(f"trainer.grad_clip_apart={apart} needs a norm to clip each to: set trainer.grad_clip_norm=1")
