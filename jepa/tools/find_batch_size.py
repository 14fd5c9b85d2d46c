"""Finding the micro-batch size by trial, within the memory. python scripts/find_batch_size.py data=digits"""

from __future__ import annotations

import gc
import math
import time
from collections.abc import Callable
from contextlib import closing
from dataclasses import dataclass
from typing import Any, TypeVar

import psutil
import torch
from torch import nn

from jepa.tools.find_lr import check_single_process
from jepa.types import Batch
from jepa.utils.errors import UserError
from jepa.utils.memory import available_memory, is_out_of_memory, peak_memory, release_freed_memory
from jepa.utils.snapshot import preserved
from jepa.utils.tensors import batch_length, map_tensors

SHARE_OF_AVAILABLE = 0.8  # of the memory that is available, what the search may use by default
MARGIN = 1.1  # factor of a predicted growth of memory, as allocators round up and fragment
PRECISION = 16  # the search ends when the largest size that fits is known to 1 / PRECISION of itself

Result = TypeVar("Result")


@dataclass(frozen=True)
class Trial:
    """A micro-batch that was tried, or predicted."""

    size: int
    fits: bool
    tried: bool  # False when it was not run, as its memory, then a prediction, would exceed the limit
    memory_gib: float | None  # peak of the process or GPU in forward and backward, with weights and optimizer state
    samples_per_second: float | None  # None when it does not fit


@dataclass(frozen=True)
class BatchSizeFinding:
    """What was found of a run's micro-batch."""

    trials: list[Trial]  # by size
    largest: int  # micro-batch that fits, at most `max_size`
    suggestion: int  # the largest that fits and divides data.batch_size
    limit_gib: float | None  # None on a GPU that was filled until it refused
    overrides: list[str]  # what to put on the command line for the suggestion


def find_batch_size(
    trainer: Any, *, limit_gib: float | None = None, max_size: int | None = None, repeats: int = 2
) -> BatchSizeFinding:
    """Return the largest micro-batch that fits into memory, by real forward and backward passes of growing size.

    limit_gib: memory that may be used, in GiB. None is on a GPU all that it gives (a size is given up when torch runs
        out), elsewhere what the process holds and 80 % of what is available.
    max_size: sizes above are not tried; None stops at four times data.batch_size.
    repeats: timed passes per size, after one to warm up; the fastest counts.

    Sizes double until one does not fit, then the gap is halved. With a limit, the memory of a size is predicted from
    the growth between the two largest that ran, and one that would exceed it is not run, so the search itself stays
    within. Gradients and optimizer state are in place during the passes. Everything is put back afterwards.

    Raises UserError for a wrong setting, and when not even the smallest micro-batch fits.
    """
    if limit_gib is not None and limit_gib <= 0:
        raise UserError(f"find_batch_size.limit_gib={limit_gib:g}: expected GiB above 0, or null for what is available")
    if max_size is not None and max_size < 1:
        raise UserError(f"find_batch_size.max_size={max_size}: expected a size of at least 1, or null")
    if repeats < 0:
        raise UserError(f"find_batch_size.repeats={repeats}: expected 0 or more")
    check_single_process("find_batch_size")
    search = _Search(trainer, limit_gib, max_size or 4 * trainer.data.batch_size, repeats)
    with trainer.precision.kernels(), preserved(trainer, parameters=False, optimizer=not trainer.optimizer.state):
        search.run()
    trials = sorted(search.trials.values(), key=lambda trial: trial.size)
    largest = max(trial.size for trial in trials if trial.fits)
    suggestion = max(size for size in search.divisors if size <= largest)
    overrides = [f"trainer.micro_batch_size={suggestion}"]
    if suggestion < trainer.data.batch_size and getattr(trainer.model.loss, "batch_statistics", False):
        overrides.append("trainer.allow_microbatch_statistics=true")
    limit = search.limit / 2**30
    return BatchSizeFinding(trials, largest, suggestion, limit if math.isfinite(limit) else None, overrides)


class _Search:
    """The search under way: which sizes were tried, and what they took."""

    def __init__(self, trainer: Any, limit_gib: float | None, max_size: int, repeats: int) -> None:
        self.trainer, self.max_size, self.repeats = trainer, max_size, repeats
        self.cuda = trainer.device.type == "cuda"
        self.trials: dict[int, Trial] = {}
        if limit_gib is not None:
            self.limit = limit_gib * 2**30
        else:  # bytes
            self.limit = math.inf if self.cuda else self._memory_now() + SHARE_OF_AVAILABLE * available_memory()
        total, modules = trainer.data.batch_size, trainer.model.modules()
        normalised = any(isinstance(module, nn.modules.batchnorm._BatchNorm) for module in modules)
        # Statistics over a batch, and batch norm, have no meaning for one sample.
        least = 2 if normalised or getattr(trainer.model.loss, "batch_statistics", False) else 1
        self.divisors = [size for size in range(least, total + 1) if total % size == 0]
        if not self.divisors or max_size < self.divisors[0]:
            raise UserError(
                f"data.batch_size={total}, find_batch_size.max_size={max_size}: no micro-batch of at least {least} "
                "samples divides the batch within that; raise them"
            )

    def run(self) -> None:
        gc.collect()
        first = {"start_step": self.trainer.step, "stop_step": self.trainer.step + 1}
        with closing(self.trainer.data.train_batches(seed=self.trainer.seed, **first)) as batches:
            self.batch = next(batches)
        self._check_room("before any batch")
        self._make_optimizer_state()
        low, high = self.divisors[0], None
        if not self._fits(low):
            taken = self.trials[low].memory_gib
            self._refuse(f"a micro-batch of {low} takes " + (f"{taken:.2f} GiB" if taken else "more than there is"))
        while high is None and low < self.max_size:
            size = min(2 * low, self.max_size)
            low, high = (size, None) if self._fits(size) else (low, size)
        while high is not None and high - low > max(1, low // PRECISION):
            size = (low + high) // 2
            low, high = (size, high) if self._fits(size) else (low, size)
        best = max(size for size in self.divisors if size <= low)
        if best not in self.trials:
            self._fits(best)  # for its throughput; it fits as a larger one did

    def _fits(self, size: int) -> bool:
        """Return whether a size fits; enter it into the table."""
        if (predicted := self._predict(size)) > self.limit:
            self.trials[size] = Trial(size, False, False, predicted / 2**30, None)
            return False
        measured = unless_out_of_memory(lambda: self._measure(size))
        if measured is None:
            gc.collect()  # the error's traceback, gone by here, may have left cycles that hold tensors
            self.trials[size] = Trial(size, False, True, None, None)
            return False
        memory, speed = measured
        fits = memory <= self.limit
        self.trials[size] = Trial(size, fits, True, memory / 2**30, speed if fits else None)
        return fits

    def _predict(self, size: int) -> float:
        """Return the bytes a size will take, from the growth between the two largest that fit below it; 0 without."""
        known = sorted((t.size, t.memory_gib * 2**30) for t in self.trials.values() if t.fits and t.size < size)
        if not known:
            return 0.0
        above, more = known[-1]
        if len(known) == 1:  # at worst all that it took grows with the size
            return more + max(0.0, more - self._base) * (size / above - 1)
        below, less = known[-2]
        return more + MARGIN * max(0.0, (more - less) / (above - below)) * (size - above)

    def _measure(self, size: int) -> tuple[float, float]:
        """Return peak bytes and samples per second of forward and backward."""
        batch = resized(self.batch, size, self.trainer.device)
        release_freed_memory()  # what an earlier size left, so that what is measured is this one's
        if self.cuda:
            torch.cuda.empty_cache()
            torch.cuda.reset_peak_memory_stats(self.trainer.device)
        with peak_memory() as resident:
            seconds = self._pass(batch)
        peak = float(torch.cuda.max_memory_allocated(self.trainer.device)) if self.cuda else resident()
        return peak, size / min([self._pass(batch) for _ in range(self.repeats)] or [seconds])

    def _pass(self, batch: Batch) -> float:
        """Return the seconds of forward and backward of a micro-batch; gradients add up to those that are there."""
        trainer, begun = self.trainer, time.perf_counter()
        trainer.model.train()
        with trainer.precision.autocast():
            outputs = trainer.training_step(batch, trainer.step)
        loss = outputs["loss"] if isinstance(outputs, dict) else outputs
        trainer.precision.scaler.scale(loss).backward()
        if self.cuda:
            torch.cuda.synchronize(trainer.device)
        return time.perf_counter() - begun

    def _make_optimizer_state(self) -> None:
        """Have the optimizer allocate its state by a real step, which is taken back; the state stays."""
        self._base = self._memory_now()
        if self.trainer.optimizer.state:
            return

        def step() -> bool:
            self._pass(resized(self.batch, self.divisors[0], self.trainer.device))
            self.trainer.optimizer.step()
            return True

        with preserved(self.trainer, optimizer=False):
            if not unless_out_of_memory(step):
                self._refuse("weights, gradients and optimizer state alone take more than there is")
        # Gradients too: each pass needs them.
        for parameter in self.trainer.model.parameters():
            if parameter.requires_grad and parameter.grad is None:
                parameter.grad = torch.zeros_like(parameter)
        self._base = self._check_room("with gradients and optimizer state")

    def _check_room(self, when: str) -> float:
        """Return the bytes that are taken now. Raise UserError if they are above the limit."""
        if (taken := self._memory_now()) > self.limit:
            self._refuse(f"the process holds {taken / 2**30:.2f} GiB {when}")
        return taken

    def _refuse(self, reason: str) -> None:
        limit = f", find_batch_size.limit_gib is {self.limit / 2**30:.2f}" if math.isfinite(self.limit) else ""
        raise UserError(f"no micro-batch fits: {reason}{limit}. Use more memory or a smaller model (model.encoder.*)")

    def _memory_now(self) -> float:
        if self.cuda:
            return float(torch.cuda.memory_allocated(self.trainer.device))
        release_freed_memory()
        return float(psutil.Process().memory_info().rss)


def resized(batch: Batch, size: int, device: torch.device | str) -> Batch:
    """Return a batch of another size on the device: its first samples, repeated where there are too few."""
    index = torch.arange(size) % batch_length(batch)
    return map_tensors(batch, lambda tensor: tensor[index].to(device))


def unless_out_of_memory(function: Callable[[], Result]) -> Result | None:
    """Return the function's result; None if memory runs out."""
    try:
        return function()
    except RuntimeError as error:
        if not is_out_of_memory(error):
            raise
        return None
