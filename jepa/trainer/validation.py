"""The loss on the held-out split, shared out over the ranks."""

from __future__ import annotations

from itertools import islice
from typing import TYPE_CHECKING

import torch

from jepa.distributed.collectives import all_reduce_sum, get_rank, get_world_size, no_collectives
from jepa.types import Batch, StepRandomness
from jepa.utils.random import derive_seed
from jepa.utils.tensors import batch_length, batch_slice

if TYPE_CHECKING:
    from jepa.trainer.trainer import Trainer


@torch.no_grad()
def validation_loss(trainer: Trainer, limit_batches: int | None = None) -> float:
    """Mean loss on the held-out split, with masks that are the same every time.

    It does not depend on the number of ranks: they share each batch, and losses over batch statistics span them.
    """
    trainer.model.eval()
    seed = derive_seed(trainer.seed, "validation")
    ranks, size = get_world_size(), trainer.micro_batch_size * get_world_size()
    sums = torch.zeros(2, device=trainer.device)
    for number, batch in enumerate(islice(trainer.data.validation_batches(batch_size=size), limit_batches)):
        count = batch_length(batch)
        # Drawn for batches of the global size, so that neither ranks nor micro-batches change anything.
        whole, start = divmod(number * size, trainer.data.batch_size)
        drawn = min(trainer.data.batch_size, trainer.data.spec.num_test - whole * trainer.data.batch_size)
        if count < ranks:  # too few to share: all ranks do the same
            rng = StepRandomness(seed=seed, step=whole, total=drawn, start=start, count=count)
            with no_collectives():
                sums += _loss(trainer, batch, rng) * count / ranks
            continue
        first, last = (count * r // ranks for r in (get_rank(), get_rank() + 1))
        mine = batch_slice(batch, slice(first, last))
        rng = StepRandomness(seed=seed, step=whole, total=drawn, start=start + first, count=last - first)
        sums += _loss(trainer, mine, rng) * (last - first)
    loss, samples = all_reduce_sum(sums).tolist()
    return loss / samples


def _loss(trainer: Trainer, batch: Batch, rng: StepRandomness) -> torch.Tensor:
    """[loss, 1] of one batch."""

    def forward() -> torch.Tensor:
        return trainer.criterion(trainer.model(trainer.prepared(batch, rng)))["loss"]

    with trainer.precision.autocast():
        loss = trainer.parallel(forward)
    return torch.stack([loss.float(), torch.ones_like(loss, dtype=torch.float32)])
