"""Processes that train together: joining them, agreeing, and sums over ranks that gradients pass through.

Without a process group everything here is that of a single process, and costs nothing.
"""

from __future__ import annotations

import atexit
import contextlib
import sys
from collections.abc import Callable, Iterator
from datetime import timedelta
from typing import Any, TypeVar

import torch
import torch.distributed as dist
from torch import Tensor

from jepa.distributed.failure import RankWatch
from jepa.distributed.launch import Launch, read_launch
from jepa.utils.errors import Interrupted, UserError

Value = TypeVar("Value")

TIMEOUT_SECONDS = 1800.0
JOIN_SECONDS = 300.0
"""How long the ranks that SLURM or submitit has started wait for the last of them."""

_watch: RankWatch | None = None
_alone = False


def is_distributed() -> bool:
    """Whether this process is one of several."""
    return dist.is_available() and dist.is_initialized() and not _alone


def get_rank() -> int:
    """Number of this process, from 0."""
    return dist.get_rank() if is_distributed() else 0


def get_world_size() -> int:
    """How many processes train together."""
    return dist.get_world_size() if is_distributed() else 1


def is_rank0() -> bool:
    """Whether this process is the one that writes."""
    return get_rank() == 0


def init_process_group(
    device: torch.device, backend: str | None = None, timeout_seconds: float = TIMEOUT_SECONDS
) -> Launch:
    """Join the processes that were started with this one; does nothing in a single process or a second time.

    backend: nccl or gloo; None takes nccl for CUDA and gloo elsewhere. Small things are always sent by gloo.
    timeout_seconds: how long one exchange may take before it counts as failed.

    Raises UserError when a backend cannot be used or the others do not come.
    """
    global _watch
    launch = read_launch()
    if launch.world_size == 1:
        return launch
    if dist.is_initialized():
        if _watch is not None and _watch.failed:
            _watch.next_job()
        return launch
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
    try:
        dist.init_process_group(
            backend="gloo" if backend == "gloo" else "cpu:gloo,cuda:nccl",
            store=_meet(launch) if launch.by in ("SLURM", "submitit") else None,  # torchrun's own otherwise
            rank=launch.rank,
            world_size=launch.world_size,
            timeout=timedelta(seconds=timeout_seconds),
            device_id=device if backend == "nccl" else None,
        )
    except (dist.DistError, RuntimeError, ValueError) as error:
        raise UserError(
            f"rank {launch.rank} of {launch.world_size} ({launch.by}) could not join the others at "
            f"{launch.address}:{launch.port} ({str(error).splitlines()[0]}): start all of them, and let them reach "
            "that address (MASTER_ADDR, MASTER_PORT)"
        ) from error
    atexit.register(destroy_process_group)
    _watch = RankWatch(dist.distributed_c10d._get_default_store(), launch.rank, launch.world_size)
    return launch


def _meet(launch: Launch) -> dist.Store:
    """The store of all ranks, once all of them have come."""
    return dist.TCPStore(
        launch.address,
        launch.port,
        launch.world_size,
        is_master=launch.rank == 0,
        timeout=timedelta(seconds=JOIN_SECONDS),
        wait_for_workers=True,
    )


def destroy_process_group() -> None:
    """Part from the other processes, once all have come to this point. Does nothing in a single process.

    A process that ends for an error does not wait for others, which may wait for it elsewhere.
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
    """A context whose failure the other ranks learn of, so that none waits for this one.

    An exchange that fails because another rank is gone becomes a OtherRankError that says why, where that is known.
    """
    try:
        yield
    except Interrupted as stop:
        if _watch is not None and not stop.agreed:
            _watch.failed = True  # nobody is waited for on leaving
        raise
    except BaseException as error:
        if _watch is None or _watch.failed:
            raise
        told = _watch.tell(error)
        if told is error:
            raise
        raise told from None


@contextlib.contextmanager
def no_collectives() -> Iterator[None]:
    """A context in which sums span this process only: all ranks compute the same thing."""
    global _alone
    before, _alone = _alone, True
    try:
        yield
    finally:
        _alone = before


@contextlib.contextmanager
def local_rank0_first() -> Iterator[None]:
    """A context that one process of each machine goes through before the others, such as to download data."""
    if not is_distributed():
        yield
        return
    first = read_launch().local_rank == 0
    if not first:
        dist.barrier()
    try:
        yield
    finally:
        if first:
            dist.barrier()


def broadcast_from_rank0(function: Callable[[], Value]) -> Value:
    """What the function gives on rank 0, on every rank; a UserError there is raised on every rank."""
    if not is_distributed():
        return function()
    content: list[Any] = [None]
    if is_rank0():
        try:
            content = [("value", function())]
        except UserError as error:
            content = [("error", (type(error), error.args))]
    dist.broadcast_object_list(content, src=0, device=torch.device("cpu"))
    kind, value = content[0]
    if kind == "error":
        raise value[0](*value[1])
    return value


def first_not_none_over_ranks(text: str | None) -> str | None:
    """What the first rank says that says anything, on every rank; None when none does."""
    if not is_distributed():
        return text
    flag = torch.tensor([text is not None], dtype=torch.uint8)
    dist.all_reduce(flag, op=dist.ReduceOp.MAX)
    if not flag.item():
        return None
    said: list[str | None] = [None] * get_world_size()
    dist.all_gather_object(said, text)
    return next(item for item in said if item is not None)


def all_reduce_max(values: Tensor) -> Tensor:
    """The largest value over ranks, entry by entry."""
    if is_distributed():
        dist.all_reduce(values, op=dist.ReduceOp.MAX)
    return values


def all_reduce_sum(values: Tensor) -> Tensor:
    """The sum over ranks, without gradient."""
    if is_distributed():
        dist.all_reduce(values)
    return values


class _SumOverRanks(torch.autograd.Function):
    """Sum forward, and of the gradients backward: each rank's value enters the loss of every rank."""

    @staticmethod
    def forward(context: Any, tensor: Tensor) -> Tensor:
        return all_reduce_sum(tensor.clone(memory_format=torch.contiguous_format))

    @staticmethod
    def backward(context: Any, gradient: Tensor) -> Tensor:
        return all_reduce_sum(gradient.clone(memory_format=torch.contiguous_format))


def all_reduce_sum_with_gradient(tensor: Tensor) -> Tensor:
    """The sum over ranks, the same on every rank, that gradients pass through.

    With the mean of gradients over ranks that DDP and FSDP take, parameters get the gradient of the mean of the ranks'
    losses: that of one process with the whole batch, where each rank's loss is a function of such sums.
    """
    return _SumOverRanks.apply(tensor) if is_distributed() else tensor


def mean_over_ranks(sums: Tensor, count: int) -> tuple[Tensor, Tensor | int]:
    """Sums over this rank's `count` samples -> the mean over the samples of all ranks, and how many these are."""
    if not is_distributed():
        return sums / count, count
    counted = all_reduce_sum_with_gradient(torch.cat([sums.flatten(), sums.new_tensor([count])]))
    return counted[:-1].view_as(sums) / counted[-1].detach(), counted[-1].detach()


def row_offset(count: int) -> tuple[int, int]:
    """Where this rank's `count` rows begin among the rows of all ranks, in order of rank, and how many those are."""
    if not is_distributed():
        return 0, count
    counts = torch.zeros(get_world_size(), dtype=torch.int64)
    counts[get_rank()] = count
    counts = all_reduce_sum(counts).tolist()
    return sum(counts[: get_rank()]), sum(counts)


def all_gather_rows(rows: Tensor, index: Tensor | None = None, *, place: tuple[int, int] | None = None) -> Tensor:
    """The rows of all ranks in order of rank, the same on every rank, that gradients pass through as in sum_over_ranks.

    rows: (n, ...), where n may differ between ranks. index: rows to pick, by their number among all, the same on every
    rank; these alone are exchanged. place: what `rows_over_ranks(n)` gives, where it is known.
    """
    if not is_distributed():
        return rows if index is None else rows[index]
    first, count = row_offset(len(rows)) if place is None else place
    index = torch.arange(count, device=rows.device) if index is None else index
    mine = (index >= first) & (index < first + len(rows))
    padded = torch.cat([rows, rows.new_zeros(1, *rows.shape[1:])])  # its last row stands for those of other ranks
    return all_reduce_sum_with_gradient(padded[torch.where(mine, index - first, len(rows))])
