"""Metrics of training steps: means over ranks, throughput, waiting for data, memory and cost."""

from __future__ import annotations

import time
from collections.abc import Iterable, Iterator, Mapping
from typing import TypeVar

import psutil
import torch
from torch import Tensor, nn

from jepa.distributed.collectives import all_reduce_max, all_reduce_sum, broadcast_from_rank0, get_world_size

Item = TypeVar("Item")


class StepMeter:
    """Samples per second, the share of time spent waiting for data, and memory, between two readings."""

    def __init__(self, device: torch.device) -> None:
        self._device = device
        self._process = psutil.Process()
        self.restart()

    def start(self) -> None:
        """Restart, also the peak of memory: training begins or goes on."""
        if self._device.type == "cuda":
            torch.cuda.reset_peak_memory_stats(self._device)
        self.restart()

    def restart(self) -> None:
        """Forget the time since the last reading, as after an evaluation."""
        self._begun, self._waited, self._samples = time.perf_counter(), 0.0, 0

    def count(self, samples: int) -> None:
        """Add a step's samples."""
        self._samples += samples

    def waiting_for(self, items: Iterable[Item]) -> Iterator[Item]:
        """Yield the items; the time until each comes is counted as waiting."""
        iterator = iter(items)
        while True:
            asked = time.perf_counter()
            try:
                item = next(iterator)
            except StopIteration:
                return
            self._waited += time.perf_counter() - asked
            yield item

    def read(self) -> dict[str, float]:
        """{"samples_per_second", "data_wait", "memory_gib", ...} since the last reading.

        data_wait is a share of the time. Memory in GiB: on a CUDA device `memory_peak_gib`, the most that tensors
        have taken in the run and `memory_gib` too, `memory_allocated_gib`, what they take now, and
        `memory_reserved_gib`, what the allocator holds; elsewhere `memory_gib` alone, what the process has resident.
        """
        elapsed = max(time.perf_counter() - self._begun, 1e-9)
        values = {"samples_per_second": self._samples / elapsed, "data_wait": self._waited / elapsed, **self._memory()}
        self.restart()
        return values

    def _memory(self) -> dict[str, float]:
        if self._device.type != "cuda":
            return {"memory_gib": self._process.memory_info().rss / 2**30}
        statistics = torch.cuda.memory_stats(self._device)  # of the allocator: empty before its first use
        peak = statistics.get("allocated_bytes.all.peak", 0) / 2**30
        return {
            "memory_gib": peak,
            "memory_peak_gib": peak,
            "memory_allocated_gib": statistics.get("allocated_bytes.all.current", 0) / 2**30,
            "memory_reserved_gib": statistics.get("reserved_bytes.all.current", 0) / 2**30,
        }


def slowest_of_ranks(values: Mapping[str, float], device: torch.device) -> dict[str, float]:
    """Return the least samples per second of any rank, and the largest of every other value."""
    signs = [-1.0 if name == "samples_per_second" else 1.0 for name in values]
    signed = torch.tensor([sign * value for sign, value in zip(signs, values.values())], device=device)
    return {name: sign * value for name, sign, value in zip(values, signs, all_reduce_max(signed).tolist())}


def to_floats(values: Mapping[str, Tensor | float]) -> dict[str, float]:
    """Return plain numbers; all tensors are fetched from the device in one transfer."""
    names = [name for name, value in values.items() if isinstance(value, Tensor)]
    fetched = torch.stack([values[name].float() for name in names]).tolist() if names else []
    return {**values, **dict(zip(names, fetched))}


def reduce_values(values: Mapping[str, Tensor | float]) -> dict[str, float]:
    """Return values as floats, those of the training step (`train/...`) as the mean over ranks."""
    names = [name for name in values if name.startswith("train/")]
    means = all_reduce_sum(torch.stack([values[name] for name in names])) / get_world_size()
    return to_floats({**values, **dict(zip(names, means))})


def run_costs(model: nn.Module, seconds: float, samples: int) -> dict[str, float]:
    """Return what a run has cost so far, over all restarts, to weigh accuracy against.

    `cost/seconds` of training steps, waiting for data included and measuring left out; `cost/samples` trained on;
    `cost/parameters` that are trained.
    """
    parameters = sum(p.numel() for p in model.parameters() if p.requires_grad)
    return {
        "cost/seconds": broadcast_from_rank0(lambda: seconds),
        "cost/samples": float(samples),
        "cost/parameters": float(parameters),
    }
