"""Moving batches to the device, the next one while the present one is worked on."""

from __future__ import annotations

from collections.abc import Iterable, Iterator

import torch

from jepa.types import Batch
from jepa.utils.tensors import map_tensors, tensors_in


def to_device(batch: Batch, device: torch.device) -> Batch:
    """The batch with its tensors on the device; the copy need not have ended when memory is pinned."""
    return map_tensors(batch, lambda tensor: tensor.to(device, non_blocking=True))


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
        for tensor in tensors_in(ready):
            tensor.record_stream(working)  # its memory is not given away before the work on it has ended
        present, ready = ready, start()
        yield present
