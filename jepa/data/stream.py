"""The sample stream: which samples a training step takes, and the loader that brings them; for any modality.

Sample counters i = 0, 1, 2, ... run through the whole training. Counter i belongs to epoch i // n and takes
position i % n of the permutation of (seed, epoch); step s takes counters s * B .. (s + 1) * B - 1. So batches
cross epochs, and n need not be divisible by B. Whatever is random about a sample is a function of
(seed, counter). So the stream is the same for any number of workers and ranks, and a run resumes at any step.
"""

from __future__ import annotations

import contextlib
import logging
import os
import signal
import traceback
import warnings
from collections.abc import Callable, Iterable, Iterator, Mapping, Sequence
from dataclasses import dataclass
from typing import Any, Protocol

import torch
from torch import Tensor
from torch._utils import ExceptionWrapper
from torch.utils.data import DataLoader, Dataset, get_worker_info

from jepa.types import Batch
from jepa.utils.errors import NO_SHARED_MEMORY, DataError, UserError, is_shared_memory_error, worker_gone
from jepa.utils.random import generator
from jepa.utils.tensors import map_tensors

log = logging.getLogger("jepa")
PROGRAMMING_ERRORS = (TypeError, AttributeError, NameError, KeyError, ImportError, AssertionError, NotImplementedError)
"""What no sample is blamed for, see `blamed`."""
LARGEST_INPUT = 1e15
"""Beyond this the squares that a network or a spectrogram adds up leave float32; files also mark what is missing so."""


class Samples(Protocol):
    """A data set; items raise UnreadableSample for damage. `describe(index)`, if any, names one in messages."""

    def __len__(self) -> int: ...

    def __getitem__(self, index: int) -> Any: ...


class UnreadableSample(Exception):
    """A damaged sample: its name (a path) and the reason. The stream replaces it by the next sample."""

    def __init__(self, name: str, reason: str) -> None:
        super().__init__(name, reason)
        self.name, self.reason = name, reason

    def __str__(self) -> str:
        return f"cannot read {self.name}: {self.reason}"


class UnfitSample(DataError):
    """A sample that was read, but cannot become what the settings ask for: an image of another number of channels."""


class TooManyUnreadable(Exception):
    """Ends the reading of a batch in a worker; `args` has what is bad, which the main process reports and raises."""


@dataclass(frozen=True)
class Request:
    """The samples of one batch: their counters in the stream, and their indices in the data set."""

    counters: Sequence[int]
    indices: Sequence[int]


class SampleOrder:
    """The samples of every step: `num_samples` n, global `batch_size` B, and the seed."""

    def __init__(self, *, num_samples: int, batch_size: int, seed: int) -> None:
        self.num_samples, self.batch_size, self.seed = num_samples, batch_size, seed
        self._epoch, self._permutation = -1, torch.empty(0, dtype=torch.int64)

    def request(self, step: int, *, rank: int = 0, world_size: int = 1) -> Request:
        """One rank's contiguous B / world_size samples of a step. Raise UserError when they cannot be shared evenly."""
        share, remainder = divmod(self.batch_size, world_size)
        if remainder:
            sizes = f"the nearest sizes that can are {share * world_size} and {(share + 1) * world_size}"
            raise UserError(f"data.batch_size={self.batch_size} cannot be shared by {world_size} ranks; {sizes}")
        first = step * self.batch_size + rank * share
        return Request(range(first, first + share), self._indices(first, first + share).tolist())

    def _indices(self, start: int, stop: int) -> Tensor:
        parts = []
        while start < stop:
            epoch, position = divmod(start, self.num_samples)
            if epoch != self._epoch:
                random = generator("cpu", self.seed, "order", epoch)
                self._epoch, self._permutation = epoch, torch.randperm(self.num_samples, generator=random)
            parts.append(self._permutation[position : position + stop - start])
            start += len(parts[-1])
        return torch.cat(parts)


def fixed_order(num_samples: int, *, batch_size: int, limit: int | None = None) -> Iterator[Request]:
    """All samples in order, the last batch short; or `limit` of them, always the same random subset."""
    indices = torch.arange(num_samples)
    if limit is not None and limit < num_samples:
        indices = torch.randperm(num_samples, generator=generator("cpu", 0, "subset"))[:limit].sort().values
    for chunk in indices.split(batch_size):
        yield Request(chunk.tolist(), chunk.tolist())


class BadSamples(dict[str, str]):
    """Unreadable samples, name -> reason; `report` ends the run beyond the share max_share of `total` samples."""

    def __init__(self, *, total: int, max_share: float) -> None:
        super().__init__()
        self.total, self.max_share = total, max_share

    @property
    def limit(self) -> float:
        """How many may be bad: the share, but at least one sample of a small split unless the share is 0."""
        return max(1.0, self.max_share * self.total) if self.max_share > 0 else 0.0

    def report(self, found: Mapping[str, str]) -> None:
        """Note and log samples that could not be read, name -> reason. Raise DataError once they are too many."""
        for name, reason in found.items():
            if name not in self:
                self[name] = reason
                log.warning("cannot read %s; the next sample takes its place", shown(name, reason))
        if len(self) > self.limit:
            first = "".join(f"\n  {shown(*each)}" for each in list(self.items())[:3])
            bad = f"{len(self)} of {self.total} samples ({len(self) / self.total:.1%}) cannot be read"
            more = f"more than data.max_bad_share={self.max_share:g}. Mend or remove them, or raise that share"
            raise DataError(f"{bad}, which is {more}. The first:{first}")


def shown(name: str, reason: str) -> str:
    """A bad sample in a message: a name or reason may hold anything that a hostile file holds."""
    texts = (text if len(text) <= 300 else f"{text[:300]}..." for text in (name, reason))
    name, reason = ("".join(c if c.isprintable() else repr(c)[1:-1] for c in text) for text in texts)
    return f"{name} ({reason})"


def blamed(error: Exception, name: str) -> tuple[str, str]:
    """Return the name and reason of the bad sample that an error tells of, or raise it where no sample is to blame.

    The one place that decides this. What reading and preparing a sample raises makes it a bad one, as readers of files
    raise errors of very many classes. Two kinds end the run: UserError, for settings and missing packages, and
    PROGRAMMING_ERRORS, for code that is wrong for any sample; readers that meet one of these for damaged data turn
    it into `UnreadableSample`. Mistakes of other classes fail all samples, and end the run at `data.max_bad_share`.
    """
    if isinstance(error, UnreadableSample):
        return error.name, error.reason
    if isinstance(error, UnfitSample):
        return name, str(error)
    if isinstance(error, (UserError, *PROGRAMMING_ERRORS)):
        raise error
    last = traceback.extract_tb(error.__traceback__)[-1]
    return name, f"{type(error).__name__}: {error} ({os.path.basename(last.filename)}:{last.lineno})"


def wrong_values(inputs: Mapping[str, Tensor], *, nan_is_missing: bool) -> str | None:
    """Return what is wrong: infinite values, any beyond LARGEST_INPUT, NaN that is not missing; None for nothing."""
    for name, x in inputs.items():
        if not x.is_floating_point() or not x.numel():
            continue
        low, high = torch.aminmax(x.nan_to_num(0.0, float("inf"), float("-inf")) if nan_is_missing else x)
        if not bool(low.isfinite() & high.isfinite()):
            return f"its {name} holds values that are {'infinite' if nan_is_missing else 'NaN or infinite'}"
        if max(-float(low), float(high)) > LARGEST_INPUT:
            return f"its {name} holds {max(float(low), float(high), key=abs):g}, which is beyond {LARGEST_INPUT:g}"
    return None


def load(
    make_batch: Callable[[Request], Batch],
    requests: Iterable[Request],
    *,
    bad: BadSamples,
    num_workers: int,
    prefetch_factor: int,
    pin_memory: bool,
) -> Iterator[Batch]:
    """The batches of the requests, in order, read in worker processes if there are any; reports what is under `bad`."""
    with _starting_workers():
        loader = DataLoader(
            _Batches(make_batch),
            sampler=requests,
            batch_size=None,
            num_workers=num_workers,
            prefetch_factor=prefetch_factor if num_workers else None,
            pin_memory=pin_memory,
            worker_init_fn=_start_worker,
            # A loader draws a seed for its workers, which nobody reads: not from the run's generator.
            generator=torch.Generator().manual_seed(0),
        )
        batches = iter(loader)
    try:
        while (batch := _next(batches, has_workers=num_workers > 0)) is not None:
            if isinstance(error := batch.get("error"), UserError):
                raise error
            if error is not None:
                error.reraise()
            bad.report(batch.pop("bad", {}))
            yield batch
    finally:
        # Ends the workers now. The traceback of an error would keep the iterator until garbage is collected;
        # should that happen in a worker forked later, it would close pipes there and hang.
        # Nor may torch's handler raise for a killed worker a second time, wherever this process is by then.
        getattr(batches, "_shutdown_workers", lambda: None)()
        del batches


def _next(batches: Iterator[Batch], *, has_workers: bool) -> Batch | None:
    """Return the next batch, None after the last. Raises DataError if a worker is gone while it hands over one."""
    try:
        return next(batches, None)
    except (ConnectionError, EOFError, FileNotFoundError) as error:
        if not has_workers or str(error).startswith("Caught "):  # by a worker that lives
            raise
        raise DataError(worker_gone(" was killed")) from error


class _Batches(Dataset):
    """Batches by their requests. Errors are raised by `load`.

    The loader would wrap them into a message with a traceback, which would keep the iterator, and so the workers.
    """

    def __init__(self, make_batch: Callable[[Request], Batch]) -> None:
        self.make_batch = make_batch

    def __getitem__(self, request: Request) -> Batch:
        try:
            return _shared(self.make_batch(request))
        except TooManyUnreadable as error:
            return {"bad": error.args[0]}
        except UserError as error:
            return {"error": error}
        except Exception:
            if get_worker_info() is None:
                raise
            return {"error": ExceptionWrapper(where="in a worker that reads data")}


def _shared(batch: Batch) -> Batch:
    """Return a worker's batch in shared memory; raises DataError without room, of which the loader would never hear."""
    if get_worker_info() is None:
        return batch
    try:
        return map_tensors(batch, Tensor.share_memory_)
    except RuntimeError as error:
        if not is_shared_memory_error(str(error)):
            raise
        raise DataError(NO_SHARED_MEMORY) from error


@contextlib.contextmanager
def _starting_workers() -> Iterator[None]:
    # Ctrl-C waits meanwhile. Workers inherit that, and so never take it from the main process.
    if not hasattr(signal, "pthread_sigmask"):  # Windows, where workers inherit nothing
        yield
        return
    before = signal.pthread_sigmask(signal.SIG_BLOCK, {signal.SIGINT})
    try:
        with warnings.catch_warnings():
            # More workers than cores can be right, where reading is slow and not decoding.
            warnings.filterwarnings("ignore", message="This DataLoader will create")
            yield
    finally:
        signal.pthread_sigmask(signal.SIG_SETMASK, before)


def _start_worker(worker: int) -> None:
    signal.signal(signal.SIGINT, signal.SIG_IGN)  # for workers that are not forked and inherit nothing
    signal.set_wakeup_fd(-1)  # a forked one has that of the main process, which counts the signals to stop
    torch.set_num_threads(1)
