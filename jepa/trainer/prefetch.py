"""Moving batches to the device, the next one while the present one is worked on."""

from __future__ import annotations

from collections.abc import Callable, Iterable, Iterator
from contextlib import closing
from typing import Any

import torch

from jepa.types import Batch
from jepa.utils.tensors import map_tensors, tensors_in


def to_device(batch: Batch, device: torch.device) -> Batch:
    """Return the batch with its tensors on the device; the copy may still be under way when memory is pinned."""
    return map_tensors(batch, lambda tensor: tensor.to(device, non_blocking=True))


def restartable(start: Callable[[], Iterable[Batch]], version: Callable[[], Any]) -> Iterator[Batch]:
    """Yield the batches of start(); call it anew for those that follow whenever version() has changed."""
    more = True
    while more:
        before, more = version(), False
        with closing(start()) as batches:
            for batch in batches:
                yield batch
                if more := version() != before:
                    break


def prefetch(batches: Iterable[Batch], device: torch.device) -> Iterator[Batch]:
    """Yield the batches on the device. On CUDA one is copied beside the work on the one before, on a second stream."""
    if device.type != "cuda":
        for batch in batches:
            yield to_device(batch, device)
        return
    copying = torch.cuda.Stream(device)
    iterator = iter(batches)

    def start() -> Batch | None:
        with torch.cuda.stream(copying):  # reading as well: data may make its floats on the device
            batch = next(iterator, None)
            return None if batch is None else to_device(batch, device)

    ready = start()
    while ready is not None:
        working = torch.cuda.current_stream(device)
        working.wait_stream(copying)
        for tensor in tensors_in(ready):
            tensor.record_stream(working)  # its memory is not given away before the work on it has ended
        present, ready = ready, start()
        yield present
