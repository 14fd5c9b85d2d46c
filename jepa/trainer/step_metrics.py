"""What becomes of a step's values: agreed on by all ranks, reduced, logged with throughput and memory."""

from __future__ import annotations

import time
from collections.abc import Iterable, Iterator, Mapping
from typing import TypeVar

import psutil
import torch
from torch import Tensor

from jepa.distributed.collectives import all_reduce_max, all_reduce_sum, get_world_size
from jepa.utils.errors import NonFiniteError

Item = TypeVar("Item")
MAX_SKIPPED_STEPS = 20  # fp16 steps in a row that may be skipped for overflow before the run stops


class StepGuard:
    """Keeps what is not finite from the weights, and tells all ranks what each has seen of a step: one all-reduce.

    A step can go unread until the next one asks, so that nobody waits for its device: then the optimizer and the
    target leave out what is not finite by a flag there, `skip`.
    """

    def __init__(self) -> None:
        self.may_lag = False  # set by the loop, which reads what it has left unread
        self.skip: Tensor | None = None  # of the last step: 1.0 on its device where it is not finite, else 0.0
        self._unread: tuple[int, Mapping[str, Tensor], Tensor, torch.cuda.Event | None] | None = None

    @property
    def behind(self) -> int:
        """The number of steps made that have not been read: 0 or 1."""
        return int(self._unread is not None)

    def look_at(self, values: Mapping[str, Tensor], *, step: int, signal: int | None, save: bool) -> None:
        """Exchange over ranks, before the weights move, what is to be read of a step with this number, from 1.

        values: `train/loss` and `grad_norm` decide.
        """
        flags = [~torch.isfinite(values["train/loss"]), ~torch.isfinite(values["grad_norm"])]
        # Filled on the device, as numbers that are copied there would be waited for.
        flags += [torch.full_like(flags[0], float(request), dtype=torch.float32) for request in (signal or 0, save)]
        seen = all_reduce_max(torch.stack([flag.float() for flag in flags]))
        self.skip, copy, event = seen[:2].amax(), seen.clone(), None
        if seen.is_cuda:
            copy = torch.empty(seen.shape, pin_memory=True).copy_(seen, non_blocking=True)
            event = torch.cuda.current_stream(seen.device).record_event()
        self._unread = step, values, copy, event

    def read(self, *, may_skip: bool = False) -> tuple[bool, int, bool]:
        """Return of the step last looked at whether it is finite, the signal to stop for (or 0), and whether to save.

        may_skip: whether a gradient that is not finite is the loss scaler's to skip.
        Raises NonFiniteError for what is not finite and may not be skipped.
        """
        (step, values, seen, event), self._unread = self._unread, None
        if event is not None:
            event.synchronize()
        bad_loss, bad_gradient, signal, save = seen.tolist()
        if bad_loss or (bad_gradient and not may_skip):
            shown = ", ".join(
                f"{name}={value:.4g}" for name, value in to_floats(values).items() if not name.startswith("grad_norm/")
            )
            raise NonFiniteError(
                f"not finite at step {step}: {shown}. The weights were not changed by it. Lower optimizer.lr, "
                "lengthen the warm-up, set trainer.grad_clip_norm=1, or use trainer.precision=fp32 to find the cause"
            )
        return not (bad_loss or bad_gradient), int(signal), bool(save)


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


def slowest_of_ranks(values: Mapping[str, float], device: torch.device) -> dict[str, float]:
    """Return the least samples per second of any rank, and the largest of every other value."""
    signs = [-1.0 if name == "samples_per_second" else 1.0 for name in values]
    signed = torch.tensor([sign * value for sign, value in zip(signs, values.values())], device=device)
    return {name: sign * value for name, sign, value in zip(values, signs, all_reduce_max(signed).tolist())}


class StepMeter:
    """Samples per second, the share of time spent waiting for data, and memory, between two readings."""

    def __init__(self, device: torch.device) -> None:
        self._device, self._process = device, psutil.Process()
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
        asked = time.perf_counter()
        for item in items:
            self._waited += time.perf_counter() - asked
            yield item
            asked = time.perf_counter()

    def read(self) -> dict[str, float]:
        """Return {"samples_per_second", "data_wait", "memory_gib", ...} since the last reading.

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
