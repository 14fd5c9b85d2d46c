"""The loss on the held-out split, shared out over the ranks."""

from __future__ import annotations

from collections.abc import Callable, Mapping
from itertools import islice
from typing import Any

import torch
from torch import Tensor

from jepa.distributed.collectives import all_reduce_sum, get_rank, get_world_size, no_collectives
from jepa.types import Batch, StepRandomness
from jepa.utils.random import derive_seed
from jepa.utils.tensors import batch_length, batch_slice


@torch.no_grad()
def validation_loss(
    losses: Callable[[Batch, StepRandomness], Mapping[str, Tensor]],
    data: Any,
    *,
    micro_batch_size: int,
    seed: int,
    device: torch.device,
    limit_batches: int | None = None,
) -> float:
    """Return the mean loss on the held-out split, with masks that are the same every time.

    losses: the model's step, in evaluation mode. It does not depend on the number of ranks: they share each batch, and
    losses over batch statistics span them.
    """
    seed = derive_seed(seed, "validation")
    ranks, size = get_world_size(), micro_batch_size * get_world_size()
    sums = torch.zeros(2, device=device)

    def weighted(batch: Batch, rng: StepRandomness, weight: float) -> Tensor:
        loss = losses(batch, rng)["loss"].float()
        return torch.stack([loss, torch.ones_like(loss)]) * weight

    for number, batch in enumerate(islice(data.validation_batches(batch_size=size), limit_batches)):
        count = batch_length(batch)
        # Drawn for batches of the global size, so that neither ranks nor micro-batches change anything.
        step, start = divmod(number * size, data.batch_size)
        drawn = min(data.batch_size, data.spec.num_test - step * data.batch_size)
        if count < ranks:  # too few to share: all ranks do the same
            rng = StepRandomness(seed=seed, step=step, total=drawn, start=start, count=count)
            with no_collectives():
                sums += weighted(batch, rng, count / ranks)
            continue
        first, last = (count * r // ranks for r in (get_rank(), get_rank() + 1))
        rng = StepRandomness(seed=seed, step=step, total=drawn, start=start + first, count=last - first)
        sums += weighted(batch_slice(batch, slice(first, last)), rng, last - first)
    loss, samples = all_reduce_sum(sums).tolist()
    return loss / samples
