"""Moving batches to the device, the next one while the present one is worked on."""

from __future__ import annotations

from collections.abc import Iterable, Iterator

import torch
from torch import Tensor

from jepa.types import Batch


def to_device(batch: Batch, device: torch.device) -> Batch:
    """The batch with its tensors on the device; the copy need not have ended when memory is pinned."""
    return {
        name: value.to(device, non_blocking=True) if isinstance(value, Tensor) else value
        for name, value in batch.items()
    }


def prefetch(batches: Iterable[Batch], device: torch.device) -> Iterator[Batch]:
    """The batches on the device. On CUDA the copy of one runs beside the work on the one before, on a second stream."""
    if device.type != "cuda":
        for batch in batches:
            yield to_device(batch, device)
        return
    copying = torch.cuda.Stream(device)
    iterator = iter(batches)

    def start() -> Batch | None:
        batch = next(iterator, None)
        with torch.cuda.stream(copying):
            return None if batch is None else to_device(batch, device)

    ready = start()
    while ready is not None:
        working = torch.cuda.current_stream(device)
        working.wait_stream(copying)
        for value in ready.values():
            if isinstance(value, Tensor):
                value.record_stream(working)  # its memory is not given away before the work on it has ended
        present, ready = ready, start()
        yield present
