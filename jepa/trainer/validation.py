"""The loss on the held-out split, shared out over the ranks."""

from __future__ import annotations

from itertools import islice
from typing import TYPE_CHECKING

import torch

from jepa.types import Batch, Draw
from jepa.utils.batches import batch_length, batch_slice
from jepa.utils.distributed import alone, rank, total, world_size
from jepa.utils.random import derive_seed

if TYPE_CHECKING:
    from jepa.trainer.trainer import Trainer


@torch.no_grad()
def validation_loss(trainer: Trainer, limit_batches: int | None = None) -> float:
    """Mean loss on the held-out split, with masks that are the same every time.

    It does not depend on the number of ranks: they share each batch, and losses over batch statistics span them.
    """
    trainer.model.eval()
    seed = derive_seed(trainer.seed, "validation")
    ranks, size = world_size(), trainer.micro_batch_size * world_size()
    sums = torch.zeros(2, device=trainer.device)
    for number, batch in enumerate(islice(trainer.data.validation_batches(batch_size=size), limit_batches)):
        count = batch_length(batch)
        # Drawn for batches of the global size, so that neither ranks nor micro-batches change anything.
        whole, start = divmod(number * size, trainer.data.batch_size)
        drawn = min(trainer.data.batch_size, trainer.data.spec.num_test - whole * trainer.data.batch_size)
        if count < ranks:  # too few to share: all ranks do the same
            draw = Draw(seed=seed, step=whole, total=drawn, start=start, count=count)
            with alone():
                sums += _loss(trainer, batch, draw) * count / ranks
            continue
        first, last = (count * r // ranks for r in (rank(), rank() + 1))
        mine = batch_slice(batch, slice(first, last))
        draw = Draw(seed=seed, step=whole, total=drawn, start=start + first, count=last - first)
        sums += _loss(trainer, mine, draw) * (last - first)
    loss, samples = total(sums).tolist()
    return loss / samples


def _loss(trainer: Trainer, batch: Batch, draw: Draw) -> torch.Tensor:
    """[loss, 1] of one batch."""

    def forward() -> torch.Tensor:
        return trainer.criterion(trainer.model(trainer.prepared(batch, draw)))["loss"]

    with trainer.precision.autocast():
        loss = trainer.parallel(forward)
    return torch.stack([loss.float(), torch.ones_like(loss, dtype=torch.float32)])
