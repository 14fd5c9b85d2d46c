"""The process group, and collectives over its ranks, some with gradients; without a group those of one process."""

from __future__ import annotations

import atexit
import contextlib
import sys
import threading
from collections.abc import Callable, Iterator
from datetime import timedelta
from typing import Any, TypeVar

import torch
import torch.distributed as dist
from torch import Tensor

from jepa.distributed.failure import RankWatch
from jepa.distributed.launch import Launch, read_launch
from jepa.utils.errors import Interrupted, UserError, first_line

Value = TypeVar("Value")

TIMEOUT_SECONDS = 1800.0  # of one collective
RENDEZVOUS_SECONDS = 300.0  # that ranks started by SLURM or submitit wait for each other
SAY_SECONDS = 5.0  # after which a rank says whom it waits for

_watch: RankWatch | None = None
_collectives_off = False


def is_distributed() -> bool:
    """Return whether this process is one of several, and not in `no_collectives`."""
    return dist.is_available() and dist.is_initialized() and not _collectives_off


def get_rank() -> int:
    """Return the number of this process, from 0; 0 for a single one."""
    return dist.get_rank() if is_distributed() else 0


def get_world_size() -> int:
    """Return the number of processes that train together, at least 1."""
    return dist.get_world_size() if is_distributed() else 1


def is_rank0() -> bool:
    """Return whether this process is the one that writes."""
    return get_rank() == 0


def init_process_group(
    device: torch.device, backend: str | None = None, timeout_seconds: float = TIMEOUT_SECONDS
) -> Launch:
    """Join the process group of this launch; does nothing in a single process or a second time.

    backend: nccl or gloo; None takes nccl for CUDA and gloo elsewhere. CPU tensors and objects always use gloo.

    Raises UserError when a backend cannot be used or the other ranks do not join.
    """
    global _watch
    launch = read_launch()
    if launch.world_size == 1:
        return launch
    if dist.is_initialized():
        if _watch is not None and _watch.failed:
            _watch.start_next_job()
        return launch
    backend = _checked_backend(backend, launch, device)
    store = None  # torchrun's own
    try:
        with saying_whom_it_waits_for(launch):
            if launch.by in ("SLURM", "submitit"):
                at, seconds = (launch.address, launch.port), timedelta(seconds=RENDEZVOUS_SECONDS)
                store = dist.TCPStore(*at, launch.world_size, is_master=launch.rank == 0, timeout=seconds)
            dist.init_process_group(
                backend="gloo" if backend == "gloo" else "cpu:gloo,cuda:nccl",
                store=store,
                rank=launch.rank,
                world_size=launch.world_size,
                timeout=timedelta(seconds=timeout_seconds),
                device_id=device if backend == "nccl" else None,
            )
    except (dist.DistError, RuntimeError, ValueError) as error:
        raise UserError(_why_not_joined(launch, error)) from error
    atexit.register(destroy_process_group)
    _watch = RankWatch(dist.distributed_c10d._get_default_store(), launch.rank, launch.world_size)
    return launch


def _checked_backend(backend: str | None, launch: Launch, device: torch.device) -> str:
    if backend not in (None, "nccl", "gloo"):
        raise UserError(f"trainer.backend={backend}: expected nccl, gloo or null (by the device)")
    backend = backend or ("nccl" if device.type == "cuda" else "gloo")
    if backend == "nccl" and (device.type != "cuda" or not dist.is_nccl_available()):
        raise UserError(f"trainer.backend=nccl needs CUDA, but the device is {device}: use trainer.backend=gloo")
    if backend == "nccl" and launch.by in ("torchrun", "submitit") and launch.local_rank >= torch.cuda.device_count():
        raise UserError(
            f"rank {launch.rank} is process {launch.local_rank + 1} of its machine, which has "
            f"{torch.cuda.device_count()} GPUs: start one process for each"
        )
    if device.type not in ("cpu", "cuda"):
        raise UserError(f"several processes cannot train on {device.type}: use trainer.device=cpu or cuda")
    return backend


def _why_not_joined(launch: Launch, error: Exception) -> str:
    if "EADDRINUSE" in str(error) or "address already in use" in str(error).lower():
        option = " (torchrun --master-port=<port>)" if launch.by == "torchrun" else ""
        return (
            f"port {launch.port} of {launch.address}, where the processes are to meet, is taken by another program: "
            f"set MASTER_PORT to a free one, the same for all of them{option}"
        )
    return (
        f"rank {launch.rank} of {launch.world_size} ({launch.by}) could not join the others at "
        f"{launch.address}:{launch.port} ({first_line(error)}): start all of them, and let them reach that address "
        "(MASTER_ADDR, MASTER_PORT)"
    )


@contextlib.contextmanager
def saying_whom_it_waits_for(launch: Launch) -> Iterator[None]:
    """A context that says after SAY_SECONDS which processes this one still waits for.

    For rank 0, and rank 1 in case there is no rank 0; torchrun waits for its processes itself.
    """
    others = f"the other {launch.world_size - 1} of {launch.world_size} processes" if launch.rank == 0 else "rank 0"
    text = (
        f"rank {launch.rank} waits at {launch.address}:{launch.port} for {others}, which {launch.by} is to start"
        + " (if this is a single process, unset SLURM_STEP_ID and SLURM_STEP_NUM_TASKS)" * (launch.by == "SLURM")
    )
    timer = threading.Timer(SAY_SECONDS, lambda: print(text, file=sys.stderr, flush=True))
    timer.daemon = True
    if launch.rank < 2 and launch.by != "torchrun":
        timer.start()
    try:
        yield
    finally:
        timer.cancel()


def destroy_process_group() -> None:
    """Leave the process group, after a barrier. Does nothing in a single process.

    There is no barrier after an error, as other ranks may wait for this one elsewhere.
    """
    global _watch
    if not dist.is_initialized():
        return
    if _watch is not None and not _watch.failed and getattr(sys, "last_value", None) is None:
        dist.barrier()
        _watch.close()
        dist.destroy_process_group()
    _watch = None


@contextlib.contextmanager
def propagate_failure() -> Iterator[None]:
    """A context that reports its failure to the other ranks, so that none waits for this one.

    A collective that fails because another rank is gone becomes an OtherRankError with that rank's reason, if known.
    """
    try:
        yield
    except Interrupted as stop:
        if _watch is not None and not stop.agreed:
            _watch.failed = True  # no barrier at the end
        raise
    except BaseException as error:
        if _watch is None or _watch.failed:
            raise
        cause = _watch.report(error)
        if cause is error:
            raise
        raise cause from None


@contextlib.contextmanager
def no_collectives() -> Iterator[None]:
    """A context in which collectives span this process only, for what all ranks compute alike."""
    global _collectives_off
    before, _collectives_off = _collectives_off, True
    try:
        yield
    finally:
        _collectives_off = before


@contextlib.contextmanager
def local_rank0_first() -> Iterator[None]:
    """A context that the first process of each machine runs before the others, such as to download data."""
    is_several, is_first = is_distributed(), read_launch().local_rank == 0
    if is_several and not is_first:
        dist.barrier()
    try:
        yield
    finally:
        if is_several and is_first:
            dist.barrier()


def broadcast_from_rank0(function: Callable[[], Value]) -> Value:
    """Return rank 0's result of the function on every rank; a UserError of rank 0 is raised on every rank."""
    if not is_distributed():
        return function()
    content: list[Any] = [None, None]  # value, error
    if is_rank0():
        try:
            content[0] = function()
        except UserError as error:
            content[1] = type(error), error.args
    dist.broadcast_object_list(content, src=0, device=torch.device("cpu"))
    value, error = content
    if error is not None:
        raise error[0](*error[1])
    return value


def first_not_none_over_ranks(text: str | None) -> str | None:
    """Return the text of the first rank whose text is not None, on every rank; None without any."""
    if not is_distributed():
        return text
    flag = torch.tensor([text is not None], dtype=torch.uint8)
    dist.all_reduce(flag, op=dist.ReduceOp.MAX)
    if not flag.item():
        return None
    texts: list[str | None] = [None] * get_world_size()
    dist.all_gather_object(texts, text)
    return next(item for item in texts if item is not None)


def all_reduce_max(values: Tensor) -> Tensor:
    """Return the elementwise maximum over ranks, in place."""
    if is_distributed():
        dist.all_reduce(values, op=dist.ReduceOp.MAX)
    return values


def all_reduce_sum(values: Tensor) -> Tensor:
    """Return the sum over ranks, in place, without gradient."""
    if is_distributed():
        dist.all_reduce(values)
    return values


class _SumOverRanks(torch.autograd.Function):
    """The sum over ranks, forward and of gradients: each rank's value is part of every rank's loss."""

    @staticmethod
    def forward(context: Any, tensor: Tensor) -> Tensor:
        return all_reduce_sum(tensor.clone(memory_format=torch.contiguous_format))

    @staticmethod
    def backward(context: Any, gradient: Tensor) -> Tensor:
        return all_reduce_sum(gradient.clone(memory_format=torch.contiguous_format))


def all_reduce_sum_with_gradient(tensor: Tensor) -> Tensor:
    """Return the sum over ranks, with gradient.

    As DDP and FSDP average gradients over ranks, parameters get the gradient of the mean of the ranks' losses: that of
    one process with the whole batch, where each rank's loss is a function of such sums.
    """
    return _SumOverRanks.apply(tensor) if is_distributed() else tensor


def mean_over_ranks(sums: Tensor, count: int) -> tuple[Tensor, Tensor | int]:
    """Return the mean over the samples of all ranks, and their number, of sums over this rank's `count` samples."""
    if not is_distributed():
        return sums / count, count
    total = all_reduce_sum_with_gradient(torch.cat([sums.flatten(), sums.new_full((1,), count)]))
    return total[:-1].view_as(sums) / total[-1].detach(), total[-1].detach()


def row_offset(count: int) -> tuple[int, int]:
    """Return the index of the first of this rank's `count` rows among those of all ranks, and their total."""
    if not is_distributed():
        return 0, count
    counts = torch.zeros(get_world_size(), dtype=torch.int64)
    counts[get_rank()] = count
    counts = all_reduce_sum(counts).tolist()
    return sum(counts[: get_rank()]), sum(counts)


def all_gather_rows(rows: Tensor, index: Tensor | None = None, *, offset: tuple[int, int] | None = None) -> Tensor:
    """Return the rows of all ranks in order of rank, with gradient as `all_reduce_sum_with_gradient`.

    rows: (n, ...), where n may differ between ranks. index: numbers of the rows to return, among those of all ranks and
    the same on every rank; only these are exchanged. offset: the result of `row_offset(n)`, if known.
    """
    if not is_distributed():
        return rows if index is None else rows[index]
    first, count = row_offset(len(rows)) if offset is None else offset
    index = torch.arange(count, device=rows.device) if index is None else index
    own = (index >= first) & (index < first + len(rows))
    padded = torch.cat([rows, rows.new_zeros(1, *rows.shape[1:])])  # zeros for rows of other ranks
    return all_reduce_sum_with_gradient(padded[torch.where(own, index - first, len(rows))])
