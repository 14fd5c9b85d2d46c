"""Rank and world size of this process, from the environment variables of torchrun, SLURM or submitit."""

from __future__ import annotations

import contextlib
import os
import re
from collections.abc import Iterator, Mapping
from dataclasses import dataclass

import psutil

from jepa.utils.errors import UserError

SLURM_PORTS = range(20000, 30000)


@dataclass(frozen=True)
class Launch:
    """This process among those that were started together.

    rank: 0 .. world_size - 1. local_rank: its number on this machine. address, port: where rank 0 listens.
    by: the launcher, "torchrun", "SLURM" or "submitit" (on this machine); None for a single process.
    """

    rank: int = 0
    world_size: int = 1
    local_rank: int = 0
    address: str = "127.0.0.1"
    port: int = 29500
    by: str | None = None


def read_launch(environment: Mapping[str, str] | None = None) -> Launch:
    """Return the launch of an environment; os.environ for None.

    torchrun sets RANK and WORLD_SIZE. srun, and so submitit, sets SLURM_PROCID and the number of tasks of the step; a
    batch script is no step, and neither is what is typed into the shell of `srun --pty bash`: a single process unless
    MASTER_ADDR is set. The variables of submitit's local jobs come first, as these may run inside a SLURM job.

    Raises UserError for variables that contradict each other.
    """
    environment = os.environ if environment is None else environment
    is_step = "SLURM_STEP_ID" in environment or "MASTER_ADDR" in environment  # a batch script has SLURM_NTASKS too
    if "RANK" in environment and "WORLD_SIZE" in environment:
        names, by = ("RANK", "WORLD_SIZE", "LOCAL_RANK"), "torchrun"
    elif environment.get("SUBMITIT_EXECUTOR") == "local" and "SUBMITIT_LOCAL_GLOBALID" in environment:
        names, by = ("SUBMITIT_LOCAL_GLOBALID", "SUBMITIT_LOCAL_NTASKS", "SUBMITIT_LOCAL_LOCALID"), "submitit"
    elif "MASTER_ADDR" not in environment and _is_typed(environment):
        return Launch()
    elif "SLURM_STEP_NUM_TASKS" in environment:
        names, by = ("SLURM_PROCID", "SLURM_STEP_NUM_TASKS", "SLURM_LOCALID"), "SLURM"
    elif is_step and "SLURM_NTASKS" in environment and "SLURM_PROCID" in environment:
        names, by = ("SLURM_PROCID", "SLURM_NTASKS", "SLURM_LOCALID"), "SLURM"
    else:
        return Launch()
    try:
        rank, world_size, local_rank = (int(environment.get(name, "0")) for name in names)
        port = int(environment.get("MASTER_PORT", _port_of(environment)))
    except ValueError as error:
        raise UserError(f"the launcher's variables {', '.join(names)}, MASTER_PORT are no numbers: {error}") from error
    if not 0 <= rank < world_size:
        raise UserError(f"{names[0]}={rank} is not below {names[1]}={world_size}: start all processes alike")
    if world_size == 1:
        return Launch()
    nodes = environment.get("SLURM_STEP_NODELIST", environment.get("SLURM_JOB_NODELIST", "127.0.0.1"))
    address = environment.get("MASTER_ADDR", first_node(nodes) if by == "SLURM" else "127.0.0.1")
    return Launch(rank=rank, world_size=world_size, local_rank=local_rank, address=address, port=port, by=by)


def _is_typed(environment: Mapping[str, str]) -> bool:
    """Return whether this process was started from the shell of `srun --pty`, rather than by srun as a task.

    SLURM_TASK_PID is the shell then, which has a terminal; a task of an srun inside the shell has none.
    """
    task = environment.get("SLURM_TASK_PID", "")
    if "SLURM_PTY_PORT" not in environment or task == str(os.getpid()):
        return False
    try:
        return not task.isdigit() or psutil.Process(int(task)).terminal() is not None
    except (psutil.Error, AttributeError):  # of another machine or container; no terminals on Windows
        return True


def slurm_job_id(environment: Mapping[str, str] | None = None) -> str | None:
    """Return the id of this process's SLURM job, "17", or "17_3" in an array; None outside a job."""
    environment = os.environ if environment is None else environment
    if environment.get("SUBMITIT_EXECUTOR") == "local":
        return None
    array = [environment.get(name) for name in ("SLURM_ARRAY_JOB_ID", "SLURM_ARRAY_TASK_ID")]
    return environment.get("SLURM_JOB_ID") if None in array else "_".join(array)


@contextlib.contextmanager
def report_on_rank0() -> Iterator[None]:
    """A context in which all ranks raise the same UserErrors, before there is a group; rank 0 reports them."""
    try:
        yield
    except UserError as error:
        error.reported = read_launch().rank > 0
        raise


def _port_of(environment: Mapping[str, str]) -> int:
    """Return a port that is the same for all tasks of a step, and rarely that of another job on the machine."""
    job = "SUBMITIT_LOCAL_JOB_ID" if environment.get("SUBMITIT_EXECUTOR") == "local" else "SLURM_JOB_ID"
    job, step = (int(re.sub(r"\D", "", environment.get(name, "")) or 0) for name in (job, "SLURM_STEP_ID"))
    return SLURM_PORTS[(job * 7 + step) % len(SLURM_PORTS)]


def first_node(nodes: str) -> str:
    """Return the first host of a SLURM node list: "gpu[03-05,9],login" -> "gpu03"."""
    match = re.match(r"(?:[^,\[]|\[[^\]]*\])+", nodes)
    return re.sub(r"\[(\w+)[^\]]*\]", r"\1", match[0]) if match else nodes
