"""Finding the micro-batch size by trial: real forward and backward passes of rising size, within the memory.

python scripts/find_batch_size.py data=digits
"""

from __future__ import annotations

import gc
import time
from collections.abc import Iterator
from contextlib import closing, contextmanager
from dataclasses import dataclass, field
from typing import Any

import psutil
import torch
from torch import Tensor, nn

from jepa.tools.find_lr import check_single_process
from jepa.types import Batch
from jepa.utils.errors import UserError
from jepa.utils.memory import available_memory, peak_memory, release_freed_memory
from jepa.utils.snapshot import preserved
from jepa.utils.tensors import batch_length, map_tensors

SHARE_OF_AVAILABLE = 0.8
"""Of the memory that is available, what the search may use by default."""
MARGIN = 1.1
"""What a predicted growth of memory is multiplied with, as allocators round up and fragment."""
PRECISION = 16
"""The search ends when the largest size that fits is known to 1 / PRECISION of itself."""
OUT_OF_MEMORY = ("out of memory", "can't allocate memory", "not enough memory")
"""What a RuntimeError of torch says where there is no class for it: on MPS and the CPU."""


@dataclass(frozen=True)
class Trial:
    """One size. memory_gib: the process's or GPU's peak during forward and backward, with weights and optimizer state.

    tried: False when it was not run, as its memory, then a prediction, would exceed the limit.
    samples_per_second is None when it does not fit.
    """

    size: int
    fits: bool
    tried: bool
    memory_gib: float | None
    samples_per_second: float | None


@dataclass(frozen=True)
class BatchSizeFinding:
    """What the search found.

    trials: by size. largest: the largest micro-batch that fits (at most `max_size`). suggestion: the largest that
    fits and divides data.batch_size. overrides: what to put on the command line for it. limit_gib: None on a GPU
    that was filled until it refused.
    """

    trials: list[Trial]
    largest: int
    suggestion: int
    limit_gib: float | None
    overrides: list[str] = field(default_factory=list)


def find_batch_size(
    trainer: Any, *, limit_gib: float | None = None, max_size: int | None = None, repeats: int = 2
) -> BatchSizeFinding:
    """The largest micro-batch that fits into memory, by real forward and backward passes of growing size.

    limit_gib: memory that may be used, in GiB. None is on a GPU all that it gives (a size is given up when torch runs
        out), elsewhere what the process holds and 80 % of what is available.
    max_size: sizes above are not tried; None stops at four times data.batch_size.
    repeats: timed passes per size, after one to warm up; the fastest counts.

    Sizes double until one does not fit, then the gap is halved. With a limit, the memory of a size is predicted from
    the growth between the two largest that ran, and one that would exceed it is not run, so the search itself stays
    within. Gradients and optimizer state are in place during the passes. Everything is put back afterwards.

    Raises UserError for a wrong setting, and when not even the smallest micro-batch fits.
    """
    check_settings(limit_gib, max_size, repeats)
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
    return BatchSizeFinding(
        trials=trials,
        largest=largest,
        suggestion=suggestion,
        limit_gib=None if search.limit is None else search.limit / 2**30,
        overrides=overrides,
    )


class _Search:
    """The search under way: which sizes were tried, and what they took."""

    def __init__(self, trainer: Any, limit_gib: float | None, max_size: int, repeats: int) -> None:
        self.trainer, self.max_size, self.repeats = trainer, max_size, repeats
        self.cuda = trainer.device.type == "cuda"
        self.trials: dict[int, Trial] = {}
        self.limit = self._limit(limit_gib)
        least = 2 if needs_two_samples(trainer.model) else 1
        total = trainer.data.batch_size
        self.divisors = [size for size in range(least, total + 1) if total % size == 0]
        if not self.divisors or max_size < self.divisors[0]:
            raise UserError(
                f"data.batch_size={total}, find_batch_size.max_size={max_size}: no micro-batch of at least {least} "
                "samples divides the batch within that; raise them"
            )
        self.smallest = self.divisors[0]

    def run(self) -> None:
        """Fill `trials`."""
        trainer = self.trainer
        gc.collect()
        batches = trainer.data.train_batches(seed=trainer.seed, start_step=trainer.step, stop_step=trainer.step + 1)
        with closing(batches):
            self.batch = next(batches)
        self._check_room(self._memory_now(), "before any batch")
        self._make_optimizer_state()
        low, high = self.smallest, None
        if not self._attempt(low):
            taken = self.trials[low].memory_gib
            self._refuse(f"a micro-batch of {low} takes " + (f"{taken:.2f} GiB" if taken else "more than there is"))
        while high is None and low < self.max_size:
            size = min(2 * low, self.max_size)
            low, high = (size, None) if self._attempt(size) else (low, size)
        while high is not None and high - low > max(1, low // PRECISION):
            size = (low + high) // 2
            low, high = (size, high) if self._attempt(size) else (low, size)
        best = max(size for size in self.divisors if size <= low)
        if best not in self.trials:
            self._attempt(best)  # its throughput; it fits as a larger one did

    def _attempt(self, size: int) -> bool:
        """Whether a size fits; enters it into the table."""
        predicted = self._predict(size)
        if self.limit is not None and predicted is not None and predicted > self.limit:
            self.trials[size] = Trial(size, False, False, predicted / 2**30, None)
            return False
        try:
            memory, speed = self._measure(size)
        except RuntimeError as error:  # torch.OutOfMemoryError is one
            if not is_out_of_memory(error):
                raise
            memory, speed = None, None
        if memory is None:
            gc.collect()  # the error's traceback, gone by here, may have left cycles that hold tensors
        fits = memory is not None and (self.limit is None or memory <= self.limit)
        self.trials[size] = Trial(size, fits, True, None if memory is None else memory / 2**30, speed if fits else None)
        return fits

    def _predict(self, size: int) -> float | None:
        """Bytes a size will take, from the growth between the two largest that fit below it; None without two."""
        known = sorted((t.size, t.memory_gib * 2**30) for t in self.trials.values() if t.fits and t.size < size)
        if len(known) < 2:
            # Only the smallest ran: at worst all that it took grows with the size.
            return None if not known else known[0][1] + max(0.0, known[0][1] - self._base) * (size / known[0][0] - 1)
        (below, less), (above, more) = known[-2:]
        slope = max(0.0, (more - less) / (above - below))
        return more + MARGIN * slope * (size - above)

    def _measure(self, size: int) -> tuple[float, float]:
        """Peak bytes and samples per second of forward and backward."""
        batch = self._resized(size)
        self._clean_up()
        with self._peak() as peak:
            seconds = self._time(batch)
        memory = peak()
        return memory, size / min([self._time(batch) for _ in range(self.repeats)] or [seconds])

    def _resized(self, size: int) -> Batch:
        return map_tensors(resized(self.batch, size), lambda tensor: tensor.to(self.trainer.device))

    def _time(self, batch: dict[str, Tensor]) -> float:
        begun = time.perf_counter()
        self._pass(batch)
        if self.cuda:
            torch.cuda.synchronize(self.trainer.device)
        return time.perf_counter() - begun

    def _pass(self, batch: dict[str, Tensor]) -> None:
        """Forward and backward of one micro-batch; gradients add up to those that are there."""
        trainer = self.trainer
        trainer.model.train()
        with trainer.precision.autocast():
            outputs = trainer.training_step(batch, trainer.step)
        loss = outputs["loss"] if isinstance(outputs, dict) else outputs
        trainer.precision.scaler.scale(loss).backward()

    def _make_optimizer_state(self) -> None:
        """Have the optimizer allocate its state by a real step, which is taken back; the state stays."""
        self._base = self._memory_now()
        if self.trainer.optimizer.state:
            return
        try:
            with preserved(self.trainer, optimizer=False):
                self._pass(self._resized(self.smallest))
                self.trainer.optimizer.step()
        except RuntimeError as error:
            if not is_out_of_memory(error):
                raise
            self._base = None
        if self._base is None:
            self._refuse("weights, gradients and optimizer state alone take more than there is")
        # Gradients too: each pass needs them.
        for parameter in self.trainer.model.parameters():
            if parameter.requires_grad and parameter.grad is None:
                parameter.grad = torch.zeros_like(parameter)
        self._base = self._memory_now()
        self._check_room(self._base, "with gradients and optimizer state")

    def _check_room(self, taken: float, when: str) -> None:
        if self.limit is not None and taken > self.limit:
            self._refuse(f"the process holds {taken / 2**30:.2f} GiB {when}")

    def _refuse(self, reason: str) -> None:
        limit = "" if self.limit is None else f", find_batch_size.limit_gib is {self.limit / 2**30:.2f}"
        raise UserError(f"no micro-batch fits: {reason}{limit}. Use more memory or a smaller model (model.encoder.*)")

    def _limit(self, limit_gib: float | None) -> float | None:
        if limit_gib is not None:
            return limit_gib * 2**30
        return None if self.cuda else self._memory_now() + SHARE_OF_AVAILABLE * available_memory()

    def _memory_now(self) -> float:
        if self.cuda:
            return float(torch.cuda.memory_allocated(self.trainer.device))
        release_freed_memory()
        return float(psutil.Process().memory_info().rss)

    @contextmanager
    def _peak(self) -> Iterator[Any]:
        """Return a context with a function that returns its peak memory in bytes afterwards."""
        if self.cuda:
            torch.cuda.reset_peak_memory_stats(self.trainer.device)
            yield lambda: float(torch.cuda.max_memory_allocated(self.trainer.device))
        else:
            with peak_memory() as peak:
                yield peak

    def _clean_up(self) -> None:
        """Give back what an earlier size left, so that what is measured is this one's."""
        release_freed_memory()
        if self.cuda:
            torch.cuda.empty_cache()


def needs_two_samples(model: nn.Module) -> bool:
    """Whether a batch of one has no meaning: statistics over the batch, and batch norm, need two."""
    normalised = any(isinstance(module, nn.modules.batchnorm._BatchNorm) for module in model.modules())
    return normalised or getattr(model.loss, "batch_statistics", False)


def resized(batch: Batch, size: int) -> Batch:
    """A batch of another size: its first samples, repeated where there are too few."""
    index = torch.arange(size) % batch_length(batch)
    return map_tensors(batch, lambda tensor: tensor[index])


def is_out_of_memory(error: RuntimeError) -> bool:
    """Whether it is memory that ran out."""
    return isinstance(error, torch.OutOfMemoryError) or any(text in str(error).lower() for text in OUT_OF_MEMORY)


def check_settings(limit_gib: float | None, max_size: int | None, repeats: int) -> None:
    """Raise UserError for settings out of range."""
    if limit_gib is not None and limit_gib <= 0:
        raise UserError(f"find_batch_size.limit_gib={limit_gib:g}: expected GiB above 0, or null for what is available")
    if max_size is not None and max_size < 1:
        raise UserError(f"find_batch_size.max_size={max_size}: expected a size of at least 1, or null")
    if repeats < 0:
        raise UserError(f"find_batch_size.repeats={repeats}: expected 0 or more")
